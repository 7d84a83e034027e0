"""A request and its answer, from both sides."""

from __future__ import annotations

import struct
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias
from unittest.mock import MagicMock

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from casemate import limits, wire
from casemate.envelope import opening, units
from casemate.envelope.chunks import (
    SEALED_CHUNK,
    TAG_BYTES,
    BrokenSealError,
    ChunkCipher,
    open_content,
    seal_content,
)
from casemate.envelope.failure import answer_open_failed, open_failed
from casemate.envelope.header import parse_request_header
from casemate.envelope.messages import Trailer
from casemate.envelope.padding import padded_answer, padme
from casemate.envelope.units import split_response
from casemate.errors import Code, EnvelopeError
from tests.support import envelope as env

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.envelope.header import RequestHeader
    from casemate.envelope.messages import Preamble
    from casemate.envelope.sealing import DataKeySession, SealedCall

CALLER = Ed25519PrivateKey.from_private_bytes(bytes(32))
RECEIPTED = env.ANSWERED._replace(
    receipt=b"r" * 471, question_blinder=b"q" * 32, answer_blinder=b"a" * 32
)
each_mode = pytest.mark.parametrize("start", env.SESSIONS.values(), ids=env.SESSIONS)
Start: TypeAlias = "Callable[[Ed25519PrivateKey | None], DataKeySession]"


@each_mode
@pytest.mark.parametrize("caller", [None, CALLER], ids=["anonymous", "caller"])
def test_a_question_and_its_answer(start: Start, caller: Ed25519PrivateKey | None) -> None:
    call = start(caller).seal(model="wdbc", version=7, digest=b"d" * 48, message=b"a question")
    opened = env.open_sealed(call.header, call.ciphertext)
    assert bytes(opened.message) == b"a question"
    assert (opened.preamble.model, opened.preamble.version) == ("wdbc", 7)
    assert opened.preamble.digest == b"d" * 48
    caller_key = opening.verify_caller(parse_request_header(call.header), opened.preamble)
    assert caller_key == (caller and caller.public_key().public_bytes_raw())
    answer = env.answer(opened)
    received = call.open(answer.header, answer.ciphertext)
    assert bytes(received.message or b"") == b"an answer"
    assert received.trailer == env.ANSWERED
    assert received.instance_digest == env.INSTANCE_DIGEST


def test_a_refusal_has_no_message() -> None:
    call = env.seal(env.hpke_session())
    answer = env.answer(env.open_sealed(call.header, call.ciphertext), None, env.REFUSED)
    received = call.open(answer.header, answer.ciphertext)
    assert (received.message, received.trailer) == (None, env.REFUSED)


def test_every_request_has_its_own_header_and_every_answer_its_own_key() -> None:
    session = env.hpke_session()
    calls = [env.seal(session, b"the same") for _ in range(3)]
    headers = [parse_request_header(call.header) for call in calls]
    assert [header.sequence for header in headers] == [0, 1, 2]
    assert len({header.request_id for header in headers}) == 3
    assert len({bytes(call.ciphertext) for call in calls}) == 3
    opened = env.open_sealed(calls[0].header, calls[0].ciphertext)
    answers = [env.answer(opened) for _ in range(2)]
    assert answers[0].header != answers[1].header
    assert answers[0].ciphertext != answers[1].ciphertext


def test_answers_are_padded_to_the_models_bucket() -> None:
    call = env.seal(env.hpke_session())
    opened = env.open_sealed(call.header, call.ciphertext)
    lengths = {
        len(env.answer(opened, message, floor=5000).ciphertext)
        for message in (b"x", b"x" * 1000, b"x" * 4996)
    }
    wordy = env.REFUSED._replace(detail="x" * 512)
    lengths |= {
        len(env.answer(opened, None, said, 5000).ciphertext) for said in (env.REFUSED, wordy)
    }
    lengths.add(len(env.answer(opened, b"x", RECEIPTED, 5000).ciphertext))
    assert lengths == {padme(5000 + 1024) + 16}
    long = env.answer(opened, b"x" * 9000, floor=5000)
    assert bytes(call.open(long.header, long.ciphertext).message or b"") == b"x" * 9000


def test_a_message_goes_with_ok_and_only_with_it() -> None:
    call = env.seal(env.hpke_session())
    opened = env.open_sealed(call.header, call.ciphertext)
    for message, trailer in ((None, env.ANSWERED), (b"leak", env.REFUSED)):
        with pytest.raises(ValueError, match="status OK"):
            env.answer(opened, message, trailer)


