"""The host serves evidence and keys that are not what they seem.

THREATS.md: H6 to H9, H18, H22, K2, O2.

Every enclave here is a real one under the same simulated Nitro root as the genuine one: what tells
them apart is what the client and KMS verify.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casemate import cbor
from casemate.attestation import (
    Configuration,
    EvidenceBundle,
    KeyConfig,
    encode_log,
    kms_user_data,
    parse_log,
    verify_document,
)
from casemate.attestation.structures import configuration_event
from casemate.envelope.hpke import KemKey
from casemate.errors import Code
from casemate.kms_context import model_context
from casemate_devkit.demo.attacks import change_one_byte
from casemate_devkit.demo.scenes import read_model_header
from casemate_devkit.kms import KmsDouble
from casemate_devkit.local import MODEL
from casemate_devkit.nsm import SimulatedNsm, boot_registers
from casemate_devkit.parties import REGION
from casemate_devkit.pki import NitroPki
from tests.support.attacker import (
    ROWS,
    EnclaveSocket,
    genuine,
    now_ms,
    refusal,
    side_enclave,
    start_session,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casemate_devkit.local import LocalDeployment
    from tests.support.lying import Forward, LyingHost

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("still_serves")]
WANTED = {"features": ROWS}
# AWS's own root, as its document names it; the tests' only use of it is that it is not ours.
AWS_ROOT = bytes.fromhex("641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b")


@pytest.fixture(scope="module")
def sealed(deployment: LocalDeployment) -> bytes:
    """The vendor's sealed model, as every host has it."""
    return (deployment.vendor.directory / f"{MODEL}-1.sealed").read_bytes()


@pytest.fixture(scope="module")
def twin(deployment: LocalDeployment, sealed: bytes) -> Iterator[EnclaveSocket]:
    """A second genuine enclave: same tree, same configuration, same model."""
    with side_enclave(deployment) as enclave:
        enclave.load(sealed)
        yield enclave


def served(
    world: LocalDeployment,
    host: LyingHost,
    forge: Callable[[EvidenceBundle], EvidenceBundle],
    **policy: Any,  # noqa: ANN401 - the policy's fields
) -> Code:
    """Have the client ask a host that forges its evidence; return why nothing was sealed."""

    def lie(request: bytes, forward: Forward) -> bytes:
        return forge(EvidenceBundle.parse(forward(request))).serialize()

    host.evidence = lie
    host.requests = 0
    with world.client(target=host.target, **policy) as client:
        code = refusal(lambda: client.infer(MODEL, WANTED))
    assert host.requests == 0  # not one sealed byte left the client
    return code


def from_enclave(
    world: LocalDeployment,
    host: LyingHost,
    enclave: EnclaveSocket,
    **policy: Any,  # noqa: ANN401
) -> Code:
    """As ``served``: the host has ``enclave`` answer the client's own nonce."""

    def lie(request: bytes, forward: Forward) -> bytes:
        return enclave.evidence(nonce_of(forward(request), world)).serialize()

    host.evidence = lie
    host.requests = 0
    with world.client(target=host.target, **policy) as client:
        code = refusal(lambda: client.infer(MODEL, WANTED))
    assert host.requests == 0
    return code


# H6: another enclave, another time, another nonce


def test_h6_evidence_of_a_twin_seals_to_the_twin_alone(
    deployment: LocalDeployment, twin: EnclaveSocket, lying_host: LyingHost
) -> None:
    """It verifies, rightly; but the genuine enclave opens nothing that is sealed to its twin."""
    for mode in ("hpke", "kms"):
        call = start_session(deployment, enclave=twin, mode=mode).seal()
        assert (
            refusal(lambda c=call: genuine(deployment).request(c.header, c.ciphertext))  # type: ignore[misc]
            is Code.UNKNOWN_KEY
        )
        answer = call.open(*twin.request(call.header, call.ciphertext))
        assert answer.trailer.status is Code.OK
    # Through a host that shows the twin's evidence and relays to the genuine one.
    lying_host.evidence = lambda request, forward: twin.evidence(
        nonce_of(forward(request), deployment)
    ).serialize()
    with deployment.client(target=lying_host.target) as client:
        assert refusal(lambda: client.infer(MODEL, WANTED)) is Code.UNKNOWN_KEY


def nonce_of(evidence: bytes, world: LocalDeployment) -> bytes:
    document = EvidenceBundle.parse(evidence).attestation_document
    roots = frozenset([world.nitro_root])
    return verify_document(document, roots=roots, now=now_ms()).nonce or b""


