"""A53: what was valid once - a wrapped key, a file, a configuration - is shown again.

Nothing is stored inside, so the only memory is the measured configuration and the device's time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from casemate import wire
from casemate.attestation import Configuration, verify_evidence
from casemate.attestation.evidence import EvidenceBundle
from casemate.errors import CasemateError, Code
from casemate.frames import FrameType
from casemate.sealed_model.header import MAGIC, ModelHeader
from tests.support.enclave_bench import ANSWER, Bench, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def bench() -> Iterator[Bench]:
    """An enclave whose configuration demands version 2 of the model."""
    with Bench() as made:
        made.configure()
        yield made


def refusal(act: Callable[[], object]) -> Code:
    with pytest.raises(CasemateError) as refused:
        act()
    return refused.value.code


def with_wrapped_key(sealed: bytes, wrapped_key: bytes) -> bytes:
    """The same file, its header naming another wrapped key; the signature stays."""
    at = len(MAGIC) + 4
    length = int.from_bytes(sealed[len(MAGIC) : at], "big")
    header = ModelHeader.parse(sealed[at : at + length])
    changed = replace(header, wrapped_key=wrapped_key).encode()
    return MAGIC + wire.lp(changed) + sealed[at + length :]


def test_a53_an_older_version_is_refused_though_kms_would_release_its_key(bench: Bench) -> None:
    older, _ = bench.sealed(version=1)
    asked = bench.kms.calls
    assert refusal(lambda: bench.load(older)) is Code.MODEL_VERSION_REVOKED
    assert bench.kms.calls == asked  # no key is asked for
    bench.serve(version=2)


def test_a53_an_older_wrapped_key_in_a_newer_file_is_refused(bench: Bench) -> None:
    _, older = bench.sealed(version=1)
    newer, _ = bench.sealed(version=2)
    asked = bench.kms.calls
    rolled = with_wrapped_key(newer, older.wrapped_key)
    assert refusal(lambda: bench.load(rolled)) is Code.MODEL_SIGNATURE_INVALID
    assert bench.kms.calls == asked
    bench.load(newer)


def test_a53_an_older_wrapped_key_that_kms_puts_in_the_newers_place_opens_nothing(
    bench: Bench,
) -> None:
    """The publisher signed both files: the key that comes back is of the older one."""
    older, old_header = bench.sealed(version=2)
    newer, new_header = bench.sealed(version=3)
    for name, key in list(bench.kms.keys.items()):
        if name[1] == old_header.wrapped_key:
            bench.kms.keys[name[0], new_header.wrapped_key, name[2]] = key
    assert refusal(lambda: bench.load(newer)) is Code.MODEL_OPEN_FAILED
    bench.load(older)


def test_a53_a_session_key_of_an_earlier_life_is_refused(bench: Bench) -> None:
    bench.serve()
    session = bench.kms_session()
    kept = session.seal(model="linear", version=None, digest=None, message=b"\x00")
    assert rows_of(bench.infer(session)) == ANSWER
    with Bench(publisher=bench.publisher, kms=bench.kms) as next_life:
        next_life.serve()
        asked = next_life.kms.calls
        assert refusal(lambda: next_life.send(kept)) is Code.STALE_SESSION
        assert next_life.kms.calls == asked
        assert rows_of(next_life.infer(next_life.kms_session())) == ANSWER


def test_a53_the_minimum_itself_cannot_be_rolled_back(bench: Bench) -> None:
    """A configuration that was valid before the minimum was raised: the register tells."""
    older = replace(Configuration.parse(bench.configuration), minimum_versions={}).encode()
    with Bench(publisher=bench.publisher, kms=bench.kms) as rolled:
        rolled.ask(FrameType.CONFIGURE, older)
        sealed, _ = rolled.sealed(version=1)
        rolled.load(sealed)  # this enclave takes it, and so nobody takes this enclave
        nonce = b"n" * 32
        evidence = EvidenceBundle.parse(rolled.ask(FrameType.EVIDENCE, nonce))
        now = int(rolled.clock() * 1000)
        verified = lambda: verify_evidence(evidence, bench.policy, nonce=nonce, now=now)  # noqa: E731
        assert refusal(verified) is Code.EVIDENCE_CONFIGURATION
