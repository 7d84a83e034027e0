"""The demonstration's refusals: changed code, another key, a replay."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from casemate import cbor
from casemate.channel import ANYONE, UnixAddress, connect
from casemate.client import Client
from casemate.client.transport import HostConnection
from casemate.envelope.hpke import KemKey
from casemate.envelope.sealing import DataKeySession
from casemate.errors import CasemateError, Code
from casemate.frames import FrameType, exchange, expect_answer, send_frame
from casemate.limits import MIB
from casemate.tensors import to_request
from casemate_devkit.demo.story import Deviation
from casemate_devkit.evil_host import EvilHost
from casemate_devkit.local import ENDPOINT, MODEL
from casemate_host.config import EgressConfig
from casemate_host.credentials import Credentials
from casemate_host.egress import Egress

if TYPE_CHECKING:
    import socket

    from casemate_devkit.demo.scenes import Data
    from casemate_devkit.demo.story import Story
    from casemate_devkit.local import LocalDeployment

_TIMEOUT_S = 60.0


def changed_code(story: Story, world: LocalDeployment, sealed: Path) -> None:
    """The operator changes one byte of enclave code: KMS refuses, and names the register."""
    story.scene("Attack 1: the operator changes one byte of the enclave's code")
    with tempfile.TemporaryDirectory(dir=world.base, prefix="changed-") as folder:
        tree = Path(folder) / "tree"
        changed = change_one_byte(world.tree, tree)
        story.show("changed file", changed)
        code, detail = run_changed(world, tree, sealed)
    if code is not Code.KEY_RELEASE_DENIED:
        raise Deviation(f"a changed enclave got {code}: {detail}")
    reason = world.kms.audit.events()[-1]["reason"]
    story.refused("the changed enclave asks KMS for the model's key", f"{code}: {reason}")
    story.proven("the refusal names a register", when="PCR" in reason, otherwise=reason)


def change_one_byte(tree: Path, copy: Path) -> str:
    """Copy ``tree`` (by hard links) with one byte of one enclave source file changed."""
    shutil.copytree(tree, copy, symlinks=True, copy_function=os.link)
    victim = copy / "app/casemate_enclave/service.py"
    content = bytearray(victim.read_bytes())
    position = content.index(b'"""') + 3
    content[position] ^= 0x20  # the case of the docstring's first letter: harmless, and enough
    victim.unlink()
    victim.write_bytes(content)
    return f"app/casemate_enclave/service.py, byte {position}"


def run_changed(world: LocalDeployment, tree: Path, sealed: Path) -> tuple[Code, str]:
    """Run ``tree`` in place of the genuine one, and load the model as its host would."""
    run = world.operator.directory / "changed"
    egress = Egress(
        EgressConfig(
            address=UnixAddress(str(run / "egress.sock")),
            allow={f"{ENDPOINT}:443": ("127.0.0.1", world.kms.port)},
            connections=1,
            idle_s=_TIMEOUT_S,
        ),
        UnixAddress(str(run / "enclave.sock")),
    )
    with world.launch(tree, run):
        egress.start()
        try:
            _load(world, connect(wait_for_socket(run / "enclave.sock"), _TIMEOUT_S), sealed)
        except CasemateError as error:
            return error.code, error.detail
        finally:
            egress.stop()
    return Code.OK, "the model was loaded"


def _load(world: LocalDeployment, channel: socket.socket, sealed: Path) -> None:
    credentials = Credentials.load(world.operator.directory / "credentials.json")
    content = sealed.read_bytes()
    with channel:
        exchange(channel, FrameType.CONFIGURE, world.configuration)
        exchange(channel, FrameType.CREDENTIALS, credentials.reveal())
        send_frame(channel, FrameType.LOAD, cbor.encode({"size": len(content)}))
        for start in range(0, len(content), MIB):
            send_frame(channel, FrameType.MODEL_DATA, content[start : start + MIB])
        expect_answer(channel, FrameType.LOAD)


def wait_for_socket(path: Path) -> UnixAddress:
    """Wait until a process listens at ``path``."""
    deadline = time.monotonic() + _TIMEOUT_S
    while not _listens(path):
        if time.monotonic() > deadline:
            raise Deviation(f"nothing listens at {path}")
        time.sleep(0.05)
    return UnixAddress(str(path))


def _listens(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == ANYONE


def another_key(story: Story, world: LocalDeployment, data: Data) -> None:
    """The host puts its own key beside genuine evidence: the client refuses."""
    story.scene("Attack 2: the host serves its own key beside the enclave's genuine evidence")
    mine = KemKey.generate()
    with EvilHost(world.target, key=mine) as evil, world.client(target=evil.target) as client:
        try:
            client.infer(MODEL, {"features": data.features[:1]})
        except CasemateError as error:
            refusal = error
        else:
            raise Deviation("the client sealed data to the host's key")
        story.refused("the client asks for evidence through that host", str(refusal))
        story.proven(
            "the evidence fails at its binding", when=refusal.code is Code.EVIDENCE_BINDING
        )
        story.proven("and no request was sent", when=evil.requests == 0, otherwise=evil.requests)


def replay(story: Story, world: LocalDeployment, data: Data) -> None:
    """The host sends a recorded request once more: the enclave refuses."""
    story.scene("Attack 3: the host replays a recorded request")
    policy = world.trust_policy()
    with Client(world.target, policy) as client:
        evidence = client.verify()
    raw_config, _ = evidence.current_key
    session = DataKeySession.hpke(
        evidence_key_config=raw_config,
        instance_id=evidence.instance.instance_id,
        instance_digest=evidence.instance_digest,
        audience=policy.audience,
        not_before=evidence.document.timestamp,
        not_after=evidence.document.timestamp + 60_000,
        caller=world.clinic.signing_key,
    )
    call = session.seal(
        model=MODEL, version=None, digest=None, message=to_request({"features": data.features[:1]})
    )
    with HostConnection(world.target) as connection:
        header, ciphertext = connection.infer(call.header, call.ciphertext, _TIMEOUT_S)
        answer = call.open(header, ciphertext)
        story.proven("the request was answered once", when=answer.trailer.status is Code.OK)
        try:
            connection.infer(call.header, call.ciphertext, _TIMEOUT_S)
        except CasemateError as error:
            refusal = error
        else:
            raise Deviation("the same request was answered twice")
    story.refused("the same bytes are sent again", str(refusal))
    story.proven("the code is REPLAYED", when=refusal.code is Code.REPLAYED)
