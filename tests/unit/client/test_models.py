"""Names, versions and what is loaded, on the client's side (SPEC 3.5, 5.6.2)."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from casemate.attestation import LogEntry
from casemate.client.models import loaded_models, split_version, with_bfloat16
from casemate.errors import Code, RequestError
from casemate.tensors import BFLOAT16


def entry(op: str, name: str, version: int, digest: int = 0) -> LogEntry:
    return LogEntry(op, name, version, bytes([digest]) * 48, bytes(32), bytes(48), 1)


@pytest.mark.parametrize(
    ("model", "version", "expected"),
    [
        ("m", None, ("m", None)),
        ("m", 3, ("m", 3)),
        ("m:3", None, ("m", 3)),
        ("m:3", 3, ("m", 3)),
        ("m:latest", None, ("m", None)),
        ("m:latest", 3, ("m", 3)),
    ],
)
def test_names_with_versions(
    model: str, version: int | None, expected: tuple[str, int | None]
) -> None:
    assert split_version(model, version) == expected


@pytest.mark.parametrize("model", ["m:", "m:0", "m:-1", "m:x", "m:1:2", "m:\u0661", "m:4"])
def test_names_that_mean_no_version_are_refused(model: str) -> None:
    with pytest.raises(RequestError) as refused:
        split_version(model, 3)
    assert refused.value.code is Code.INVALID_ARGUMENT


def test_the_log_says_what_is_loaded() -> None:
    log = [
        entry("load", "a", 1, 1),
        entry("load", "a", 12, 2),
        entry("load", "a", 2, 3),
        entry("load", "b", 7, 4),
        entry("unload", "a", 12, 2),
        entry("unload", "b", 7, 4),
        entry("unload", "a", 1, 1),
        entry("load", "a", 1, 5),
    ]
    live = loaded_models(log)
    assert {key: found.digest[0] for key, found in live.items()} == {
        ("a", 1): 5,
        ("a", 2): 3,
        ("a", None): 3,
    }


def test_bfloat16_reaches_people_as_numbers() -> None:
    carried = np.array([0x3FC0, 0xC000], np.uint16).view(BFLOAT16)
    plain = np.array([1, 2])
    out = with_bfloat16({"h": carried, "p": plain})
    assert out["h"].dtype == ml_dtypes.bfloat16
    assert out["h"].astype(np.float32).tolist() == [1.5, -2.0]
    assert out["p"] is plain