def forged_answer(call_key: opening.OpenedRequest, parts: tuple[bytes, ...]) -> env.Answer:
    header = b"\x01" + bytes(32) + env.INSTANCE_DIGEST
    rh = wire.digest(header)
    unit = units.pack_response(parts[0] if parts[1:] else None, parts[-1], 0)
    sealed = seal_content(call_key.response_key(rh), rh, unit)
    return env.Answer(header, sealed)


@pytest.mark.parametrize(
    "parts",
    [
        (env.ANSWERED.encode(),),
        (b"message", env.REFUSED.encode()),
        (b"message", b"no trailer"),
        (env.ANSWERED.encode(), b"message"),
    ],
)
def test_a_message_that_does_not_go_with_its_trailer_is_refused(parts: tuple[bytes, ...]) -> None:
    call = env.seal(env.hpke_session())
    answer = forged_answer(env.open_sealed(call.header, call.ciphertext), parts)
    with pytest.raises(EnvelopeError) as caught:
        call.open(answer.header, answer.ciphertext)
    assert str(caught.value) == str(answer_open_failed())


def test_another_instance_than_the_sessions_is_refused() -> None:
    call = env.seal(env.hpke_session())
    opened = env.open_sealed(call.header, call.ciphertext)
    header, ciphertext = opening.seal_response(
        opened, instance_digest=b"o" * 48, messages=[b"x"], trailer=env.ANSWERED, floor=0
    )
    with pytest.raises(EnvelopeError) as caught:
        call.open(header, ciphertext)
    assert caught.value.code == Code.ANSWER_INSTANCE_UNKNOWN


def test_what_was_prepared_is_for_one_answer() -> None:
    """A second answer to a request, as after a failed first one, has a key of its own."""
    call = env.seal(env.hpke_session())
    opened = env.open_sealed(call.header, call.ciphertext)
    opened.prepare(env.INSTANCE_DIGEST)
    answers = [env.answer(opened, message) for message in (b"one", b"two", b"three")]
    assert len({answer.header for answer in answers}) == 3
    for answer, message in zip(answers, (b"one", b"two", b"three"), strict=True):
        assert bytes(call.open(answer.header, answer.ciphertext).message or b"") == message


def test_every_session_has_a_data_key_of_its_own() -> None:
    commitments = {
        parse_request_header(env.seal(env.hpke_session()).header).key_commitment for _ in range(3)
    }
    commitments.add(wire.expand(wire.extract(bytes(32)), "commit"))
    assert len(commitments) == 4


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_commitment_to_a_key_of_another_length(length: int) -> None:
    header = parse_request_header(env.seal(env.kms_session()).header)
    key = bytes(length)
    committed = replace(header, key_commitment=wire.expand(wire.extract(key), "commit"))
    with pytest.raises(EnvelopeError) as caught:
        opening.check_commitment(committed, key)
    assert str(caught.value) == str(open_failed())


@pytest.mark.parametrize("asked", [True, False])
def test_a_receipt_comes_if_and_only_if_it_was_asked_for(asked: bool) -> None:
    session = env.hpke_session()
    call = session.seal(model="wdbc", version=7, digest=None, message=b"question", receipt=asked)
    opened = env.open_sealed(call.header, call.ciphertext)
    assert opened.preamble.receipt is asked
    right, wrong = (RECEIPTED, env.ANSWERED) if asked else (env.ANSWERED, RECEIPTED)
    answer = env.answer(opened, b"x", right)
    assert call.open(answer.header, answer.ciphertext).trailer == right
    answer = env.answer(opened, b"x", wrong)
    with pytest.raises(EnvelopeError) as caught:
        call.open(answer.header, answer.ciphertext)
    assert str(caught.value) == str(answer_open_failed())
    answer = env.answer(opened, None, env.REFUSED)
    assert call.open(answer.header, answer.ciphertext).trailer == env.REFUSED


def test_no_trailer_is_larger_than_its_room() -> None:
    assert units.pack_response(None, b"t" * limits.TRAILER_MAX, 0)
    with pytest.raises(ValueError, match="room"):
        units.pack_response(None, b"t" * (limits.TRAILER_MAX + 1), 0)


def test_no_part_of_a_unit_is_empty() -> None:
    for parts in ((b"",), (b"preamble", b""), (b"", b"message")):
        with pytest.raises(ValueError, match="empty"):
            units.pack_unit(parts)


@pytest.mark.parametrize("lengths", [(0, 7), (7, 0), (0, 0), (1 << 32) - 1, 1020])
def test_a_request_has_two_parts(lengths: tuple[int, int] | int) -> None:
    if isinstance(lengths, int):  # one, that passes the end or leaves no room for another
        unit = struct.pack(">I", lengths) + bytes(1020)
    else:
        unit = b"".join(struct.pack(">I", size) + b"p" * size for size in lengths).ljust(
            1024, b"\0"
        )
    with pytest.raises(BrokenSealError):
        units.split_request(memoryview(unit))


