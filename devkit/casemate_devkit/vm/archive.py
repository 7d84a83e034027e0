"""Packages of a Debian archive, through an apt that knows no other source and installs nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from casemate_devkit.errors import DevkitError

if TYPE_CHECKING:
    from collections.abc import Sequence

_KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_PROGRAMS: Final = ("apt-get", "apt-cache", "dpkg-deb")
_PATIENCE_S: Final = 600.0
_MIRROR: Final = "DEBIAN_MIRROR"


def find_mirror() -> str:
    """The Debian archive that apt is configured for, or the one that DEBIAN_MIRROR names.

    Raises DevkitError that says what is missing.
    """
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        raise DevkitError(f"this machine lacks {', '.join(missing)}: Debian's apt and dpkg")
    if not _KEYRING.exists():
        raise DevkitError(f"{_KEYRING} is missing: apt-get install debian-archive-keyring")
    if named := os.environ.get(_MIRROR):
        return named
    known = _run(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"])
    for address in sorted(set(known.split())):
        if address.rstrip("/").endswith("/debian"):
            return address
    raise DevkitError(f"apt is configured for no Debian archive: name one with {_MIRROR}=ADDRESS")


class Archive:
    """Some releases of one archive, their lists fetched into ``base``. apt checks signatures."""

    def __init__(self, base: Path, mirror: str, releases: Sequence[str]) -> None:
        self._base = base
        for folder in ("lists/partial", "cache/archives/partial", "files"):
            (base / folder).mkdir(parents=True)
        (base / "status").touch()
        lines = [f"deb [signed-by={_KEYRING}] {mirror} {release} main" for release in releases]
        (base / "sources.list").write_text("\n".join(lines) + "\n")
        self._apt("apt-get", "update", "--error-on=any")

    def depends(self, package: str, prefix: str) -> str:
        """What a package that holds nothing itself stands for: a name that begins with prefix."""
        for line in self._apt("apt-cache", "depends", package).splitlines():
            kind, _, name = line.strip().partition(": ")
            if kind == "Depends" and name.startswith(prefix):
                return name
        raise DevkitError(f"the archive's {package} names no {prefix}*")

    def closure(self, package: str, release: str) -> list[Path]:
        """Download a package of a release with all that it needs."""
        options = ("--yes", "--download-only", "--no-install-recommends")
        self._apt("apt-get", "install", *options, "--target-release", release, package)
        return sorted((self._base / "cache/archives").glob("*.deb"))

    def download(self, package: str) -> Path:
        """Download one package."""
        folder = self._base / "files" / package
        folder.mkdir()
        self._apt("apt-get", "download", package, where=folder)
        return next(folder.glob("*.deb"))

    @staticmethod
    def unpack(file: Path, folder: Path) -> None:
        """Unpack a package's files into ``folder``; none of its scripts runs."""
        folder.mkdir(parents=True, exist_ok=True)
        _run(["dpkg-deb", "--extract", str(file), str(folder)])

    def _apt(self, program: str, *arguments: str, where: Path | None = None) -> str:
        settings = {
            "Dir::Etc::SourceList": self._base / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State": self._base,
            "Dir::State::Status": self._base / "status",
            "Dir::Cache": self._base / "cache",
            "APT::Architecture": "amd64",
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            # A frozen copy of an archive outlives its list's date; the signature is checked.
            "Acquire::Check-Valid-Until": "false",
        }
        options = [f"-o{name}={value}" for name, value in settings.items()]
        return _run([program, "-q", *options, *arguments], where=where)


def _run(command: Sequence[str], *, where: Path | None = None) -> str:
    try:
        ran = subprocess.run(
            command, cwd=where, capture_output=True, text=True, check=True, timeout=_PATIENCE_S
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = f"{getattr(error, 'stdout', '')}\n{getattr(error, 'stderr', '')}".strip()
        what = " ".join(word for word in command if not word.startswith("-o"))
        raise DevkitError(f"{what} failed:\n{said[-1500:] or error}") from None
    return ran.stdout
