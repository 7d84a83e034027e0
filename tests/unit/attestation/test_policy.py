"""The trust policy: what SPEC 12 shows loads, what it does not show is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from casemate.attestation import AllowedModel, TrustPolicy
from casemate.errors import Code, PolicyError
from tests.support import evidence as ev

if TYPE_CHECKING:
    from pathlib import Path

ROOT, PCR, KEY = "ab" * 32, "cd" * 48, "ef" * 32
HEAD = f"""
version = 1
platform = "nitro-enclave"
audience = "clinic.example/screening"
roots = ["{ROOT}"]
evidence = "fresh"
maximum_age_seconds = 300
"""
RELEASE = f"""
[[release]]
name = "0.1.0"
pcr0 = "{PCR}"
pcr1 = "{PCR}"
pcr2 = "{PCR}"
pcr16 = "{PCR}"
"""
MODEL = f"""
[[model]]
name = "wdbc"
publisher = "{KEY}"
"""
GOOD = HEAD + RELEASE + MODEL


def refused(text: str) -> PolicyError:
    with pytest.raises(PolicyError) as caught:
        TrustPolicy.parse(text)
    assert caught.value.code == Code.POLICY_INVALID
    return caught.value


def test_the_example_loads() -> None:
    policy = TrustPolicy.parse(GOOD)
    assert policy.roots == frozenset([bytes.fromhex(ROOT)])
    assert policy.allow_debug is False
    assert [release.name for release in policy.releases] == ["0.1.0"]
    assert policy.releases[0].registers == dict.fromkeys((0, 1, 2, 16), bytes.fromhex(PCR))
    assert policy.models == (AllowedModel("wdbc", bytes.fromhex(KEY), None),)


def test_optional_keys() -> None:
    text = HEAD + "allow_debug = true\n" + RELEASE + MODEL + f'digests = ["{PCR}"]\n'
    policy = TrustPolicy.parse(text)
    assert policy.allow_debug is True
    assert policy.models[0].digests == frozenset([bytes.fromhex(PCR)])


SECOND = RELEASE.replace("0.1.0", "0.2.0").replace(PCR, "ce" * 48)


def numbered(*numbers: int | str, head: str = "") -> str:
    """Two releases with these numbers, or without where a number is empty."""
    lines = [f"number = {number}\n" if number != "" else "" for number in numbers]
    return HEAD + head + RELEASE + lines[0] + SECOND + lines[1] + MODEL


def test_releases_in_order() -> None:
    policy = TrustPolicy.parse(numbered(3, 7))
    assert [release.number for release in policy.accepted] == [3, 7]
    policy = TrustPolicy.parse(numbered(3, 7, head="minimum_release = 3\n"))
    assert [release.number for release in policy.accepted] == [3, 7]
    for minimum in (4, 7):
        policy = TrustPolicy.parse(numbered(3, 7, head=f"minimum_release = {minimum}\n"))
        assert [release.number for release in policy.accepted] == [7]
        assert [release.number for release in policy.releases] == [3, 7]
        assert TrustPolicy.parse(policy.to_toml()) == policy


@pytest.mark.parametrize("numbers", [(7, 3), (7, 7), (3, ""), ("", 3), (0, 1), (1, 1 << 32)])
def test_numbers_order_all_releases_or_none(numbers: tuple[int | str, ...]) -> None:
    refused(numbered(*numbers))


@pytest.mark.parametrize("minimum", ["0", "8", "-1", "true", '"0.1.0"', "3.0"])
def test_a_minimum_that_means_nothing(minimum: str) -> None:
    refused(numbered(3, 7, head=f"minimum_release = {minimum}\n"))


def test_a_minimum_needs_numbers() -> None:
    refused(numbered("", "", head="minimum_release = 1\n"))


def test_a_release_may_name_its_signer() -> None:
    policy = TrustPolicy.parse(HEAD + RELEASE + f'pcr8 = "{"88" * 48}"\n' + MODEL)
    assert policy.releases[0].image[8] == b"\x88" * 48
    assert 8 not in policy.releases[0].registers
    assert TrustPolicy.parse(policy.to_toml()) == policy
    assert 8 not in TrustPolicy.parse(GOOD).releases[0].image
    for wrong in ("00" * 48, "88" * 47, "88" * 32, "", "GG"):
        refused(HEAD + RELEASE + f'pcr8 = "{wrong}"\n' + MODEL)


def test_a_signer_does_not_make_another_release() -> None:
    again = RELEASE.replace("0.1.0", "0.1.1") + f'pcr8 = "{"88" * 48}"\n'
    refused(HEAD + RELEASE + again + MODEL)


def test_two_releases_of_one_name() -> None:
    assert "release name" in str(refused(HEAD + RELEASE + SECOND.replace("0.2.0", "0.1.0") + MODEL))


def test_a_release_is_a_table() -> None:
    for wrong in ("[1]", "[[]]", '["0.1.0"]'):
        assert "not a table" in str(refused(HEAD + f"release = {wrong}\n" + MODEL))


@pytest.mark.parametrize("line", [line for line in GOOD.splitlines() if "=" in line])
def test_every_key_is_mandatory(line: str) -> None:
    refused(GOOD.replace(line, "", 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("version = 1", "version = 2"),
        ("version = 1", "version = true"),
        ("version = 1", "version = 1.0"),
        ("nitro-enclave", "nitro-tpm"),
        ("nitro-enclave", ""),
        ("clinic.example/screening", ""),
        ("clinic.example/screening", "x" * 256),
        ("clinic.example/screening", "clinic/${aws:username}"),
        (f'["{ROOT}"]', "[]"),
        (f'["{ROOT}"]', f'"{ROOT}"'),
        (f'["{ROOT}"]', f'["{ROOT}", "{ROOT}"]'),
        (f'["{ROOT}"]', "[1]"),
        (f'["{ROOT}"]', "[" + ",".join(f'"{n:064x}"' for n in range(9)) + "]"),
        (ROOT, ROOT[:-2]),
        (ROOT, ROOT[:-1]),
        (ROOT, ROOT.upper()),
        (ROOT, ROOT[:-2] + "  "),
        (ROOT, ROOT[:-1] + "\\n"),
        ('"fresh"', '"none"'),
        ('"fresh"', '["fresh"]'),
        ("300", "0"),
        ("300", "10801"),
        ("300", "-1"),
        ("300", "300.0"),
        ("300", "true"),
        ("300", '"300"'),
        ("maximum_age_seconds", "unknown = 1\nmaximum_age_seconds"),
        ("maximum_age_seconds", "evidence = 'fresh'\nmaximum_age_seconds"),
        ("maximum_age_seconds", "allow_debug = 1\nmaximum_age_seconds"),
        ("maximum_age_seconds", "allow_debug = 'false'\nmaximum_age_seconds"),
        (f'pcr0 = "{PCR}"', f'pcr0 = "{"00" * 48}"'),
        (f'pcr16 = "{PCR}"', f'pcr16 = "{"00" * 48}"'),
        (f'pcr1 = "{PCR}"', 'pcr1 = ""'),
        (f'pcr2 = "{PCR}"', f'pcr2 = "{PCR[:64]}"'),
        (f'pcr2 = "{PCR}"', f'pcr2 = "{PCR}"\npcr3 = "{PCR}"'),
        (RELEASE, ""),
        (RELEASE, RELEASE * 2),
        (RELEASE, RELEASE + RELEASE.replace("0.1.0", "0.1.1")),
        (RELEASE, RELEASE.replace("[[release]]", "[release]")),
        ('name = "0.1.0"', 'name = ""'),
        ('name = "0.1.0"', 'name = "(debug)"'),
        ('name = "0.1.0"', 'name = "a\\u001b[2J"'),
        (MODEL, ""),
        (MODEL, MODEL * 2),
        (MODEL, MODEL + "digests = []"),
        (MODEL, MODEL + f'digests = ["{PCR}", "{PCR}"]'),
        (MODEL, MODEL + f'digests = ["{ROOT}"]'),
        (MODEL, MODEL + "version = 1"),
        ('name = "wdbc"', 'name = "*"'),
        (KEY, KEY[:-2]),
        ("version = 1", "version = 1\nrelease = [1]\n"),
        ("version", "\x00version"),
    ],
)
def test_refusals(old: str, new: str) -> None:
    assert old in GOOD
    refused(GOOD.replace(old, new, 1))


def test_too_many_releases_and_models() -> None:
    releases = [RELEASE.replace("0.1.0", f"{n}").replace(PCR, f"{n + 1:096x}") for n in range(17)]
    TrustPolicy.parse(HEAD + "".join(releases[:16]) + MODEL)
    refused(HEAD + "".join(releases) + MODEL)
    models = [MODEL.replace("wdbc", f"m{n}") for n in range(257)]
    TrustPolicy.parse(HEAD + RELEASE + "".join(models[:256]))
    refused(HEAD + RELEASE + "".join(models))


def test_hostile_toml() -> None:
    refused("x = " + "[" * 100_000)
    refused("x = " + "9" * 10_000)
    refused("#" * (256 * 1024 + 1))
    refused("")


def test_round_trip() -> None:
    second = replace(ev.RELEASE, name="0.2.0+b", pcr0=b"\x05" * 48)
    models = (
        AllowedModel("a", ev.PUBLISHER, frozenset([b"\x01" * 48, b"\x02" * 48])),
        AllowedModel("b", ev.PUBLISHER, None),
    )
    for policy in (
        ev.policy(),
        ev.policy(allow_debug=True, releases=(ev.RELEASE, second), models=models),
        ev.policy(audience='quote " back \\ tab \t del \x7f nl \n cr \r nul \x00 ä 😀'),
    ):
        assert TrustPolicy.parse(policy.to_toml()) == policy


def test_load(tmp_path: Path) -> None:
    path = tmp_path / "trust.toml"
    path.write_text(GOOD)
    assert TrustPolicy.load(path) == TrustPolicy.parse(GOOD)
    path.write_bytes(b"\xff" + GOOD.encode())
    for unreadable in (path, tmp_path / "absent", tmp_path):
        with pytest.raises(PolicyError, match="POLICY_INVALID"):
            TrustPolicy.load(unreadable)
    path.write_bytes(b"#" * (1 << 20))
    with pytest.raises(PolicyError, match="too large"):
        TrustPolicy.load(path)
