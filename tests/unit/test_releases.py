"""The release log: what is taken, and everything that is not (SPEC 15)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from casemate import limits
from casemate.errors import CasemateError, Code
from casemate.releases import START, ReleaseEntry, ReleaseLog, Withdrawal

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors/releases.json").read_text()
)
SIGNERS = frozenset(map(bytes.fromhex, VECTORS["signers"]))
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OWN = frozenset([KEY.public_key().public_bytes_raw()])
FIRST = ReleaseEntry(3, "0.1.0", "process", b"\1" * 48, b"\2" * 48, b"\3" * 48, None, "abc", 10)
SECOND = replace(FIRST, number=4, name="0.2.0", pcr8=b"\4" * 48, time=11)


def parse(document: object, signers: frozenset[bytes] = SIGNERS) -> ReleaseLog:
    return ReleaseLog.parse(json.dumps(document).encode(), signers)


def log() -> ReleaseLog:
    return ReleaseLog().append(FIRST, KEY).append(SECOND, KEY)


def refused(log: ReleaseLog, entry: ReleaseEntry | Withdrawal) -> str:
    with pytest.raises(CasemateError) as caught:
        log.append(entry, KEY)
    assert caught.value.code is Code.RELEASES_INVALID
    return caught.value.detail


def test_the_vector_is_read_and_written_to_the_byte() -> None:
    found = parse(VECTORS["log"])
    assert [head.hex() for head in found.heads] == [START.hex(), *VECTORS["heads"]]
    assert [release.number for release in found.accepted()] == VECTORS["accepted"]
    assert json.loads(found.to_json()) == VECTORS["log"]


@pytest.mark.parametrize("case", VECTORS["refused"], ids=lambda case: str(case["why"]))
def test_refused_vectors(case: dict[str, Any]) -> None:
    with pytest.raises(CasemateError) as caught:
        parse(case["log"])
    assert caught.value.code is Code.RELEASES_INVALID


def test_what_is_appended_is_read_again() -> None:
    made = log().append(Withdrawal(3, "CVE", 12), KEY)
    assert ReleaseLog.parse(made.to_json(), OWN) == made
    assert made.releases == (FIRST, SECOND)
    assert made.accepted() == (SECOND,)
    assert made.accepted(minimum=5) == ()
    assert made.withdrawn == {3: "CVE"}


def test_keys_that_are_not_accepted() -> None:
    with pytest.raises(CasemateError, match="entry 1: signed by a key that is not accepted"):
        ReleaseLog.parse(log().to_json(), SIGNERS)
    with pytest.raises(CasemateError, match="entry 2"):
        parse(VECTORS["log"], frozenset([bytes.fromhex(VECTORS["signers"][0])]))


def test_a_log_that_was_cut_or_rewritten_does_not_follow() -> None:
    made = log()
    made.follows(START)
    for head in made.heads:
        made.follows(head)
    with pytest.raises(CasemateError, match="rewritten"):
        ReleaseLog(made.entries[:1]).follows(made.head)
    other = ReleaseLog().append(replace(FIRST, revision="another"), KEY)
    with pytest.raises(CasemateError, match="rewritten"):
        other.follows(made.heads[1])


def test_entries_out_of_order() -> None:
    assert "ascend" in refused(log(), replace(SECOND, name="0.3.0"))
    assert "already" in refused(log(), replace(SECOND, number=5))
    assert "time" in refused(log(), replace(SECOND, number=5, name="0.3.0", time=1))
    assert "no release 9" in refused(log(), Withdrawal(9, "x", 12))
    twice = log().append(Withdrawal(3, "x", 12), KEY)
    assert "already" in refused(twice, Withdrawal(3, "y", 12))


@pytest.mark.parametrize(
    "change",
    [
        {"number": 0},
        {"number": 1 << 32},
        {"name": "no spaces"},
        {"form": "cloud"},
        {"pcr0": bytes(48)},
        {"pcr1": b"\1" * 47},
        {"pcr8": bytes(48)},
        {"revision": ""},
        {"revision": "x" * (limits.RELEASE_REVISION_MAX + 1)},
        {"revision": "a\nb"},
        {"revision": "\ud800"},
    ],
    ids=str,
)
def test_entries_that_say_nothing_usable(change: dict[str, Any]) -> None:
    with pytest.raises(CasemateError) as caught:
        replace(FIRST, **change)
    assert caught.value.code is Code.RELEASES_INVALID


def test_files_that_are_no_log() -> None:
    for data in (b"", b"[]", b"{}", b'{"format": 1}', b'{"format": true, "entries": []}', b"\xff"):
        with pytest.raises(CasemateError):
            ReleaseLog.parse(data, OWN)
    for data in (b'{"format": 1, "format": 1, "entries": []}', b"[" * 100_000):
        with pytest.raises(CasemateError):
            ReleaseLog.parse(data, OWN)
    with pytest.raises(CasemateError, match="too large"):
        ReleaseLog.parse(b" " * (limits.RELEASE_LOG_MAX + 1), OWN)


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 1 << 60),
    st.floats(allow_nan=False),
    st.text(),
    st.just("AA" * 48),
    st.just("00" * 47),
    st.lists(st.none(), max_size=2),
)


@given(
    index=st.integers(0, 2),
    key=st.sampled_from(sorted(VECTORS["log"]["entries"][1])),
    value=VALUES,
)
def test_any_changed_value_is_refused(index: int, key: str, value: object) -> None:
    entries = [dict(entry) for entry in VECTORS["log"]["entries"]]
    if entries[index].get(key, "absent") == value:
        return
    entries[index][key] = value
    with pytest.raises(CasemateError) as caught:
        parse({"format": 1, "entries": entries})
    assert caught.value.code is Code.RELEASES_INVALID


@given(st.integers(0, 3), st.integers(0, 3))
def test_no_subset_or_order_but_a_beginning_is_taken(start: int, stop: int) -> None:
    part = VECTORS["log"]["entries"][start:stop]
    if start == 0 or not part:
        parse({"format": 1, "entries": part})
        return
    with pytest.raises(CasemateError):
        parse({"format": 1, "entries": part})