def test_h6_evidence_for_another_nonce_is_refused(
    deployment: LocalDeployment, lying_host: LyingHost
) -> None:
    enclave = genuine(deployment)
    recorded = enclave.evidence(secrets.token_bytes(32))
    stapled = enclave.evidence()
    for other in (recorded, stapled):
        code = served(deployment, lying_host, lambda bundle, other=other: other)  # type: ignore[misc]
        assert code is Code.EVIDENCE_NONCE
    # A policy for stapled evidence takes none that was made for somebody's nonce.
    code = served(deployment, lying_host, lambda bundle: recorded, evidence="stapled")
    assert code is Code.EVIDENCE_NONCE


def test_h6_evidence_older_than_the_policy_allows_is_refused(
    deployment: LocalDeployment, lying_host: LyingHost
) -> None:
    old = genuine(deployment).evidence()
    time.sleep(1.2)
    code = served(
        deployment, lying_host, lambda bundle: old, evidence="stapled", maximum_age_seconds=1
    )
    assert code is Code.EVIDENCE_AGE


def test_h6_an_enclave_in_debug_mode_is_refused_by_the_client_and_by_kms(
    deployment: LocalDeployment, lying_host: LyingHost, sealed: bytes
) -> None:
    with side_enclave(deployment, None, "--debug") as debug:
        assert from_enclave(deployment, lying_host, debug) is Code.EVIDENCE_DEBUG
        assert refusal(lambda: debug.load(sealed)) is Code.KEY_RELEASE_DENIED
        # The clinic's own data key, asked for by the debug enclave.
        assert kms_mode_refusal(deployment, debug) is Code.KEY_RELEASE_DENIED


def kms_mode_refusal(world: LocalDeployment, enclave: EnclaveSocket) -> Code:
    """Have ``enclave`` unwrap a data key of the clinic's that names no instance."""
    evidence = start_session(world).evidence
    session = start_session(
        world, mode="kms", evidence=evidence, any_instance=True, not_before=now_ms()
    )
    call = session.seal()
    return refusal(lambda: enclave.request(call.header, call.ciphertext))


def test_k2_h6_one_changed_byte_of_code_is_refused_by_kms_by_name_and_by_the_client(
    deployment: LocalDeployment, lying_host: LyingHost, sealed: bytes
) -> None:
    tree = deployment.base / "changed-tree"
    change_one_byte(deployment.tree, tree)
    with side_enclave(deployment, tree) as changed:
        assert refusal(lambda: changed.load(sealed)) is Code.KEY_RELEASE_DENIED
        assert "PCR" in last_refusal(deployment)
        assert kms_mode_refusal(deployment, changed) is Code.KEY_RELEASE_DENIED
        assert from_enclave(deployment, lying_host, changed) is Code.EVIDENCE_MEASUREMENTS
        # Older and other images alike: only a release that the policy lists passes.
        measured = deployment.form.measure(tree)
        assert measured.pcr2 != deployment.release.pcr2
        mixed = replace(deployment.release, pcr2=measured.pcr2)  # PCR0 is still the genuine one
        code = from_enclave(deployment, lying_host, changed, releases=(mixed,))
        assert code is Code.EVIDENCE_MEASUREMENTS


def last_refusal(world: LocalDeployment) -> str:
    denied = [event for event in world.kms.audit.events() if event["decision"] != "allowed"]
    return str(denied[-1]["reason"])


# H7: parts of two enclaves


def test_h7_parts_of_two_genuine_enclaves_do_not_mix(
    deployment: LocalDeployment, twin: EnclaveSocket, lying_host: LyingHost
) -> None:
    other = twin.evidence()
    splices: dict[str, Callable[[EvidenceBundle], EvidenceBundle]] = {
        "keys": lambda b: replace(b, key_configs=other.key_configs),
        "both keys": lambda b: replace(b, key_configs=(b.key_configs[0], other.key_configs[0])),
        "instance": lambda b: replace(b, instance_config=other.instance_config),
        "log": lambda b: replace(b, measurement_log=other.measurement_log),
        "all but the document": lambda b: replace(
            other, attestation_document=b.attestation_document
        ),
    }
    for name, splice in splices.items():
        assert served(deployment, lying_host, splice) is Code.EVIDENCE_BINDING, name


def test_h7_the_hosts_own_key_beside_genuine_evidence_is_refused(
    deployment: LocalDeployment, lying_host: LyingHost
) -> None:
    mine = KemKey.generate().public_bytes

    def substitute(bundle: EvidenceBundle) -> tuple[bytes, bytes]:
        current = bundle.key_configs[-1]
        return current, replace(KeyConfig.parse(current), public_key=mine).encode()

    forgeries: list[Callable[[EvidenceBundle], EvidenceBundle]] = [
        lambda b: replace(b, key_configs=(substitute(b)[1],)),
        lambda b: replace(b, key_configs=substitute(b)),
        lambda b: replace(b, key_configs=(substitute(b)[1], substitute(b)[0])),
    ]
    for forge in forgeries:
        assert served(deployment, lying_host, forge) is Code.EVIDENCE_BINDING


