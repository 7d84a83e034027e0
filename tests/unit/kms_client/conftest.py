"""An AttestedKms beside the server that it talks to."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from casemate import limits
from tests.support.kms_bench import Bench, bench_for
from tests.support.kms_endpoint import HOST

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _loggers() -> Iterator[None]:
    """Give botocore its voice back for the tests of other packages."""
    loggers = logging.root.manager.loggerDict
    before = {n: v.disabled for n, v in loggers.items() if isinstance(v, logging.Logger)}
    botocore = logging.getLogger("botocore")
    level, propagate, disabled = botocore.level, botocore.propagate, botocore.disabled
    yield
    for name, value in loggers.items():
        if isinstance(value, logging.Logger) and name.startswith("botocore."):
            value.disabled = before.get(name, False)
    botocore.level, botocore.propagate, botocore.disabled = level, propagate, disabled


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No attempt is given up because the machine is slow."""
    monkeypatch.setattr(limits, "KMS_TIMEOUT_S", 60.0)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with bench_for(HOST) as made:
        yield made


@pytest.fixture
def misnamed() -> Iterator[Bench]:
    """The right CA, but a certificate for another host."""
    with bench_for("kms.eu-west-1.amazonaws.com") as made:
        yield made
