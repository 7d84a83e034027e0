"""Make `tests/vectors/attestation/*.json` (SPEC 13.2): cases for a verifier, with their verdicts.

``python tests/vectors/generate_attestation.py`` writes them, ``--check`` compares. Nothing of
``casemate`` is used: verdicts are written down here, not computed. Keys, serial numbers and
signatures are derived from a seed, so that every run gives the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.serialization import Encoding

from tests.support import nitro_pki as pki
from tests.support.nitro_pki import NOW, Raw, Spec

FOLDER = Path(__file__).parent / "attestation"
NITRO = Path(__file__).parent / "nitro"
PRESENT = 1_800_000_000_000  # any time after all genuine documents have expired
ORDER = int(  # of P-384 (FIPS 186-4 D.1.2.4)
    "ffffffffffffffffffffffffffffffffffffffffffffffff"
    "c7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    16,
)
HOUR = 3_600_000
AUDIENCE = "clinic.example/screening"
PUBLISHER = bytes(range(32))
LIMITS = {
    "sessions": 64,
    "models": 4,
    "model_bytes": 1 << 30,
    "request_bytes": 1 << 20,
    "stream_bytes": 1 << 28,
    "lifetime": 86_400_000,
    "drain": 3_600_000,
    "memory_bytes": 1 << 32,
    "run_bytes": 1 << 30,
    "run_ms": 600_000,
    "model_requests": 64,
    "threads": 1,
}
NONCE = bytes(range(100, 132))
IMAGE = {0: b"\x10" * 48, 1: b"\x11" * 48, 2: b"\x12" * 48}

Json = dict[str, Any]


def sha384(*parts: bytes) -> bytes:
    return hashlib.sha384(b"".join(parts)).digest()


def lp(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def label(name: str) -> bytes:
    return b"casemate/v1 " + name.encode() + b"\x00"


def ordered(value: object) -> object:
    """Maps in the order of SPEC 1.6, at any depth."""
    if isinstance(value, dict):
        items = sorted(value.items(), key=lambda item: pki.cbor(item[0]))
        return {key: ordered(item) for key, item in items}
    return [ordered(item) for item in value] if isinstance(value, list) else value


def cbor(value: object) -> bytes:
    return pki.cbor(ordered(value))


# A chain whose every byte follows from its seed


@dataclass
class Pki:
    """Certificates from root to leaf and the leaf's key."""

    certificates: list[bytes]
    leaf: ec.EllipticCurvePrivateKey

    @property
    def root(self) -> str:
        return hashlib.sha256(self.certificates[0]).hexdigest()


def key(seed: str, curve: ec.EllipticCurve | None = None) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(
        int.from_bytes(hashlib.sha256(seed.encode()).digest(), "big"), curve or ec.SECP384R1()
    )


def issue(seed: str, specs: list[Spec], now: int = NOW) -> Pki:
    keys = [key(f"{seed} {index}", spec.curve) for index, spec in enumerate(specs)]
    made = []
    for index, spec in enumerate(specs):
        above = max(index - 1, 0)
        builder = (
            x509.CertificateBuilder()
            .subject_name(pki._name(spec.cn))
            .issuer_name(pki._name(specs[above].cn))
            .public_key(keys[index].public_key())
            .serial_number(1 + index)
            .not_valid_before(pki.utc(now) - spec.before)
            .not_valid_after(pki.utc(now) + spec.after)
        )
        for extension, critical in spec.extensions():
            builder = builder.add_extension(extension, critical)
        certificate = builder.sign(keys[above], spec.hash, ecdsa_deterministic=True)
        made.append(certificate.public_bytes(Encoding.DER))
    return Pki(made, keys[-1])


def changed(level: int, **changes: Any) -> Pki:  # noqa: ANN401 - fields of a Spec
    """The chain with one certificate made differently."""
    specs = pki.real_shape()
    specs[level] = replace(specs[level], **changes)
    return issue("good", specs)


GOOD = issue("good", pki.real_shape())