def test_h7_a_cut_or_grown_measurement_log_is_refused(
    deployment: LocalDeployment, lying_host: LyingHost
) -> None:
    def relog(bundle: EvidenceBundle, change: int) -> EvidenceBundle:
        entries = list(parse_log(bundle.measurement_log))
        assert entries
        changed = {
            0: [],
            1: entries[:-1],
            2: [*entries, replace(entries[-1], version=2)],
            3: [replace(entries[0], time=entries[0].time + 1), *entries[1:]],
            4: [replace(entries[0], digest=b"d" * 48), *entries[1:]],
        }[change]
        return replace(bundle, measurement_log=encode_log(changed))

    for change in range(5):
        code = served(deployment, lying_host, lambda bundle, c=change: relog(bundle, c))  # type: ignore[misc]
        assert code is Code.EVIDENCE_BINDING, change


def test_h7_key_times_that_the_host_stretches_are_refused(
    deployment: LocalDeployment, lying_host: LyingHost
) -> None:
    def stretch(bundle: EvidenceBundle) -> EvidenceBundle:
        config = KeyConfig.parse(bundle.key_configs[-1])
        later = replace(
            config, not_before=config.not_before + 1000, not_after=config.not_after + 1000
        )
        return replace(bundle, key_configs=(later.encode(),))

    assert served(deployment, lying_host, stretch) is Code.EVIDENCE_BINDING


def test_h8_what_two_clients_see_at_once_is_the_same_attested_key(
    deployment: LocalDeployment,
) -> None:
    keys = {start_session(deployment).evidence.current_key[0] for _ in range(3)}
    assert len(keys) == 1


# H9: the host between the enclave and KMS


def test_h9_a_kms_of_the_hosts_own_is_not_asked(deployment: LocalDeployment, sealed: bytes) -> None:
    """The egress proxy leads to another KMS, with another authority: TLS ends inside."""
    directory = deployment.base / "evil-kms"
    with (
        KmsDouble(
            directory,
            roots=frozenset([deployment.nitro_root]),
            principals=[deployment.operator.principals["host"]],
            regions=[REGION],
            mode="process",
        ) as evil,
        side_enclave(deployment, kms_port=evil.port) as enclave,
    ):
        assert refusal(lambda: enclave.load(sealed)) is Code.KEY_RELEASE_UNAVAILABLE
        assert evil.audit.events() == []  # not one request, no document, no credentials


# H18: configuration delivered after measurement


def changed_configurations(world: LocalDeployment) -> dict[str, Configuration]:
    good = Configuration.parse(world.configuration)
    assert good.kms is not None
    operator = world.operator.public_key
    return {
        "audience": replace(good, audience="operator.example/mine"),
        "publisher added": replace(good, publishers=tuple(sorted((*good.publishers, operator)))),
        "limits": replace(good, limits=replace(good.limits, request_bytes=1 << 20)),
    }


@pytest.mark.parametrize("change", ["audience", "publisher added", "limits"])
def test_h18_a_changed_configuration_is_refused_by_kms_and_by_the_client(
    deployment: LocalDeployment, lying_host: LyingHost, sealed: bytes, change: str
) -> None:
    configuration = changed_configurations(deployment)[change]
    with side_enclave(deployment, configuration=configuration.encode()) as enclave:
        assert refusal(lambda: enclave.load(sealed)) is Code.KEY_RELEASE_DENIED
        assert "PCR16" in last_refusal(deployment)
        assert from_enclave(deployment, lying_host, enclave) is Code.EVIDENCE_CONFIGURATION
        # The genuine configuration beside the document of the changed one.
        genuine_bytes = deployment.configuration

        def disguise(bundle: EvidenceBundle) -> EvidenceBundle:
            mine = enclave.evidence(nonce_of(bundle.serialize(), deployment))
            return replace(mine, configuration=genuine_bytes)

        assert served(deployment, lying_host, disguise) is Code.EVIDENCE_CONFIGURATION


