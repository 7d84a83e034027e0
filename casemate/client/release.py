"""Trust policies for measured releases (SPEC 12)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Self

from casemate.attestation import (
    AllowedModel,
    Configuration,
    Measurement,
    Release,
    TrustPolicy,
    pcr16,
)
from casemate.client.files import parse_public_key
from casemate.errors import CasemateError, Code

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from casemate.releases import ReleaseEntry

DEFAULT_AGE_SECONDS: Final = 300


@dataclass(frozen=True, slots=True)
class PolicyTerms:
    """What a policy says beside its releases; ``roots`` are SHA-256 digests of 32 bytes."""

    audience: str
    roots: frozenset[bytes]
    models: tuple[AllowedModel, ...]

    @classmethod
    def parse(cls, audience: str, roots: Sequence[str], models: Sequence[str]) -> Self:
        """Parse roots in hex and models as ``NAME=PUBLISHER``; raises CasemateError."""
        return cls(audience, frozenset(map(_root, roots)), tuple(map(_model, models)))


@dataclass(frozen=True, slots=True)
class Measured:
    """A release as it was measured; ``configuration`` is encoded, ``pcr8`` its image's signer."""

    name: str
    image: Measurement
    configuration: bytes
    pcr8: bytes | None = None


def new_policy(terms: PolicyTerms, measured: Measured) -> TrustPolicy:
    """Return a policy that accepts one release, fresh evidence only; raises CasemateError."""
    return TrustPolicy(
        platform="nitro-enclave",
        audience=terms.audience,
        roots=terms.roots,
        evidence="fresh",
        maximum_age_seconds=DEFAULT_AGE_SECONDS,
        allow_debug=False,
        releases=(_release(measured, terms.audience, terms.models),),
        models=terms.models,
    )


def extended_policy(policy: Path, measured: Measured) -> TrustPolicy:
    """Return the policy in a file with one release more; raises CasemateError.

    Where releases are numbered, the new one gets the next number.
    """
    before = TrustPolicy.load(policy)
    release = _release(measured, before.audience, before.models)
    last = before.releases[-1].number
    if last is not None:
        release = replace(release, number=last + 1)
    return replace(before, releases=(*before.releases, release))


def policy_of_log(
    policy: TrustPolicy, releases: Sequence[ReleaseEntry], configuration: bytes, *, minimum: int
) -> TrustPolicy:
    """Return ``policy`` with the releases of a log, which keep their numbers (SPEC 15.5).

    ``configuration`` is the service's, encoded. Raises CasemateError where none or more than 16
    releases are left.
    """
    found = []
    for entry in releases:
        image = Measurement(entry.pcr0, entry.pcr1, entry.pcr2)
        measured = Measured(entry.name, image, configuration, entry.pcr8)
        release = _release(measured, policy.audience, policy.models)
        found.append(replace(release, number=entry.number))
    _require(bool(found), "the log has no such release that is not withdrawn")
    return replace(policy, releases=tuple(found), minimum_release=minimum)


def _release(measured: Measured, audience: str, models: tuple[AllowedModel, ...]) -> Release:
    """A release whose configuration could serve under the policy at all."""
    parsed = Configuration.parse(measured.configuration)
    _require(parsed.audience == audience, f"the configuration is for audience {parsed.audience}")
    for model in models:
        detail = f"the configuration does not know the publisher of model {model.name}"
        _require(model.publisher in parsed.publishers, detail)
    image, register = measured.image, pcr16(measured.configuration)
    return Release(measured.name, image.pcr0, image.pcr1, image.pcr2, register, pcr8=measured.pcr8)


def _root(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise CasemateError(Code.INVALID_ARGUMENT, f"root: not hex digits: {text}") from None


def _model(text: str) -> AllowedModel:
    name, separator, publisher = text.partition("=")
    _require(bool(separator), f"model: not NAME=PUBLISHER: {text}")
    return AllowedModel(name, parse_public_key(publisher))


def _require(holds: bool, detail: str) -> None:  # noqa: FBT001 - the condition itself
    if not holds:
        raise CasemateError(Code.INVALID_ARGUMENT, detail)
