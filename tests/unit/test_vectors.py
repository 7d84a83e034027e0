"""Casemate against every vector of SPEC 13; `tests/vectors/generate.py` made them without it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from casemate import attestation, cbor, framed, frames, wire
from casemate.attestation import structures
from casemate.attestation.measurement import measure_tree
from casemate.envelope import opening, questions, units
from casemate.envelope.chunks import BrokenSealError
from casemate.envelope.header import RequestHeader, ResponseHeader, parse_request_header
from casemate.envelope.hpke import KemKey
from casemate.envelope.messages import Preamble, Trailer, caller_statement
from casemate.envelope.padding import padme
from casemate.envelope.receipt import (
    BlindedHash,
    ReceiptStatement,
    UnverifiedReceipt,
    sign_receipt,
    signed_bytes,
)
from casemate.envelope.sealed_message import encode_sealed, parse_sealed
from casemate.envelope.sealing import DataKeySession, SealedCall
from casemate.envelope.stream_opening import OpenedStream
from casemate.errors import CasemateError, Code, EnvelopeError, SealedStatusError
from casemate.framed import Offer
from casemate.frames import ANSWER, ERROR
from casemate.receipts import Shown, StoredReceipt
from casemate.sealed_data import DataHeader, SealedData, seal_data
from casemate.sealed_model import ModelHeader, ModelReader, seal_model
from casemate.v1.confidential_inference_pb2 import Refusal
from tests.support.model_contents import read_all

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from casemate.envelope.streaming import SealedStream

VECTORS = Path(__file__).parents[1] / "vectors"
Case = Any


def load(name: str) -> Case:
    return json.loads((VECTORS / f"{name}.json").read_text())


def ids(cases: Sequence[Case]) -> list[str]:
    return [str(case.get("name") or case.get("why") or index) for index, case in enumerate(cases)]


def unhex(value: str | None) -> bytes | None:
    return None if value is None else bytes.fromhex(value)


def spelled(how: Case) -> bytes:
    return hashlib.shake_256(bytes.fromhex(how["shake256"])).digest(how["length"])


def same(summary: Case, data: wire.Buffer) -> bool:
    stated: tuple[int, str] = (summary["length"], summary["sha384"])
    return stated == (len(data), hashlib.sha384(data).hexdigest())


@pytest.fixture
def fixed_randomness(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Let `secrets.token_bytes` give what the test puts here, first in, first out."""
    queue: list[bytes] = []
    monkeypatch.setattr(secrets, "token_bytes", lambda _count: queue.pop(0))
    return queue