def test_h18_tls_roots_of_the_hosts_own_end_in_no_key_and_no_client(
    deployment: LocalDeployment, lying_host: LyingHost, sealed: bytes
) -> None:
    """With roots of its own the host may play KMS, to an enclave that nobody accepts any more."""
    good = Configuration.parse(deployment.configuration)
    assert good.kms is not None
    directory = deployment.base / "evil-kms-2"
    with KmsDouble(
        directory,
        roots=frozenset([deployment.nitro_root]),
        principals=[deployment.operator.principals["host"]],
        regions=[REGION],
        mode="process",
    ) as evil:
        mine = replace(good, kms=replace(good.kms, tls_roots=(evil.ca_der,))).encode()
        with side_enclave(deployment, configuration=mine, kms_port=evil.port) as enclave:
            # It reaches the host's KMS, which does not have the key.
            assert refusal(lambda: enclave.load(sealed)) is Code.KEY_RELEASE_DENIED
            assert evil.audit.events()
            assert from_enclave(deployment, lying_host, enclave) is Code.EVIDENCE_CONFIGURATION


# H22: one document in place of the other


def decrypt_for(world: LocalDeployment, document: bytes) -> dict[str, Any]:
    """Ask KMS for the model's key, as the host's role, with ``document`` as the Recipient."""
    header = read_model_header(world.vendor.directory / f"{MODEL}-1.sealed")
    answer: dict[str, Any] = world.aws.kms(world.operator.principals["host"]).decrypt(
        KeyId=world.vendor_key,
        CiphertextBlob=header.wrapped_key,
        EncryptionContext=model_context(header.publisher, header.name),
        EncryptionAlgorithm="SYMMETRIC_DEFAULT",
        Recipient={
            "KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256",
            "AttestationDocument": document,
        },
    )
    return answer


def test_h22_evidence_is_no_recipient(deployment: LocalDeployment) -> None:
    """The host has evidence at will, and credentials; evidence carries no key to encrypt to."""
    bundle = genuine(deployment).evidence()
    with pytest.raises(ClientError, match="public_key"):
        decrypt_for(deployment, bundle.attestation_document)
    granted = decrypt_for(deployment, kms_document(deployment))  # the purpose is all that differs
    assert "Plaintext" not in granted


def kms_document(world: LocalDeployment, nonce: bytes | None = None) -> bytes:
    """A document as the genuine enclave makes it for KMS: same registers, its purpose in user_data.

    The host cannot see one (TLS ends inside), so the test has the security module make it.
    """
    measurement = world.form.measure(world.tree)
    pki = NitroPki.create(world.pki_directory)
    nsm = SimulatedNsm(pki, boot_registers(measurement, pki.instance_id))
    event = configuration_event(world.configuration)
    nsm.handle(cbor.encode({"ExtendPCR": {"index": 16, "data": event}}))
    nsm.handle(cbor.encode({"LockPCR": {"index": 16}}))
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    request = {"public_key": spki, "user_data": kms_user_data(), "nonce": nonce}
    answer = nsm.handle(cbor.encode({"Attestation": request}))
    decoded = cbor.decode(answer)
    assert isinstance(decoded, dict)
    document = decoded["Attestation"]["document"]
    assert isinstance(document, bytes)
    return document


def test_h22_a_document_for_kms_is_no_evidence(
    deployment: LocalDeployment, lying_host: LyingHost
) -> None:
    document = kms_document(deployment)
    assert (
        served(deployment, lying_host, lambda b: replace(b, attestation_document=document))
        is Code.EVIDENCE_NONCE
    )
    assert (
        served(
            deployment,
            lying_host,
            lambda b: replace(b, attestation_document=document),
            evidence="stapled",
        )
        is Code.EVIDENCE_BINDING
    )

    def with_nonce(bundle: EvidenceBundle) -> EvidenceBundle:
        nonce = nonce_of(bundle.serialize(), deployment)
        return replace(bundle, attestation_document=kms_document(deployment, nonce))

    assert served(deployment, lying_host, with_nonce) is Code.EVIDENCE_BINDING


# O2: the simulated root


def test_o2_a_policy_that_pins_awss_root_refuses_the_simulated_one(
    deployment: LocalDeployment, lying_host: LyingHost
) -> None:
    assert deployment.nitro_root != AWS_ROOT
    code = served(deployment, lying_host, lambda b: b, roots=frozenset([AWS_ROOT]))
    assert code is Code.EVIDENCE_ROOT


def test_o2_documents_under_another_simulated_root_are_refused_by_kms_and_client(
    deployment: LocalDeployment, lying_host: LyingHost, sealed: bytes
) -> None:
    other = deployment.base / "other-nitro"
    other.mkdir(mode=0o700, exist_ok=True)
    trusted, deployment.pki_directory = deployment.pki_directory, other
    try:
        NitroPki.create(other)
        with side_enclave(deployment) as enclave:
            assert refusal(lambda: enclave.load(sealed)) is Code.KEY_RELEASE_INVALID
            nonce = secrets.token_bytes(32)
            bundle = enclave.evidence(nonce)
    finally:
        deployment.pki_directory = trusted
    assert served(deployment, lying_host, lambda b: bundle) is Code.EVIDENCE_ROOT
