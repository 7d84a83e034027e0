"""The demonstration's main path: policies, sealing, verification, inference."""

from __future__ import annotations

import csv
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
from botocore.exceptions import ClientError

from casemate.attestation import Measurement
from casemate.kms_context import model_context
from casemate.limits import MIB
from casemate.sealed_model import ModelReader
from casemate_devkit.demo.story import Deviation
from casemate_devkit.local import AUDIENCE, MODEL
from casemate_devkit.parties import run_tool

if TYPE_CHECKING:
    from casemate.client import Client
    from casemate.sealed_model import ModelHeader
    from casemate_devkit.demo.story import Story
    from casemate_devkit.kms import Principal
    from casemate_devkit.local import LocalDeployment

_BATCH = 19  # 171 held-out rows in nine calls
_WINDOW = 16  # bytes: two features, or a piece of a weight vector; chance matches are negligible


@dataclass(frozen=True, slots=True)
class Data:
    """The model and the held-out rows: features (rows, 30) float32, target (rows,) int64."""

    onnx: Path
    names: list[str]
    features: np.ndarray
    target: np.ndarray
    expected_correct: int

    @classmethod
    def load(cls, folder: Path) -> Data:
        """Read the committed files of ``examples/wdbc``."""
        with (folder / "heldout.csv").open(newline="") as stream:
            header, *rows = list(csv.reader(stream))
        values = np.array(rows, dtype=np.float64)
        origin = json.loads((folder / "ORIGIN.json").read_text())
        return cls(
            folder / "wdbc.onnx",
            header[:-1],
            values[:, :-1].astype(np.float32),
            values[:, -1].astype(np.int64),
            origin["heldout"]["correct"],
        )


def parties(story: Story, world: LocalDeployment) -> None:
    """Introduce the parties and what stands in for AWS."""
    story.scene("Three parties, each with its own directory, keys and AWS account")
    story.show("vendor", f"owns the model    account {world.vendor.account}")
    story.show("clinic", f"owns the data     account {world.clinic.account}")
    story.show("operator", f"owns the machine  account {world.operator.account}")
    world.start_kms()
    story.say(
        "Simulated here: the Nitro Security Module, in a process of its own with a throw-away "
        "root, and AWS KMS, a double that enforces attestation. The verifiers are the production "
        "code."
    )
    story.show("Nitro root, SHA-256", world.nitro_root.hex())


def measure(story: Story, world: LocalDeployment) -> Measurement:
    """Both owners measure the staged tree themselves."""
    story.scene("Vendor and clinic measure the enclave's staged tree, each for itself")
    found: list[dict[str, str]] = []
    for party in (world.vendor, world.clinic):
        result = run_tool("casemate_devkit.measure", str(world.tree))
        story.command(f"[{party.name}] python -m casemate_devkit.measure TREE")
        story.proven("measured", when=result.returncode == 0, otherwise=result.stderr)
        found.append(json.loads(result.stdout))
    story.proven("both found the same registers", when=found[0] == found[1], otherwise=found)
    for name in ("pcr0", "pcr1", "pcr2"):
        story.show(name.upper(), found[0][name])
    return Measurement(*(bytes.fromhex(found[0][name]) for name in ("pcr0", "pcr1", "pcr2")))


def policies(story: Story, world: LocalDeployment, measurement: Measurement) -> None:
    """The owners write their policies from their own measurement."""
    story.scene("The owners write their policies: KMS key policies and the clinic's trust policy")
    world.agree(measurement)
    story.say(
        "The configuration (audience, publishers, KMS region and TLS roots, limits) is measured "
        "into PCR16 before the enclave reads anything else."
    )
    story.show("PCR16", world.release.pcr16.hex())
    story.show("vendor's KMS key", world.vendor_key)
    story.show("clinic's KMS key", world.clinic_key)
    story.say(
        "Each key policy lets the operator's role Decrypt only with an attestation document that "
        "shows PCR0, PCR1, PCR2 and PCR16, and only for one purpose. The owners' admins cannot."
    )
    path = world.write_trust_policy(world.clinic.directory / "trust.toml")
    story.command("[clinic] cat trust.toml")
    story.output(path.read_text())


def read_model_header(sealed: Path) -> ModelHeader:
    """Return the sealed file's header, which anybody can read."""
    reader = ModelReader()
    reader.feed(sealed.read_bytes()[:MIB])
    if reader.header is None:
        raise Deviation(f"{sealed} has no readable header")
    return reader.header


