"""From a staged tree to an enclave image file: which file goes into which measured section.

With Casemate's own init (``enclave/init.py``) the staged tree is the image's root: ramdisk 0 holds
interpreter, libraries, packages and drivers, ramdisk 1 Casemate's code, so PCR1 and PCR2 separate
them as they do for a tree (SPEC 4.3). With an init of the image's own the layout is the one that
AWS's expects: ramdisk 0 holds it and the drivers, ramdisk 1 the tree below ``rootfs``, with the
command to run beside it.
"""

from __future__ import annotations

import json
import lzma
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from casemate.attestation.eif import EifImage, measure_eif
from casemate_devkit import cmdline
from casemate_devkit.eif import cpio
from casemate_devkit.eif.bytecode import compiled
from casemate_devkit.eif.image import CMDLINE, KERNEL, METADATA, RAMDISK, ImageWriter
from casemate_devkit.eif.profile import foreign_command
from casemate_devkit.errors import DevkitError

if TYPE_CHECKING:
    from pathlib import Path

    from casemate_devkit.eif.profile import Profile

_APPLICATION: Final = "app"
_CONSOLE: Final = cpio.device("dev/console", 5, 1)  # the kernel opens it before process 1 runs
_SUFFIXES: Final = (".ko", ".ko.xz")

# Neither measured nor signed, but AWS's tools refuse an image without it. So it says nothing: the
# same bytes in every image, whatever is inside.
_NOT_MEASURED: Final = {
    "ImageName": "casemate",
    "ImageVersion": "see PCR0",
    "BuildMetadata": {
        "BuildTime": "1970-01-01T00:00:00Z",
        "BuildTool": "casemate",
        "BuildToolVersion": "see PCR0",
        "OperatingSystem": "Linux",
        "KernelVersion": "see PCR1",
    },
    "DockerInfo": {},
    "CustomMetadata": {},
}
METADATA_BYTES: Final = json.dumps(_NOT_MEASURED, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Everything that goes into an image beside its profile.

    ``drivers`` is a folder searched for the profile's modules, which may lie deeper and packed with
    xz. ``init`` is a program that replaces Casemate's own, as AWS's bootstrap brings one.
    """

    tree: Path
    kernel: Path
    drivers: Path | None = None
    init: Path | None = None


def build(parts: Parts, profile: Profile, output: Path) -> EifImage:
    """Write the image to ``output`` and return what it measures, read back from the file.

    The same parts give the same bytes, wherever and whenever. Raises DevkitError for what is
    missing.
    """
    if not (parts.tree / cmdline.INTERPRETER[1:]).exists():
        raise DevkitError(f"{parts.tree} is no staged tree: make stage")
    ramdisks = _own_layout(parts, profile) if parts.init is None else _aws_layout(parts, profile)
    with ImageWriter.open(output, profile.architecture) as writer:
        writer.add(KERNEL, _read(parts.kernel))
        writer.add(CMDLINE, profile.cmdline(own_init=parts.init is None))
        writer.add(METADATA, METADATA_BYTES)
        for entries in ramdisks:
            with writer.section(RAMDISK) as sink:
                cpio.write(sink, entries)
    return measured(output)


def measured(path: Path) -> EifImage:
    """What an image measures; raises EvidenceError for a file that is none."""
    with path.open("rb") as file:
        return measure_eif(file, now=int(time.time() * 1000))


def _own_layout(parts: Parts, profile: Profile) -> list[list[cpio.Entry]]:
    below = f"{_APPLICATION}/"
    tree = compiled(cpio.from_tree(parts.tree))
    runtime = [entry for entry in tree if not entry.path.startswith(below)]
    application = [entry for entry in tree if entry.path.startswith(below)]
    drivers = _drivers(parts, profile)
    folder = [cpio.directory("modules")] if drivers else []
    numbered = [
        cpio.file(f"modules/{number:02}-{name}.ko", content)
        for number, (name, content) in enumerate(drivers)
    ]
    return [[_CONSOLE, *runtime, *folder, *numbered], application]


def _aws_layout(parts: Parts, profile: Profile) -> list[list[cpio.Entry]]:
    if parts.init is None:
        raise RuntimeError("checked before")
    bootstrap = [
        cpio.directory("dev"),
        _CONSOLE,
        cpio.file("init", _read(parts.init), executable=True),
        *(cpio.file(f"{name}.ko", content) for name, content in _drivers(parts, profile)),
    ]
    command = "".join(f"{word}\n" for word in foreign_command(profile.form))
    application = [
        cpio.file("cmd", command.encode()),
        cpio.file("env", b""),
        cpio.directory("rootfs"),
        *(
            replace(entry, path=f"rootfs/{entry.path}")
            for entry in compiled(cpio.from_tree(parts.tree))
        ),
    ]
    return [bootstrap, application]


def _drivers(parts: Parts, profile: Profile) -> list[tuple[str, bytes]]:
    return [(name, _driver(parts.drivers, name)) for name in profile.modules]


def _driver(folder: Path | None, name: str) -> bytes:
    if folder is None:
        raise DevkitError(f"the profile wants the driver {name}: name a folder with --drivers")
    for suffix in _SUFFIXES:
        # The kernel's own files use either of the two characters.
        for spelling in (name, name.replace("_", "-")):
            found = sorted(folder.rglob(f"{spelling}{suffix}"))
            if found:
                content = _read(found[0])
                return lzma.decompress(content) if suffix.endswith(".xz") else content
    raise DevkitError(f"no driver {name} in {folder}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DevkitError(f"{path} cannot be read: {error.strerror}") from None
