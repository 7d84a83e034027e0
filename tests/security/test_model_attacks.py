"""Sealed models that are not what the publisher sealed (THREATS.md: M1-M4, C5, H9).

Damaged files go through a real host over the real enclave; what it logs is what the operator sees.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from casemate import limits, wire
from casemate.attestation import Configuration
from casemate.errors import Code
from casemate.sealed_model import ModelHeader
from casemate.sealed_model.header import MAGIC
from casemate.tensors import TensorSpec, to_request
from casemate_devkit.local import MODEL
from tests.support import onnx_bytes
from tests.support.attacker import (
    EnclaveSocket,
    eventually,
    genuine,
    refusal,
    second_host,
    side_enclave,
    start_session,
)
from tests.support.damage import flip
from tests.support.vendor_models import seal
from tests.support.workers import descendants

if TYPE_CHECKING:
    from pathlib import Path

    from casemate_devkit.local import LocalDeployment

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("still_serves")]
CHUNK = (1 << 20) + 16


@pytest.fixture
def enclave(deployment: LocalDeployment) -> EnclaveSocket:
    return genuine(deployment)


def parts(sealed: bytes) -> tuple[bytes, bytes, bytes]:
    """Header, signature, chunks."""
    at = len(MAGIC)
    length = int.from_bytes(sealed[at : at + 4], "big")
    end = at + 4 + length
    return sealed[at + 4 : end], sealed[end + 4 : end + 68], sealed[end + 68 :]


def assembled(header: bytes, signature: bytes, chunks: bytes) -> bytes:
    return MAGIC + wire.lp(header) + wire.lp(signature) + chunks


def test_m1_m2_damaged_files_are_refused_by_their_codes_through_a_real_host(
    deployment: LocalDeployment, tmp_path: Path
) -> None:
    """One host, one enclave, every kind of damage; the host's log says what was wrong with each."""
    good = seal(deployment, tmp_path, onnx_bytes.linear())
    other = seal(deployment, tmp_path, onnx_bytes.linear())  # its own key, its own file id
    wide = seal(deployment, tmp_path, onnx_bytes.linear(), files=four_chunks(tmp_path))
    foreign = seal(
        deployment, tmp_path, onnx_bytes.linear(), publisher=Ed25519PrivateKey.generate()
    )
    header, signature, chunks = parts(good)
    wide_header, wide_signature, wide_chunks = parts(wide)
    at = ModelHeader.parse(wide_header).entries[0].length + 16
    model, one, two = wide_chunks[:at], wide_chunks[at : at + CHUNK], wide_chunks[at + CHUNK :]
    two, rest = two[:CHUNK], two[CHUNK:]

    def stated(**changes: Any) -> bytes:  # noqa: ANN401 - the header's fields
        changed = dataclasses.replace(ModelHeader.parse(header), **changes).encode()
        return assembled(changed, signature, chunks)

    def joined(*pieces: bytes) -> bytes:
        return assembled(wide_header, wide_signature, b"".join(pieces))

    mine = deployment.operator.signing_key
    table: dict[str, tuple[bytes, Code]] = {
        "no-magic": (b"CASEMDL1" + good[8:], Code.MODEL_MALFORMED),
        "cut-in-header": (good[:100], Code.MODEL_MALFORMED),
        "signature-flipped": (
            assembled(header, flip(signature, 5), chunks),
            Code.MODEL_SIGNATURE_INVALID,
        ),
        "header-of-another": (
            assembled(parts(other)[0], signature, chunks),
            Code.MODEL_SIGNATURE_INVALID,
        ),
        "signed-by-the-host": (
            assembled(header, mine.sign(wire.label("model") + wire.digest(header)), chunks),
            Code.MODEL_SIGNATURE_INVALID,
        ),
        "other-version": (stated(version=9), Code.MODEL_SIGNATURE_INVALID),
        "policy-stripped": (stated(callers="any"), Code.MODEL_SIGNATURE_INVALID),
        "callers-changed": (
            stated(callers=(deployment.operator.public_key,)),
            Code.MODEL_SIGNATURE_INVALID,
        ),
        "wrapped-key-of-another": (
            stated(wrapped_key=ModelHeader.parse(parts(other)[0]).wrapped_key),
            Code.MODEL_SIGNATURE_INVALID,
        ),
        "publisher-renamed": (
            stated(publisher=deployment.operator.public_key),
            Code.MODEL_PUBLISHER_UNKNOWN,
        ),
        "publisher-unknown": (foreign, Code.MODEL_PUBLISHER_UNKNOWN),
        "chunk-flipped": (assembled(header, signature, flip(chunks, 20)), Code.MODEL_OPEN_FAILED),
        "tag-flipped": (assembled(header, signature, flip(chunks, -1)), Code.MODEL_OPEN_FAILED),
        "chunks-of-another": (
            assembled(header, signature, parts(other)[2]),
            Code.MODEL_OPEN_FAILED,
        ),
        "cut-by-one": (good[:-1], Code.MODEL_OPEN_FAILED),
        "longer-by-one": (good + b"\0", Code.MODEL_OPEN_FAILED),
        "cut-at-a-chunk": (joined(model, one, two), Code.MODEL_OPEN_FAILED),
        "chunks-swapped": (joined(model, two, one, rest), Code.MODEL_OPEN_FAILED),
        "chunk-missing": (joined(model, one, rest), Code.MODEL_OPEN_FAILED),
        "entries-swapped": (joined(one, two, rest, model), Code.MODEL_OPEN_FAILED),
        "chunk-twice": (joined(model, one, one, two, rest), Code.MODEL_OPEN_FAILED),
    }
    files = []
    for name, (content, _) in table.items():
        path = tmp_path / f"{name}.sealed"
        path.write_bytes(content)
        files.append(path)
    with second_host(deployment, models=files) as host:
        log = host.log
        assert eventually(lambda: len(failures(log)) >= len(table))
    found = failures(log)
    assert found == {f"{name}.sealed": str(code) for name, (_, code) in table.items()}
    logged = [entry.version for entry in start_session(deployment).evidence.log]
    assert 7 not in logged  # nothing of it was ever loaded


