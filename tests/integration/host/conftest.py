"""A host over a real gRPC channel, before an enclave that answers, stalls and dies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from casemate import limits
from tests.support.fake_enclave import new_chain
from tests.support.host_bench import running, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.fake_enclave import FakeEnclave
    from tests.support.host_bench import Bench
    from tests.support.nitro_pki import Chain


@pytest.fixture(scope="session")
def chain() -> Chain:
    return new_chain()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "HEALTH_PERIOD_S", 0.2)


@pytest.fixture
def enclave(short_path: Path, chain: Chain) -> Iterator[FakeEnclave]:
    with running(short_path, chain) as started:
        yield started


@pytest.fixture
def bench(short_path: Path, chain: Chain, enclave: FakeEnclave) -> Iterator[Bench]:
    with serving(short_path, chain) as made:
        yield made
