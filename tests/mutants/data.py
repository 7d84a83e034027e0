"""Sealed data (SPEC 8.5, 8.6): each AEAD, AAD and KDF field, each bound of its header."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

VECTORS = ("tests/unit/test_vectors.py",)
DATA = ("tests/security/test_sealed_data.py",)

_DATA = "sealed_data.py"

# fmt: off
MUTANTS = (
    Mutant("data: label", _DATA, 'wire.expand(prk, "data", digest)', 'wire.expand(prk, "model", digest)', VECTORS),
    Mutant("data: header in the key", _DATA, 'wire.expand(prk, "data", digest)', 'wire.expand(prk, "data")', VECTORS),
    Mutant("data: header as aad, sealed", _DATA, "seal_pieces(_content_key(prk, digest), digest,", 'seal_pieces(_content_key(prk, digest), b"",', VECTORS),
    Mutant("data: header as aad, opened", _DATA, "open_content(key, self.digest, self.ciphertext)", 'open_content(key, b"", self.ciphertext)', VECTORS),
    Mutant("data: commitment", _DATA, 'if not hmac.compare_digest(wire.expand(prk, "commit"), header.key_commitment):', "if False:", DATA),
    Mutant("data: commitment, sealed", _DATA, 'key_commitment=wire.expand(prk, "commit"),', "key_commitment=bytes(32),", VECTORS + DATA),
    Mutant("data: key's length", _DATA, "if len(data_key) != wire.KEY_BYTES:", "if False:", DATA),
    Mutant("data: magic", _DATA, "view[: len(MAGIC)].tobytes() == MAGIC and len(view) >= _HEADER_AT", "len(view) >= _HEADER_AT", DATA),
    Mutant("data: header's length", _DATA, "_require(0 < length <= limits.DATA_HEADER_MAX and end < len(view),", "_require(True,", DATA),
    Mutant("data: version", _DATA, '_require(fields.pop("v") == VERSION,', '_require(fields.pop("v") or True,', DATA),
    Mutant("data: audience", _DATA, "_require(1 <= audience <= limits.AUDIENCE_MAX,", "_require(True,", DATA),
    Mutant("data: lists", _DATA, "_require(1 <= len(values) <= most,", "_require(True,", DATA),
    Mutant("data: items", _DATA, '_require(good, f"{what}: not', '_require(True, f"{what}: not', DATA),
    Mutant("data: order", _DATA, "_require(sorted(set(values)) == list(values),", "_require(True,", DATA),
    Mutant("data: digest", _DATA, "return cls(header, wire.digest(view[:end]), view[end:])", "return cls(header, wire.digest(view[_HEADER_AT:end]), view[end:])", VECTORS),
)
# fmt: on
