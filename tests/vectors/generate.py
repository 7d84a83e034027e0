"""Makes the test vectors of SPEC 13: the SPEC implemented a second time, without Casemate.

`python tests/vectors/generate.py` writes the JSON files beside this script; with `--check` it
writes nothing and exits with 1 if what is committed differs. Everything follows from fixed seeds,
but for HPKE, whose encapsulation draws randomness: a committed wrapped key is kept as long as the
committed KEM seed opens it.
"""

import argparse
import hashlib
import hmac
import json
import struct
import sys
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

FOLDER = Path(__file__).resolve().parent
Json = dict[str, Any]

LABELS = (
    "audience caller callers commit config data-key digest evidence kms manifest model request "
    "response"
).split()
AUDIENCE = "clinic.example/screening"
NOT_BEFORE = 1_790_000_000_000
HOUR = 3_600_000
CHUNK = 1 << 20
KEY_ARN = "arn:aws:kms:eu-central-1:111122223333:key/01234567-89ab-cdef-0123-456789abcdef"


# SPEC 1: notation


def seeded(name: str, length: int) -> bytes:
    """Bytes that stand for random ones."""
    return hashlib.shake_256(b"casemate test vector: " + name.encode()).digest(length)


def h(data: bytes) -> bytes:
    return hashlib.sha384(data).digest()


def u32(value: int) -> bytes:
    return struct.pack(">I", value)


def lp(*parts: bytes) -> bytes:
    return b"".join(u32(len(part)) + part for part in parts)


def d(label: str) -> bytes:
    if label not in LABELS:
        raise ValueError(label)
    return b"casemate/v1 " + label.encode() + b"\0"


def prk(key: bytes) -> bytes:
    return hmac.digest(b"casemate/v1", key, "sha384")


def x(extracted: bytes, label: str, *context: bytes) -> bytes:
    """HKDF-Expand to 32 bytes: its first block is long enough."""
    return hmac.digest(extracted, d(label) + lp(*context) + b"\1", "sha384")[:32]


def cbor(value: object) -> bytes:
    match value:
        case None:
            return b"\xf6"
        case bool():
            return b"\xf5" if value else b"\xf4"
        case int():
            return cbor_head(0, value)
        case bytes():
            return cbor_head(2, len(value)) + value
        case str():
            return cbor_head(3, len(value.encode())) + value.encode()
        case list():
            return cbor_head(4, len(value)) + b"".join(map(cbor, value))
        case dict():
            items = sorted((cbor(key), cbor(item)) for key, item in value.items())
            return cbor_head(5, len(value)) + b"".join(key + item for key, item in items)
        case _:
            raise TypeError(type(value))


def cbor_head(major: int, argument: int) -> bytes:
    if argument < 24:
        return bytes([major << 5 | argument])
    for info, width in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if argument < 1 << 8 * width:
            return bytes([major << 5 | info]) + argument.to_bytes(width, "big")
    raise ValueError(argument)


def kdf_vectors() -> Json:
    keys = [bytes(32), bytes(range(32)), seeded("kdf", 32)]
    contexts: list[list[bytes]] = [[], [b""], [b"a", b"b"], [b"ab", b""], [h(b"th"), h(b"rh")]]
    return {
        "labels": {label: d(label) for label in LABELS},
        "extract": [{"key": key, "prk": prk(key)} for key in keys],
        "expand": [
            {"prk": prk(keys[2]), "label": label, "context": context, "output": output}
            for label in ("commit", "request", "response", "model")
            for context in contexts
            for output in [x(prk(keys[2]), label, *context)]
        ],
    }


# SPEC 5.5: units and chunks


