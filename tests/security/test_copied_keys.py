"""C13: whoever copies another's wrapped key costs its owner nothing."""

from __future__ import annotations

import dataclasses
import threading
from typing import TYPE_CHECKING

import pytest

from casemate import limits
from casemate.envelope.header import parse_request_header
from casemate.envelope.sealed_message import encode_sealed
from casemate.errors import CasemateError, Code
from casemate.frames import FrameType
from casemate_enclave.unwraps import SingleFlight, _Flight
from tests.support.attacker import eventually
from tests.support.enclave_bench import ANSWER, Bench, FakeKms, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from casemate.envelope.sealing import SealedCall


class SlowKms(FakeKms):
    """Takes its time, so that requests meet: until so many wait for what another asks."""

    meet = 0
    met = 0

    def decrypt(
        self, *, key_arn: str, ciphertext_blob: bytes, context: Mapping[str, str], deadline: float
    ) -> bytes:
        assert eventually(lambda: self.met >= self.meet)
        return super().decrypt(
            key_arn=key_arn, ciphertext_blob=ciphertext_blob, context=context, deadline=deadline
        )


@pytest.fixture
def kms(monkeypatch: pytest.MonkeyPatch) -> SlowKms:
    made, board, lock = SlowKms(), SingleFlight._board, threading.Lock()

    def counted(flights: SingleFlight, key: bytes, deadline: float) -> tuple[_Flight, bool]:
        flight, mine = board(flights, key, deadline)
        with lock:
            made.met += not mine
        return flight, mine

    monkeypatch.setattr(SingleFlight, "_board", counted)
    return made


@pytest.fixture
def bench(kms: SlowKms) -> Iterator[Bench]:
    with Bench(kms=kms) as made:
        made.serve()
        yield made


def copied(call: SealedCall, commitment: bytes) -> bytes:
    """The owner's request under another commitment, as anybody who saw it can make it."""
    header = parse_request_header(call.header)
    forged = dataclasses.replace(header, key_commitment=commitment).encode()
    return b"".join(encode_sealed(forged, call.ciphertext))


def code(bench: Bench, request: bytes) -> Code:
    try:
        bench.ask(FrameType.REQUEST, request)
    except CasemateError as refused:
        return refused.code
    return Code.OK


def test_c13_copies_of_a_live_wrapped_key_cost_its_owner_no_release(bench: Bench) -> None:
    owner = bench.kms_session()
    assert rows_of(bench.infer(owner)) == ANSWER
    asked = bench.kms.calls
    call = owner.seal(model="linear", version=None, digest=None, message=b"\x00")
    for number in range(limits.RELEASES_BURST + 50):  # more than one KMS key is asked at once
        assert code(bench, copied(call, number.to_bytes(32, "big"))) is Code.OPEN_FAILED
    assert bench.kms.calls == asked
    assert rows_of(bench.infer(owner)) == ANSWER
    assert rows_of(bench.infer(bench.kms_session())) == ANSWER  # and the owner's next key


def test_c13_copies_that_arrive_with_the_owners_first_request_share_its_release_and_fail_alone(
    bench: Bench, kms: SlowKms
) -> None:
    owner = bench.kms_session()
    call = owner.seal(model="linear", version=None, digest=None, message=b"\x00")
    asked, kms.met, kms.meet = kms.calls, 0, 8
    codes: list[Code] = []

    def copy(number: int) -> None:
        codes.append(code(bench, copied(call, bytes([number]) * 32)))

    threads = [threading.Thread(target=copy, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    assert eventually(lambda: kms.met >= 1)
    assert rows_of(bench.infer(owner)) == ANSWER  # it joined a thief's flight
    for thread in threads:
        thread.join()
    assert codes == [Code.OPEN_FAILED] * 8
    assert kms.calls == asked + 1
