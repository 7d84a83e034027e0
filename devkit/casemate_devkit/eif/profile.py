"""What an image is made for: the file that names form, kernel arguments and drivers."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, Self

from casemate.attestation.cmdline import PARENT_CID, image_cmdline
from casemate_devkit.errors import DevkitError

if TYPE_CHECKING:
    from pathlib import Path

_CMDLINE_MAX: Final = 2047  # COMMAND_LINE_SIZE of x86 without its zero byte
_ARGUMENTS: Final = re.compile(r"[\x21-\x7e]+( [\x21-\x7e]+)*")
_NAME: Final = re.compile(r"[a-z0-9_]{1,64}")
_ENDS_ARGUMENTS: Final = "--"
_CHOOSES_INIT: Final = ("init=", "rdinit=")


@dataclass(frozen=True, slots=True)
class Profile:
    """One kind of machine; ``modules`` are drivers in the order in which they are loaded."""

    form: str
    architecture: str
    kernel_arguments: str
    modules: tuple[str, ...]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a profile; raises DevkitError for one that is not what it should be."""
        try:
            values: dict[str, Any] = tomllib.loads(path.read_text())
            values["modules"] = tuple(_text(name) for name in values["modules"])
            profile = cls(**values)
            _text(profile.kernel_arguments)
        except (OSError, tomllib.TOMLDecodeError, TypeError, KeyError) as error:
            keys = ", ".join(field.name for field in fields(cls))
            raise DevkitError(f"{path} is no profile with {keys}: {error}") from None
        profile.check(str(path))
        return profile

    def check(self, where: str) -> None:
        """Refuse values that would change their meaning on a kernel's command line."""
        if self.form not in PARENT_CID:
            raise DevkitError(f"{where}: no enclave image boots as {self.form!r}")
        given = self.kernel_arguments
        if not _ARGUMENTS.fullmatch(given) or '"' in given:
            raise DevkitError(f"{where}: kernel_arguments are words with one space between")
        words = given.split()
        if _ENDS_ARGUMENTS in words or any(word.startswith(_CHOOSES_INIT) for word in words):
            raise DevkitError(f"{where}: init and its arguments are the builder's to say")
        if not all(_NAME.fullmatch(name) for name in self.modules):
            raise DevkitError(f"{where}: modules are names of drivers")

    def cmdline(self, *, own_init: bool) -> bytes:
        """The kernel's command line; with ``own_init`` the interpreter is process 1."""
        line = self.kernel_arguments
        if own_init:
            interpreter, *arguments = image_cmdline(self.form)
            line += f" rdinit={interpreter} {_ENDS_ARGUMENTS} {' '.join(arguments)}"
        if len(line) > _CMDLINE_MAX:
            raise DevkitError(f"the kernel's command line has more than {_CMDLINE_MAX} bytes")
        return line.encode("ascii")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"not a text: {value!r}")
    return value


def foreign_command(form: str) -> tuple[str, ...]:
    """What an init of the image's own starts, in the tree that it made the root."""
    return image_cmdline(form, "boot")
