"""Nothing secret is anywhere that the host can look (THREATS.md: H1, O1).

Unique patterns are planted in inputs, answers, model weights, AWS credentials and data keys. They
are then searched in every byte that passed between client, host, enclave and KMS, in every log, in
the KMS audit and in every file that the deployment wrote.
"""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from casemate import cbor
from casemate.channel import UnixAddress, connect
from casemate.client import KmsDataKeys
from casemate.client.seal import seal_onnx
from casemate.errors import Code
from casemate.frames import FrameType, expect_answer, send_frame
from casemate.limits import MIB
from casemate.tensors import to_request
from casemate_devkit.demo.scenes import find_pieces
from casemate_devkit.local import AUDIENCE, MODEL
from tests.support import onnx_bytes
from tests.support.attacker import genuine, refusal, start_session
from tests.support.damage import flip
from tests.support.deployment import DATA, running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate.attestation import TrustPolicy
    from casemate.client.kms import DataKey
    from casemate_devkit.local import LocalDeployment

pytestmark = pytest.mark.integration
ROUNDS = 4


def planted_floats(shape: tuple[int, ...]) -> np.ndarray:
    """Random values between 1 and 2: every byte pattern is unique, and arithmetic stays finite."""
    bits = np.frombuffer(secrets.token_bytes(4 * int(np.prod(shape))), np.uint32)
    return (bits >> 9 | 0x3F800000).astype(np.uint32).view(np.float32).reshape(shape)


class Told:
    """A deployment that served planted secrets, and everything that its host could see."""

    def __init__(self, world: LocalDeployment, folder: Path) -> None:
        self.world = world
        self.weights = planted_floats((3, 64))
        self.inputs = planted_floats((ROUNDS, 16, 3))
        self.answers: list[bytes] = []
        self.name = f"planted_{secrets.token_hex(12)}"
        self.data_keys: list[bytes] = []
        self._load(folder)
        self._ask()
        self._fail()

    def _load(self, folder: Path) -> None:
        """Load a second model, of planted weights, through the recorded relay."""
        onnx = folder / "planted.onnx"
        raw = onnx_bytes.tensor("w", onnx_bytes.FLOAT, (3, 64), self.weights.tobytes())
        y = onnx_bytes.value_info("y", onnx_bytes.FLOAT, ("n", 64))
        onnx.write_bytes(
            onnx_bytes.model(onnx_bytes.graph((onnx_bytes.MATMUL,), (onnx_bytes.X,), (y,), (raw,)))
        )
        sealed = self.world.vendor.directory / f"{MODEL}-2.sealed"
        seal_onnx(
            onnx,
            sealed,
            name=MODEL,
            version=2,
            publisher=self.world.vendor.signing_key,
            kms_key=self.world.vendor_key,
            callers=(self.world.clinic.public_key,),
            kms=self.world.aws.kms(self.world.vendor.principals["sealer"]),
        )
        onnx.unlink()
        content = sealed.read_bytes()
        relay = UnixAddress(str(self.world.operator.directory / "relay.sock"))
        with connect(relay, 10) as channel:
            send_frame(channel, FrameType.LOAD, cbor.encode({"size": len(content)}))
            send_frame(channel, FrameType.MODEL_DATA, content[:MIB])
            expect_answer(channel, FrameType.LOAD)

    def _ask(self) -> None:
        for mode in ("hpke", "kms"):
            with self.world.client() as client:
                if mode == "kms":
                    client._parts.get().core._sessions.data_keys = Recording(self)
                for rows in self.inputs:
                    outputs = client.infer(MODEL, {"x": rows}, version=2).outputs
                    assert np.allclose(outputs["y"], rows @ self.weights, rtol=1e-4)
                    self.answers.append(outputs["y"].tobytes())

    def _fail(self) -> None:
        """Requests that fail in every way that quotes something, if anything does."""
        session, enclave = start_session(self.world), genuine(self.world)
        rows = self.inputs[0]
        for message, named in (
            (to_request({self.name: rows}), {}),
            (to_request({"x": rows.astype(np.float64)}), {}),
            (to_request({"x": rows[:, :2]}), {}),
            (to_request({"x": rows}, [self.name]), {}),
            (to_request({"x": rows}), {"model": self.name}),
            (to_request({"x": rows})[:-3], {}),
        ):
            answer = session.ask(enclave, message, **{"version": 2, **named})
            assert answer.trailer.status is not Code.OK
        call = session.seal(to_request({"x": rows}), version=2)
        broken = flip(call.ciphertext, -1)
        assert refusal(lambda: enclave.request(call.header, broken)) is Code.OPEN_FAILED

    def seen(self) -> dict[str, bytes]:
        """Everything that the host could see, by where it saw it."""
        world = self.world
        found = {
            "relay": world.relay_tap.recorded(),
            "egress": world.egress_tap.recorded(),
            "audit": world.kms.audit.path.read_bytes(),
        }
        for path in sorted(world.base.rglob("*")):
            if path.is_file():
                found[str(path.relative_to(world.base))] = path.read_bytes()
        assert world.host is not None
        assert world.enclave is not None
        for pid in (world.host.pid, world.enclave.pid, world.enclave.ready["pid"]):
            found |= process_facts(pid)
        for folder in (world.tree, Path.cwd()):
            cores = [path for path in folder.glob("core*") if path.is_file()]
            found |= {str(core): core.read_bytes() for core in cores}
        return found


