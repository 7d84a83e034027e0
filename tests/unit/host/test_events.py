"""What the host's log may and may not hold."""

from __future__ import annotations

import io
import json
import logging
import os
from typing import TYPE_CHECKING

import pytest
import structlog

from casemate.errors import Code
from casemate_host.events import Traffic, configure_logging, describe, log, size_bucket

if TYPE_CHECKING:
    from collections.abc import Iterator

PLANTED = "planted-secret"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    made = io.StringIO()
    configure_logging(made)
    yield made
    structlog.reset_defaults()
    root.handlers[:], root.level = handlers, level


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_events_are_json_lines(stream: io.StringIO) -> None:
    log.info("serving", models=["wdbc"])
    (event,) = lines(stream)
    assert event.pop("timestamp")
    assert event == {"event": "serving", "level": "info", "models": ["wdbc"]}


def test_exceptions_show_no_locals(stream: io.StringIO) -> None:
    def fails(tensor: str) -> None:
        local = tensor * 2
        raise ValueError(len(local))

    try:
        fails(PLANTED)
    except ValueError:
        log.exception("failed")
    assert "ValueError" in stream.getvalue()
    assert PLANTED not in stream.getvalue()


def test_foreign_texts_stay_out(stream: io.StringIO) -> None:
    logging.getLogger("grpc").warning("cannot parse %s", PLANTED)
    try:
        os.environ[PLANTED]
    except KeyError as error:
        log.error("internal_error", **describe(error))
    library, internal = lines(stream)
    assert library["logger"] == "grpc"
    assert internal["error"] == "KeyError"
    assert PLANTED not in stream.getvalue()


def test_own_warnings_keep_their_text(stream: io.StringIO) -> None:
    logging.getLogger("casemate.attestation.verify").warning("allow_debug: accepted")
    assert lines(stream)[0]["detail"] == "allow_debug: accepted"


@pytest.mark.parametrize(
    ("size", "bucket"),
    [(0, 1024), (1, 1024), (1024, 1024), (1025, 2048), (600_000, 1 << 20), (1 << 26, 1 << 26)],
)
def test_sizes_are_rounded_up(size: int, bucket: int) -> None:
    assert size_bucket(size) == bucket


def test_traffic_is_counted_and_reset(stream: io.StringIO) -> None:
    traffic = Traffic()
    traffic.report()
    traffic.answered("Infer", 1000)
    traffic.answered("Infer", 1001)
    traffic.refused("Infer", Code.OVERLOADED)
    traffic.report()
    traffic.report()
    (event,) = lines(stream)
    assert event["answered"] == {"Infer": 2}
    assert event["refused"] == {"Infer OVERLOADED": 1}
    assert event["request_bytes"] == {"1024": 2}
