"""The running stack: started once, as a person starts it, and gone without a trace at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from casemate.attestation import TrustPolicy
from casemate.client import Client
from casemate.client.files import read_private_key
from tests.support.compose import PROJECT, Stack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    found = Stack()
    remove = ("--profile", "*", "down", "--volumes", "--remove-orphans")
    found.compose(*remove)
    try:
        found.up()
        yield found
    finally:
        found.compose(*remove)
    for kind in ("container", "volume", "network"):
        left = found.docker(kind, "ls", "--quiet", "--filter", f"name={PROJECT}").stdout
        assert not left, f"{kind}s are left behind"


@pytest.fixture(scope="session")
def clinic(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The clinic's files on this machine: its key, its policy, rows."""
    return stack.copy("seal", "/clinic", tmp_path_factory.mktemp("compose"))


@pytest.fixture(scope="session")
def connect(stack: Stack, clinic: Path) -> Callable[[], Client]:
    """Makes clients of the clinic's on this machine, outside of every container."""
    key = read_private_key(clinic / "key.pem")
    policy = TrustPolicy.load(clinic / "trust.toml")
    return lambda: Client(stack.address(), policy, caller_key=key)