def test_one_ciphertext_with_two_keys_is_refused_by_the_commitment() -> None:
    header = parse_request_header(env.seal(env.kms_session()).header)
    assert opening.check_commitment(header, env.KMS_DATA_KEY)
    for other in (bytes(32), b"", env.KMS_DATA_KEY + b"\0"):
        with pytest.raises(EnvelopeError) as caught:
            opening.check_commitment(header, other)
        assert str(caught.value) == str(open_failed())


@pytest.mark.parametrize(
    "change",
    [
        {"key_mode": 1},
        {"not_before": env.NOT_BEFORE + 1},
        {"not_after": env.NOT_BEFORE + env.HOUR - 1},
        {"audience": bytes(32)},
        {"instance_id": b"j" * 16},
        {"key_commitment": bytes(32)},
        {"wrapped_key": b"another"},
    ],
)
def test_a_callers_signature_holds_for_one_session_only(change: dict[str, object]) -> None:
    call = env.seal(env.kms_session(CALLER))
    preamble = env.open_sealed(call.header, call.ciphertext).preamble
    header = parse_request_header(call.header)
    assert opening.verify_caller(replace(header, sequence=9, request_id=b"x" * 16), preamble)
    with pytest.raises(EnvelopeError) as caught:
        opening.verify_caller(replace(header, **change), preamble)  # type: ignore[arg-type]
    assert str(caught.value) == str(open_failed())


def test_a_caller_cannot_name_anothers_key() -> None:
    call = env.seal(env.kms_session(CALLER))
    preamble = env.open_sealed(call.header, call.ciphertext).preamble
    victim = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    for stolen in (victim, b"\xff" * 32, bytes(32)):
        with pytest.raises(EnvelopeError):
            opening.verify_caller(
                parse_request_header(call.header), replace(preamble, caller=stolen)
            )


def test_a_broken_preamble_is_answered_inside_the_seal() -> None:
    session = env.kms_session()
    header = session._next_header()
    th = wire.digest(header)
    prk = wire.extract(env.KMS_DATA_KEY)
    unit = units.pack_unit((b"no preamble", b"message"))
    opened = opening.open_request(
        header, seal_content(wire.expand(prk, "request", th), th, unit), prk
    )
    with pytest.raises(EnvelopeError) as caught:
        _ = opened.preamble
    assert caught.value.code == Code.INVALID_REQUEST
    assert env.answer(opened, None, Trailer(Code.INVALID_REQUEST)).ciphertext


def test_the_sequence_ends() -> None:
    session = env.kms_session()
    session._sequence = limits.SEQUENCE_MAX - 1
    assert parse_request_header(env.seal(session).header).sequence == limits.SEQUENCE_MAX - 1
    with pytest.raises(EnvelopeError) as caught:
        env.seal(session)
    assert caught.value.code == Code.EXPIRED


