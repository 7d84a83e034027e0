"""Several enclaves of one service: any of them answers, and each may be restarted (H13, H19)."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
import threading
from dataclasses import replace
from operator import ge
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from casemate.client import Client, KmsDataKeys
from casemate.errors import CasemateError, Code, RequestError
from casemate.kms_policy import attested_key_policy
from casemate_devkit.local import AUDIENCE, MODEL
from tests.support.attacker import eventually
from tests.support.deployment import DATA, prepared
from tests.support.lying import LyingHost
from tests.support.replicas import Replica

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate.attestation import Release, TrustPolicy
    from casemate.kms_policy import Purpose
    from casemate_devkit.local import LocalDeployment
    from casemate_devkit.parties import Party
    from tests.support.lying import Forward, Lie

pytestmark = [pytest.mark.integration, pytest.mark.slow]
ROWS = DATA.features[:4]


@pytest.fixture(scope="module")
def world(tree: Path) -> Iterator[LocalDeployment]:
    with tempfile.TemporaryDirectory(prefix="cm-") as folder, prepared(Path(folder), tree) as ready:
        yield ready


@pytest.fixture(scope="module")
def newer(world: LocalDeployment, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Release]:
    """Another release: the same code with one more file, so with other registers."""
    tree = tmp_path_factory.mktemp("release") / "tree"
    shutil.copytree(world.tree, tree, symlinks=True)
    (tree / "app").chmod(0o755)
    (tree / "app/RELEASE").write_text("0.2.0\n")
    measured = world.form.measure(tree)
    return tree, replace(
        world.release, name="0.2.0", pcr0=measured.pcr0, pcr1=measured.pcr1, pcr2=measured.pcr2
    )


@pytest.fixture(scope="module")
def both(world: LocalDeployment, newer: tuple[Path, Release]) -> TrustPolicy:
    """A policy that accepts both releases; both KMS keys release to both."""
    releases = (world.release, newer[1])
    keys: list[tuple[Party, str, str, Purpose, str]] = [
        (
            world.vendor,
            "sealer",
            world.vendor_key,
            "model",
            f"{world.vendor.public_key.hex()}/{MODEL}",
        ),
        (world.clinic, "app", world.clinic_key, "data", AUDIENCE),
    ]
    for owner, role, key, purpose, scope in keys:
        policy = attested_key_policy(
            account_admin=owner.principals["admin"].arn,
            decrypt_principal=world.operator.principals["host"].arn,
            releases=releases,
            purpose=purpose,
            scope=scope,
            encrypt_principals=[owner.principals[role].arn],
        )
        world.aws.kms(owner.principals["admin"]).put_key_policy(
            KeyId=key, PolicyName="default", Policy=json.dumps(policy)
        )
    return world.trust_policy(releases=releases)


@pytest.fixture(scope="module")
def replicas(
    world: LocalDeployment, newer: tuple[Path, Release], both: TrustPolicy
) -> Iterator[tuple[Replica, Replica]]:
    """Two releases side by side."""
    sealed = [world.seal_model(DATA.onnx)]
    with (
        Replica(world, sealed, policy=both) as old,
        Replica(world, sealed, policy=both, tree=newer[0]) as new,
    ):
        yield old, new


class Balancer(LyingHost):
    """Sends each call to the next replica in turn, as a balancer of requests does."""

    def __init__(self, *targets: str) -> None:
        super().__init__(targets[0])
        self._channels = [grpc.insecure_channel(target) for target in targets]
        self.infer, self.evidence = self._turn("Infer"), self._turn("GetEvidence")

    def _turn(self, name: str) -> Lie:
        path = f"/casemate.v1.ConfidentialInference/{name}"
        made: list[grpc.UnaryUnaryMultiCallable[bytes, bytes]] = [
            channel.unary_unary(path) for channel in self._channels
        ]
        methods = itertools.cycle(made)
        lock = threading.Lock()

        def call(request: bytes, _: Forward) -> bytes:
            with lock:
                method = next(methods)
            return method(request, timeout=60)

        return call

    def __exit__(self, *details: object) -> None:
        super().__exit__(*details)
        for channel in self._channels:
            channel.close()


def kms_client(
    world: LocalDeployment, target: str, policy: TrustPolicy, *, any_replica: bool
) -> Client:
    keys = KmsDataKeys(world.clinic_key, kms=world.aws.kms(world.clinic.principals["app"]))
    return Client(
        target,
        policy,
        caller_key=world.clinic.signing_key,
        data_keys=keys,
        any_replica=any_replica,
    )


def test_any_replica_answers_and_each_is_verified(
    world: LocalDeployment, replicas: tuple[Replica, Replica], both: TrustPolicy
) -> None:
    with (
        Balancer(*(replica.target for replica in replicas)) as balancer,
        kms_client(world, balancer.target, both, any_replica=True) as client,
    ):
        answers = [client.infer(MODEL, {"features": ROWS}) for _ in range(6)]
        labels = {tuple(answer.outputs["label"].tolist()) for answer in answers}
        assert len(labels) == 1
        assert {answer.evidence.release for answer in answers} == {"0.1.0", "0.2.0"}
        instances = [answer.evidence.instance_digest for answer in answers]
        assert len(set(instances)) == 2
        session = client._parts.get().core._session
        assert session is not None
        assert len(session.verified) == 2  # with the one that the session began with


def test_h19_a_release_that_the_policy_does_not_accept_gives_no_answer(
    world: LocalDeployment, replicas: tuple[Replica, Replica], both: TrustPolicy
) -> None:
    """KMS still releases to the newer enclave, but this client's own policy has not followed."""
    with (
        Balancer(replicas[0].target, replicas[1].target) as balancer,
        kms_client(world, balancer.target, both, any_replica=True) as client,
    ):
        client.infer(MODEL, {"features": ROWS})
        client._parts.get().core._sessions.policy = replace(both, releases=both.releases[:1])
        codes = set()
        for _ in range(4):
            try:
                assert client.infer(MODEL, {"features": ROWS}).evidence.release == "0.1.0"
            except CasemateError as refused:
                codes.add(refused.code)
        assert codes <= {Code.EVIDENCE_MEASUREMENTS}
        assert codes