def four_chunks(folder: Path) -> dict[str, Path]:
    model, data = folder / "wide.onnx", folder / "wide.bin"
    model.write_bytes(onnx_bytes.linear())
    data.write_bytes(bytes(range(256)) * (10 << 10))  # 2.5 MiB
    return {"wide.onnx": model, "wide.bin": data}


def failures(log: Path) -> dict[str, str]:
    """The code of each file that a host could not load."""
    whole, _, _ = log.read_text().rpartition("\n")  # the last line may still be being written
    lines = [json.loads(line) for line in whole.splitlines()]
    return {line["file"]: line["code"] for line in lines if line["event"] == "model_failed"}


def test_h9_a_wrapped_key_of_another_model_is_refused_even_if_the_publisher_signed_it(
    deployment: LocalDeployment, enclave: EnclaveSocket, tmp_path: Path
) -> None:
    """KMS releases the other model's key, rightly: the commitment in the header is what refuses."""
    other = ModelHeader.parse(parts(seal(deployment, tmp_path, onnx_bytes.linear()))[0])
    swapped = seal(deployment, tmp_path, onnx_bytes.linear(), wrapped_key=other.wrapped_key)
    assert refusal(lambda: enclave.load(swapped)) is Code.MODEL_OPEN_FAILED


def test_h9_a_wrapped_key_outside_its_context_is_refused_by_kms(
    deployment: LocalDeployment, enclave: EnclaveSocket, tmp_path: Path
) -> None:
    """A model of another name under the same KMS key: the context does not fit."""
    renamed = seal(deployment, tmp_path, onnx_bytes.linear(), name="echo")
    assert refusal(lambda: enclave.load(renamed)) in {
        Code.KEY_RELEASE_DENIED,
        Code.KEY_RELEASE_INVALID,
    }
    elsewhere = seal(
        deployment,
        tmp_path,
        onnx_bytes.linear(),
        kms_key=deployment.vendor_key.replace("eu-central-1", "us-east-1"),
    )
    assert refusal(lambda: enclave.load(elsewhere)) is Code.MODEL_MALFORMED
    clinics = seal(deployment, tmp_path, onnx_bytes.linear(), kms_key=deployment.clinic_key)
    assert refusal(lambda: enclave.load(clinics)) in {
        Code.KEY_RELEASE_DENIED,
        Code.KEY_RELEASE_INVALID,
    }


def test_m1_a_version_below_the_measured_minimum_is_refused(
    deployment: LocalDeployment, tmp_path: Path
) -> None:
    good = Configuration.parse(deployment.configuration)
    name = f"{deployment.vendor.public_key.hex()}/{MODEL}"
    minimum = dataclasses.replace(good, minimum_versions={name: 8}).encode()
    old = seal(deployment, tmp_path, onnx_bytes.linear(), version=7)
    current = seal(deployment, tmp_path, onnx_bytes.linear(), version=8)
    with side_enclave(deployment, configuration=minimum) as enclave:
        assert refusal(lambda: enclave.load(old)) is Code.MODEL_VERSION_REVOKED
        # The current one gets as far as KMS, which this configuration does not satisfy.
        assert refusal(lambda: enclave.load(current)) is Code.KEY_RELEASE_DENIED