def seal(story: Story, world: LocalDeployment, data: Data) -> Path:
    """The vendor seals the model."""
    story.scene("The vendor seals the model and hands the sealed file to the operator")
    story.command(
        f"[vendor] casemate seal-model wdbc.onnx {MODEL}.sealed --name {MODEL} --version 1 "
        "--publisher-key key.pem --kms-key ARN --caller CLINIC"
    )
    path = world.seal_model(data.onnx)
    story.show("model digest", world.sealed_summary["digest"])
    plain, sealed = data.onnx.read_bytes(), path.read_bytes()
    leaked = find_pieces(sealed, [plain])
    story.proven(f"no piece of the {len(plain)}-byte model is in the sealed file", when=not leaked)
    return path


def denied(story: Story, world: LocalDeployment, sealed: Path) -> None:
    """Without the enclave nobody opens the model, not even its owner's admin."""
    story.scene(
        "Decrypt without an enclave: refused for the operator, and for the vendor's own admin"
    )
    header = read_model_header(sealed)
    context = model_context(header.publisher, header.name)
    people = {
        "operator's admin": world.operator.principals["admin"],
        "operator's host role": world.operator.principals["host"],
        "vendor's admin": world.vendor.principals["admin"],
        "vendor's sealing role": world.vendor.principals["sealer"],
    }
    reason = ""
    for name, who in people.items():
        reason = _decrypt(world, who, header.wrapped_key, context)
        story.proven(f"{name} is refused", when="AccessDenied" in reason, otherwise=reason)
    story.output(reason[:300])


def _decrypt(world: LocalDeployment, who: Principal, blob: bytes, context: dict[str, str]) -> str:
    try:
        world.aws.kms(who).decrypt(
            KeyId=world.vendor_key, CiphertextBlob=blob, EncryptionContext=context
        )
    except ClientError as error:
        return f"{error.response['Error']['Code']}: {error.response['Error']['Message']}"
    return "granted"


def start(story: Story, world: LocalDeployment, sealed: Path) -> None:
    """The operator starts the enclave and the host; KMS releases the model's key to the enclave."""
    story.scene("The operator starts enclave and host; KMS releases the model's key to the enclave")
    enclave = world.start_enclave(None, "--restart")
    story.show("enclave", f"pid {enclave.ready['pid']}, form {enclave.ready['form']}")
    registers = {f"pcr{n}": getattr(world.release, f"pcr{n}").hex() for n in range(3)}
    story.proven(
        "the simulated NSM measured what the owners measured",
        when=all(enclave.ready[name] == value for name, value in registers.items()),
    )
    host = world.start_host([sealed])
    world.wait_until_serving()
    story.show("host", f"pid {host.pid}, serving {world.target}")
    grants = [
        event
        for event in world.kms.audit.events()
        if event["eventName"] == "Decrypt" and event["decision"] == "allowed"
    ]
    story.proven("KMS granted one Decrypt, and only to the attested enclave", when=len(grants) == 1)
    recipient = grants[0]["additionalEventData"]["recipient"]
    story.show("KMS audit: Decrypt by", grants[0]["principal"])
    story.show("for module", recipient["attestationDocumentModuleId"])
    for register in (0, 1, 2, 16):
        story.show(f"with PCR{register}", recipient[f"attestationDocumentEnclavePCR{register}"])
    story.show("because", grants[0]["reason"])


def verify(story: Story, world: LocalDeployment) -> None:
    """The clinic verifies, step by step."""
    story.scene("The clinic verifies the enclave before it seals anything")
    trust = world.clinic.directory / "trust.toml"
    arguments = ("verify", world.target, "--policy", str(trust))
    story.command(f"[clinic] casemate verify {world.target} --policy trust.toml")
    result = run_tool("casemate.client.cli", *arguments)
    story.output(result.stdout)
    story.proven("every step passed", when=result.returncode == 0, otherwise=result.stderr)