def test_h19_a_session_for_one_instance_opens_at_no_other(
    world: LocalDeployment, replicas: tuple[Replica, Replica], both: TrustPolicy
) -> None:
    with (
        Balancer(*(replica.target for replica in replicas)) as balancer,
        kms_client(world, balancer.target, both, any_replica=False) as client,
    ):
        client.verify()  # the balancer's evidence and its requests are now out of step
        codes = set()
        for _ in range(2):
            try:
                client.infer(MODEL, {"features": ROWS})
            except RequestError as refused:
                codes.add(refused.code)
        assert codes == {Code.UNKNOWN_KEY}


def test_h13_no_repeatable_call_fails_while_each_replica_is_restarted_in_turn(
    world: LocalDeployment, replicas: tuple[Replica, Replica], both: TrustPolicy
) -> None:
    targets = [replica.target for replica in replicas]
    stop = threading.Event()
    failures: list[str] = []
    instances: set[bytes] = set()
    counts = [0, 0, 0]

    def load(number: int) -> None:
        with Client(targets, both, caller_key=world.clinic.signing_key) as client:
            while not stop.is_set():
                try:
                    answer = client.infer(MODEL, {"features": ROWS}, repeatable=True)
                except CasemateError as error:
                    failures.append(str(error))
                else:
                    counts[number] += 1
                    instances.add(answer.evidence.instance_digest)

    def go_on() -> None:
        """Wait until each client was answered some times more."""
        wanted = [count + 8 for count in counts]
        assert eventually(lambda: all(map(ge, counts, wanted)))

    threads = [threading.Thread(target=load, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        go_on()
        for replica in replicas:
            replica.restart()
            go_on()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert len(instances) >= 2
    # A client of one target finds the new enclave, too.
    with Client(targets[0], both, caller_key=world.clinic.signing_key) as client:
        assert client.infer(MODEL, {"features": ROWS}).evidence.release == "0.1.0"
