"""THREATS C8: sealed data, and everyone who must not have a model run on it.

The enclave, its sealing and its models are real; KMS is a dictionary that knows contexts.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casemate import cbor, wire
from casemate.envelope.chunks import BrokenSealError, seal_content
from casemate.envelope.units import pack_unit, split_single
from casemate.errors import Code, ObjectError
from casemate.kms_context import data_context, object_context
from casemate.sealed_data import MAGIC, DataHeader, SealedData, seal_data
from casemate.tensors import to_request
from tests.support import onnx_bytes
from tests.support.enclave_bench import ANSWER, AUDIENCE, KEY_ARN, ROWS, Bench, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate.envelope.sealing import OpenedAnswer

READER = Ed25519PrivateKey.from_private_bytes(b"\x05" * 32)
OTHER = Ed25519PrivateKey.from_private_bytes(b"\x06" * 32)
SECRET = "input-that-only-the-owner-knows"


def public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


class World:
    """An enclave with two models, and one owner."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.listed = bench.serve(version=2).digest
        self.echo = bench.serve(
            version=3, files={"model.onnx": onnx_bytes.linear(), "more": b"\0"}
        ).digest
        assert self.listed != self.echo

    def seal(
        self,
        message: bytes = b"",
        *,
        readers: tuple[Ed25519PrivateKey, ...] = (READER,),
        audience: str = AUDIENCE,
        context: dict[str, str] | None = None,
        kms_key: str = KEY_ARN,
    ) -> bytes:
        data_key, blob = secrets.token_bytes(32), secrets.token_bytes(64)
        self.bench.kms.teach(blob, context or object_context(AUDIENCE), data_key)
        return seal_data(
            message or to_request({"x": ROWS}),
            data_key=data_key,
            wrapped_key=blob,
            kms_key=kms_key,
            audience=audience,
            readers=[public(reader) for reader in readers],
            models=[self.listed],
        )

    def ask(
        self,
        sealed: bytes,
        caller: Ed25519PrivateKey | None = READER,
        *,
        version: int = 2,
        named: bytes | None = None,
    ) -> OpenedAnswer:
        session = self.bench.session(caller)
        name = named or SealedData.parse(sealed).digest
        call = session.seal(
            model="linear", version=version, digest=None, message=sealed, sealed_data=name
        )
        return self.bench.send(call)

    def status(
        self, sealed: bytes, caller: Ed25519PrivateKey | None = READER, *, version: int = 2
    ) -> str:
        answer = self.ask(sealed, caller, version=version)
        assert answer.message is None
        return str(answer.trailer.status)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Bench() as bench:
        yield World(bench)


def test_a_reader_gets_the_answer_and_holds_no_key(world: World) -> None:
    assert rows_of(world.ask(world.seal())) == ANSWER


def test_c8_who_is_no_reader_is_refused_and_no_key_is_asked_for(world: World) -> None:
    sealed, before = world.seal(), world.bench.kms.calls
    assert world.status(sealed, OTHER) == Code.CALLER_REFUSED
    assert world.status(sealed, None) == Code.CALLER_REFUSED
    assert world.bench.kms.calls == before


def test_c8_a_model_that_is_not_listed_never_sees_the_data(world: World) -> None:
    sealed, before = world.seal(), world.bench.kms.calls
    assert world.status(sealed, version=3) == Code.OBJECT_REFUSED
    assert world.bench.kms.calls == before


def rewritten(sealed: bytes, **changes: object) -> bytes:
    """The object with another header around the same chunks, as its thief would make it."""
    parsed = SealedData.parse(sealed)
    header = replace(parsed.header, **changes)  # type: ignore[arg-type]
    return MAGIC + wire.lp(header.encode()) + bytes(parsed.ciphertext)


