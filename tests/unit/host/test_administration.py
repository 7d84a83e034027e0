"""Where the administration service listens."""

from __future__ import annotations

import socket
import stat
from typing import TYPE_CHECKING, Any

import pytest

from casemate.errors import CasemateError, Code
from casemate_host.administration import Administration

if TYPE_CHECKING:
    from pathlib import Path


class Control:
    def interrupt(self) -> None:
        pass


def administration(path: Path) -> Administration:
    nobody: Any = None
    control: Any = Control()
    return Administration(path, control, nobody, nobody)


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "models.sealed"
    path.write_text("the operator's")
    service = administration(path)
    with pytest.raises(CasemateError) as raised:
        service.start()
    service.stop()
    assert raised.value.code is Code.UNAVAILABLE
    assert path.read_text() == "the operator's"


def test_a_stale_socket_is_replaced_by_one_for_its_owner_alone(short_path: Path) -> None:
    path = short_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    service = administration(path)
    service.start()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    service.stop()
    assert not path.exists()