def test_threads_never_share_a_sequence() -> None:
    session = env.kms_session()
    session._lock = watched = MagicMock(wraps=session._lock)
    env.seal(session)
    watched.__enter__.assert_called_once()  # a race is too rare to wait for
    session = env.kms_session()
    headers: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: headers.extend(env.seal(session).header for _ in range(50)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {parse_request_header(header).sequence for header in headers} == set(range(200))


def test_what_cannot_be_sealed_takes_no_sequence() -> None:
    session = env.kms_session()
    for model, message, code in (
        ("", b"x", Code.INVALID_ARGUMENT),
        ("m", b"", Code.INVALID_ARGUMENT),
        ("m", bytes(limits.REQUEST_MAX), Code.TOO_LARGE),
    ):
        with pytest.raises(EnvelopeError) as caught:
            session.seal(model=model, version=None, digest=None, message=message)
        assert caught.value.code == code
    assert parse_request_header(env.seal(session).header).sequence == 0


@pytest.mark.parametrize("length", [0, 1, 15, 16])
def test_a_ciphertext_without_content_is_refused(length: int) -> None:
    with pytest.raises(BrokenSealError):
        open_content(bytes(32), b"", bytes(length))


def test_the_layout_of_chunks() -> None:
    content = bytes(limits.CHUNK) + b"tail"
    sealed = bytes(seal_content(b"k" * 32, b"aad", content))
    assert len(sealed) == len(content) + 32
    assert bytes(open_content(b"k" * 32, b"aad", sealed)) == content
    whole = bytes(seal_content(b"k" * 32, b"aad", content[: limits.CHUNK]))
    for cut in (sealed[: limits.CHUNK + 16], sealed[limits.CHUNK + 16 :], whole + bytes(17)):
        with pytest.raises(BrokenSealError):
            open_content(b"k" * 32, b"aad", cut)
    with pytest.raises(BrokenSealError):
        open_content(b"k" * 32, b"other", sealed)


@pytest.mark.parametrize("full", [0, 1])
def test_a_chunk_of_nothing_does_not_open(full: int) -> None:
    """SPEC 5.5: the chunk that ends a content is never empty, whoever sealed it."""
    cipher = ChunkCipher(b"k" * 32, b"aad")
    sealed = memoryview(bytearray(full * SEALED_CHUNK + TAG_BYTES))
    if full:
        cipher.seal_into(bytes(limits.CHUNK), sealed[:SEALED_CHUNK], last=False)
    cipher.seal_into(b"", sealed[full * SEALED_CHUNK :], last=True)
    with pytest.raises(BrokenSealError):
        open_content(b"k" * 32, b"aad", sealed)


def test_a_declared_length_takes_no_memory() -> None:
    unit = bytearray(1024)
    struct.pack_into(">I", unit, 0, 0xFFFFFFFF)
    with pytest.raises(BrokenSealError):
        units.split_request(memoryview(unit))


# Who asks: verified once for a session


def asked(
    call: SealedCall, known: opening.Asker | None, preamble: bytes | None = None
) -> opening.Asker:
    opened = env.open_sealed(call.header, call.ciphertext)
    encoded = opened.preamble_bytes if preamble is None else memoryview(preamble)
    return opening.identify(call.header, encoded, known)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every verification of a caller's signature from now on."""
    made: list[object] = []
    verify = opening.verify_caller

    def counted(header: RequestHeader, preamble: Preamble) -> bytes | None:
        made.append(header)
        return verify(header, preamble)

    monkeypatch.setattr(opening, "verify_caller", counted)
    return made


@each_mode
def test_a_caller_is_verified_once_for_a_session(start: Start, checks: list[object]) -> None:
    session, mine = start(CALLER), CALLER.public_key().public_bytes_raw()
    calls = [env.seal(session) for _ in range(3)]
    calls.append(session.seal(model="another", version=1, digest=None, message=b"x"))
    del checks[:]
    known = None
    for call in calls:
        opened = opening.open_request(call.header, call.ciphertext, session._prk)
        known = opening.identify(call.header, opened.preamble_bytes, known)
        assert known.caller == mine
        assert known.preamble == opened.preamble
    assert len(checks) == 1


def test_what_was_signed_for_one_session_says_nothing_of_another() -> None:
    """The same preamble under a header with other times: its signature is over the first."""
    call = env.seal(env.kms_session(CALLER))
    encoded = asked(call, None).encoded
    header = parse_request_header(call.header)
    for moved in (
        replace(header, not_before=header.not_before - 1),
        replace(header, not_after=header.not_after + 1),
        replace(header, instance_id=b"i" * 16),
    ):
        with pytest.raises(EnvelopeError) as refused:
            opening.identify(moved.encode(), memoryview(encoded), None)
        assert str(refused.value) == str(open_failed())


def test_another_caller_in_a_known_session_is_verified_anew(checks: list[object]) -> None:
    call = env.seal(env.kms_session(CALLER))
    known = asked(call, None)
    assert known.preamble
    anonymous = replace(known.preamble, caller=None, signature=None).encode()
    assert asked(call, known, anonymous).caller is None
    for forged in (
        replace(known.preamble, caller=b"c" * 32),
        replace(known.preamble, signature=b"s" * 64),
    ):
        with pytest.raises(EnvelopeError):
            asked(call, known, forged.encode())
        with pytest.raises(EnvelopeError):
            asked(call, asked(call, known, anonymous), forged.encode())
    assert asked(call, known, b"no preamble").preamble is None
    assert asked(call, known, b"no preamble").caller is None


def test_an_answer_of_three_parts_is_none() -> None:
    """Nothing may lie between the message and the trailer, where nobody would look at it."""
    parts = b"".join(wire.lp(part) for part in (b"message", b"hidden", b"trailer"))
    unit = parts + bytes(padded_answer(len(parts)) - len(parts))
    with pytest.raises(BrokenSealError):
        split_response(memoryview(unit))


@pytest.mark.parametrize("size", [1, 64 * limits.KIB, 200 * limits.KIB])
def test_no_byte_of_padding_may_be_anything_but_zero(size: int) -> None:
    padding = bytearray(size)
    units.require_zeros(memoryview(padding))
    for at in {0, size // 2, 64 * limits.KIB % size, size - 1}:
        padding[at] = 1
        with pytest.raises(BrokenSealError):
            units.require_zeros(memoryview(padding))
        padding[at] = 0