def test_c8_a_thief_who_lists_himself_or_his_model_opens_nothing(world: World) -> None:
    sealed = world.seal()
    everyone = tuple(sorted([public(READER), public(OTHER)]))
    mine = rewritten(sealed, readers=everyone)
    assert world.status(mine, OTHER) == Code.OBJECT_OPEN_FAILED
    models = tuple(sorted([world.listed, world.echo]))
    assert world.status(rewritten(sealed, models=models), version=3) == Code.OBJECT_OPEN_FAILED
    own = DataHeader.parse(SealedData.parse(world.seal()).header.encode())
    swapped = rewritten(sealed, wrapped_key=own.wrapped_key)
    assert world.status(swapped) == Code.OBJECT_OPEN_FAILED


def test_c8_another_services_data_is_refused(world: World) -> None:
    elsewhere = "elsewhere.example/x"
    foreign = world.seal(audience=elsewhere, context=object_context(elsewhere))
    assert world.status(foreign) == Code.OBJECT_REFUSED
    assert world.status(rewritten(foreign, audience=AUDIENCE)) == Code.KEY_RELEASE_DENIED


def test_a_sessions_data_key_opens_no_object(world: World) -> None:
    assert world.status(world.seal(context=data_context(AUDIENCE))) == Code.KEY_RELEASE_DENIED


def test_what_is_no_object_or_another_one_is_malformed(world: World) -> None:
    sealed, name = world.seal(), SealedData.parse(world.seal()).digest
    for message in (sealed, to_request({"x": ROWS}), b"CASEDAT1", MAGIC + wire.lp(b"\xa0") + b"x"):
        answer = world.ask(message, named=name)
        assert answer.trailer.status == Code.OBJECT_MALFORMED


def test_tensors_that_do_not_fit_are_not_described(world: World) -> None:
    for inputs in ({SECRET: ROWS}, {"x": ROWS[:, :2]}, {"x": ROWS.astype(np.float64)}):
        answer = world.ask(world.seal(to_request(inputs)))
        assert answer.trailer.status == Code.INVALID_INPUT
        assert answer.trailer.detail == "the sealed data does not fit the model"
    answer = world.ask(world.seal(b"\xff" * 50))
    assert answer.trailer.status == Code.INVALID_INPUT


def test_a_models_own_callers_come_first(world: World) -> None:
    world.bench.serve(version=4, callers=(public(OTHER),))
    assert world.status(world.seal(), version=4) == Code.CALLER_REFUSED


def test_every_request_asks_for_the_key_anew(world: World) -> None:
    sealed, before = world.seal(), world.bench.kms.calls
    world.ask(sealed)
    world.bench.kms.keys.clear()  # the owner revokes it
    assert world.status(sealed) == Code.KEY_RELEASE_DENIED
    assert world.bench.kms.calls == before + 2


# The container alone

KEY = b"k" * 32
CONTENT = bytes(range(256)) * 20


def sealed_object(**changes: object) -> bytes:
    fields: dict[str, object] = {
        "data_key": KEY,
        "wrapped_key": b"w" * 184,
        "kms_key": KEY_ARN,
        "audience": AUDIENCE,
        "readers": [public(READER)],
        "models": [b"m" * 48],
    }
    return seal_data(CONTENT, **{**fields, **changes})  # type: ignore[arg-type]


def opened(data: bytes) -> bytes:
    return bytes(SealedData.parse(data).open(KEY))


def test_it_opens_under_its_key_only() -> None:
    sealed = sealed_object()
    assert opened(sealed) == CONTENT
    for wrong in (b"K" * 32, KEY[:31], b""):
        with pytest.raises(ObjectError) as refused:
            SealedData.parse(sealed).open(wrong)
        assert refused.value.code == Code.OBJECT_OPEN_FAILED


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(position=st.integers(min_value=0), bit=st.integers(0, 7))
def test_every_flipped_bit_is_refused(position: int, bit: int) -> None:
    sealed = bytearray(SEALED)
    sealed[position % len(sealed)] ^= 1 << bit
    with pytest.raises(ObjectError):
        opened(bytes(sealed))


SEALED = sealed_object()


