"""The release log: signed measurements in an append-only file (SPEC 15).

Each entry is signed, and names the hash of the entry before it. Whoever remembers a head, the hash
of the last entry they saw, is told when a later file does not go on from there.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from casemate import cbor, limits
from casemate.attestation._checks import VERSION_MAX
from casemate.attestation.policy import RELEASE_NAME
from casemate.attestation.structures import FORMS
from casemate.errors import CasemateError, Code
from casemate.wire import HASH_BYTES, digest, label, lp

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FORMAT: Final = 1
START: Final = bytes(HASH_BYTES)  # what the first entry names as the one before it
RELEASE: Final = "release"
WITHDRAW: Final = "withdraw"
_REGISTERS: Final = ("pcr0", "pcr1", "pcr2")
_HASHES: Final = (*_REGISTERS, "pcr8")
_NUMBERS: Final = ("number", "time")
_CHAIN: Final = {"previous": HASH_BYTES, "key": 32, "signature": 64}  # name and size in bytes
_HEX: Final = re.compile(r"[0-9a-f]+", re.ASCII)
_TIME_END: Final = 1 << 53  # what every reader of JSON has exactly


@dataclass(frozen=True, slots=True)
class ReleaseEntry:
    """A release: registers of 48 bytes, ``pcr8`` None if the image is not signed.

    ``number`` is what trust policies order releases by; ``revision`` names the sources.
    """

    number: int
    name: str
    form: str
    pcr0: bytes
    pcr1: bytes
    pcr2: bytes
    pcr8: bytes | None
    revision: str
    time: int

    def __post_init__(self) -> None:
        _require(1 <= self.number <= VERSION_MAX, "number: not 1 to 2^32-1")
        _require(bool(RELEASE_NAME.fullmatch(self.name)), "name: not usable")
        _require(self.form in FORMS, "form: unknown")
        for name in _REGISTERS if self.pcr8 is None else _HASHES:
            value: bytes = getattr(self, name)
            _require(len(value) == HASH_BYTES and any(value), f"{name}: not 48 bytes, or zero")
        _text(self.revision, limits.RELEASE_REVISION_MAX, "revision")


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """The release ``number`` is not to be accepted any more."""

    number: int
    reason: str
    time: int

    def __post_init__(self) -> None:
        _text(self.reason, limits.DETAIL_MAX, "reason")


Entry = ReleaseEntry | Withdrawal
_KINDS: Final[dict[str, type[Entry]]] = {RELEASE: ReleaseEntry, WITHDRAW: Withdrawal}


@dataclass(frozen=True, slots=True)
class SignedEntry:
    """An entry with the head before it, its signer's key (32 bytes) and the signature (64)."""

    entry: Entry
    previous: bytes
    key: bytes
    signature: bytes

    @property
    def signed(self) -> bytes:
        """The bytes under the signature, less the label (SPEC 15.2)."""
        return _encode(self.entry, self.previous, self.key)

    @property
    def head(self) -> bytes:
        """The hash that stands for the log up to here, 48 bytes."""
        return digest(label("release"), lp(self.signed, self.signature))

    def check(self, previous: bytes, signers: frozenset[bytes]) -> None:
        """Raise CasemateError unless it follows ``previous`` and one of ``signers`` signed it."""
        _require(self.previous == previous, "does not name the entry before it")
        _require(self.key in signers, "signed by a key that is not accepted")
        try:
            Ed25519PublicKey.from_public_bytes(self.key).verify(
                self.signature, label("release") + self.signed
            )
        except (InvalidSignature, ValueError):
            _refuse("its signature is not by its key")


