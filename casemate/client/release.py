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


def new_policy(
    terms: PolicyTerms, name: str, measured: Measurement, configuration: bytes
) -> TrustPolicy:
    """Return a policy that accepts one release, fresh evidence only; raises CasemateError."""
    return TrustPolicy(
        platform="nitro-enclave",
        audience=terms.audience,
        roots=terms.roots,
        evidence="fresh",
        maximum_age_seconds=DEFAULT_AGE_SECONDS,
        allow_debug=False,
        releases=(_release(name, measured, configuration, terms.audience, terms.models),),
        models=terms.models,
    )


def extended_policy(
    policy: Path, name: str, measured: Measurement, configuration: bytes
) -> TrustPolicy:
    """Return the policy in a file with one release more; raises CasemateError."""
    before = TrustPolicy.load(policy)
    release = _release(name, measured, configuration, before.audience, before.models)
    return replace(before, releases=(*before.releases, release))


def _release(
    name: str,
    measured: Measurement,
    configuration: bytes,
    audience: str,
    models: tuple[AllowedModel, ...],
) -> Release:
    """A release whose configuration could serve under the policy at all."""
    parsed = Configuration.parse(configuration)
    _require(parsed.audience == audience, f"the configuration is for audience {parsed.audience}")
    for model in models:
        detail = f"the configuration does not know the publisher of model {model.name}"
        _require(model.publisher in parsed.publishers, detail)
    return Release(name, measured.pcr0, measured.pcr1, measured.pcr2, pcr16(configuration))


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