@given(length=st.integers(0, len(SEALED) - 1))
def test_every_cut_is_refused(length: int) -> None:
    with pytest.raises(ObjectError):
        opened(SEALED[:length])
    with pytest.raises(ObjectError):
        opened(SEALED + SEALED[:length] + b"\0")


@pytest.mark.parametrize(
    "change",
    [
        {"readers": []},
        {"readers": [b"r" * 31]},
        {"readers": [number.to_bytes(32, "big") for number in range(1025)]},
        {"models": []},
        {"models": [b"m" * 47]},
        {"models": [number.to_bytes(48, "big") for number in range(65)]},
        {"audience": ""},
        {"audience": "a" * 256},
        {"kms_key": KEY_ARN.replace("key/", "alias/")},
        {"wrapped_key": b""},
        {"wrapped_key": b"w" * 6145},
    ],
)
def test_a_header_out_of_bounds_is_not_written(change: dict[str, object]) -> None:
    with pytest.raises(ObjectError) as refused:
        sealed_object(**change)
    assert refused.value.code == Code.OBJECT_MALFORMED


def consistent(fields: dict[str, object], magic: bytes = MAGIC, key: bytes = KEY) -> bytes:
    """An object whose chunks authenticate whatever header the holder of a key writes."""
    header = cbor.decode(SealedData.parse(SEALED).header.encode()) | fields
    signed = magic + wire.lp(cbor.encode(header))
    name = wire.digest(signed)
    content = pack_unit([CONTENT])
    return signed + seal_content(wire.expand(wire.extract(key), "data", name), name, content)


@pytest.mark.parametrize(
    "fields",
    [
        {"v": 2},
        {"readers": [b"s" * 32, b"r" * 32]},
        {"readers": [b"r" * 32, b"r" * 32]},
        {"readers": ["r" * 32]},
        {"models": [b"n" * 48, b"m" * 48]},
        {"more": None},
        {"object_id": b"short"},
    ],
    ids=repr,
)
def test_a_header_that_is_not_as_it_should_be_is_malformed_though_it_authenticates(
    fields: dict[str, object],
) -> None:
    assert opened(consistent({})) == CONTENT
    with pytest.raises(ObjectError) as refused:
        SealedData.parse(consistent(fields))
    assert refused.value.code == Code.OBJECT_MALFORMED


def test_an_object_is_known_by_its_first_bytes_and_has_content() -> None:
    end = len(SEALED) - len(SealedData.parse(SEALED).ciphertext)
    for data in (consistent({}, magic=b"CASEDAT2"), consistent({}, magic=bytes(8)), SEALED[:end]):
        with pytest.raises(ObjectError) as refused:
            SealedData.parse(data)
        assert refused.value.code == Code.OBJECT_MALFORMED


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_key_of_another_length_opens_nothing_though_it_is_committed_to(length: int) -> None:
    key = bytes(length)
    commitment = wire.expand(wire.extract(key), "commit")
    sealed = consistent({"key_commitment": commitment}, key=key)
    with pytest.raises(ObjectError) as refused:
        SealedData.parse(sealed).open(key)
    assert refused.value.code == Code.OBJECT_OPEN_FAILED


def test_a_unit_of_two_parts_is_refused() -> None:
    with pytest.raises(BrokenSealError):
        split_single(memoryview(pack_unit([b"a", b"b"])))


def test_h20_an_object_that_does_not_commit_to_its_key_is_refused() -> None:
    """Everything authenticates under the key; only the header's commitment names another."""
    header = replace(SealedData.parse(SEALED).header, key_commitment=b"c" * 32)
    signed = MAGIC + wire.lp(header.encode())
    name = wire.digest(signed)
    key = wire.expand(wire.extract(KEY), "data", name)
    with pytest.raises(ObjectError) as refused:
        opened(signed + seal_content(key, name, pack_unit([CONTENT])))
    assert refused.value.code == Code.OBJECT_OPEN_FAILED