def padme(length: int) -> int:
    e = length.bit_length() - 1
    s = e.bit_length()
    low = 2 ** (e - s)
    return -(-length // low) * low


def unit(*parts: bytes, floor: int = 0) -> bytes:
    framed = lp(*parts)
    return framed.ljust(padme(max(1024, floor, len(framed))), b"\0")


def seal_chunks(key: bytes, aad: bytes, content: bytes) -> bytes:
    starts = range(0, len(content), CHUNK)
    return b"".join(
        AESGCM(key).encrypt(
            index.to_bytes(11, "big") + (b"\2" if start == starts[-1] else b"\0"),
            content[start : start + CHUNK],
            aad,
        )
        for index, start in enumerate(starts)
    )


def padding_vectors() -> Json:
    lengths = [2, 3, 8, 9, 15, 16, 17, 1023, 1024, 1025, 1087, 1088, 1089, 4097, 65_535, 65_537]
    lengths += [600 * 1024, 614_401, CHUNK - 1, CHUNK, CHUNK + 1, 10_000_000, (1 << 26) - 1, 1 << 26]
    two, one = (b"preamble", b"message"), (b"trailer",)
    packed = [(two, 0), (one, 0), (one, 1500), (two, 65_537), ((b"p", seeded("unit", 1015)), 0)]
    packed += [((b"p", seeded("unit", 1016)), 0), ((b"p", seeded("unit", 3000)), 0)]
    framed = lp(*two)
    refused = [
        ("request", "a padding byte is not zero", framed, 1024, b"\1"),
        ("request", "the first padding byte is not zero", framed + b"\0\0\0\0\1", 1024, b""),
        ("request", "a length passes the end", lp(b"preamble") + u32(1009), 1024, b""),
        ("request", "one part", lp(b"preamble"), 1024, b""),
        ("request", "three parts", lp(*two, b"x"), 1024, b""),
        ("request", "an empty part in front", u32(0) + framed, 1024, b""),
        ("request", "padded to the next bucket", framed, 1088, b""),
        ("request", "unpadded", framed, len(framed), b""),
        ("request", "shorter than the bucket", lp(b"p", bytes(1100)), 1109, b""),
        ("response", "no part", b"", 1024, b""),
        ("response", "three parts", lp(*two, b"x"), 1024, b""),
        ("response", "below the smallest bucket", lp(*one), 512, b""),
        ("response", "not a bucket", lp(*one), 1025, b""),
        ("response", "a padding byte is not zero", lp(*one), 1024, b"\1"),
    ]
    return {
        "padme": [{"length": length, "padded": padme(length)} for length in lengths],
        "packed": [
            {"parts": list(parts), "floor": floor, "length": len(made), "sha384": h(made)}
            for parts, floor in packed
            for made in [unit(*parts, floor=floor)]
        ],
        "refused": [
            {"kind": kind, "why": why, "start": start, "length": length, "end": end}
            for kind, why, start, length, end in refused
        ],
    }


# SPEC 5: the envelope


def kem(seed: bytes) -> tuple[hpke.MLKEM768X25519PrivateKey, bytes]:
    expanded = hashlib.shake_256(seed).digest(96)
    mlkem = MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
    x25519 = X25519PrivateKey.from_private_bytes(expanded[64:])
    public = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
    return hpke.MLKEM768X25519PrivateKey(mlkem, x25519), public


def key_config(public: bytes) -> bytes:
    times = {"not_before": NOT_BEFORE - HOUR, "not_after": NOT_BEFORE + 23 * HOUR}
    suite = {"v": 1, "kem": 0x647A, "kdf": 1, "aead": 2}
    return cbor({**suite, "public_key": public, **times})


def wrapped(seed: bytes, data_key: bytes, config: bytes, committed: str | None) -> bytes:
    """Keep the committed encapsulation if it opens to the data key; else make one."""
    private, _ = kem(seed)
    suite = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    info = d("data-key") + config
    if committed is not None:
        sample = bytes.fromhex(committed)[16:]
        try:
            if len(sample) == 1168 and suite.decrypt(sample, private, info) == data_key:
                return h(config)[:16] + sample
        except InvalidTag:
            pass
    return h(config)[:16] + suite.encrypt(data_key, private.public_key(), info)


def instance_config() -> bytes:
    fields = {"v": 1, "instance_id": seeded("instance", 16), "boot_time": NOT_BEFORE - HOUR}
    return cbor({**fields, "form": "process"})


def caller_fields(case: Json, name: str) -> Json:
    """Add the caller's signature over the session (SPEC 5.6)."""
    seed = seeded(f"caller {name}", 32)
    key = Ed25519PrivateKey.from_private_bytes(seed)
    statement = d("caller") + lp(
        struct.pack(">BBQQ", 1, case["key_mode"], NOT_BEFORE, NOT_BEFORE + HOUR)
        + case["audience_hash"]
        + case["instance_id"]
        + case["key_commitment"]
        + h(case["wrapped_key"])
    )
    caller = {"caller": key.public_key().public_bytes_raw(), "signature": key.sign(statement)}
    return {"caller_seed": seed, "caller_statement": statement, **caller}


def envelope_case(name: str, *, committed: Json, anonymous: bool, size: int, floor: int) -> Json:
    """One request and its answer; all that is derived on the way is listed."""
    hybrid = name.startswith("hpke")
    data_key = seeded(f"data key {name}", 32)
    case: Json = {"name": name, "key_mode": 1 if hybrid else 2, "audience": AUDIENCE}
    case["audience_hash"] = h(d("audience") + AUDIENCE.encode())[:32]
    case["instance_id"] = bytes(16) if "any instance" in name else seeded("instance", 16)
    case |= {"not_before": NOT_BEFORE, "not_after": NOT_BEFORE + HOUR, "data_key": data_key}
    if hybrid:
        case["kem_seed"] = seeded(f"kem {name}", 32)
        case["key_config"] = key_config(kem(case["kem_seed"])[1])
        sample = committed.get("wrapped_key")
        case["wrapped_key"] = wrapped(case["kem_seed"], data_key, case["key_config"], sample)
    else:
        case |= {"key_arn": KEY_ARN, "ciphertext_blob": seeded(f"blob {name}", 184)}
        case["wrapped_key"] = lp(KEY_ARN.encode()) + case["ciphertext_blob"]
    case["prk"] = prk(data_key)
    case["key_commitment"] = x(case["prk"], "commit")
    case |= {"caller": None, "signature": None} if anonymous else caller_fields(case, name)
    return case | request_fields(case, size) | {"answers": answers(case, size, floor)}


def request_fields(case: Json, size: int) -> Json:
    name = case["name"]
    request_id, sequence = seeded(f"request {name}", 16), size
    header = (
        struct.pack(">BB16sIQQ", 1, case["key_mode"], request_id, sequence, NOT_BEFORE, NOT_BEFORE + HOUR)
        + case["audience_hash"]
        + case["instance_id"]
        + case["key_commitment"]
        + lp(case["wrapped_key"])
    )
    th = h(header)
    key = x(case["prk"], "request", th)
    stated = {"v": 1, "model": "wdbc", "version": 7 if size < 99 else None}
    stated["digest"] = None if size < 99 else seeded("model", 48)
    preamble = cbor(stated | {"caller": case["caller"], "signature": case["signature"]})
    packed = unit(preamble, seeded(f"message {name}", size))
    return {
        "request_id": request_id,
        "sequence": sequence,
        "header": header,
        "th": th,
        "request_key": key,
        "model": stated["model"],
        "version": stated["version"],
        "digest": stated["digest"],
        "preamble": preamble,
        "message": spell("message", name, size),
        "unit_sha384": h(packed),
        "ciphertext": abbreviated(seal_chunks(key, th, packed)),
    }


def answers(case: Json, size: int, floor: int) -> list[Json]:
    """Two answers to one request: the model's, and a refusal."""
    th = request_fields(case, size)["th"]
    known = {"model": "wdbc", "version": 7, "digest": seeded("model", 48)}
    unknown = {"model": None, "version": None, "digest": None}
    refusal = {"status": "UNKNOWN_MODEL", "detail": "no such model", **unknown}
    made = []
    for index, fields in enumerate(({"status": "OK", "detail": "", **known}, refusal)):
        label = f"{index} {case['name']}"
        header = b"\1" + seeded(f"nonce {label}", 32) + h(instance_config())
        rh = h(header)
        key = x(case["prk"], "response", th, rh)
        trailer = cbor({"v": 1, **fields})
        message = seeded(f"answer {label}", size) if index == 0 else None
        padded_to = floor if index == 0 else 0
        packed = unit(*([] if message is None else [message]), trailer, floor=padded_to)
        made.append(
            {
                **fields,
                "floor": padded_to,
                "response_nonce": header[1:33],
                "instance_config": instance_config(),
                "header": header,
                "rh": rh,
                "response_key": key,
                "trailer": trailer,
                "message": None if message is None else spell("answer", label, size),
                "unit_sha384": h(packed),
                "ciphertext": abbreviated(seal_chunks(key, rh, packed)),
            }
        )
    return made


def spell(kind: str, name: str, size: int) -> Json:
    """Say how a long string is made: SHAKE256 of ``shake256`` to ``length`` bytes."""
    source = b"casemate test vector: " + f"{kind} {name}".encode()
    return {"shake256": source, "length": size}


def abbreviated(data: bytes) -> Json:
    short = {"length": len(data), "sha384": h(data)}
    return short | {"bytes": data} if len(data) < 4096 else short


def envelope_vectors() -> Json:
    committed: dict[str, Json] = {}
    path = FOLDER / "envelope.json"
    if path.is_file():
        committed = {case["name"]: case for case in json.loads(path.read_text())["cases"]}
    kinds = [
        ("hpke", False, 75, 0),
        ("hpke, anonymous, three chunks", True, 2 * CHUNK + 12_345, 0),
        ("kms", False, 75, 2000),
        ("kms, anonymous, any instance", True, 1, 3 * CHUNK - 1),
    ]
    cases = []
    for name, anonymous, size, floor in kinds:
        sample = committed.get(name, {})
        sequence_fits = size % (1 << 20)
        cases.append(
            envelope_case(name, committed=sample, anonymous=anonymous, size=size, floor=floor)
            if sequence_fits == size
            else envelope_case(name, committed=sample, anonymous=anonymous, size=size, floor=floor)
        )
    return {"cases": cases}