def signature(signer: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    algorithm = ec.ECDSA(hashes.SHA384(), deterministic_signing=True)
    r, s = decode_dss_signature(signer.sign(message, algorithm))
    return r.to_bytes(48, "big") + s.to_bytes(48, "big")


def payload(chain: Pki = GOOD, **changes: object) -> Json:
    fields: dict[str, object] = {
        "module_id": pki.MODULE_ID,
        "digest": "SHA384",
        "timestamp": NOW,
        "pcrs": registers(),
        "certificate": chain.certificates[-1],
        "cabundle": chain.certificates[:-1],
        "public_key": None,
        "user_data": None,
        "nonce": None,
    }
    return {name: value for name, value in (fields | changes).items() if value is not ...}


def registers(**values: bytes) -> dict[int, bytes]:
    return pki.registers() | IMAGE | pki.registers_of(**values)


def sign(body: object, chain: Pki = GOOD, protected: bytes = pki.ES384) -> bytes:
    encoded = pki.cbor(body)
    signed = signature(chain.leaf, pki.sig_structure(encoded, protected=protected))
    return pki.cbor([protected, {}, encoded, signed])


def document(chain: Pki = GOOD, **changes: object) -> bytes:
    return sign(payload(chain, **changes), chain)


def members(**changes: object) -> list[object]:
    """The four members of the good COSE_Sign1, some replaced."""
    body = pki.cbor(payload())
    parts: dict[str, object] = {
        "protected": pki.ES384,
        "unprotected": {},
        "body": body,
        "signature": signature(GOOD.leaf, pki.sig_structure(body)),
    }
    return list((parts | changes).values())


# Cases


@dataclass
class Case:
    """One case; ``step`` None: verified, or refused before any step with ``code``."""

    name: str
    step: str | None = None
    code: str | None = None
    given: Json = field(default_factory=dict)

    def encode(self) -> Json:
        code = self.code or (f"EVIDENCE_{self.step.upper()}" if self.step else None)
        expected = {
            "verdict": "refused" if code else "verified",
            "code": code,
            "step": STEPS.index(self.step) + 1 if self.step else None,
        }
        return {"name": self.name, "input": self.given, "expected": expected}


STEPS = (
    *("size", "cose", "algorithm", "payload", "platform", "root", "chain", "signature", "age"),
    *("nonce", "debug", "measurements", "configuration", "binding", "keys", "instance"),
    *("audience", "models"),
)


def rooted(
    name: str, data: bytes, step: str | None = None, *, roots: str = "", time: int = NOW
) -> Case:
    """A document judged by its roots alone: steps 1 to 4 and 6 to 8."""
    return Case(name, step, None, {"document": data, "roots": [roots or GOOD.root], "time": time})


def genuine_cases() -> list[Case]:
    origin = json.loads((NITRO / "ORIGIN.json").read_text())
    root = origin["root"]["der_sha256"]
    cases = []
    for entry in origin["documents"]:
        data = (NITRO / entry["file"]).read_bytes()
        name, time = entry["file"].removesuffix(".cbor"), entry["timestamp_ms"]
        step = entry["refused_at_step"]
        cases.append(rooted(f"{name}, at its own time", data, step, roots=root, time=time))
        cases.append(rooted(f"{name}, at the present", data, "chain", roots=root, time=PRESENT))
    first = origin["documents"][0]
    data, time = (NITRO / first["file"]).read_bytes(), first["timestamp_ms"]
    return [*cases, rooted("under another root", data, "root", roots="00" * 32, time=time)]


def encoding_cases() -> list[Case]:
    body = pki.cbor(payload())
    array = b"\x9f" + b"".join(map(pki.cbor, GOOD.certificates[:-1])) + b"\xff"
    twice = b"\xbf" + 2 * (b"\x00" + pki.cbor(bytes(48))) + b"\xff"
    fields = payload()
    both = bytes([body[0] + 1]) + body[1:] + pki.cbor("pcrs") + pki.cbor(pki.registers())
    wrong: dict[str, Json] = {
        "A3 a register twice": {"pcrs": Raw(twice)},
        "A3 a register's index not shortest": {"pcrs": Raw(b"\xa1\x18\x00" + pki.cbor(bytes(48)))},
        "A4 register false": {"pcrs": Raw(b"\xa1\xf4" + pki.cbor(bytes(48)))},
        "A4 register -1": {"pcrs": {-1: bytes(48)}},
        "A4 register 32": {"pcrs": {32: bytes(48)}},
        "A4 register by text": {"pcrs": {"0": bytes(48)}},
        "A4 33 registers": {"pcrs": {index: bytes(48) for index in range(33)}},
        "A4 no registers": {"pcrs": {}},
        "A5 a tag": {"nonce": Raw(bytes.fromhex("c24101"))},
        "A5 a float": {"nonce": Raw(bytes.fromhex("fb0000000000000000"))},
        "A5 a simple value": {"nonce": Raw(bytes.fromhex("f0"))},
        "A5 undefined": {"nonce": Raw(bytes.fromhex("f7"))},
        "A6 a chunked byte string": {"nonce": Raw(bytes.fromhex("5f4100ff"))},
        "A6 an array of indefinite length": {"cabundle": Raw(array)},
        "A7 nested 50 deep": {"nonce": Raw(b"\x81" * 50 + b"\x00")},
        "A7 a declared length of 2^64 - 1": {"nonce": Raw(b"\x5b" + b"\xff" * 8)},
        "A7 nine certificates": {"cabundle": [*GOOD.certificates[:-1], *[b"x"] * 5]},
        "A7 no certificates": {"cabundle": []},
        "A8 an unknown key": {"extra": None},
        "A8 both names of the registers": {"nitrotpm_pcrs": pki.registers()},
        "A8 no registers' key": {"pcrs": ...},
        "A8 no certificate": {"certificate": ...},
        "A9 an empty module_id": {"module_id": ""},
        "A9 digest SHA256": {"digest": "SHA256"},
        "A9 timestamp 0": {"timestamp": 0},
        "A9 timestamp below 0": {"timestamp": -1},
        "A9 timestamp true": {"timestamp": True},
        "A9 a register of 47 bytes": {"pcrs": {0: bytes(47)}},
        "A9 a register of 32 bytes": {"pcrs": {0: bytes(32)}},
        "A9 a register as hex text": {"pcrs": {0: "00" * 48}},
        "A10 user_data of 1025 bytes": {"user_data": bytes(1025)},
        "A10 a nonce of text": {"nonce": "text"},
    }
    right: dict[str, Json] = {
        "A8 without the optional fields": {"public_key": ..., "user_data": ..., "nonce": ...},
        "A10 user_data of 1024 bytes": {"user_data": bytes(1024)},
        "A10 an empty public_key": {"public_key": b""},
        "A11 sparse registers": {"pcrs": {8: bytes(48), 1: bytes(48), 0: bytes(48)}},
    }
    return [
        rooted("good", document()),
        rooted("A1 a byte after the document", document() + b"\x00", "cose"),
        rooted("A1 a byte after the payload", sign(Raw(body + b"\x00")), "payload"),
        rooted("A2 tag 18", b"\xd2" + document()),
        rooted("A2 tag 18 twice", b"\xd2\xd2" + document(), "cose"),
        rooted("A2 tag 98", b"\xd8\x62" + document(), "cose"),
        rooted("A2 five members", pki.cbor([*members(), b""]), "cose"),
        rooted("A2 no payload", pki.cbor(members(body=None)), "cose"),
        rooted("A3 two keys pcrs", sign(Raw(both)), "payload"),
        rooted(
            "A6 maps of indefinite length",
            sign(pki.indefinite({**fields, "pcrs": pki.indefinite(registers())})),
        ),
        rooted("A7 empty", b"", "size"),
        rooted("A7 20,481 bytes", bytes(20_481), "size"),
        *(rooted(name, document(**changes), "payload") for name, changes in wrong.items()),
        *(rooted(name, document(**changes)) for name, changes in right.items()),
    ]


def signature_cases() -> list[Case]:
    body = pki.cbor(payload())
    good = signature(GOOD.leaf, pki.sig_structure(body))
    r, s = int.from_bytes(good[:48], "big"), int.from_bytes(good[48:], "big")
    stranger = signature(key("stranger"), pki.sig_structure(body))
    other = signature(GOOD.leaf, pki.sig_structure(body, context="Signature"))
    external = signature(GOOD.leaf, pki.sig_structure(body, external=b"x"))
    headers = {
        "A12 ES256": "a10126",
        "A12 ES512": "a1013823",
        "A12 EdDSA": "a10127",
        "A12 HMAC": "a10105",
        "A12 none": "",
        "A12 with another parameter": "a2013822044101",
    }
    signatures = {
        "A14 r = s = 0": bytes(96),
        "A14 s = 0": good[:48] + bytes(48),
        "A14 s = n": good[:48] + ORDER.to_bytes(48, "big"),
        "A15 another context": other,
        "A15 external data": external,
        "A18 another key": stranger,
        "A18 a flipped bit": good[:-1] + bytes([good[-1] ^ 1]),
    }
    forms = {
        "A14 DER": encode_dss_signature(r, s),
        "A14 95 bytes": good[:-1],
        "A14 97 bytes": good + b"\x00",
    }
    reencoded = pki.cbor(pki.indefinite(payload()))
    twin = good[:48] + (ORDER - s).to_bytes(48, "big")
    return [
        *(
            rooted(name, sign(payload(), protected=bytes.fromhex(header)), "algorithm")
            for name, header in headers.items()
        ),
        rooted("A13 a header", pki.cbor(members(unprotected={4: b"key"})), "algorithm"),
        rooted("A13 no map", pki.cbor(members(unprotected=[])), "cose"),
        *(
            rooted(name, pki.cbor(members(signature=value)), "signature")
            for name, value in signatures.items()
        ),
        *(
            rooted(name, pki.cbor(members(signature=value)), "cose")
            for name, value in forms.items()
        ),
        rooted("A16 re-encoded payload", pki.cbor(members(body=reencoded)), "signature"),
        rooted("A17 the high-S twin verifies", pki.cbor(members(signature=twin))),
    ]


def within_a_byte(certificate: bytes) -> bytes:
    """The certificate, whose signature's last bit, a zero, is said to be none of its bits."""
    length = len(x509.load_der_x509_certificate(certificate).signature)
    before, signature = certificate[: -length - 1], certificate[-length:]
    if signature[-1] & 1:
        raise ValueError("the last bit is not a zero")
    return before + b"\x01" + signature


def chain_cases() -> list[Case]:
    own = issue("own", pki.real_shape())
    grafted = Pki([GOOD.certificates[0], *own.certificates[1:]], own.leaf)
    levels = dict(zip(("regional", "zonal", "instance", "leaf"), range(1, 5), strict=True))
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    past = {"before": pki.DAY, "after": -pki.HOUR}
    future = {"before": -pki.HOUR, "after": pki.DAY}
    bad = {
        "A19 the pinned root over another chain": grafted,
        "A22 an issuer that is no CA": changed(levels["zonal"], ca=False),
        "A22 an issuer without keyCertSign": changed(levels["zonal"], usage=("digital_signature",)),
        "A22 uncritical constraints": changed(levels["zonal"], constraints_critical=False),
        "A23 pathLen exceeded": changed(levels["regional"], path_length=1),
        "A23 a leaf that is a CA": changed(levels["leaf"], ca=True),
        "A23 a leaf without digitalSignature": changed(levels["leaf"], usage=("key_agreement",)),
        "A24 signed with SHA-256": changed(levels["zonal"], hash=hashes.SHA256()),
        "A24 an issuer on P-256": changed(levels["zonal"], curve=ec.SECP256R1()),
        "A25 an unknown critical extension": changed(levels["zonal"], extra=[(unknown, True)]),
        "A26 an expired intermediate": changed(levels["zonal"], **past),
        "A26 a leaf not yet valid": changed(levels["leaf"], **future),
    }
    short = payload()
    bundle = GOOD.certificates[:-1]
    bundles = {
        "A20 an intermediate missing": [*bundle[:2], bundle[3]],
        "A20 an intermediate doubled": [*bundle, bundle[3]],
        "A20 the leaf doubled": [*bundle, GOOD.certificates[-1]],
    }
    uncritical = changed(levels["zonal"], extra=[(unknown, False)])
    return [
        rooted("A19 a root of one's own", document(own), "root"),
        rooted("A20 reversed", document(cabundle=bundle[::-1]), "root"),
        rooted("A20 without the root", document(cabundle=bundle[1:]), "root"),
        *(
            rooted(name, sign(short | {"cabundle": value}), "chain")
            for name, value in bundles.items()
        ),
        *(rooted(name, document(chain), "chain") for name, chain in bad.items()),
        rooted(
            "A25 an issuer's signature that ends within a byte",
            document(cabundle=[*bundle[:2], within_a_byte(bundle[2]), bundle[3]]),
            "chain",
        ),
        rooted(
            "A25 a leaf's signature that ends within a byte",
            document(certificate=within_a_byte(GOOD.certificates[-1])),
            "chain",
        ),
        rooted("A25 an unknown extension that is not critical", document(uncritical)),
        rooted("A26 when the leaf ends", document(), time=NOW + 2 * HOUR),
        rooted("A26 a second later", document(), "chain", time=NOW + 2 * HOUR + 1000),
        rooted("A26 when the leaf begins", document(), time=NOW - HOUR),
        rooted("A26 a millisecond earlier", document(), "chain", time=NOW - HOUR - 1),
    ]


# Evidence


@dataclass(frozen=True)
class Parts:
    """The parts of a bundle, encoded."""

    configuration: bytes
    key_configs: tuple[bytes, ...]
    instance_config: bytes
    measurement_log: bytes
    platform: str = "nitro-enclave"

    def user_data(self) -> bytes:
        return sha384(
            label("evidence"),
            lp(self.configuration, lp(*self.key_configs)),
            lp(self.instance_config, self.measurement_log, b""),
        )

    def attested(self, **changes: object) -> bytes:
        """The bundle, with a document that binds it unless ``changes`` say otherwise."""
        return self.bundle(document(**(self.said() | changes)))

    def said(self) -> Json:
        pcrs = registers(pcr16=pcr16(self.configuration))
        return {"pcrs": pcrs, "user_data": self.user_data(), "nonce": NONCE}

    def bundle(self, data: bytes) -> bytes:
        fields = [(1, self.platform.encode()), (2, data), (3, self.configuration)]
        fields += [(4, item) for item in self.key_configs]
        fields += [(5, self.instance_config), (6, self.measurement_log)]
        return b"".join(protobuf(number, content) for number, content in fields)


def protobuf(number: int, content: bytes) -> bytes:
    head, length = bytes([number << 3 | 2]), len(content)
    while length >= 128:
        head += bytes([length & 127 | 128])
        length >>= 7
    return head + bytes([length]) + content


def pcr16(configuration: bytes) -> bytes:
    return sha384(bytes(48), sha384(label("config"), lp(configuration)))


def configuration(**changes: object) -> bytes:
    fields: Json = {
        "v": 1,
        "audience": AUDIENCE,
        "publishers": [PUBLISHER],
        "minimum_versions": {},
        "kms": None,
        "limits": LIMITS,
        "providers": ["CPUExecutionProvider"],
    }
    return cbor(fields | changes)


def key_config(**changes: object) -> bytes:
    public = bytes(range(256)) * 4 + bytes(192)
    times = {"not_before": NOW - HOUR, "not_after": NOW + HOUR}
    return cbor({"v": 1, "kem": 25722, "kdf": 1, "aead": 2, "public_key": public} | times | changes)


def instance(**changes: object) -> bytes:
    fields: Json = {"instance_id": b"\x07" * 16, "boot_time": NOW - HOUR}
    fields |= {"form": "nitro-enclave", "receipt_key": b"\x21" * 32}
    return cbor({"v": 1} | fields | changes)


def entry(**changes: object) -> Json:
    fields: Json = {
        "op": "load",
        "name": "wdbc",
        "version": 2,
        "digest": b"\xaa" * 48,
        "publisher": PUBLISHER,
        "callers": sha384(label("callers"), cbor("any")),
        "time": NOW - HOUR // 2,
    }
    return fields | changes


PARTS = Parts(configuration(), (key_config(),), instance(), cbor([entry()]))


def release(name: str, register16: bytes, **changes: bytes) -> str:
    pcrs = {"pcr0": IMAGE[0], "pcr1": IMAGE[1], "pcr2": IMAGE[2], "pcr16": register16} | changes
    lines = [f'{register} = "{value.hex()}"' for register, value in pcrs.items()]
    return "\n".join(["", "[[release]]", f'name = "{name}"', *lines]) + "\n"


def policy(releases: str = "", **changes: object) -> str:
    fields: Json = {
        "version": 1,
        "platform": "nitro-enclave",
        "audience": AUDIENCE,
        "roots": [GOOD.root],
        "evidence": "fresh",
        "maximum_age_seconds": 300,
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in (fields | changes).items()]
    model = f'\n[[model]]\nname = "wdbc"\npublisher = "{PUBLISHER.hex()}"\n'
    return (
        "\n".join(lines) + "\n" + (releases or release("0.1.0", pcr16(PARTS.configuration))) + model
    )


def judged(
    name: str,
    step: str | None = None,
    *,
    evidence: bytes | None = None,
    trust: str | None = None,
    nonce: bytes | None = NONCE,
    time: int = NOW,
    code: str | None = None,
) -> Case:
    given = {
        "evidence": PARTS.attested() if evidence is None else evidence,
        "policy": policy() if trust is None else trust,
        "time": time,
        "nonce": nonce,
    }
    return Case(name, step, code, given)


def debug_registers(register16: bytes) -> dict[int, bytes]:
    zero = {"pcr0": bytes(48), "pcr1": bytes(48), "pcr2": bytes(48)}
    return registers(**zero, pcr4=b"\x04" * 48, pcr16=register16)


def evidence_cases() -> list[Case]:
    of = replace
    sixteen = pcr16(PARTS.configuration)
    other = configuration(minimum_versions={f"{PUBLISHER.hex()}/wdbc": 2})
    foreign = configuration(audience="else")
    stale_key = key_config(not_before=NOW + 1, not_after=NOW + 2)
    debug = PARTS.attested(pcrs=debug_registers(sixteen))
    partly = PARTS.attested(pcrs=registers(pcr0=bytes(48), pcr16=sixteen))
    moved = {0: IMAGE[1], 1: IMAGE[2], 2: IMAGE[0]}
    upgrade = release("0.1.0", sixteen) + release("0.2.0", pcr16(other), pcr2=b"\x22" * 48)
    upgraded = of(PARTS, configuration=other)
    second = registers(pcr2=b"\x22" * 48, pcr16=pcr16(other))
    document_of_kms = PARTS.attested(public_key=b"key", user_data=sha384(label("kms")), nonce=None)
    stapled = PARTS.attested(nonce=None)
    return [
        judged("good"),
        judged("cut", code="MALFORMED", evidence=PARTS.attested()[:-1]),
        judged("a policy that does not load", code="POLICY_INVALID", trust="version = 1\n"),
        judged("another platform", "platform", evidence=of(PARTS, platform="nitrotpm").attested()),
        judged("300 s old", time=NOW + 300_000),
        judged("300.001 s old", "age", time=NOW + 300_001),
        judged("60 s ahead", time=NOW - 60_000),
        judged("60.001 s ahead", "age", time=NOW - 60_001),
        judged("A34 no nonce in the document", "nonce", evidence=stapled),
        judged("A34 a prefix", "nonce", evidence=PARTS.attested(nonce=NONCE[:-1])),
        judged("A34 an empty nonce", "nonce", evidence=PARTS.attested(nonce=b"")),
        judged("A34 none issued, fresh wanted", "nonce", evidence=stapled, nonce=None),
        judged("A34 a nonce of 15 bytes", "nonce", nonce=NONCE[:15]),
        judged("stapled", evidence=stapled, nonce=None, trust=policy(evidence="stapled")),
        judged("stapled, with a nonce", "nonce", nonce=None, trust=policy(evidence="stapled")),
        judged("A29 debug mode", "debug", evidence=debug),
        judged("A29 debug mode, allowed", evidence=debug, trust=policy(allow_debug=True)),
        judged("A29 PCR0 alone zero", "debug", evidence=partly, trust=policy(allow_debug=True)),
        judged("A30 PCR2 missing", "debug", evidence=PARTS.attested(pcrs=without(2))),
        judged("A30 PCR16 missing", "configuration", evidence=PARTS.attested(pcrs=without(16))),
        judged(
            "A11 registers by position",
            "measurements",
            evidence=PARTS.attested(pcrs=registers(pcr16=sixteen) | moved),
        ),
        judged(
            "A31 PCR0 as accepted, PCR1 and PCR2 not",
            "measurements",
            evidence=PARTS.attested(pcrs=registers(pcr1=b"\x01" * 48, pcr2=b"\x02" * 48)),
        ),
        judged("another configuration", "configuration", evidence=upgraded.attested()),
        judged("the old release of two", trust=policy(upgrade)),
        judged(
            "the new release of two",
            trust=policy(upgrade),
            evidence=upgraded.attested(pcrs=second),
        ),
        judged(
            "new code with the old configuration",
            "configuration",
            trust=policy(upgrade),
            evidence=PARTS.attested(pcrs=registers(pcr2=b"\x22" * 48, pcr16=sixteen)),
        ),
        judged("A37 a document made for KMS", "nonce", evidence=document_of_kms),
        judged("A36 a public key", "binding", evidence=PARTS.attested(public_key=b"key")),
        judged("A36 another key", "binding", evidence=swapped(key_configs=(stale_key,))),
        judged("another log", "binding", evidence=swapped(measurement_log=cbor([]))),
        judged("no key", "keys", evidence=of(PARTS, key_configs=()).attested()),
        judged("no valid key", "keys", evidence=of(PARTS, key_configs=(stale_key,)).attested()),
        judged(
            "a key of another suite",
            "keys",
            evidence=of(PARTS, key_configs=(key_config(kem=32),)).attested(),
        ),
        judged(
            "booted later",
            "instance",
            evidence=of(PARTS, instance_config=instance(boot_time=NOW + 1)).attested(),
        ),
        judged(
            "no instance id",
            "instance",
            evidence=of(PARTS, instance_config=instance(instance_id=bytes(16))).attested(),
        ),
        judged(
            "another audience",
            "audience",
            evidence=of(PARTS, configuration=foreign).attested(),
            trust=policy(release("0.1.0", pcr16(foreign))),
        ),
        judged("another model", "models", evidence=logged(entry(name="other"))),
        judged("another publisher", "models", evidence=logged(entry(publisher=bytes(32)))),
        judged("unloaded since", evidence=logged(entry(), entry(op="unload"))),
        judged("an empty log", evidence=logged()),
    ]


def without(index: int) -> dict[int, bytes]:
    pcrs = registers(pcr16=pcr16(PARTS.configuration))
    return {number: value for number, value in pcrs.items() if number != index}


def swapped(**parts: Any) -> bytes:  # noqa: ANN401 - fields of Parts
    """The good document over a bundle of which one part was replaced afterwards."""
    return replace(PARTS, **parts).bundle(document(**PARTS.said()))


def logged(*entries: Json) -> bytes:
    return replace(PARTS, measurement_log=cbor(list(entries))).attested()


# Documents judged by a policy alone


def measured_cases() -> list[Case]:
    tpm = (NITRO / "20260325_attestation-server_8d02c24a.cbor").read_bytes()
    time = 1_774_478_165_000
    pcrs = {4: "3382a70f", 7: "ea3dfb67"}
    root = json.loads((NITRO / "ORIGIN.json").read_text())["root"]["der_sha256"]
    found = {index: tpm[at : at + 48].hex() for index, at in located(tpm, pcrs).items()}

    def boot(**values: str) -> str:
        lines = [f'{name} = "{value}"' for name, value in values.items()]
        return "\n".join(
            [
                *("version = 1", 'platform = "nitrotpm"', f'roots = ["{root}"]'),
                *("maximum_age_seconds = 300", "", "[[release]]", 'name = "ami"', *lines, ""),
            ]
        )

    def case(
        name: str, data: bytes, trust: str, step: str | None = None, code: str | None = None
    ) -> Case:
        at = time if data is tpm else NOW
        return Case(name, step, code, {"document": data, "policy": trust, "time": at})

    enclave, zero = document(), "00" * 48
    good = {"pcr4": found[4], "pcr12": zero}
    return [
        case("an enclave's document", enclave, policy()),
        case(
            "another release", document(pcrs=registers(pcr1=b"\x09" * 48)), policy(), "measurements"
        ),
        case("debug mode", document(pcrs=debug_registers(bytes(48))), policy(), "debug"),
        case("a NitroTPM's document, PCR4 and PCR12", tpm, boot(**good)),
        case("a NitroTPM's document, PCR7", tpm, boot(pcr7=found[7])),
        case("all three", tpm, boot(**good, pcr7=found[7])),
        case("another PCR12", tpm, boot(pcr4=found[4], pcr12="11" * 48), "measurements"),
        case("another PCR7", tpm, boot(**good, pcr7="11" * 48), "measurements"),
        case("a NitroTPM's document under an enclave's policy", tpm, policy(), "platform"),
        case("an enclave's document under a NitroTPM's policy", enclave, boot(**good), "platform"),
        case("PCR4 alone", tpm, boot(pcr4=found[4]), code="POLICY_INVALID"),
        case("PCR12 alone", tpm, boot(pcr12=zero), code="POLICY_INVALID"),
        case("PCR4 zero", tpm, boot(pcr4=zero, pcr12=zero), code="POLICY_INVALID"),
        case(
            "PCR16, which software resets",
            tpm,
            boot(**good, pcr16="11" * 48),
            code="POLICY_INVALID",
        ),
        judged("evidence under a NitroTPM's policy", "platform", trust=boot(**good)),
    ]


def located(data: bytes, starts: dict[int, str]) -> dict[int, int]:
    """Where registers of a genuine document lie, by their first bytes after `58 30`."""
    return {
        index: data.index(b"\x58\x30" + bytes.fromhex(text)) + 2 for index, text in starts.items()
    }


FILES = {
    "genuine": genuine_cases,
    "encoding": encoding_cases,
    "signature": signature_cases,
    "chain": chain_cases,
    "evidence": evidence_cases,
    "measured": measured_cases,
}


def main() -> None:
    """Write the files, or compare."""
    parser = argparse.ArgumentParser(description="Make the attestation vectors of SPEC 13.2.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    check: bool = parser.parse_args().check
    drifted = []
    for name, make in FILES.items():
        path = FOLDER / f"{name}.json"
        cases = [case.encode() for case in make()]
        text = json.dumps({"format": 1, "cases": cases}, indent=1, default=bytes.hex) + "\n"
        if check and (not path.is_file() or path.read_text() != text):
            drifted.append(path.name)
        elif not check:
            path.write_text(text)
    if drifted:
        sys.exit(f"attestation vectors differ from the generator: {', '.join(drifted)}")


if __name__ == "__main__":
    main()