def external(location: str, **where: str) -> bytes:
    weights = onnx_bytes.external_tensor("w", (3, 2), location=location, **where)
    return onnx_bytes.linear(weights)


@pytest.mark.parametrize(
    "onnx",
    [
        external("/etc/passwd"),
        external("../../../../etc/passwd"),
        external("../app/boot.py"),
        external("app/boot.py", offset="0", length="24"),
        external("/app/boot.py", offset="0", length="24"),
        external("proc/self/maps", offset="0", length="24"),
        external("*/_ORT_MEM_ADDR_/*", offset="4096", length="24"),
        external("missing.bin"),
        external(""),
        onnx_bytes.model(
            onnx_bytes.graph(
                (onnx_bytes.node("Exec", ("x",), ("y",), domain="attacker.example"),),
                (onnx_bytes.X,),
                (onnx_bytes.Y,),
            )
        ),
        onnx_bytes.model(
            onnx_bytes.graph(
                (
                    onnx_bytes.node("Add", ("x", "b"), ("a",)),
                    onnx_bytes.node("Add", ("x", "a"), ("b",)),
                ),
                (onnx_bytes.X,),
                (onnx_bytes.Y,),
            )
        ),
        b"\xff" * 100,
        b"x",
        b"ORTM" + bytes(200),
    ],
    ids=[
        *("absolute", "parent", "code", "code by path", "code by absolute path", "maps"),
        *("memory", "missing", "empty"),
        *("custom operator", "cycle", "garbage", "one byte", "other format"),
    ],
)
def test_m3_a_model_that_reaches_out_is_rejected(
    deployment: LocalDeployment, enclave: EnclaveSocket, tmp_path: Path, onnx: bytes
) -> None:
    """Sealed and signed by the trusted publisher, so it is the runtime's bounds that hold."""
    sealed = seal(deployment, tmp_path, onnx)
    assert refusal(lambda: enclave.load(sealed)) is Code.MODEL_REJECTED
    assert all(model["version"] != 7 for model in enclave.health()["models"])


def test_m3_a_declared_tensor_of_terabytes_takes_no_memory(
    deployment: LocalDeployment, enclave: EnclaveSocket, tmp_path: Path
) -> None:
    huge = onnx_bytes.tensor("w", onnx_bytes.FLOAT, (1 << 20, 1 << 20), b"1234")
    sealed = seal(deployment, tmp_path, onnx_bytes.linear(huge))
    assert refusal(lambda: enclave.load(sealed)) is Code.MODEL_REJECTED


def test_m4_a_model_of_the_operators_is_refused_and_a_publishers_second_one_is_visible(
    deployment: LocalDeployment, enclave: EnclaveSocket, tmp_path: Path
) -> None:
    echo = onnx_bytes.model(
        onnx_bytes.graph(
            (onnx_bytes.node("Identity", ("x",), ("y",)),),
            (onnx_bytes.X,),
            (onnx_bytes.value_info("y", onnx_bytes.FLOAT, ("n", 3)),),
        )
    )
    shape = {"outputs": (TensorSpec("y", "FP32", (0, 3)),), "callers": "any"}
    mine = seal(deployment, tmp_path, echo, publisher=deployment.operator.signing_key, **shape)
    assert refusal(lambda: enclave.load(mine)) is Code.MODEL_PUBLISHER_UNKNOWN
    before = len(start_session(deployment).evidence.log)
    enclave.load(seal(deployment, tmp_path, echo, **shape))
    try:
        entries = start_session(deployment).evidence.log[before:]
        assert [(entry.op, entry.version) for entry in entries] == [("load", 7)]
        genuine_entry = start_session(deployment).evidence.log[0]
        assert entries[0].callers != genuine_entry.callers  # that anybody may call it shows too
    finally:
        enclave.unload(MODEL, 7)


def test_c5_an_endless_model_ends_at_its_callers_deadline_and_others_are_served(
    deployment: LocalDeployment, enclave: EnclaveSocket, tmp_path: Path
) -> None:
    scalar = {"inputs": (TensorSpec("x", "FP32", ()),), "outputs": (TensorSpec("y", "FP32", ()),)}
    enclave.load(seal(deployment, tmp_path, onnx_bytes.endless(), **scalar))
    try:
        session = start_session(deployment)
        endless = session.seal(to_request({"x": np.ones((), np.float32)}), version=7)
        outcome: list[Code] = []

        def run() -> None:
            answer = endless.open(*enclave.request(endless.header, endless.ciphertext, 1500))
            outcome.append(answer.trailer.status)

        thread = threading.Thread(target=run)
        thread.start()
        while thread.is_alive():
            assert session.ask(enclave).trailer.status is Code.OK
        assert outcome == [Code.DEADLINE_EXCEEDED]
    finally:
        enclave.unload(MODEL, 7)


