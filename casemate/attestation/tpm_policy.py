"""The policy for NitroTPM documents (SPEC 12.4): of another type, so never interchangeable.

A NitroTPM document says what an EC2 instance booted. It carries no evidence: PCR16 and PCR23, the
only registers that software could measure a configuration into later, are reset by software too.
So this policy has no audience, no models and no configuration, and nothing that seals to an enclave
accepts it (docs/decisions/0006-nitrotpm.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from casemate import limits
from casemate.attestation import _toml
from casemate.attestation.policy import RELEASE_NAME, ROOT_BYTES, VERSION, TrustPolicy, read_policy
from casemate.errors import Code, EvidenceError
from casemate.wire import HASH_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PLATFORM_NITROTPM: Final = "nitrotpm"

_BOOT: Final = frozenset({4, 12})  # the boot binary and the command line it was given
_SECURE_BOOT: Final = frozenset({7})  # whose binaries may boot
_MAY_BE_ZERO: Final = 12  # nothing was passed to the boot binary, which is a statement as well


@dataclass(frozen=True, slots=True)
class TpmRelease:
    """One accepted boot: PCR4 and PCR12, or PCR7, or all three; 48 bytes each."""

    name: str
    registers: Mapping[int, bytes]

    def __post_init__(self) -> None:
        _require(bool(RELEASE_NAME.fullmatch(self.name)), "release: name is not usable")
        named = frozenset(self.registers)
        enough = named in {_BOOT, _SECURE_BOOT, _BOOT | _SECURE_BOOT}
        _require(enough, f"release {self.name}: needs pcr4 and pcr12, or pcr7, and no others")
        for index, value in self.registers.items():
            where = f"release {self.name}: pcr{index}"
            _require(len(value) == HASH_BYTES, f"{where} is not 48 bytes")
            _require(any(value) or index == _MAY_BE_ZERO, f"{where} is zero")
            _require(set(value) != {0xFF}, f"{where} is unset")

    @property
    def image(self) -> Mapping[int, bytes]:
        """What step 12 compares: every register there is."""
        return self.registers


@dataclass(frozen=True, slots=True)
class TpmPolicy:
    """What a verifier accepts of NitroTPM documents; construction checks it (POLICY_INVALID)."""

    roots: frozenset[bytes]
    maximum_age_seconds: int
    releases: tuple[TpmRelease, ...]

    def __post_init__(self) -> None:
        few = 1 <= len(self.roots) <= limits.POLICY_ROOTS_MAX
        _require(few, f"roots: not 1 to {limits.POLICY_ROOTS_MAX}")
        _require({len(root) for root in self.roots} == {ROOT_BYTES}, "roots: not of 32 bytes")
        bounded = 1 <= self.maximum_age_seconds <= limits.AGE_MAX_SECONDS
        _require(bounded, f"maximum_age_seconds: not 1 to {limits.AGE_MAX_SECONDS}")
        few = 1 <= len(self.releases) <= limits.POLICY_RELEASES_MAX
        _require(few, f"releases: not 1 to {limits.POLICY_RELEASES_MAX}")
        names = {release.name for release in self.releases}
        _require(len(names) == len(self.releases), "a release name is listed twice")

    @property
    def platform(self) -> str:
        """What the policy calls itself."""
        return PLATFORM_NITROTPM

    @classmethod
    def parse(cls, text: str) -> TpmPolicy:
        """Parse the TOML of SPEC 12.4; raises PolicyError (POLICY_INVALID)."""
        _require(len(text) <= limits.POLICY_MAX, "the policy is too large")
        table = _toml.Table.loads(text, "policy")
        _require(table.take("version", int) == VERSION, "unknown version")
        _require(table.take("platform", str) == PLATFORM_NITROTPM, "platform is not nitrotpm")
        policy = cls(
            roots=table.hex_set("roots"),
            maximum_age_seconds=table.take("maximum_age_seconds", int),
            releases=tuple(_release(entry) for entry in table.tables("release")),
        )
        table.close()
        return policy


def parse_any_policy(text: str) -> TrustPolicy | TpmPolicy:
    """Parse either policy by the platform it names; raises PolicyError (POLICY_INVALID)."""
    _require(len(text) <= limits.POLICY_MAX, "the policy is too large")
    table = _toml.Table.loads(text, "policy")
    if table.has("platform") and table.take("platform", str) == PLATFORM_NITROTPM:
        return TpmPolicy.parse(text)
    return TrustPolicy.parse(text)


def load_any_policy(path: Path) -> TrustPolicy | TpmPolicy:
    """Read and parse either policy; raises PolicyError (POLICY_INVALID)."""
    return parse_any_policy(read_policy(path))


def evidence_policy(policy: TrustPolicy | TpmPolicy) -> TrustPolicy:
    """Return ``policy`` if evidence can be judged by it; raises EvidenceError otherwise."""
    if isinstance(policy, TrustPolicy):
        return policy
    detail = "a nitrotpm policy judges documents alone: a NitroTPM gives no evidence"
    raise EvidenceError(Code.EVIDENCE_PLATFORM, detail)


def _release(table: _toml.Table) -> TpmRelease:
    name = table.take("name", str)
    registers = {
        index: table.hex(f"pcr{index}")
        for index in sorted(_BOOT | _SECURE_BOOT)
        if table.has(f"pcr{index}")
    }
    table.close()
    return TpmRelease(name, registers)


def _require(holds: bool, detail: str) -> None:  # noqa: FBT001 - the condition itself
    if not holds:
        _toml.refuse(detail)
