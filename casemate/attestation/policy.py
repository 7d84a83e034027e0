"""The trust policy: what a client accepts (SPEC 12). Nothing is accepted by omission."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from casemate import limits
from casemate.attestation import _toml
from casemate.attestation._checks import MODEL_NAME, VERSION_MAX, ascending
from casemate.attestation.configuration import KEY_POLICY_VARIABLE
from casemate.wire import HASH_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

PLATFORM_NITRO_ENCLAVE: Final = "nitro-enclave"
FRESH: Final = "fresh"
STAPLED: Final = "stapled"
VERSION: Final = 1
REGISTERS: Final = ("pcr0", "pcr1", "pcr2", "pcr16")
SIGNER: Final = "pcr8"

ROOT_BYTES: Final = 32
RELEASE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")

_PUBLISHER_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Release:
    """One release: all four registers, and PCR8 if it was signed; 48 bytes each, none zero.

    PCR8 is the digest of the certificate that signed the image: it narrows a release, and never
    stands for one. ``number`` orders releases; it is the policy's own and nothing attests it.
    """

    name: str
    pcr0: bytes
    pcr1: bytes
    pcr2: bytes
    pcr16: bytes
    pcr8: bytes | None = field(default=None, kw_only=True)
    number: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _require(bool(RELEASE_NAME.fullmatch(self.name)), "release: name is not usable")
        for name in (*REGISTERS, SIGNER) if self.pcr8 is not None else REGISTERS:
            value = getattr(self, name)
            _require(len(value) == HASH_BYTES, f"release {self.name}: {name} is not 48 bytes")
            _require(any(value), f"release {self.name}: {name} is zero")
        if self.number is not None:
            _between(self.number, VERSION_MAX, f"release {self.name}: number")

    @property
    def registers(self) -> dict[int, bytes]:
        """Value of each register by its index: 0, 1, 2 and 16."""
        return {int(name.removeprefix("pcr")): getattr(self, name) for name in REGISTERS}

    @property
    def image(self) -> dict[int, bytes]:
        """What step 12 compares: registers 0, 1 and 2, and 8 if the release names it."""
        image = {0: self.pcr0, 1: self.pcr1, 2: self.pcr2}
        return image if self.pcr8 is None else image | {8: self.pcr8}


@dataclass(frozen=True, slots=True)
class AllowedModel:
    """A model by name and publisher (32 bytes); ``digests`` None allows any of its versions."""

    name: str
    publisher: bytes
    digests: frozenset[bytes] | None = None

    def __post_init__(self) -> None:
        _require(bool(MODEL_NAME.fullmatch(self.name)), "model: name is not usable")
        _require(
            len(self.publisher) == _PUBLISHER_BYTES, f"model {self.name}: publisher is not 32 bytes"
        )
        if self.digests is not None:
            _sizes(self.digests, HASH_BYTES, f"model {self.name}: digests")

    def allows(self, name: str, publisher: bytes, digest: bytes) -> bool:
        """Whether a model of this name, publisher and digest may be loaded."""
        known = self.digests is None or digest in self.digests
        return known and (name, publisher) == (self.name, self.publisher)


@dataclass(frozen=True, slots=True)
class TrustPolicy:
    """What a client accepts; construction checks it and raises PolicyError (POLICY_INVALID).

    ``roots`` are SHA-256 digests of root certificates' DER. With ``evidence`` "fresh" evidence
    must answer a nonce of the client; with "stapled" only its age bounds replay.

    ``allow_debug`` accepts enclaves whose operator can read their memory: for development only.

    ``releases`` lists what is known; those with a number below ``minimum_release`` are recognised
    and refused. ``accepted`` is the rest.
    """

    platform: str
    audience: str
    roots: frozenset[bytes]
    evidence: str
    maximum_age_seconds: int
    allow_debug: bool
    releases: tuple[Release, ...]
    models: tuple[AllowedModel, ...]
    minimum_release: int | None = None

    def __post_init__(self) -> None:
        _require(self.platform == PLATFORM_NITRO_ENCLAVE, "platform is not nitro-enclave")
        _between(len(self.audience.encode()), limits.AUDIENCE_MAX, "bytes of audience")
        _require(KEY_POLICY_VARIABLE not in self.audience, "audience: a variable within")
        _between(len(self.roots), limits.POLICY_ROOTS_MAX, "roots")
        _sizes(self.roots, ROOT_BYTES, "roots")
        _require(self.evidence in {FRESH, STAPLED}, "evidence is neither fresh nor stapled")
        _between(self.maximum_age_seconds, limits.AGE_MAX_SECONDS, "maximum_age_seconds")
        _between(len(self.releases), limits.POLICY_RELEASES_MAX, "releases")
        _between(len(self.models), limits.POLICY_MODELS_MAX, "models")
        _distinct([release.name for release in self.releases], "release name")
        _distinct([tuple(release.registers.values()) for release in self.releases], "release")
        _distinct([(model.name, model.publisher) for model in self.models], "model")
        self._check_numbers()

    def _check_numbers(self) -> None:
        """Numbers order all releases or none, and leave at least one accepted."""
        numbers = [release.number for release in self.releases if release.number is not None]
        _require(len(numbers) in {0, len(self.releases)}, "only some releases have a number")
        _require(ascending(numbers), "release numbers are not strictly ascending")
        if self.minimum_release is not None:
            _require(bool(numbers), "minimum_release: the releases have no numbers")
            _between(self.minimum_release, numbers[-1], "minimum_release")

    @property
    def accepted(self) -> tuple[Release, ...]:
        """The releases that are not below ``minimum_release``; at least one."""
        minimum = self.minimum_release or 0
        return tuple(release for release in self.releases if (release.number or 0) >= minimum)

    @classmethod
    def parse(cls, text: str) -> TrustPolicy:
        """Parse the TOML of SPEC 12.1; raises PolicyError (POLICY_INVALID)."""
        _require(len(text) <= limits.POLICY_MAX, "the policy is too large")
        table = _toml.Table.loads(text, "policy")
        _require(table.take("version", int) == VERSION, "unknown version")
        policy = cls(
            platform=table.take("platform", str),
            audience=table.take("audience", str),
            roots=table.hex_set("roots"),
            evidence=table.take("evidence", str),
            maximum_age_seconds=table.take("maximum_age_seconds", int),
            allow_debug=table.has("allow_debug") and table.take("allow_debug", bool),
            releases=tuple(_release(entry) for entry in table.tables("release")),
            models=tuple(_model(entry) for entry in table.tables("model")),
            minimum_release=table.optional("minimum_release", int),
        )
        table.close()
        return policy

    @classmethod
    def load(cls, path: Path) -> TrustPolicy:
        """Read and parse a policy file; raises PolicyError (POLICY_INVALID)."""
        return cls.parse(read_policy(path))

    def to_toml(self) -> str:
        """Return TOML that parses to an equal policy."""
        lines = [
            f"version = {VERSION}",
            f"platform = {_toml.text(self.platform)}",
            f"audience = {_toml.text(self.audience)}",
            f"roots = {_toml.hex_list(self.roots)}",
            f"evidence = {_toml.text(self.evidence)}",
            f"maximum_age_seconds = {self.maximum_age_seconds}",
            f"allow_debug = {'true' if self.allow_debug else 'false'}",
        ]
        if self.minimum_release is not None:
            lines.append(f"minimum_release = {self.minimum_release}")
        for release in self.releases:
            lines += ["", "[[release]]", f"name = {_toml.text(release.name)}"]
            lines += [f'{name} = "{getattr(release, name).hex()}"' for name in REGISTERS]
            lines += [f'{SIGNER} = "{release.pcr8.hex()}"'] if release.pcr8 is not None else []
            lines += [f"number = {release.number}"] if release.number is not None else []
        for model in self.models:
            lines += ["", "[[model]]", f"name = {_toml.text(model.name)}"]
            lines += [f'publisher = "{model.publisher.hex()}"']
            lines += [f"digests = {_toml.hex_list(model.digests)}"] if model.digests else []
        return "\n".join(lines) + "\n"


def read_policy(path: Path) -> str:
    """Read a policy file, one byte beyond the bound at most; raises PolicyError."""
    try:
        with path.open("rb") as file:
            return file.read(limits.POLICY_MAX + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        _toml.refuse(f"cannot be read: {type(error).__name__}")


def _release(table: _toml.Table) -> Release:
    release = Release(
        table.take("name", str),
        *(table.hex(register) for register in REGISTERS),
        pcr8=table.hex(SIGNER) if table.has(SIGNER) else None,
        number=table.optional("number", int),
    )
    table.close()
    return release


def _model(table: _toml.Table) -> AllowedModel:
    model = AllowedModel(
        table.take("name", str),
        table.hex("publisher"),
        table.hex_set("digests") if table.has("digests") else None,
    )
    table.close()
    return model


def _require(holds: bool, detail: str) -> None:  # noqa: FBT001 - the condition itself
    if not holds:
        _toml.refuse(detail)


def _between(number: int, high: int, name: str) -> None:
    _require(1 <= number <= high, f"{name}: not 1 to {high}")


def _sizes(values: frozenset[bytes], size: int, name: str) -> None:
    _require({len(value) for value in values} == {size}, f"{name}: empty, or not of {size} bytes")


def _distinct(values: Iterable[object], name: str) -> None:
    values = list(values)
    _require(len(set(values)) == len(values), f"a {name} is listed twice")