def infer(story: Story, world: LocalDeployment, data: Data) -> list[bytes]:
    """Run all held-out rows through the sealed path, in both key modes."""
    story.scene("The clinic's held-out rows go through the sealed path")
    session = onnxruntime.InferenceSession(data.onnx, providers=["CPUExecutionProvider"])
    outputs = [item.name for item in session.get_outputs()]
    answers: list[bytes] = []
    label = data.target
    for mode in ("hpke", "kms"):
        with world.client(kms=mode == "kms") as client:
            label, equal = _all_rows(client, session, data, outputs, answers)
        correct = int((label == data.target).sum())
        rows = len(data.target)
        story.proven(
            f"key mode {mode}: {correct} of {rows} rows right ({correct / rows:.2%}), "
            "as measured when the model was trained",
            when=correct == data.expected_correct,
            otherwise=f"expected {data.expected_correct}",
        )
        story.proven("every output equals plain onnxruntime's, bit for bit", when=equal)
    for row in range(3):
        truth = "benign" if data.target[row] else "malignant"
        guess = "benign" if label[row] else "malignant"
        story.show(f"row {row}", f"predicted {guess:<9} in truth {truth}")
    return answers


def _all_rows(
    client: Client,
    session: onnxruntime.InferenceSession,
    data: Data,
    outputs: list[str],
    answers: list[bytes],
) -> tuple[np.ndarray, bool]:
    labels, equal = [], True
    for first in range(0, len(data.target), _BATCH):
        rows = data.features[first : first + _BATCH]
        result = client.infer(MODEL, {"features": rows})
        plain = dict(zip(outputs, session.run(None, {"features": rows}), strict=True))
        equal &= result.outputs.keys() == plain.keys() and all(
            np.array_equal(result.outputs[name].view(np.uint8), plain[name].view(np.uint8))
            for name in plain
        )
        labels.append(result.outputs["label"])
        answers.append(result.outputs["probabilities"].tobytes())
    return np.concatenate(labels), bool(equal)


def search(story: Story, world: LocalDeployment, data: Data, answers: list[bytes]) -> None:
    """Search everything the host saw for the data, the answers and the model."""
    story.scene("What the host saw, searched for plaintext")
    seen = world.relay_tap.recorded() + world.egress_tap.recorded()
    story.show("recorded", f"{len(seen):,} bytes between host, enclave and KMS")
    story.proven(
        "the record is complete: it holds the configuration and the audience, which are public",
        when=world.configuration in seen and AUDIENCE.encode() in seen,
    )
    secrets = {
        "features": [row.tobytes() for row in data.features],
        "answers": answers,
        "model": [data.onnx.read_bytes()],
    }
    for name, pieces in secrets.items():
        count = sum(len(piece) for piece in pieces)
        leaked = find_pieces(seen, pieces)
        story.proven(f"{name}: none of {count:,} bytes found", when=not leaked, otherwise=leaked)
    planted = seen + secrets["features"][0]
    story.proven(
        "the same search does find a row that is planted in the record",
        when=bool(find_pieces(planted, secrets["features"])),
    )


def find_pieces(record: bytes, pieces: list[bytes]) -> list[str]:
    """Return where any 16-byte window of ``pieces`` (every 4 bytes) occurs in ``record``."""
    return [
        f"piece {number} at {offset}"
        for number, piece in enumerate(pieces)
        for offset in range(0, len(piece) - _WINDOW + 1, 4)
        if len(set(window := piece[offset : offset + _WINDOW])) > _WINDOW // 4  # not a run of zeros
        and window in record
    ]


def how_to_call(story: Story, world: LocalDeployment, folder: Path) -> None:
    """Say how to call the services that are left running."""
    story.scene("The services are left running")
    if world.enclave is None or world.host is None:
        raise Deviation("enclave or host is not running")
    environment = world.aws.environment(world.clinic.principals["app"])
    trust, key = world.clinic.directory / "trust.toml", world.clinic.directory / "key.pem"
    casemate = Path(sys.executable).parent / "casemate"
    story.command(f"{casemate} verify {world.target} --policy {trust}")
    story.command(
        f"{casemate} infer {world.target} {MODEL} --policy {trust} --caller-key {key} "
        f"--input features={folder / 'example.csv'}"
    )
    story.say("With data keys from the clinic's own KMS, add --kms-key and this environment:")
    story.output("export " + " ".join(f"{k}={shlex.quote(v)}" for k, v in environment.items()))
    story.output(f"--kms-key {world.clinic_key}")
    story.say("Stop them, and remove what the demonstration made, with:")
    pids = (world.kms.pid, world.enclave.pid, world.host.pid)
    story.command(f"kill {' '.join(map(str, pids))} && rm -r {world.base}")