TRAPPED = {
    "inputs": (TensorSpec("x", "INT32", (0,)), TensorSpec("d", "INT32", (0,))),
    "outputs": (TensorSpec("y", "INT32", (0,)),),
}


def quotient(x: int, d: int) -> bytes:
    return to_request({"x": np.array([x], np.int32), "d": np.array([d], np.int32)})


def test_c5_an_input_that_crashes_onnxruntime_is_a_sealed_error_and_others_are_served(
    deployment: LocalDeployment, enclave: EnclaveSocket, tmp_path: Path
) -> None:
    before = enclave.counters()["workers_ended"], enclave.evidence().instance_config
    enclave.load(seal(deployment, tmp_path, onnx_bytes.dividing(), **TRAPPED))
    try:
        session = start_session(deployment)
        poison = session.seal(quotient(-(2**31), -1), version=7)
        outcome: list[Code] = []

        def run() -> None:
            answer = poison.open(*enclave.request(poison.header, poison.ciphertext))
            outcome.append(answer.trailer.status)

        thread = threading.Thread(target=run)
        thread.start()
        while thread.is_alive():
            assert session.ask(enclave).trailer.status is Code.OK
        assert outcome == [Code.MODEL_FAILED]
        # The same process with the same sessions; the model serves again.
        assert session.ask(enclave, quotient(6, 3), version=7).trailer.status is Code.OK
        assert enclave.counters()["workers_ended"] == before[0] + 2
        assert enclave.evidence().instance_config == before[1]
    finally:
        enclave.unload(MODEL, 7)


def test_c5_whoever_crashes_a_model_too_often_loses_it_alone(
    deployment: LocalDeployment, enclave: EnclaveSocket, tmp_path: Path
) -> None:
    open_to_all = {**TRAPPED, "callers": "any"}
    enclave.load(seal(deployment, tmp_path, onnx_bytes.dividing(), **open_to_all))
    try:
        attacker, other = start_session(deployment, caller=None), start_session(deployment)
        statuses = []
        while Code.UNAVAILABLE not in statuses:
            statuses.append(attacker.ask(enclave, quotient(-(2**31), -1), version=7).trailer.status)
            assert other.ask(enclave, quotient(6, 3), version=7).trailer.status is Code.OK
        assert statuses == [Code.MODEL_FAILED] * limits.WORKER_BLAME_MAX + [Code.UNAVAILABLE]
        assert attacker.ask(enclave, quotient(6, 3), version=7).trailer.status is Code.UNAVAILABLE
        ready = {model["version"]: model["ready"] for model in enclave.health()["models"]}
        assert (ready[1], ready[7]) == (True, True)
    finally:
        enclave.unload(MODEL, 7)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can end a worker from outside")
def test_c5_a_model_that_ends_by_itself_too_often_is_out_of_service_alone(
    deployment: LocalDeployment, enclave: EnclaveSocket, tmp_path: Path
) -> None:
    assert deployment.enclave is not None
    pid = int(deployment.enclave.latest["pid"])
    before = descendants(pid)
    enclave.load(seal(deployment, tmp_path, onnx_bytes.dividing(), **TRAPPED))
    try:
        killed: list[int] = []
        session = start_session(deployment)
        for _ in range(limits.WORKER_ENDS_MAX):
            assert eventually(lambda: bool(descendants(pid) - before))
            [worker] = descendants(pid) - before
            os.kill(worker, signal.SIGKILL)
            killed.append(worker)
            assert eventually(lambda: killed[-1] not in descendants(pid))
            # A session of its own: the pauses between starts are longer than one may live.
            session = start_session(deployment)
            assert session.ask(enclave).trailer.status is Code.OK
        assert session.ask(enclave, quotient(6, 3), version=7).trailer.status is Code.UNAVAILABLE
        ready = {model["version"]: model["ready"] for model in enclave.health()["models"]}
        assert (ready[1], ready[7]) == (True, False)
        with deployment.client() as client:
            assert client.ready(MODEL, version=1)
            assert not client.ready(MODEL, version=7)
        # Loaded anew it serves again.
        enclave.load(seal(deployment, tmp_path, onnx_bytes.dividing(), **TRAPPED), replaces=7)
        assert session.ask(enclave, quotient(6, 3), version=7).trailer.status is Code.OK
    finally:
        enclave.unload(MODEL, 7)
