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
from typing import TYPE_CHECKING, Any, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

if TYPE_CHECKING:
    from collections.abc import Iterable

FOLDER = Path(__file__).resolve().parent
Json = dict[str, Any]

LABELS = frozenset(
    {"answer", "audience", "caller", "callers", "commit", "config", "content", "data"}
    | {
        "data-key",
        "digest",
        "evidence",
        "kms",
        "manifest",
        "model",
        "question",
        "receipt",
        "release",
        "request",
    }
    | {"response"}
)
AUDIENCE = "clinic.example/screening"
NOT_BEFORE = 1_790_000_000_000
HOUR = 3_600_000
CHUNK = 1 << 20
PROTECTED = bytes.fromhex("a10127")  # {1: -8}: EdDSA
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
        case None | bool():
            encoded = {None: b"\xf6", True: b"\xf5", False: b"\xf4"}[value]
        case int():
            encoded = cbor_head(0, value)
        case bytes():
            encoded = cbor_head(2, len(value)) + value
        case str():
            encoded = cbor_head(3, len(value.encode())) + value.encode()
        case list():
            encoded = cbor_head(4, len(value)) + b"".join(map(cbor, value))
        case dict():
            items = sorted((cbor(key), cbor(item)) for key, item in value.items())
            encoded = cbor_head(5, len(value)) + b"".join(key + item for key, item in items)
        case _:
            raise TypeError(type(value))
    return encoded


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
        "labels": {label: d(label) for label in sorted(LABELS)},
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
    low = 1 << (e - s)
    return -(-length // low) * low


def unit(*parts: bytes) -> bytes:
    framed = lp(*parts)
    return framed.ljust(padme(max(1024, len(framed))), b"\0")


def answer_unit(messages: list[bytes], trailer: bytes, floor: int) -> bytes:
    framed = lp(*messages)
    padded = padme(max(1024, max(floor, len(framed)) + 1024))
    return (framed + lp(trailer)).ljust(padded, b"\0")


def parts(content: bytes) -> list[bytes]:
    return [content[start : start + CHUNK] for start in range(0, len(content), CHUNK)]


def seal_parts(key: bytes, aad: bytes, contents: "Iterable[bytes]") -> bytes:
    pieces = [part for content in contents for part in parts(content)]
    last = len(pieces) - 1
    return b"".join(
        AESGCM(key).encrypt(
            index.to_bytes(11, "big") + (b"\2" if index == last else b"\0"), piece, aad
        )
        for index, piece in enumerate(pieces)
    )


def seal_chunks(key: bytes, aad: bytes, content: bytes) -> bytes:
    return seal_parts(key, aad, [content])


def padding_vectors() -> Json:
    lengths = [2, 3, 8, 9, 15, 16, 17, 1023, 1024, 1025, 1087, 1088, 1089, 4097, 65_535, 65_537]
    lengths += [
        600 * 1024,
        614_401,
        CHUNK - 1,
        CHUNK,
        CHUNK + 1,
        10_000_000,
        (1 << 26) - 1,
        1 << 26,
    ]
    two, one = (b"preamble", b"message"), (b"trailer",)
    packed = [two, (*two, b"another", b"m")]
    packed += [(b"p", seeded("unit", size)) for size in (1015, 1016, 3000)]
    answers = [(1, 0), (0, 0), (0, 1500), (1496, 1500), (1497, 1500), (1, 65_537), (70_000, 65_537)]
    framed = lp(*two)
    refused = [
        ("request", "a padding byte is not zero", framed, 1024, b"\1"),
        ("request", "the first padding byte is not zero", framed + b"\0\0\0\0\1", 1024, b""),
        ("request", "a length passes the end", lp(b"preamble") + u32(1009), 1024, b""),
        ("request", "one part", lp(b"preamble"), 1024, b""),
        ("request", "33 messages", lp(b"preamble", *[b"m"] * 33), 1024, b""),
        ("request", "an empty part in front", u32(0) + framed, 1024, b""),
        ("request", "padded to the next bucket", framed, 1088, b""),
        ("request", "unpadded", framed, len(framed), b""),
        ("request", "shorter than the bucket", lp(b"p", bytes(1100)), 1109, b""),
        ("response", "no part", b"", 1024, b""),
        ("response", "three parts", lp(*two, b"x"), 1024, b""),
        ("response", "below the smallest bucket", lp(*one), 512, b""),
        ("response", "not a bucket", lp(*one), 1025, b""),
        ("response", "a trailer without room", lp(b"m" * 100, b"t" * 100), 1024, b""),
        ("response", "a trailer above its room", lp(b"t" * 1021), 2048, b""),
        ("response", "a padding byte is not zero", lp(*one), 1024, b"\1"),
    ]
    return {
        "padme": [{"length": length, "padded": padme(length)} for length in lengths],
        "packed": [
            {"parts": list(parts), "length": len(made), "sha384": h(made)}
            for parts in packed
            for made in [unit(*parts)]
        ],
        "packed_answers": [
            {"message": b"m" * size, "trailer": b"trailer", "floor": floor, **summary}
            for size, floor in answers
            for made in [answer_unit([b"m" * size] if size else [], b"trailer", floor)]
            for summary in [{"length": len(made), "sha384": h(made)}]
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
    public = receipt_key().public_key().public_bytes_raw()
    return cbor({**fields, "form": "process", "receipt_key": public})


def receipt_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(seeded("receipt key", 32))


def caller_fields(case: Json) -> Json:
    """Add the caller's signature over the session (SPEC 5.6)."""
    seed = seeded(f"caller {case['name']}", 32)
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


class Plan(NamedTuple):
    """What one case of the envelope is about."""

    name: str
    key_mode: int
    anonymous: bool
    sequence: int
    size: int  # of the message and of the answer
    floor: int  # of the answer
    receipt: bool = False
    operation: str = "infer"
    questions: int = 1


PLANS = (
    Plan("hpke", 1, anonymous=False, sequence=0, size=75, floor=0, receipt=True),
    Plan("hpke, three chunks", 1, anonymous=True, sequence=1, size=2 * CHUNK + 12_345, floor=0),
    Plan("kms", 2, anonymous=False, sequence=(1 << 20) - 1, size=75, floor=2000),
    Plan("kms, any instance", 2, True, 77, size=1, floor=3 * CHUNK - 1, operation="metadata"),
    Plan("hpke, three questions", 1, True, sequence=2, size=75, floor=3 * 1100, questions=3),
)


def envelope_case(plan: Plan, committed: Json) -> Json:
    """One request and its answers; all that is derived on the way is listed."""
    data_key = seeded(f"data key {plan.name}", 32)
    case: Json = {"name": plan.name, "key_mode": plan.key_mode, "audience": AUDIENCE}
    case["audience_hash"] = h(d("audience") + AUDIENCE.encode())[:32]
    case["instance_id"] = bytes(16) if "any" in plan.name else seeded("instance", 16)
    case["instance_config"] = instance_config()
    case |= {"not_before": NOT_BEFORE, "not_after": NOT_BEFORE + HOUR, "data_key": data_key}
    if plan.key_mode == 1:
        case["kem_seed"] = seeded(f"kem {plan.name}", 32)
        case["key_config"] = key_config(kem(case["kem_seed"])[1])
        sample = committed.get("wrapped_key")
        case["wrapped_key"] = wrapped(case["kem_seed"], data_key, case["key_config"], sample)
    else:
        case |= {"key_arn": KEY_ARN, "ciphertext_blob": seeded(f"blob {plan.name}", 184)}
        case["wrapped_key"] = lp(KEY_ARN.encode()) + case["ciphertext_blob"]
    case["prk"] = prk(data_key)
    case["key_commitment"] = x(case["prk"], "commit")
    case |= {"caller": None, "signature": None} if plan.anonymous else caller_fields(case)
    case |= request_fields(case, plan)
    known = {"model": "wdbc", "version": 7, "digest": seeded("model", 48), "questions": 32}
    unknown = {"model": None, "version": None, "digest": None, "questions": None}
    case["answers"] = [
        answer(case, plan, {"status": "OK", "detail": "", **known}),
        answer(case, plan, {"status": "UNKNOWN_MODEL", "detail": "no such model", **unknown}),
    ]
    return case


def asked_object(plan: Plan) -> bytes | None:
    """Whether the message stands for sealed data; here its content does not matter."""
    return h(b"m") if plan.key_mode == 2 and not plan.anonymous else None


def request_fields(case: Json, plan: Plan) -> Json:
    request_id = seeded(f"request {plan.name}", 16)
    header = (
        struct.pack(">BB16sI", 1, plan.key_mode, request_id, plan.sequence)
        + struct.pack(">QQ", NOT_BEFORE, NOT_BEFORE + HOUR)
        + case["audience_hash"]
        + case["instance_id"]
        + case["key_commitment"]
        + lp(case["wrapped_key"])
    )
    th = h(header)
    key = x(case["prk"], "request", th)
    asked: Json = {"model": "wdbc", "version": None, "digest": seeded("model", 48)}
    if plan.anonymous:
        asked |= {"version": 7, "digest": None}
    caller = {name: case[name] for name in ("caller", "signature")}
    also = {
        "object": asked_object(plan),
        "receipt": plan.receipt,
        "operation": plan.operation,
    }
    preamble = cbor({"v": 1, **asked, **caller, **also})
    others = [f"message {number} {plan.name}" for number in range(1, plan.questions)]
    messages = [seeded(name, plan.size) for name in (f"message {plan.name}", *others)]
    packed = unit(preamble, *messages)
    return {
        **asked,
        **also,
        "request_id": request_id,
        "sequence": plan.sequence,
        "header": header,
        "th": th,
        "request_key": key,
        "preamble": preamble,
        "message": spelled(f"message {plan.name}", plan.size),
        "others": [spelled(name, plan.size) for name in others],
        "unit_sha384": h(packed),
        "ciphertext": abbreviated(seal_chunks(key, th, packed)),
    }


def answer(case: Json, plan: Plan, fields: Json) -> Json:
    label = f"{fields['status']} {plan.name}"
    header = b"\1" + seeded(f"nonce {label}", 32) + h(instance_config())
    rh = h(header)
    key = x(case["prk"], "response", case["th"], rh)
    answered = fields["status"] == "OK"
    fields |= {"unit": 0, "final": True}
    message = seeded(f"answer {label}", plan.size) if answered else None
    fields |= receipt_fields(case, plan, fields, message)
    trailer = cbor({"v": 1, **fields})
    several = (
        answered_each(plan.questions, message)
        if message is not None and plan.questions > 1
        else None
    )
    packed = answer_unit(several or ([] if message is None else [message]), trailer, plan.floor)
    return {
        **fields,
        "several": several,
        "floor": plan.floor,
        "response_nonce": header[1:33],
        "header": header,
        "rh": rh,
        "response_key": key,
        "trailer": trailer,
        "message": spelled(f"answer {label}", plan.size) if answered else None,
        "unit_sha384": h(packed),
        "ciphertext": abbreviated(seal_chunks(key, rh, packed)),
    }


def answered_each(count: int, message: bytes) -> list[bytes]:
    """What becomes of several questions: the second one is refused (SPEC 5.10)."""
    parts = [b"\0" + message] * count
    parts[1] = b"\1" + cbor({"status": "INVALID_INPUT", "detail": "tensor 'x': missing"})
    return parts


def receipt_fields(case: Json, plan: Plan, fields: Json, message: bytes | None) -> Json:
    if message is None or not plan.receipt:
        return dict.fromkeys(("receipt", "question_blinder", "answer_blinder"))
    made = receipt(
        plan.name,
        {name: fields[name] for name in ("model", "version", "digest")},
        case["th"],
        seeded(f"message {plan.name}", plan.size),
        [message],
    )
    return {name: made[name] for name in ("receipt", "question_blinder", "answer_blinder")}


def spelled(name: str, length: int) -> Json:
    """Say how a long string is made: SHAKE256 of ``shake256``, ``length`` bytes."""
    return {"shake256": b"casemate test vector: " + name.encode(), "length": length}


def abbreviated(data: bytes) -> Json:
    """Give the hash, and short data themselves."""
    summary = {"length": len(data), "sha384": h(data)}
    return summary | {"bytes": data} if len(data) < 4096 else summary


def envelope_vectors() -> Json:
    path = FOLDER / "envelope.json"
    committed = json.loads(path.read_text())["cases"] if path.is_file() else []
    samples = {case["name"]: case for case in committed}
    return {"cases": [envelope_case(plan, samples.get(plan.name, {})) for plan in PLANS]}


# SPEC 5.9: streams


def stream_chunks(key: bytes, aad: bytes, units: list[bytes]) -> list[list[bytes]]:
    """Return the chunks of each unit: flag, then what AES-GCM made. The last unit ends all."""
    sealed: list[list[bytes]] = []
    counter = 0
    for number, packed in enumerate(units, 1):
        starts = range(0, len(packed), CHUNK)
        sealed.append([])
        for start in starts:
            ends = 2 if number == len(units) else 1
            flag = bytes([ends if start == starts[-1] else 0])
            nonce = counter.to_bytes(11, "big") + flag
            content = packed[start : start + CHUNK]
            sealed[-1].append(flag + AESGCM(key).encrypt(nonce, content, aad))
            counter += 1
    return sealed


def stream_case(plan: Plan, case: Json) -> Json:
    """A stream under the session of an envelope's case, whose keys it shares."""
    label = f"stream {plan.name}"
    sequence = (plan.sequence + 1) % (1 << 20)
    header = (
        struct.pack(">BB16sI", 1, plan.key_mode, seeded(f"request {label}", 16), sequence)
        + case["header"][22:]
    )
    th = h(header)
    key = x(case["prk"], "request", th)
    asked = {name: case[name] for name in ("model", "version", "digest", "caller", "signature")}
    preamble = cbor({"v": 1, **asked, "object": None, "receipt": False, "operation": "infer"})
    asked_for = [[plan.size], [2 * CHUNK + 12_345], [1], [7, 1, 900]]  # by unit
    questions = [
        [(f"question {i} {part} {label}", size) for part, size in enumerate(sizes)]
        for i, sizes in enumerate(asked_for)
    ]
    parts = [[seeded(*question) for question in several] for several in questions]
    units = [unit(preamble), *(unit(*several) for several in parts), bytes(1024)]
    opening, *asking, end = stream_chunks(key, th, units)
    return {
        "envelope": plan.name,
        "request_id": header[2:18],
        "sequence": sequence,
        "header": header,
        "th": th,
        "request_key": key,
        "preamble": preamble,
        "opening": list(map(abbreviated, opening)),
        "questions": [
            {
                "messages": [spelled(*question) for question in several],
                "chunks": list(map(abbreviated, chunks)),
            }
            for several, chunks in zip(questions, asking, strict=True)
        ],
        "end": list(map(abbreviated, end)),
        "answer": stream_answer(plan, case, label, th),
    }


def stream_answer(plan: Plan, case: Json, label: str, th: bytes) -> Json:
    """Answers in another order than the questions; the second question has two pieces.

    The last three questions are one unit, and answered by one: of them the second was refused.
    """
    header = b"\1" + seeded(f"nonce {label}", 32) + h(instance_config())
    rh = h(header)
    key = x(case["prk"], "response", th, rh)
    known = {"model": "wdbc", "version": 7, "digest": seeded("model", 48), "questions": 32}
    none = dict.fromkeys(("receipt", "question_blinder", "answer_blinder"))
    said: list[Json] = [
        {"status": "OK", "detail": "", "unit": 1, "final": False, "size": plan.size},
        {"status": "MODEL_FAILED", "detail": "failed", "unit": 2, "final": True, "size": None},
        {"status": "OK", "detail": "", "unit": 1, "final": True, "size": CHUNK + 77},
        {"status": "OK", "detail": "", "unit": 3, "final": True, "size": 300, "questions": 3},
        {"status": "OK", "detail": "", "unit": 0, "final": True, "size": 1},
        {"status": "OK", "detail": "", "unit": 6, "final": True, "size": None},
    ]
    made, units = [], []
    for number, fields in enumerate(said):
        size, count = fields.pop("size"), fields.pop("questions", 1)
        name = f"answer {number} {label}"
        messages = [] if size is None else [seeded(name, size)]
        several = answered_each(count, messages[0]) if count > 1 else None
        trailer = cbor({"v": 1, **fields, **known, **none})
        floor = plan.floor * count
        units.append(answer_unit(several or messages, trailer, floor))
        message = None if size is None else spelled(name, size)
        made.append(
            {**fields, "floor": floor, "trailer": trailer, "message": message, "several": several}
        )
    for entry, chunks in zip(made, stream_chunks(key, rh, units), strict=True):
        entry["chunks"] = list(map(abbreviated, chunks))
    return {
        "response_nonce": header[1:33],
        "header": header,
        "rh": rh,
        "response_key": key,
        "units": made,
    }


def stream_vectors() -> Json:
    cases = envelope_vectors()["cases"]
    plans = zip(PLANS, cases, strict=True)
    return {"cases": [stream_case(plan, case) for plan, case in plans]}


# SPEC 14: receipts


def receipt(name: str, model: Json, th: bytes, question: bytes, answers: list[bytes]) -> Json:
    """Sign a receipt as the instance of ``instance_config``; list what is derived on the way."""
    blinder_q, blinder_a = seeded(f"question {name}", 32), seeded(f"answer blinder {name}", 32)
    question_hash = h(d("question") + blinder_q + lp(question))
    answer_hash = h(d("answer") + blinder_a + lp(*answers))
    about = [model["model"], model["version"], model["digest"]]
    time = NOT_BEFORE + 1234
    payload = cbor([1, h(instance_config()), *about, th, question_hash, answer_hash, time])
    signed = cbor(["Signature1", PROTECTED, d("receipt"), payload])
    signature = receipt_key().sign(signed)
    return {
        "question_blinder": blinder_q,
        "answer_blinder": blinder_a,
        "question_hash": question_hash,
        "answer_hash": answer_hash,
        "time": time,
        "payload": payload,
        "sig_structure": signed,
        "signature": signature,
        "receipt": cbor([PROTECTED, {}, payload, signature]),
    }


def receipt_vectors() -> Json:
    short = {"model": "m", "version": 1, "digest": seeded("model", 48)}
    longest = {"model": "n" * 128, "version": (1 << 32) - 1, "digest": seeded("model", 48)}
    plans = [
        ("one message", short, 75, [33]),
        ("three messages", longest, 5000, [1, 300, 2]),
        ("the boundary moved", longest, 5000, [1, 301, 1]),
    ]
    return {
        "instance_config": instance_config(),
        "receipt_key_seed": seeded("receipt key", 32),
        "cases": [
            {
                "name": name,
                **model,
                "th": h(name.encode()),
                "question": spelled(f"question {name}", size),
                "answers": [
                    spelled(f"answer {name} {i}", length) for i, length in enumerate(sizes)
                ],
                **made,
                "file": abbreviated(stored_receipt(made, question, answers)),
            }
            for name, model, size, sizes in plans
            for question in [seeded(f"question {name}", size)]
            for answers in [[seeded(f"answer {name} {i}", n) for i, n in enumerate(sizes)]]
            for made in [receipt(name, model, h(name.encode()), question, answers)]
        ],
        "evidence": seeded("stored evidence", 100),
        "header": seeded("stored header", 50),
    }


def stored_receipt(made: Json, question: bytes, answers: list[bytes]) -> bytes:
    """Give the file of SPEC 14.4; evidence and header are whatever they are."""
    return b"CASERCT1" + cbor(
        {
            "v": 1,
            "receipt": made["receipt"],
            "evidence": seeded("stored evidence", 100),
            "header": seeded("stored header", 50),
            "question": {"blinder": made["question_blinder"], "messages": [question]},
            "answer": {"blinder": made["answer_blinder"], "messages": answers},
        }
    )


# SPEC 8: sealed models


SERVING = dict.fromkeys(
    ("batch_dimension", "batch_rows", "request_rows", "concurrency", "queue", "run_ms")
)


def content_digest(content: bytes) -> bytes:
    hashes = b"".join(hashlib.sha256(part).digest() for part in parts(content))
    return h(d("content") + len(content).to_bytes(8, "big") + hashes)


def sealed_model(
    name: str, contents: dict[str, bytes], callers: object, serving: Json, loop: Json | None = None
) -> Json:
    seed, data_key = seeded(f"publisher {name}", 32), seeded(f"model key {name}", 32)
    publisher = Ed25519PrivateKey.from_private_bytes(seed)
    entries = [
        {"path": path, "length": len(content), "digest": content_digest(content)}
        for path, content in contents.items()
    ]
    header = cbor(
        {
            "v": 2,
            "file_id": seeded(f"file {name}", 32),
            "key_commitment": x(prk(data_key), "commit"),
            "publisher": publisher.public_key().public_bytes_raw(),
            "name": "wdbc",
            "version": 7,
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [0, 30]}],
            "outputs": [
                {"name": "label", "datatype": "INT64", "shape": [0]},
                {"name": "text", "datatype": "BYTES", "shape": [0]},
                {"name": "half", "datatype": "BF16", "shape": [0, 2]},
            ],
            "answer_bucket": 2048,
            "callers": callers,
            "runtime": "onnx",
            "loop": loop,
            "kms_key": KEY_ARN,
            "wrapped_key": seeded(f"blob {name}", 184),
            "entries": entries,
            "serving": SERVING | serving,
        }
    )
    m = b"CASEMDL2" + lp(header)
    signature = publisher.sign(d("model") + h(m))
    key = x(prk(data_key), "model", h(m))
    file = m + lp(signature) + seal_parts(key, h(m), contents.values())
    return {
        "name": name,
        "publisher_seed": seed,
        "data_key": data_key,
        "entries": [
            {
                "path": path,
                "content": spelled(f"{name} {path}", len(content)),
                "digest": content_digest(content),
            }
            for path, content in contents.items()
        ],
        "callers": callers,
        "loop": loop,
        "header": header,
        "m_sha384": h(m),
        "signature": signature,
        "key": key,
        "model_digest": h(d("digest") + lp(cbor(entries))),
        "file": abbreviated(file),
    }


def sealed_model_vectors() -> Json:
    small = {"model.onnx": 300, "empty": 0, "external/weights.bin": 77}
    large = {"model.onnx": CHUNK - 1, "weights.bin": CHUNK + 5}
    exact = {"model.onnx": CHUNK}
    two = sorted([seeded("caller a", 32), seeded("caller b", 32)])
    batched = {"batch_dimension": 0, "batch_rows": 256, "request_rows": 64}
    bounded = {"concurrency": 2, "queue": 0, "run_ms": 1500}
    state = [{"output": "next", "input": "x"}]
    loop = {"state": state, "stop": "done", "steps": 256, "interval": 20}
    plans: list[tuple[str, dict[str, int], object, Json, Json | None]] = [
        ("small", small, "any", {}, None),
        ("three chunks", large, two, batched, None),
        ("one whole chunk", exact, "any", bounded, loop),
    ]
    return {
        "models": [
            sealed_model(
                name,
                {path: seeded(f"{name} {path}", size) for path, size in sizes.items()},
                callers,
                serving,
                loop,
            )
            for name, sizes, callers, serving, loop in plans
        ]
    }


# SPEC 8.5: sealed data


def sealed_object(name: str, size: int, readers: int, models: int) -> Json:
    data_key, content = seeded(f"object key {name}", 32), seeded(f"content {name}", size)
    header = cbor(
        {
            "v": 1,
            "object_id": seeded(f"object {name}", 32),
            "key_commitment": x(prk(data_key), "commit"),
            "audience": AUDIENCE,
            "readers": sorted(seeded(f"reader {number}", 32) for number in range(readers)),
            "models": sorted(seeded(f"model {number}", 48) for number in range(models)),
            "kms_key": KEY_ARN,
            "wrapped_key": seeded(f"object blob {name}", 184),
        }
    )
    m = b"CASEDAT1" + lp(header)
    key = x(prk(data_key), "data", h(m))
    return {
        "name": name,
        "data_key": data_key,
        "content": spelled(f"content {name}", size),
        "header": header,
        "m_sha384": h(m),
        "key": key,
        "file": abbreviated(m + seal_chunks(key, h(m), unit(content))),
    }


def sealed_data_vectors() -> Json:
    return {
        "objects": [
            sealed_object("one reader, one model", 100, 1, 1),
            sealed_object("several", 5000, 3, 2),
            sealed_object("two chunks", CHUNK + 7, 1, 1),
        ]
    }


# SPEC 3: evidence


def evidence_vectors() -> Json:
    publisher = seeded("publisher", 32)
    common: Json = {"v": 1, "audience": AUDIENCE, "providers": ["CPUExecutionProvider"]}
    common["publishers"] = sorted([publisher, seeded("second publisher", 32)])
    bounds = {"sessions": 4096, "models": 8, "model_bytes": 1 << 30, "request_bytes": 1 << 24}
    bounds |= {"stream_bytes": 1 << 31, "lifetime": 24 * HOUR, "drain": HOUR}
    bounds |= {"memory_bytes": 1 << 32, "run_bytes": 1 << 30, "run_ms": 60_000}
    bounds |= {"model_requests": 48, "threads": 2}
    roots = [seeded("root", 300), seeded("second root", 400)]
    kms = {"partition": "aws", "regions": ["eu-central-1", "eu-west-3"], "tls_roots": roots}
    minimum = {f"{publisher.hex()}/wdbc": 2, f"{publisher.hex()}/other.model": 70_000}
    configurations = [
        {**common, "minimum_versions": {}, "kms": None, "limits": bounds},
        {**common, "minimum_versions": minimum, "kms": kms, "limits": bounds},
    ]
    log = [
        {
            "op": operation,
            "name": "wdbc",
            "version": 7,
            "digest": seeded("model", 48),
            "publisher": publisher,
            "callers": h(d("callers") + cbor("any")),
            "time": time,
        }
        for operation, time in (("load", NOT_BEFORE), ("unload", NOT_BEFORE + 5))
    ]
    keys = [key_config(kem(seeded(f"kem {index}", 32))[1]) for index in range(2)]
    callers: list[object] = ["any", [bytes(32)], sorted([seeded("a", 32), seeded("b", 32)])]
    return {
        "configurations": [
            {"fields": fields, "encoded": encoded, "event": event, "pcr16": h(bytes(48) + event)}
            for fields in configurations
            for encoded in [cbor(fields)]
            for event in [h(d("config") + lp(encoded))]
        ],
        "key_configs": [{"encoded": key, "key_id": h(key)[:16]} for key in keys],
        "instance_config": {"encoded": instance_config(), "sha384": h(instance_config())},
        "logs": [{"entries": entries, "encoded": cbor(entries)} for entries in ([], log[:1], log)],
        "callers": [
            {"callers": value, "digest": h(d("callers") + cbor(value))} for value in callers
        ],
        "kms_user_data": h(d("kms")),
        "bundles": [
            bundle(cbor(configurations[0]), keys[:1], []),
            bundle(cbor(configurations[1]), keys, log),
        ],
    }


def bundle(configuration: bytes, keys: list[bytes], log: list[Json]) -> Json:
    bound = d("evidence") + lp(configuration) + lp(lp(*keys)) + lp(instance_config())
    bound += lp(cbor(log)) + lp(b"")
    return {
        "configuration": configuration,
        "key_configs": keys,
        "instance_config": instance_config(),
        "measurement_log": cbor(log),
        "user_data": h(bound),
    }


# SPEC 4: measurement


def measurement_vectors() -> Json:
    file, link, folder = 0, 1, 2
    tree = [
        ("app", folder, 0, b""),
        ("app/boot.py", file, 0, b"print()\n"),
        ("app.txt", file, 0, b"beside the folder, and before it in bytewise order"),
        ("bin", folder, 0, b""),
        ("bin/python", file, 1, seeded("python", 100)),
        ("bin/python3", link, 0, b"python"),
        ("packages", folder, 0, b""),
        ("packages/numpy", folder, 0, b""),
        ("packages/numpy/__init__.py", file, 0, b""),
        ("packages/\u00e9.py", file, 0, b"e"),
        ("run", folder, 0, b""),
    ]
    cmdline = ["python", "-I", "/app/boot.py", ""]
    parts = {"runtime": b"", "packages": b"", "app": b""}
    for path, kind, executable, value in sorted(tree, key=lambda entry: entry[0].encode()):
        top, below, _ = path.partition("/")
        stated = h(value) if kind == file else value
        line = lp(path.encode()) + bytes([kind, executable]) + lp(stated)
        parts[top if below and top in parts else "runtime"] += line
    runtime, packages, application = (d("manifest") + part for part in parts.values())
    command = "\0".join(cmdline).encode()
    events = [
        lp(runtime, command, packages, application),
        lp(runtime, command, packages),
        lp(application),
    ]
    fields = ("path", "kind", "executable", "value")
    return {
        "tree": [dict(zip(fields, entry, strict=True)) for entry in tree],
        "cmdline": cmdline,
        "manifests": {"runtime": runtime, "packages": packages, "application": application},
        "pcrs": [h(bytes(48) + h(event)) for event in events],
    }


# SPEC 9: frames


def frames_vectors() -> Json:
    payloads = [
        (8, 0, b""),
        (3, 30_000, b"sealed"),
        (0x88, 0, b"\xa0"),
        (7, 1, seeded("frame", 300)),
    ]
    refused = [
        ("length below five", struct.pack(">IBI", 4, 3, 0), "MALFORMED"),
        ("length zero", struct.pack(">IBI", 0, 3, 0), "MALFORMED"),
        ("one byte above the limit", struct.pack(">IBI", 67_174_401, 3, 0), "TOO_LARGE"),
        ("4 GiB", b"\xff" * 9, "TOO_LARGE"),
        ("cut within the head", struct.pack(">IBI", 5, 3, 0)[:8], "MALFORMED"),
        ("cut within the payload", struct.pack(">IBI", 9, 3, 0) + b"abc", "MALFORMED"),
    ]
    numbers = [
        (0, 3, 0, b""),
        (1, 3, 30_000, b"sealed"),
        (0xFFFFFFFF, 3, 1, seeded("numbered", 300)),
        (7, 5, 0, seeded("numbered", 16)),
    ]
    refused_numbers = [
        ("another type", struct.pack(">IBIIB", 10, 3, 0, 1, 3), "MALFORMED"),
        ("another type, short", struct.pack(">IBI", 5, 8, 0), "MALFORMED"),
        ("length below ten", struct.pack(">IBIIB", 9, 32, 0, 1, 3), "MALFORMED"),
        ("one byte above 65,536", struct.pack(">IBIIB", 65_547, 32, 0, 1, 3), "TOO_LARGE"),
    ]
    host_id = seeded("host id", 16)
    bearer = "Bearer " + "t" * 16
    offer = f"8444 {host_id.hex()}"
    framed = {
        "offer": offer,
        "port": 8444,
        "host_id": host_id.hex(),
        "greeting": (struct.pack(">IBI", 22, 33, 0) + b"\x01" + host_id).hex(),
        "authorization": bearer,
        "hello": (struct.pack(">IBI", 5 + len(bearer), 33, 0) + bearer.encode()).hex(),
        "hello_of_the_unknown": struct.pack(">IBI", 5, 33, 0).hex(),
        "welcome": struct.pack(">IBI", 5, 0xA1, 0).hex(),
        "refused_offers": [
            *("", "8444", "8444 ", offer + " ", " " + offer, offer[:-1], offer + "0"),
            *("0 " + host_id.hex(), "65536 " + host_id.hex(), "08444 " + host_id.hex()),
            *("-1 " + host_id.hex(), offer.upper(), "8444  " + host_id.hex()),
            *("example.com:8444 " + host_id.hex(), "8444 " + "g" * 32, offer + "\n"),
        ],
    }
    chunks = seeded("framed stream", 40)
    detail = b"too many calls"
    refusal = b"\x0a\x0aOVERLOADED\x12" + bytes([len(detail)]) + detail + b"\x18\xfa\x01"
    framed["stream"] = {
        "budget": 60_000,
        "chunks": chunks.hex(),
        "first": (struct.pack(">IBI", 45, 4, 60_000) + chunks).hex(),
        "end": struct.pack(">IBI", 5, 4, 0).hex(),
        "answer": (struct.pack(">IBI", 45, 0x84, 0) + chunks).hex(),
        "answer_end": struct.pack(">IBI", 5, 0x84, 0).hex(),
        "reason": "OVERLOADED",
        "detail": detail.decode(),
        "retry_delay": 250,
        "refused": (struct.pack(">IBI", 5 + len(refusal), 0xFF, 0) + refusal).hex(),
    }
    one, two = b"\x0a\x03abc", b"\x12\x02de"
    long_one, long_two = b"\x0a\xac\x02" + bytes(300), b"\x12\x80\x01" + bytes(128)
    broken = {
        "empty": b"",
        "field 1 only": one,
        "field 2 only": two,
        "wrong order": two + one,
        "field 1 twice": one + one + two,
        "field 2 twice": one + two + two,
        "field 3": one + two + b"\x1a\x01x",
        "field 2 as a varint": one + b"\x10\x02",
        "field 2 as a group": one + b"\x13\x14",
        "tag not shortest": b"\x8a\x00\x03abc" + two,
        "length not shortest": b"\x0a\x83\x00abc" + two,
        "length passes the end": one + b"\x12\x03de",
        "length of 2^64": one + b"\x12" + b"\xff" * 9 + b"\x01de",
        "varint without an end": one + b"\x12" + b"\xff" * 12,
        "cut": one + two[:-1],
        "trailing byte": one + two + b"\x00",
        "empty header": b"\x0a\x00" + two,
        "empty ciphertext": one + b"\x12\x00",
        "header above its bound": b"\x0a\xff\x32" + bytes(6527) + two,
    }
    return {
        "framed": framed,
        "frames": [
            {"type": kind, "budget": budget, "payload": payload, "bytes": frame}
            for kind, budget, payload in payloads
            for frame in [struct.pack(">IBI", 5 + len(payload), kind, budget) + payload]
        ],
        "refused": [{"why": why, "bytes": data, "code": code} for why, data, code in refused],
        "numbered": [
            {
                "number": number,
                "type": kind,
                "budget": budget,
                "payload": payload,
                "question": struct.pack(">IBIIB", size, 32, budget, number, kind) + payload,
                "answer": struct.pack(">IBIIB", size, 0xA0, 0, number, kind | 0x80) + payload,
            }
            for number, kind, budget, payload in numbers
            for size in [10 + len(payload)]
        ],
        "cancels": [
            {"number": number, "bytes": struct.pack(">IBIIB", 10, 32, 0, number, 14)}
            for number, _, _, _ in numbers
        ],
        "refused_numbered": [
            {"why": why, "bytes": data, "code": code} for why, data, code in refused_numbers
        ],
        "sealed_messages": [
            {"header": b"abc", "ciphertext": b"de", "bytes": one + two},
            {"header": bytes(300), "ciphertext": bytes(128), "bytes": long_one + long_two},
        ],
        "refused_sealed_messages": [{"why": why, "bytes": data} for why, data in broken.items()],
    }


# SPEC 1.6: CBOR


def cbor_vectors() -> Json:
    integers = [0, 1, 23, 24, 255, 256, 65_535, 65_536, (1 << 32) - 1, 1 << 32, (1 << 64) - 1]
    values: list[object] = [*integers, True, False, None, "", "a", "\u00fc\u6c34", "x" * 24]
    values += [[], [1, [2, [3]]], list(range(30)), {}, {"a": 1, "b": [True, None]}]
    values += [{"aa": 1, "b": 2, "c": {"d": "e"}}, {"k" * 24: 1, "k": 2}, [[[[[[[[]]]]]]]]]
    refused = {
        "empty": "",
        "trailing byte": "0000",
        "negative integer": "20",
        "tag": "c000",
        "undefined": "f7",
        "simple value": "f0",
        "half float": "f90000",
        "double": "fb0000000000000000",
        "break": "ff",
        "reserved additional information": "1c",
        "23 in two bytes": "1817",
        "255 in three bytes": "1900ff",
        "65535 in five bytes": "1a0000ffff",
        "2^32-1 in nine bytes": "1b00000000ffffffff",
        "length not shortest": "580161",
        "integer cut": "19ff",
        "bytes cut": "4261",
        "text cut": "6261",
        "text not UTF-8": "61ff",
        "text with a surrogate": "63eda080",
        "array cut": "8200",
        "array of 2^32 items": "9b0000000100000000",
        "array of 4097 items": "991001" + "00" * 4097,
        "indefinite array": "9f00ff",
        "indefinite map": "bf616100ff",
        "indefinite text": "7f6161ff",
        "indefinite bytes": "5f4161ff",
        "map cut": "a161",
        "map key missing its value": "a16161",
        "duplicate key": "a2616100616101",
        "unsorted keys": "a2616200616100",
        "longer key before a shorter one": "a262616100616200",
        "bytes as a map key": "a1416100",
        "true as a map key": "a1f500",
        "nested too deeply": "81" * 11 + "80",
    }
    return {
        "accepted": [{"value": tagged(value), "bytes": cbor(value)} for value in values]
        + [{"value": tagged(data), "bytes": cbor(data)} for data in (b"", b"\0", bytes(range(24)))],
        "refused": [{"why": why, "bytes": data} for why, data in refused.items()],
    }


def tagged(value: object) -> object:
    """JSON has no byte strings, and not every reader has its large integers."""
    match value:
        case bytes():
            return {"bytes": value}
        case bool() | None | str():
            return value
        case int():
            return {"uint": str(value)}
        case list():
            return [tagged(item) for item in value]
        case dict():
            return {"map": [[tagged(key), tagged(item)] for key, item in value.items()]}
        case _:
            raise TypeError(type(value))


# SPEC 15: the release log


def releases_vectors() -> Json:
    signers = [Ed25519PrivateKey.from_private_bytes(seeded(f"signer {n}", 32)) for n in range(2)]
    time = NOT_BEFORE
    first: Json = {"op": "release", "number": 1, "name": "0.1.0", "form": "nitro-enclave"}
    first |= {f"pcr{n}": h(seeded(f"release 1 {n}", 8)) for n in range(3)}
    first |= {"pcr8": None, "revision": "0" * 40, "time": time}
    second = first | {"number": 7, "name": "0.2.0+signed", "form": "container", "time": time + 1}
    second |= {"pcr0": h(b"2"), "pcr8": h(seeded("certificate", 8))}
    gone: Json = {"op": "withdraw", "number": 1, "reason": "leaks \u00fc", "time": time + 1}
    entries, heads, head = [], [], bytes(48)
    for entry, signer in ((first, signers[0]), (second, signers[1]), (gone, signers[0])):
        chained = entry | {"previous": head, "key": signer.public_key().public_bytes_raw()}
        signed = cbor(chained | {"v": 1})
        signature = signer.sign(d("release") + signed)
        head = h(d("release") + lp(signed, signature))
        entries.append(chained | {"signature": signature})
        heads.append(head)
    keys = [signer.public_key().public_bytes_raw() for signer in signers]
    log = {"format": 1, "entries": entries}
    swapped = [entries[1], entries[0], entries[2]]
    flipped = entries[0] | {"pcr0": bytes([entries[0]["pcr0"][0] ^ 1]) + entries[0]["pcr0"][1:]}
    refused: Json = {
        "an entry is missing": {"format": 1, "entries": entries[1:]},
        "two entries changed places": {"format": 1, "entries": swapped},
        "an entry occurs twice": {"format": 1, "entries": [*entries, entries[2]]},
        "a register was changed": {"format": 1, "entries": [flipped, *entries[1:]]},
        "an unknown key": {"format": 1, "entries": [entries[0] | {"note": ""}]},
        "another format": {"format": 2, "entries": entries},
        "another signature": {
            "format": 1,
            "entries": [entries[0] | {"signature": entries[1]["signature"]}],
        },
    }
    return {
        "signers": keys,
        "log": log,
        "heads": heads,
        "accepted": [7],
        "refused": [{"why": why, "log": value} for why, value in refused.items()],
    }


FILES = {
    "kdf": kdf_vectors,
    "padding": padding_vectors,
    "envelope": envelope_vectors,
    "stream": stream_vectors,
    "sealed_model": sealed_model_vectors,
    "sealed_data": sealed_data_vectors,
    "evidence": evidence_vectors,
    "measurement": measurement_vectors,
    "receipt": receipt_vectors,
    "releases": releases_vectors,
    "frames": frames_vectors,
    "cbor": cbor_vectors,
}


def render(value: Json) -> str:
    return json.dumps(value, indent=1, default=bytes.hex) + "\n"


def main() -> None:
    """Write the files, or compare."""
    parser = argparse.ArgumentParser(description="Make the test vectors of SPEC 13.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    check: bool = parser.parse_args().check
    drifted = []
    for name, make in FILES.items():
        path = FOLDER / f"{name}.json"
        text = render(make())
        if check and (not path.is_file() or path.read_text() != text):
            drifted.append(path.name)
        elif not check:
            path.write_text(text)
    if drifted:
        sys.exit(f"test vectors differ from the generator: {', '.join(drifted)}")


if __name__ == "__main__":
    main()
