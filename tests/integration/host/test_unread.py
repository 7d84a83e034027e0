"""Answers that their callers do not read count against them, and end (THREATS C3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import grpc
import pytest

from casemate import limits
from casemate.errors import Code
from tests.integration.host.test_callers import CLINIC, LAB, infer, known
from tests.support.host_bench import OPTIONS, SERVICE, Bench, eventually, reason, serving

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.fake_enclave import FakeEnclave
    from tests.support.nitro_pki import Chain

pytestmark = pytest.mark.integration
CALLERS = known("flood", LAB, "concurrent = 3") + known("clinic", CLINIC)
LARGE = bytes(limits.MIB)  # the answer repeats it: more than a connection takes unread


class Idler:
    """Asks, and does not take the answers: it asks gRPC for them only when told to."""

    def __init__(self, bench: Bench) -> None:
        # Otherwise gRPC would take megabytes that nobody asked it for.
        options = [*OPTIONS, ("grpc.http2.bdp_probe", 0)]
        self._channel: Any = grpc.insecure_channel(bench.address, options)

    def ask(self, token: str) -> Any:  # noqa: ANN401 - grpc's
        call = self._channel.stream_stream(SERVICE + "Infer")
        metadata = [("authorization", f"Bearer {token}")]
        return call(iter([LARGE]), timeout=110, metadata=metadata)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()


def ask(bench: Bench, token: str) -> str | None:
    return reason(lambda: infer(bench, b"x", token))


def count(bench: Bench) -> int:
    return sum(answers.count for answers in bench.host._front._patience._unread)


def test_c3_unread_answers_keep_their_caller_out_and_nobody_else(
    short_path: Path, chain: Chain, enclave: FakeEnclave, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "UNREAD_BYTES", 2 * limits.MIB)
    with serving(short_path, chain, "unary = 8", CALLERS) as bench, Idler(bench) as idler:
        calls = [idler.ask(LAB) for _ in range(2)]
        eventually(lambda: count(bench) == 2 and bench.host._front.unary.taken == 0)
        assert ask(bench, LAB) == Code.OVERLOADED
        assert ask(bench, CLINIC) is None
        assert next(calls[0]) == LARGE
        eventually(lambda: count(bench) == 1)
        assert ask(bench, LAB) is None
        calls[1].cancel()
        eventually(lambda: count(bench) == 0)


def test_c3_unread_answers_are_bounded_in_number(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    """However short: of a caller with three calls at a time eight."""
    with serving(short_path, chain, "unary = 8", CALLERS) as bench, Idler(bench) as idler:
        calls = [idler.ask(LAB) for _ in range(3)]
        while len(calls) < limits.UNREAD_LEAST:
            eventually(lambda: count(bench) == len(calls) and bench.host._front.unary.taken == 0)
            calls.append(idler.ask(LAB))
        eventually(lambda: count(bench) == limits.UNREAD_LEAST)
        assert ask(bench, LAB) == Code.OVERLOADED
        for call in calls:
            call.cancel()
        eventually(lambda: count(bench) == 0)
        assert ask(bench, LAB) is None


def test_c3_an_answer_has_a_time_in_which_to_be_read(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    front = "unary = 8\nreceive_seconds = 1"
    with serving(short_path, chain, front, CALLERS) as bench, Idler(bench) as idler:
        call = idler.ask(LAB)
        eventually(lambda: count(bench) == 1)
        eventually(lambda: count(bench) == 0)
        with pytest.raises(grpc.RpcError) as raised:
            next(call)
        assert raised.value.code() is grpc.StatusCode.CANCELLED


def test_one_call_at_a_time_may_follow_the_other_at_once(
    short_path: Path, chain: Chain, enclave: FakeEnclave
) -> None:
    """Whoever has read an answer has its place again, also where the host hears of it later."""
    callers = known("alone", LAB, "concurrent = 1")
    with serving(short_path, chain, "", callers) as bench:
        for _ in range(500):
            assert infer(bench, b"x", LAB) == b"x"
        for _ in range(10):
            assert infer(bench, LARGE, LAB) == LARGE