@dataclass(frozen=True, slots=True)
class ReleaseLog:
    """A verified log; ``heads`` has one more element than ``entries`` and starts with ``START``."""

    entries: tuple[SignedEntry, ...] = ()

    @property
    def heads(self) -> tuple[bytes, ...]:
        """What stood at the end after each entry."""
        return (START, *(entry.head for entry in self.entries))

    @property
    def head(self) -> bytes:
        """What to remember: a later log must go on from here."""
        return self.heads[-1]

    @property
    def withdrawn(self) -> dict[int, str]:
        """The reason of each release that is not to be accepted any more, by its number."""
        taken = (item.entry for item in self.entries)
        return {entry.number: entry.reason for entry in taken if isinstance(entry, Withdrawal)}

    @property
    def releases(self) -> tuple[ReleaseEntry, ...]:
        """All releases in ascending order of their numbers, withdrawn ones among them."""
        taken = (item.entry for item in self.entries)
        return tuple(entry for entry in taken if isinstance(entry, ReleaseEntry))

    def accepted(self, minimum: int = 1) -> tuple[ReleaseEntry, ...]:
        """The releases from number ``minimum`` on that are not withdrawn."""
        gone = self.withdrawn
        return tuple(
            release
            for release in self.releases
            if release.number >= minimum and release.number not in gone
        )

    def follows(self, head: bytes) -> None:
        """Raise CasemateError (RELEASES_INVALID) unless the log once ended with ``head``."""
        if head not in self.heads:
            _refuse("this log does not go on from the head that is remembered: it was rewritten")

    def append(self, entry: Entry, key: Ed25519PrivateKey) -> ReleaseLog:
        """Return the log with one more entry, signed; raises CasemateError for one out of order."""
        self._admit(entry)
        public_key = key.public_key().public_bytes_raw()
        signed = _encode(entry, self.head, public_key)
        signature = key.sign(label("release") + signed)
        return ReleaseLog((*self.entries, SignedEntry(entry, self.head, public_key, signature)))

    def _admit(self, entry: Entry) -> None:
        _require(len(self.entries) < limits.RELEASE_ENTRIES_MAX, "the log is full")
        times = [item.entry.time for item in self.entries]
        _require(not times or entry.time >= times[-1], "its time is before the last entry's")
        numbers = [release.number for release in self.releases]
        if isinstance(entry, Withdrawal):
            _require(entry.number in numbers, f"there is no release {entry.number}")
            _require(entry.number not in self.withdrawn, f"{entry.number} is withdrawn already")
            return
        _require(not numbers or entry.number > numbers[-1], "numbers must ascend")
        names = {release.name for release in self.releases}
        _require(entry.name not in names, f"there is a release {entry.name} already")

    @classmethod
    def parse(cls, data: bytes, signers: frozenset[bytes]) -> ReleaseLog:
        """Read and verify a whole file; raises CasemateError (RELEASES_INVALID).

        ``signers`` are Ed25519 public keys of 32 bytes; an entry by any other is refused.
        """
        log, previous = cls(), START
        for number, value in enumerate(_entries(data), 1):
            try:
                item = _parse(value)
                item.check(previous, signers)
                log._admit(item.entry)
            except CasemateError as error:
                raise CasemateError(error.code, f"entry {number}: {error.detail}") from None
            log, previous = cls((*log.entries, item)), item.head
        return log

    def to_json(self) -> bytes:
        """Return the file; parsing it gives an equal log."""
        entries = [_plain(item) for item in self.entries]
        return json.dumps({"format": FORMAT, "entries": entries}, indent=1).encode() + b"\n"


def _encode(entry: Entry, previous: bytes, key: bytes) -> bytes:
    kind = RELEASE if isinstance(entry, ReleaseEntry) else WITHDRAW
    values = {field.name: getattr(entry, field.name) for field in fields(entry)}
    return cbor.encode({"v": FORMAT, "op": kind, **values, "previous": previous, "key": key})


def _plain(item: SignedEntry) -> dict[str, Any]:
    kind = RELEASE if isinstance(item.entry, ReleaseEntry) else WITHDRAW
    values = {field.name: getattr(item.entry, field.name) for field in fields(item.entry)}
    chain = {"previous": item.previous, "key": item.key, "signature": item.signature}
    plain = {name: v.hex() if isinstance(v, bytes) else v for name, v in (values | chain).items()}
    return {"op": kind, **plain}


def _entries(data: bytes) -> list[Any]:
    _require(len(data) <= limits.RELEASE_LOG_MAX, "the file is too large")
    try:
        document = json.loads(data.decode(), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError):
        _refuse("not JSON, or a key occurs twice")
    known = isinstance(document, dict) and document.keys() == {"format", "entries"}
    if not known or type(document["format"]) is not int or document["format"] != FORMAT:
        _refuse("not a release log of format 1")
    entries = document["entries"]
    if not isinstance(entries, list):
        _refuse("entries: not an array")
    return entries


def _parse(value: object) -> SignedEntry:
    kind = _KINDS.get(str(value.get("op"))) if isinstance(value, dict) else None
    if kind is None or not isinstance(value, dict):
        _refuse("neither a release nor a withdrawal")
    named = [field.name for field in fields(kind)]
    _require(value.keys() == {"op", "previous", "key", "signature", *named}, "other keys")
    chain = [_hex(value[name], size, name) for name, size in _CHAIN.items()]
    entry: Any = kind
    return SignedEntry(entry(**{name: _field(value[name], name) for name in named}), *chain)


def _field(value: object, name: str) -> str | int | bytes | None:
    if name in _HASHES:
        return None if name == "pcr8" and value is None else _hex(value, HASH_BYTES, name)
    if name in _NUMBERS:
        if type(value) is not int or not 0 <= value < _TIME_END:
            _refuse(f"{name}: not a number, or out of range")
        return value
    if not isinstance(value, str):
        _refuse(f"{name}: not text")
    return value


def _hex(value: object, size: int, name: str) -> bytes:
    if not isinstance(value, str) or not _HEX.fullmatch(value) or len(value) != 2 * size:
        _refuse(f"{name}: not {size} bytes in lower-case hex")
    return bytes.fromhex(value)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate key")
    return result


def _text(value: str, most: int, name: str) -> None:
    _require(value.isprintable() and 0 < len(value.encode()) <= most, f"{name}: not usable")


def _require(holds: bool, detail: str) -> None:  # noqa: FBT001 - the condition itself
    if not holds:
        _refuse(detail)


def _refuse(detail: str) -> NoReturn:
    raise CasemateError(Code.RELEASES_INVALID, detail)
