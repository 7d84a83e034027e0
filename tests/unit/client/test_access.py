"""Who may be told what: tokens and client keys go nowhere in the clear."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import pytest

from casemate.client.access import HostAccess
from casemate.errors import Code, RequestError

if TYPE_CHECKING:
    from pathlib import Path

TOKEN = "planted-token-0123456789"


def code(**parts: bytes | str) -> Code:
    with pytest.raises(RequestError) as raised:
        HostAccess(**parts)  # type: ignore[arg-type]
    assert TOKEN not in str(raised.value)
    return raised.value.code


@pytest.mark.parametrize("token", ["", "short", "with a space in it, long", "x" * 513, "é" * 20])
def test_what_is_no_token_is_refused(token: str) -> None:
    assert code(token=token) is Code.INVALID_ARGUMENT


def test_certificate_key_and_roots_go_together() -> None:
    assert code(tls_roots=b"x", tls_certificate=b"x") is Code.INVALID_ARGUMENT
    assert code(tls_roots=b"x", tls_key=b"x") is Code.INVALID_ARGUMENT
    assert code(tls_certificate=b"x", tls_key=b"x") is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "target", ["host.example:8443", "10.0.0.1:1", "127.example:1", "localhost.example:1"]
)
def test_a_token_does_not_cross_a_network_in_the_clear(target: str) -> None:
    access = HostAccess(token=TOKEN)
    with pytest.raises(RequestError) as raised:
        access.credentials_for(target)
    assert raised.value.code is Code.INVALID_ARGUMENT
    assert TOKEN not in str(raised.value)


@pytest.mark.parametrize("target", ["127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/x"])
def test_a_token_may_stay_on_this_machine(target: str) -> None:
    assert HostAccess(token=TOKEN).credentials_for(target) is None


def test_nothing_of_it_is_printed_or_pickled() -> None:
    access = HostAccess(b"roots", b"certificate", b"planted-key", TOKEN)
    assert "planted" not in repr(access)
    with pytest.raises(TypeError):
        pickle.dumps(access)


def test_a_token_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    assert HostAccess.read(token=path).metadata == (("authorization", f"Bearer {TOKEN}"),)
    for content in (b"\xff" * 20, b"", b"x" * 2000):
        path.write_bytes(content)
        with pytest.raises(RequestError) as raised:
            HostAccess.read(token=path)
        assert raised.value.code is Code.INVALID_ARGUMENT