def process_facts(pid: int) -> dict[str, bytes]:
    """What the kernel tells root about a process, but for its memory and its program's file."""
    found = {}
    for path in Path(f"/proc/{pid}").iterdir():
        if path.is_file() and path.name not in {"exe", "mem", "pagemap", "kpagecgroup"}:
            with contextlib.suppress(OSError):  # some can only be written, some only by their owner
                found[f"{pid}/{path.name}"] = path.read_bytes()
    assert {f"{pid}/{name}" for name in ("cmdline", "environ", "maps", "status")} <= found.keys()
    return found


class Recording:
    """The clinic's data keys, with a copy of each for the search."""

    def __init__(self, told: Told) -> None:
        world = told.world
        app = world.clinic.principals["app"]
        self._keys = KmsDataKeys(world.clinic_key, kms=world.aws.kms(app))
        self._told = told

    def generate(self, policy: TrustPolicy) -> DataKey:
        made = self._keys.generate(policy)
        self._told.data_keys.append(made.key)
        return made


@pytest.fixture(scope="module")
def told(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    with tempfile.TemporaryDirectory(prefix="cm-") as folder, running(Path(folder), tree) as world:
        yield Told(world, tmp_path_factory.mktemp("planted"))


def spellings(secret: bytes) -> set[bytes]:
    """A short secret as it might be written: raw, in hex, in base64."""
    return {
        secret,
        secret.hex().encode(),
        secret.hex().upper().encode(),
        base64.b64encode(secret).rstrip(b"=")[:-1],
        base64.urlsafe_b64encode(secret).rstrip(b"=")[:-1],
    }


@pytest.mark.parametrize("what", ["inputs", "answers", "weights", "example model"])
def test_h1_no_piece_of_a_tensor_or_model_is_anywhere(told: Told, what: str) -> None:
    pieces = {
        "inputs": [rows.tobytes() for rows in told.inputs],
        "answers": told.answers,
        "weights": [told.weights.tobytes()],
        "example model": [DATA.onnx.read_bytes()],
    }[what]
    for place, content in told.seen().items():
        assert find_pieces(content, pieces) == [], place
    planted = told.seen()["relay"] + pieces[0][:64]
    assert find_pieces(planted, pieces)  # the search does find


def test_h1_the_record_is_complete(told: Told) -> None:
    """It holds what is public, so that what is missing is missing because it was sealed."""
    seen = told.seen()
    assert told.world.configuration in seen["relay"]
    assert AUDIENCE.encode() in seen["relay"]
    assert f"{MODEL}-2.sealed" in " ".join(seen)
    assert len(seen["egress"]) > 3000


def test_h1_data_keys_are_nowhere(told: Told) -> None:
    assert len(told.data_keys) == 1
    for key in told.data_keys:
        for place, content in told.seen().items():
            for spelling in spellings(key):
                assert spelling not in content, place


def test_h1_names_inside_the_seal_are_nowhere(told: Told) -> None:
    for place, content in told.seen().items():
        assert told.name.encode() not in content, place


def test_h1_o1_the_secret_access_key_is_in_its_file_and_its_frame_alone(told: Told) -> None:
    who = told.world.operator.principals["host"]
    secret = who.secret_access_key.encode()
    allowed = {"operator/credentials.json": 1, "relay": 1}
    for place, content in told.seen().items():
        if place.startswith("kms/"):
            continue  # AWS itself knows its principals' secrets
        count = sum(content.count(spelling) for spelling in spellings(secret))
        assert count == allowed.get(place, 0), place
    frame = b"qsecret_access_key" + b"\x78" + bytes([len(secret)]) + secret
    assert told.seen()["relay"].count(frame) == 1  # within the credentials frame's map
    for name in ("vendor", "clinic"):
        for principal in getattr(told.world, name).principals.values():
            for place, content in told.seen().items():
                if not place.startswith("kms/"):
                    assert principal.secret_access_key.encode() not in content, place


def test_h1_private_keys_are_in_their_owners_directory_alone(told: Told) -> None:
    for party in (told.world.vendor, told.world.clinic):
        raw = party.signing_key.private_bytes_raw()
        pem = (party.directory / "key.pem").read_bytes().splitlines()[1]
        for place, content in told.seen().items():
            if place != f"{party.name}/key.pem":
                assert pem not in content, place
                assert raw not in content, place


def test_o1_logs_and_audit_say_what_happened(told: Told) -> None:
    """They are not silent: the search above is over logs that have something to say."""
    operator = told.world.operator.directory
    host = [json.loads(line) for line in (operator / "host.log").read_text().splitlines()]
    assert {"serving", "model_loaded", "credentials_sent"} <= {line["event"] for line in host}
    assert "MODEL_LOADED" in (operator / "enclave.log").read_text()
    assert any(event["decision"] == "allowed" for event in told.world.kms.audit.events())
