"""What a launcher passes on of a dying enclave, and when it tries again."""

import io
import json

import pytest

from casemate_devkit.supervision import EventRelay, RestartPause, describe_end, read_event


def test_pauses_grow_to_half_a_minute() -> None:
    pause = RestartPause()
    assert [pause.after(0.1, 1) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]


def test_a_minute_of_life_makes_the_pause_short_again() -> None:
    pause = RestartPause()
    assert [pause.after(lived, 1) for lived in (1, 59.9, 60, 1, 3600)] == [1, 2, 1, 2, 1]


def test_the_orderly_end_of_a_life_needs_no_pause() -> None:
    pause = RestartPause()
    assert [pause.after(1, status) for status in (0, -9, 0, -9, 0)] == [0, 1, 0, 2, 0]


EVENTS = [
    {"event": "STARTED", "count": 7},
    {"event": "MODEL_REFUSED", "code": "MODEL_REJECTED"},
    {"event": "STOPPED"},
]


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_is_passed_on(event: dict[str, object]) -> None:
    assert read_event(json.dumps(event).encode()) == event


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"Fatal Python error: Segmentation fault\n",
        b"[1]",
        b"null",
        b'"STARTED"',
        b'{"event": "secret"}',
        b'{"event": ["STARTED"]}',
        b'{"event": "STARTED", "code": "secret"}',
        b'{"event": "STARTED", "count": "secret"}',
        b'{"event": "STARTED", "count": "7"}',
        b'{"event": "STARTED", "count": 7.5}',
        b'{"event": "STARTED", "count": 1e999}',
        b'{"event": "STARTED", "count": 4294967296}',
        b'{"event": "STARTED", "count": -1}',
        b'{"event": "STARTED", "more": "secret"}',
        b'{"event": "STARTED"} secret',
        b'{"event": "STARTED", "event": "secret"}',
        b"[" * 500,
        b"\xff\xfe",
    ],
)
def test_whatever_else_an_enclave_writes_is_withheld(line: bytes) -> None:
    assert read_event(line) is None


def test_the_relay_remembers_the_last_event_and_counts_what_it_withholds() -> None:
    sink = io.StringIO()
    with EventRelay(sink) as relay:
        relay.stream.write(b"planted-secret\n" + b"s" * 5000 + b"\n")
        relay.stream.write(b'{"event": "FAILED", "code": "UNAVAILABLE"}\n{"event": "STAR')
    assert relay.last == "FAILED (UNAVAILABLE)"
    assert relay.withheld > 3
    assert sink.getvalue() == '{"event": "FAILED", "code": "UNAVAILABLE"}\n'


def test_ends_have_names() -> None:
    assert [describe_end(status) for status in (0, 7, -9, -11, -99)] == [
        *("status 0", "status 7", "signal SIGKILL", "signal SIGSEGV", "signal 99"),
    ]
