"""Policies for NitroTPM documents (SPEC 12.4): what loads, and what they are never good for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from casemate.attestation import TrustPolicy
from casemate.attestation.tpm_policy import (
    TpmPolicy,
    TpmRelease,
    evidence_policy,
    load_any_policy,
    parse_any_policy,
)
from casemate.errors import Code, EvidenceError, PolicyError
from tests.support import evidence as ev

if TYPE_CHECKING:
    from pathlib import Path

ROOT = "64" * 32
A, B, ZERO, UNSET = "aa" * 48, "bb" * 48, "00" * 48, "ff" * 48


def text(*lines: str, **registers: str) -> str:
    head = ("version = 1", 'platform = "nitrotpm"', f'roots = ["{ROOT}"]')
    pcrs = [f'{name} = "{value}"' for name, value in registers.items()]
    age = () if any(line.startswith("maximum") for line in lines) else ("maximum_age_seconds = 60",)
    return "\n".join([*head, *age, *lines, "[[release]]", 'name = "ami"', *pcrs]) + "\n"


def refused(policy: str) -> None:
    with pytest.raises(PolicyError) as caught:
        TpmPolicy.parse(policy)
    assert caught.value.code == Code.POLICY_INVALID


@pytest.mark.parametrize(
    "registers",
    [{"pcr4": A, "pcr12": ZERO}, {"pcr7": A}, {"pcr4": A, "pcr7": B, "pcr12": A}],
)
def test_what_loads(registers: dict[str, str]) -> None:
    policy = TpmPolicy.parse(text(**registers))
    expected = {int(name[3:]): bytes.fromhex(value) for name, value in registers.items()}
    assert policy.releases == (TpmRelease("ami", expected),)
    assert parse_any_policy(text(**registers)) == policy


@pytest.mark.parametrize(
    "registers",
    [
        {},
        {"pcr4": A},
        {"pcr12": A},
        {"pcr4": A, "pcr7": B},
        {"pcr7": A, "pcr12": B},
        {"pcr4": ZERO, "pcr12": A},
        {"pcr7": ZERO},
        {"pcr7": UNSET},
        {"pcr4": A, "pcr12": UNSET},
        {"pcr7": "aa" * 32},
        {"pcr7": A, "pcr16": B},
        {"pcr7": A, "pcr23": B},
        {"pcr0": A, "pcr1": A, "pcr2": A, "pcr16": A},
    ],
)
def test_registers_that_say_too_little_or_too_much(registers: dict[str, str]) -> None:
    refused(text(**registers))


@pytest.mark.parametrize(
    "line",
    [
        'audience = "clinic"',
        'evidence = "fresh"',
        "allow_debug = false",
        "maximum_age_seconds = 0",
        "maximum_age_seconds = 10801",
        "unknown = 1",
    ],
)
def test_keys_that_have_no_meaning_here(line: str) -> None:
    refused(text(line, pcr7=A))


def test_lists_and_names() -> None:
    refused(text(pcr7=A).replace(f'"{ROOT}"', ""))
    refused(text(pcr7=A).replace(ROOT, "64" * 31))
    refused(text(pcr7=A) + f'[[release]]\nname = "ami"\npcr7 = "{B}"\n')
    refused(text(pcr7=A).replace('"ami"', '"a b"'))
    refused(text(pcr7=A).replace("nitrotpm", "nitro-enclave"))
    refused(text(pcr7=A).replace("version = 1", "version = 2"))
    refused("\n" * 300_000)
    assert (
        len(TpmPolicy.parse(text(pcr7=A) + f'[[release]]\nname = "b"\npcr7 = "{B}"').releases) == 2
    )


def test_the_platforms_are_never_interchangeable() -> None:
    with pytest.raises(PolicyError):
        TrustPolicy.parse(text(pcr7=A))
    enclave = ev.policy()
    assert parse_any_policy(enclave.to_toml()) == enclave
    with pytest.raises(PolicyError):
        parse_any_policy(enclave.to_toml().replace("nitro-enclave", "nitrotpm"))
    assert evidence_policy(enclave) is enclave
    with pytest.raises(EvidenceError) as caught:
        evidence_policy(TpmPolicy.parse(text(pcr7=A)))
    assert caught.value.code == Code.EVIDENCE_PLATFORM


def test_a_policy_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text(pcr7=A))
    assert load_any_policy(path) == TpmPolicy.parse(text(pcr7=A))
    with pytest.raises(PolicyError):
        load_any_policy(path.with_name("absent"))
