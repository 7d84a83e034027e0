"""Damaged documents, payloads, certificates and structures: refused, and by a domain error only.

`check` is the one entry for both ways to run it: `make fuzz`, where atheris steers by coverage, and
`test_documents.py` beside this file, with a fixed seed and without atheris.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from casemate import cbor
from casemate.attestation import (
    ChainCache,
    Configuration,
    EvidenceBundle,
    InstanceConfig,
    KeyConfig,
    encode_log,
    parse_document,
    parse_log,
    verify_document,
)
from casemate.attestation.chain import verify_chain
from casemate.attestation.cose import parse_cose
from casemate.attestation.document import parse_payload
from casemate.errors import EvidenceError

if TYPE_CHECKING:
    from collections.abc import Callable

VECTORS: Final = Path(__file__).parents[1] / "vectors" / "nitro"
AWS_ROOT: Final = bytes.fromhex("641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b")
FOLDER: Final = Path(__file__).parents[2] / ".fuzz"  # corpus, and inputs that crashed
INPUT_MAX: Final = 21_000  # beyond the bound of a document, so that the bound is met too

GENUINE: Final = [path.read_bytes() for path in sorted(VECTORS.glob("*.cbor"))]
COSES: Final = [parse_cose(data) for data in GENUINE]
DOCUMENTS: Final = [parse_document(data) for data in GENUINE]
SIGNED: Final = frozenset(document.payload for document in DOCUMENTS)
CHAINS: Final = ChainCache()  # as a client uses it, and five signatures cheaper


def _document(data: bytes) -> None:
    """Whatever verifies says what AWS signed: the payload of a genuine document."""
    now = parse_document(data).timestamp
    verified = verify_document(data, roots=frozenset([AWS_ROOT]), now=now, chains=CHAINS)
    assert verified.payload in SIGNED


def _payload(data: bytes) -> None:
    document = parse_payload(replace(COSES[0], payload=data))
    assert all(len(register) == 48 for register in document.pcrs.values())


def _cbor(data: bytes) -> None:
    with suppress(cbor.CborError):
        cbor.decode_nsm(data)
    with suppress(cbor.CborError):
        assert cbor.encode(cbor.decode(data)) == data


def _chain(data: bytes) -> None:
    """The first byte says which document's chain, and where in it the rest takes its place."""
    document = DOCUMENTS[data[0] // 8 % len(DOCUMENTS)] if data else DOCUMENTS[0]
    depth = data[0] % 4 + 1 if data else 1
    certificates = list(document.chain)
    certificates[depth] = data[1:]
    verify_chain(certificates, document.timestamp, CHAINS)
    assert tuple(certificates) == document.chain


def _bundle(data: bytes) -> None:
    bundle = EvidenceBundle.parse(data)
    bundle.check_sizes()
    assert len(bundle.user_data()) == 48


def _structures(data: bytes) -> None:
    """What parses encodes to the very bytes it came from."""
    for parse in (Configuration.parse, KeyConfig.parse, InstanceConfig.parse):
        with suppress(EvidenceError):
            assert parse(data).encode() == data
    assert encode_log(parse_log(data)) == data


# Heads of CBOR items: maps and strings of indefinite length, a tag, the largest length, null.
INTERESTING: Final = (
    *(b"\x00", b"\xff", b"\xbf", b"\x9f", b"\x7f"),
    *(b"\xd2", b"\x1b" + b"\xff" * 8, b"\xf6"),
)

TARGETS: Final[tuple[Callable[[bytes], None], ...]] = (
    _document,
    _payload,
    _cbor,
    _chain,
    _bundle,
    _structures,
)


def check(data: bytes) -> None:
    """Give an input to the target that its first byte names; anything but EvidenceError escapes."""
    if data:
        with suppress(EvidenceError):
            TARGETS[data[0] % len(TARGETS)](data[1:])


def corpus() -> list[bytes]:
    """Return good inputs for every target, from genuine documents and the test vectors."""
    seeds = []
    for number, (data, document) in enumerate(zip(GENUINE, DOCUMENTS, strict=True)):
        seeds += [b"\x00" + data, b"\x01" + document.payload, b"\x02" + document.payload]
        seeds += [
            bytes([3, 8 * number + depth - 1]) + document.chain[depth] for depth in range(1, 5)
        ]
        bundle = EvidenceBundle("nitro-enclave", data, b"\xa0", (b"\xa0",), b"\xa0", b"\x80")
        seeds.append(b"\x04" + bundle.serialize())
    return seeds + [b"\x05" + part for part in _good_structures()]


def _good_structures() -> list[bytes]:
    vectors = (VECTORS.parent / "evidence.json").read_text()
    found = []
    for text in vectors.split('"')[3::2]:
        with suppress(ValueError):
            found.append(bytes.fromhex(text))
    return [data for data in found if 1 < len(data) <= INPUT_MAX]


def damaged(source: random.Random, seeds: list[bytes]) -> bytes:
    """One to four changes to a good input; its first byte, the target, mostly stays."""
    data = bytearray(source.choice(seeds))
    for _ in range(source.randint(1, 4)):
        at = source.randint(0 if source.random() < 0.1 else min(1, len(data)), len(data))
        match source.randrange(6):
            case 0 if at < len(data):
                data[at] ^= 1 << source.randrange(8)
            case 1:
                del data[at : at + source.randint(1, 16)]
            case 2:
                data[at:at] = source.randbytes(source.randint(1, 16))
            case 3:
                data[at:at] = source.choice(INTERESTING)
            case 4:
                data[at:at] = data[at : at + source.randint(1, 64)]
            case 5:
                other = source.choice(seeds)
                start = source.randint(0, len(other))
                data[at : at + 32] = other[start : start + source.randint(1, 64)]
            case _:
                data[at - 1 : at] = bytes([source.randrange(256)])
    return bytes(data)


def main() -> None:
    """Fuzz with atheris until ``--runs`` inputs have passed; a crash leaves its input."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()

    import atheris  # noqa: PLC0415 - in the environment of `make fuzz` alone

    atheris.instrument_all()
    # The fuzzer ends the process itself, so nothing here could clean up after it.
    seeds, folder = corpus(), FOLDER / "corpus"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, seed in enumerate(seeds):
        (folder / f"{number:04}").write_bytes(seed)
    options = [
        f"-runs={arguments.runs}",
        f"-seed={arguments.seed}",
        f"-max_len={INPUT_MAX}",
        "-len_control=0",
        "-timeout=10",
        "-print_final_stats=1",
        f"-artifact_prefix={FOLDER}/",
    ]

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        """Half of the inputs as libFuzzer makes them, half a few changes off a good one."""
        source = random.Random(seed)
        if source.random() < 0.5:
            return bytes(atheris.Mutate(data, max_size))
        return damaged(source, seeds if source.random() < 0.5 else [data])[:max_size]

    atheris.Setup([sys.argv[0], *options, str(folder)], check, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