def test_the_committed_vectors_are_the_generators() -> None:
    command = [sys.executable, str(VECTORS / "generate.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_the_generator_does_not_import_casemate() -> None:
    source = (VECTORS / "generate.py").read_text()
    imports = [line for line in source.splitlines() if line.startswith(("import ", "from "))]
    assert not [line for line in imports if "casemate" in line]


# kdf.json


def test_labels() -> None:
    for label, encoded in load("kdf")["labels"].items():
        assert wire.label(label).hex() == encoded


def test_extract() -> None:
    for case in load("kdf")["extract"]:
        assert wire.extract(bytes.fromhex(case["key"])).hex() == case["prk"]


def test_expand() -> None:
    for case in load("kdf")["expand"]:
        context = map(bytes.fromhex, case["context"])
        output = wire.expand(bytes.fromhex(case["prk"]), case["label"], *context)
        assert output.hex() == case["output"]


# padding.json


def test_padme() -> None:
    for case in load("padding")["padme"]:
        assert padme(case["length"]) == case["padded"]


def test_packed_units() -> None:
    for case in load("padding")["packed"]:
        parts = [bytes.fromhex(part) for part in case["parts"]]
        unit = units.pack_unit(parts)
        assert same(case, unit)
        assert [*map(bytes, units.split_request(memoryview(unit)))] == parts


def test_packed_answers() -> None:
    for case in load("padding")["packed_answers"]:
        message, trailer = bytes.fromhex(case["message"]) or None, bytes.fromhex(case["trailer"])
        unit = units.pack_response(message, trailer, case["floor"])
        assert same(case, unit)
        found, tail = units.split_response(memoryview(unit))
        assert ([*map(bytes, found)], bytes(tail)) == ([message] if message else [], trailer)


@pytest.mark.parametrize("case", load("padding")["refused"], ids=ids(load("padding")["refused"]))
def test_refused_units(case: Case) -> None:
    start, end = bytes.fromhex(case["start"]), bytes.fromhex(case["end"])
    unit = start + bytes(case["length"] - len(start) - len(end)) + end
    split = units.split_request if case["kind"] == "request" else units.split_response
    with pytest.raises(BrokenSealError):
        split(memoryview(unit))


# envelope.json

ENVELOPES = load("envelope")["cases"]
each_envelope = pytest.mark.parametrize("case", ENVELOPES, ids=ids(ENVELOPES))


def kem_key(seed: str) -> KemKey:
    expanded = hashlib.shake_256(bytes.fromhex(seed)).digest(96)
    return KemKey(
        MLKEM768PrivateKey.from_seed_bytes(expanded[:64]),
        X25519PrivateKey.from_private_bytes(expanded[64:]),
    )


def header_of(case: Case) -> RequestHeader:
    return RequestHeader(
        case["key_mode"],
        bytes.fromhex(case["request_id"]),
        case["sequence"],
        case["not_before"],
        case["not_after"],
        structures.audience_hash(case["audience"]),
        bytes.fromhex(case["instance_id"]),
        bytes.fromhex(case["key_commitment"]),
        bytes.fromhex(case["wrapped_key"]),
    )


@each_envelope
def test_request_header(case: Case) -> None:
    encoded = bytes.fromhex(case["header"])
    assert header_of(case).encode() == encoded
    parsed = parse_request_header(encoded)
    assert parsed == header_of(case)
    assert wire.digest(encoded).hex() == case["th"]
    if case["key_mode"] == 2:
        assert (parsed.key_arn, parsed.ciphertext_blob.hex()) == (
            case["key_arn"],
            case["ciphertext_blob"],
        )


@each_envelope
def test_data_key(case: Case) -> None:
    header = header_of(case)
    data_key = bytes.fromhex(case["data_key"])
    if case["key_mode"] == 1:
        config = bytes.fromhex(case["key_config"])
        assert structures.KeyConfig.parse(config).encode() == config
        key = kem_key(case["kem_seed"])
        assert key.public_bytes == structures.KeyConfig.parse(config).public_key
        assert header.key_id == structures.key_id(config)
        assert key.unwrap(header.encapsulation, config) == data_key
    assert opening.check_commitment(header, data_key).hex() == case["prk"]


@each_envelope
def test_caller(case: Case) -> None:
    preamble = Preamble.parse(bytes.fromhex(case["preamble"]))
    assert preamble.encode().hex() == case["preamble"]
    if case["caller"] is None:
        assert opening.verify_caller(header_of(case), preamble) is None
        return
    assert caller_statement(header_of(case)).hex() == case["caller_statement"]
    caller = opening.verify_caller(header_of(case), preamble)
    assert caller == bytes.fromhex(case["caller"])


def session_of(case: Case) -> DataKeySession:
    seed = case.get("caller_seed")
    session = DataKeySession(
        header_of(case),
        bytes.fromhex(case["prk"]),
        instance_digest=None,
        caller=seed and Ed25519PrivateKey.from_private_bytes(bytes.fromhex(seed)),
    )
    session._sequence = case["sequence"]
    return session


@each_envelope
def test_seal_and_open_a_request(case: Case, fixed_randomness: list[bytes]) -> None:
    fixed_randomness.append(bytes.fromhex(case["request_id"]))
    call = session_of(case).seal(
        model=case["model"],
        version=case["version"],
        digest=unhex(case["digest"]),
        message=spelled(case["message"]),
        sealed_data=unhex(case["object"]),
        receipt=case["receipt"],
        operation=case["operation"],
        others=[[spelled(other)] for other in case["others"]],
    )
    assert call.header.hex() == case["header"]
    assert same(case["ciphertext"], call.ciphertext)
    opened = opening.open_request(call.header, call.ciphertext, bytes.fromhex(case["prk"]))
    assert [*opened.messages] == [*map(spelled, (case["message"], *case["others"]))]
    assert opened.preamble == Preamble.parse(bytes.fromhex(case["preamble"]))


@each_envelope
def test_seal_and_open_answers(case: Case, fixed_randomness: list[bytes]) -> None:
    header, prk = bytes.fromhex(case["header"]), bytes.fromhex(case["prk"])
    asked = [memoryview(b"")] * (1 + len(case["others"]))
    opened = opening.OpenedRequest(memoryview(b""), *asked, prk=prk, th=wire.digest(header))
    call = SealedCall(header, b"", prk, None, receipt=case["receipt"], questions=len(asked))
    for stated in case["answers"]:
        trailer = Trailer.parse(bytes.fromhex(stated["trailer"]))
        assert (trailer.status, trailer.detail) == (stated["status"], stated["detail"])
        assert trailer.encode().hex() == stated["trailer"]
        messages = [] if stated["message"] is None else [spelled(stated["message"])]
        if stated["several"] is not None:
            messages = [*map(bytes.fromhex, stated["several"])]
            check_several(messages, spelled(stated["message"]))
        fixed_randomness.append(bytes.fromhex(stated["response_nonce"]))
        response_header, ciphertext = opening.seal_response(
            opened,
            instance_digest=wire.digest(bytes.fromhex(case["instance_config"])),
            messages=messages,
            trailer=trailer,
            floor=stated["floor"],
        )
        assert response_header.hex() == stated["header"]
        assert ResponseHeader.parse(response_header).encode() == response_header
        assert same(stated["ciphertext"], ciphertext)
        answer = call.open(response_header, ciphertext)
        assert ([*map(bytes, answer.messages)], answer.trailer) == (messages, trailer)
        assert answer.instance_digest == wire.digest(bytes.fromhex(case["instance_config"]))


def check_several(parts: list[bytes], message: bytes) -> None:
    """What became of each of several questions: the second one was refused."""
    first, second, *others = parts
    assert {b"".join(questions.answered([message]))} == {first, *others}
    assert bytes(questions.read(memoryview(first))) == message
    with pytest.raises(SealedStatusError) as refused:
        questions.read(memoryview(second))
    said = refused.value.code, refused.value.detail
    assert b"".join(questions.refused(*said)) == second


# receipt.json

RECEIPTS = load("receipt")["cases"]


def receipt_of(case: Case) -> ReceiptStatement:
    blinders = (bytes.fromhex(case[f"{kind}_blinder"]) for kind in ("question", "answer"))
    question, answer = map(BlindedHash, ("question", "answer"), blinders)
    for message in case["answers"]:
        answer.add(spelled(message))
    return ReceiptStatement(
        wire.digest(bytes.fromhex(load("receipt")["instance_config"])),
        case["model"],
        case["version"],
        bytes.fromhex(case["digest"]),
        bytes.fromhex(case["th"]),
        question.add(spelled(case["question"])).digest(),
        answer.digest(),
        case["time"],
    )


@pytest.mark.parametrize("case", RECEIPTS, ids=ids(RECEIPTS))
def test_receipts(case: Case) -> None:
    statement = receipt_of(case)
    assert statement.question_hash.hex() == case["question_hash"]
    assert statement.answer_hash.hex() == case["answer_hash"]
    assert statement.encode().hex() == case["payload"]
    assert signed_bytes(statement.encode()).hex() == case["sig_structure"]
    seed = bytes.fromhex(load("receipt")["receipt_key_seed"])
    receipt = sign_receipt(Ed25519PrivateKey.from_private_bytes(seed), statement)
    assert receipt.hex() == case["receipt"]
    parsed = UnverifiedReceipt.parse(receipt)
    instance = structures.InstanceConfig.parse(bytes.fromhex(load("receipt")["instance_config"]))
    parsed.check_signature(instance.receipt_key)
    assert (parsed.statement, parsed.signature.hex()) == (statement, case["signature"])


@pytest.mark.parametrize("case", RECEIPTS, ids=ids(RECEIPTS))
def test_stored_receipts(case: Case) -> None:
    blinders = (bytes.fromhex(case[f"{kind}_blinder"]) for kind in ("question", "answer"))
    question, answer = blinders
    stored = StoredReceipt(
        receipt=bytes.fromhex(case["receipt"]),
        evidence=bytes.fromhex(load("receipt")["evidence"]),
        header=bytes.fromhex(load("receipt")["header"]),
        question=Shown(question, (spelled(case["question"]),)),
        answer=Shown(answer, tuple(map(spelled, case["answers"]))),
    )
    assert same(case["file"], stored.encode())
    assert StoredReceipt.parse(stored.encode()) == stored


# stream.json

STREAMS = load("stream")["cases"]
SESSIONS = {case["name"]: case for case in load("envelope")["cases"]}
each_stream = pytest.mark.parametrize("case", STREAMS, ids=[case["envelope"] for case in STREAMS])


def nothing_leads(_head: memoryview) -> int:
    return 0


def all_same(stated: Sequence[Case], chunks: Iterable[wire.Buffer]) -> list[memoryview]:
    made = [memoryview(chunk) for chunk in chunks]
    assert len(made) == len(stated)
    assert all(same(one, chunk) for one, chunk in zip(stated, made, strict=True))
    return made


@each_stream
def test_seal_and_open_a_stream(case: Case, fixed_randomness: list[bytes]) -> None:
    envelope = SESSIONS[case["envelope"]]
    session = session_of(envelope)
    session._sequence = case["sequence"]
    fixed_randomness.append(bytes.fromhex(case["request_id"]))
    call = session.seal_stream(
        model=envelope["model"],
        version=envelope["version"],
        digest=unhex(envelope["digest"]),
        lead=nothing_leads,
    )
    assert call.header.hex() == case["header"]
    opened = OpenedStream(
        call.header, bytes.fromhex(envelope["prk"]), take=lambda _size: None, lead=nothing_leads
    )
    assert opened.th.hex() == case["th"]
    (opening,) = all_same(case["opening"], call.opening())
    assert opened.open(opening).hex() == case["preamble"]
    for question in case["questions"]:
        messages = [*map(spelled, question["messages"])]
        pieces = [[message[:1], message[1:]] for message in messages]
        *more, last = all_same(question["chunks"], call.question(*pieces))
        assert [opened.questions(chunk) for chunk in more] == [[]] * len(more)
        assert [*map(bytes, opened.questions(last))] == messages
    (end,) = all_same(case["end"], call.end())
    assert (opened.questions(end), opened.ended) == ([], True)
    check_stream_answer(case["answer"], call, opened, fixed_randomness)


def check_stream_answer(
    stated: Case, call: SealedStream, opened: OpenedStream, fixed_randomness: list[bytes]
) -> None:
    fixed_randomness.append(bytes.fromhex(stated["response_nonce"]))
    header = bytes.fromhex(stated["header"])
    answer = opened.answer(header[33:])
    assert answer.header == header
    assert call.begin_answer(header) == header[33:]
    *units, end = stated["units"]
    for unit in units:
        trailer = Trailer.parse(bytes.fromhex(unit["trailer"]))
        assert (trailer.unit, trailer.final) == (unit["unit"], unit["final"])
        message = [] if unit["message"] is None else [spelled(unit["message"])]
        messages = [*map(bytes.fromhex, unit["several"])] if unit["several"] else message
        pieces = [[each] for each in messages]
        made = all_same(unit["chunks"], answer.unit(pieces, trailer, unit["floor"]))
        *more, received = [call.answer(chunk) for chunk in made]
        assert more == [None] * len(more)
        assert received is not None
        assert (received.trailer, received.last) == (trailer, False)
        assert [*map(bytes, received.messages)] == messages
    trailer = Trailer.parse(bytes.fromhex(end["trailer"]))
    *_, last = [
        call.answer(chunk) for chunk in all_same(end["chunks"], answer.end(trailer, end["floor"]))
    ]
    assert last is not None
    assert (last.trailer, last.message, last.last) == (trailer, None, True)
    assert call.ended


# sealed_model.json

MODELS = load("sealed_model")["models"]


@pytest.mark.parametrize("case", MODELS, ids=ids(MODELS))
def test_seal_and_open_a_model(case: Case, tmp_path: Path, fixed_randomness: list[bytes]) -> None:
    header = ModelHeader.parse(bytes.fromhex(case["header"]))
    assert header.encode().hex() == case["header"]
    assert header.digest.hex() == case["model_digest"]
    contents = {entry["path"]: spelled(entry["content"]) for entry in case["entries"]}
    files = {}
    for index, (path, content) in enumerate(contents.items()):
        files[path] = tmp_path / str(index)
        files[path].write_bytes(content)
    fixed_randomness.append(header.file_id)
    sealed = io.BytesIO()
    publisher = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(case["publisher_seed"]))
    seal_model(
        sealed,
        files=files,
        data_key=bytes.fromhex(case["data_key"]),
        wrapped_key=header.wrapped_key,
        kms_key=header.kms_key,
        publisher=publisher,
        name=header.name,
        version=header.version,
        inputs=header.inputs,
        outputs=header.outputs,
        answer_bucket=header.answer_bucket,
        callers=header.callers,
        serving=header.serving,
        loop=header.loop,
    )
    assert same(case["file"], sealed.getvalue())
    reader = ModelReader()
    reader.feed(sealed.getvalue()[:70_000])
    assert reader.verify_publisher({header.publisher}, {}) == header
    reader.unlock(bytes.fromhex(case["data_key"]))
    reader.feed(sealed.getvalue()[70_000:])
    assert read_all(reader.finish()) == contents


# sealed_data.json

OBJECTS = load("sealed_data")["objects"]


@pytest.mark.parametrize("case", OBJECTS, ids=ids(OBJECTS))
def test_seal_and_open_data(case: Case, fixed_randomness: list[bytes]) -> None:
    header = DataHeader.parse(bytes.fromhex(case["header"]))
    assert header.encode().hex() == case["header"]
    fixed_randomness.append(header.object_id)
    sealed = seal_data(
        spelled(case["content"]),
        data_key=bytes.fromhex(case["data_key"]),
        wrapped_key=header.wrapped_key,
        kms_key=header.kms_key,
        audience=header.audience,
        readers=header.readers,
        models=header.models,
    )
    assert same(case["file"], sealed)
    parsed = SealedData.parse(sealed)
    assert (parsed.header, parsed.digest.hex()) == (header, case["m_sha384"])
    assert parsed.open(bytes.fromhex(case["data_key"])) == spelled(case["content"])


# evidence.json


def test_configurations() -> None:
    for case in load("evidence")["configurations"]:
        encoded = bytes.fromhex(case["encoded"])
        parsed = attestation.Configuration.parse(encoded)
        assert parsed.encode() == encoded
        assert parsed.audience == case["fields"]["audience"]
        assert [key.hex() for key in parsed.publishers] == case["fields"]["publishers"]
        assert parsed.minimum_versions == case["fields"]["minimum_versions"]
        assert (parsed.kms is None) == (case["fields"]["kms"] is None)
        assert structures.configuration_event(encoded).hex() == case["event"]
        assert structures.pcr16(encoded).hex() == case["pcr16"]


def test_key_configs_and_instance() -> None:
    evidence = load("evidence")
    for case in evidence["key_configs"]:
        encoded = bytes.fromhex(case["encoded"])
        assert structures.KeyConfig.parse(encoded).encode() == encoded
        assert structures.key_id(encoded).hex() == case["key_id"]
    encoded = bytes.fromhex(evidence["instance_config"]["encoded"])
    assert structures.InstanceConfig.parse(encoded).encode() == encoded


def test_measurement_logs() -> None:
    for case in load("evidence")["logs"]:
        encoded = bytes.fromhex(case["encoded"])
        parsed = structures.parse_log(encoded)
        assert structures.encode_log(parsed) == encoded
        assert [entry.digest.hex() for entry in parsed] == [e["digest"] for e in case["entries"]]


def test_callers_and_purposes() -> None:
    evidence = load("evidence")
    for case in evidence["callers"]:
        stated = case["callers"]
        callers = stated if stated == "any" else tuple(map(bytes.fromhex, stated))
        assert structures.callers_digest(callers).hex() == case["digest"]
    assert structures.kms_user_data().hex() == evidence["kms_user_data"]


def test_binding() -> None:
    for case in load("evidence")["bundles"]:
        bundle = attestation.EvidenceBundle(
            platform="nitro-enclave",
            attestation_document=b"",
            configuration=bytes.fromhex(case["configuration"]),
            key_configs=tuple(map(bytes.fromhex, case["key_configs"])),
            instance_config=bytes.fromhex(case["instance_config"]),
            measurement_log=bytes.fromhex(case["measurement_log"]),
        )
        assert bundle.user_data().hex() == case["user_data"]


# measurement.json


def test_measurement(tmp_path: Path) -> None:
    vectors = load("measurement")
    for entry in vectors["tree"]:
        path, value = tmp_path / entry["path"], bytes.fromhex(entry["value"])
        if entry["kind"] == 2:
            path.mkdir()
        elif entry["kind"] == 1:
            path.symlink_to(os.fsdecode(value))
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(value)
            path.chmod(0o755 if entry["executable"] else 0o644)
    measured = measure_tree(tmp_path, vectors["cmdline"])
    assert [measured.pcr0.hex(), measured.pcr1.hex(), measured.pcr2.hex()] == vectors["pcrs"]


# frames.json


def received(data: bytes) -> frames.Frame | None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        return frames.receive_frame(ours)


def test_frames() -> None:
    for case in load("frames")["frames"]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            frames.send_frame(ours, case["type"], bytes.fromhex(case["payload"]), case["budget"])
            sent = theirs.recv(4096)
        assert sent.hex() == case["bytes"]
        frame = received(sent)
        assert frame is not None
        assert (frame.type, frame.payload.hex()) == (case["type"], case["payload"])
        assert frame.budget == (case["budget"] or 30_000)


def test_framed_connections() -> None:
    case = load("frames")["framed"]
    offer = Offer.parse(case["offer"])
    assert offer == Offer(case["port"], bytes.fromhex(case["host_id"]))
    assert offer.text == case["offer"]
    assert offer.greeting == bytes.fromhex(case["greeting"])
    assert len(offer.greeting) == framed.GREETING_BYTES
    assert framed.hello(case["authorization"]) == bytes.fromhex(case["hello"])
    assert framed.hello() == bytes.fromhex(case["hello_of_the_unknown"])
    assert frames.encode_frame(framed.Kind.HELLO | ANSWER, b"") == bytes.fromhex(case["welcome"])
    for text in case["refused_offers"]:
        assert Offer.parse(text) is None, text


def test_streams_on_framed_connections() -> None:
    case = load("frames")["framed"]["stream"]
    chunks = bytes.fromhex(case["chunks"])
    refusal = Refusal(
        reason=case["reason"], detail=case["detail"], retry_delay=case["retry_delay"]
    ).SerializeToString()
    kind = framed.Kind.STREAM
    for name, frame in {
        "first": frames.encode_frame(kind, chunks, case["budget"]),
        "end": frames.encode_frame(kind, b""),
        "answer": frames.encode_frame(kind | ANSWER, chunks),
        "answer_end": frames.encode_frame(kind | ANSWER, b""),
        "refused": frames.encode_frame(ERROR, refusal),
    }.items():
        assert frame == bytes.fromhex(case[name]), name


REFUSED_FRAMES = load("frames")["refused"]


@pytest.mark.parametrize("case", REFUSED_FRAMES, ids=ids(REFUSED_FRAMES))
def test_refused_frames(case: Case) -> None:
    with pytest.raises(CasemateError) as caught:
        received(bytes.fromhex(case["bytes"]))
    assert caught.value.code == case["code"]


def test_sealed_messages() -> None:
    for case in load("frames")["sealed_messages"]:
        header, ciphertext = bytes.fromhex(case["header"]), bytes.fromhex(case["ciphertext"])
        encoded = b"".join(encode_sealed(header, ciphertext))
        assert encoded.hex() == case["bytes"]
        assert tuple(map(bytes, parse_sealed(encoded))) == (header, ciphertext)


REFUSED_MESSAGES = load("frames")["refused_sealed_messages"]


@pytest.mark.parametrize("case", REFUSED_MESSAGES, ids=ids(REFUSED_MESSAGES))
def test_refused_sealed_messages(case: Case) -> None:
    with pytest.raises(EnvelopeError) as caught:
        parse_sealed(bytes.fromhex(case["bytes"]))
    assert caught.value.code == Code.MALFORMED


# cbor.json


def untagged(value: Case) -> Case:
    if isinstance(value, list):
        return [untagged(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "bytes" in value:
        return bytes.fromhex(value["bytes"])
    if "uint" in value:
        return int(value["uint"])
    return {untagged(key): untagged(item) for key, item in value["map"]}


def test_accepted_cbor() -> None:
    for case in load("cbor")["accepted"]:
        value, encoded = untagged(case["value"]), bytes.fromhex(case["bytes"])
        assert cbor.encode(value) == encoded
        assert cbor.decode(encoded) == value


REFUSED_CBOR = load("cbor")["refused"]


@pytest.mark.parametrize("case", REFUSED_CBOR, ids=ids(REFUSED_CBOR))
def test_refused_cbor(case: Case) -> None:
    with pytest.raises(cbor.CborError):
        cbor.decode(bytes.fromhex(case["bytes"]))
