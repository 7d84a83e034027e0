"""POSIX access lists: the host's sockets open to the enclave's user and to nobody else.

When root starts the enclave, the enclave runs as nobody while the host stays root, whose sockets
nobody may not connect to. Opening them to everyone would leave the directory as their only guard.
"""

from __future__ import annotations

import os
import stat
import struct
from typing import TYPE_CHECKING, Final

from casemate_devkit.errors import DevkitError

if TYPE_CHECKING:
    from pathlib import Path

# linux/posix_acl_xattr.h and linux/posix_acl.h
_VERSION: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
_UNDEFINED: Final = 0xFFFFFFFF
_RW: Final = 6
_RWX: Final = 7
_NONE: Final = 0


def _list(user: int, permissions: int) -> bytes:
    entries = (
        (_USER_OBJ, permissions, _UNDEFINED),
        (_USER, permissions, user),
        (_GROUP_OBJ, _NONE, _UNDEFINED),
        (_MASK, permissions, _UNDEFINED),
        (_OTHER, _NONE, _UNDEFINED),
    )
    return _VERSION.pack(2) + b"".join(_ENTRY.pack(*entry) for entry in entries)


def open_sockets(directory: Path, user: int) -> None:
    """Let ``user`` connect to the sockets in ``directory``: those there and those still to be made.

    Raises DevkitError on a file system without access lists.
    """
    try:
        os.setxattr(directory, "system.posix_acl_default", _list(user, _RWX))
        for path in directory.iterdir():
            if stat.S_ISSOCK(path.lstat().st_mode):
                os.setxattr(path, "system.posix_acl_access", _list(user, _RW))
    except OSError as error:
        raise DevkitError(
            f"{directory} cannot be shared with an enclave that root starts ({error.strerror}): "
            "name a --run directory on a file system with POSIX ACLs, or start it as another user"
        ) from None
