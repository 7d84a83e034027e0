"""``python -m casemate_devkit.sbom``: bills of materials, CycloneDX 1.6 in JSON.

Of a file system (``--tree``) with its packages and every shared library; or of a lock (``--lock``),
from the packages that are installed here. The same inputs give the same bytes: no time, no random
number.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import re
import sys
import uuid
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from casemate_devkit.errors import DevkitError
from casemate_devkit.staging.libraries import is_elf

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FORMAT: Final = "1.6"
FILE: Final = "sbom.cdx.json"
_PACKAGES: Final = "packages"
_NAMESPACE: Final = uuid.UUID("9d3c1e52-6f0a-5b7e-8c41-0f2b6a7d9e13")
_PINNED: Final = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", re.MULTILINE)
_REQUIRED: Final = re.compile(r"[A-Za-z0-9._-]+")
_EXTRA: Final = re.compile(r";.*\bextra\s*==")

Component = dict[str, Any]


def of_tree(subject: str, tree: Path) -> bytes:
    """Describe the file system ``tree``: its packages, and binaries outside of them."""
    packages = metadata.distributions(path=[str(tree / _PACKAGES)])
    files = [
        _file(path, tree)
        for path in sorted(tree.rglob("*"))
        if path.is_file()
        and not path.is_symlink()
        and not path.is_relative_to(tree / _PACKAGES)
        and is_elf(path)
    ]
    return _bom(subject, packages, files)


def of_lock(subject: str, lock: Path) -> bytes:
    """Describe what ``lock`` pins; raises DevkitError where other versions are installed here."""
    found = []
    for name, version in _PINNED.findall(lock.read_text()):
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # for another platform
        if installed.version != version:
            raise DevkitError(f"{name} {installed.version} is installed, {version} is locked")
        found.append(installed)
    return _bom(subject, found, [])


def _bom(subject: str, packages: Iterable[metadata.Distribution], files: list[Component]) -> bytes:
    known = {_normal(item.metadata["Name"]): item for item in packages}
    components = [_package(known[name]) for name in sorted(known)]
    runtime = {"type": "platform", "bom-ref": "cpython", "name": "cpython"}
    files = [{**runtime, "version": platform.python_version()}, *files]
    own = {"type": "application", "bom-ref": subject, "name": subject}
    dependencies = [{"ref": subject, "dependsOn": [item["bom-ref"] for item in components]}]
    dependencies += [
        {"ref": _purl(known[name]), "dependsOn": _needs(known[name], known)}
        for name in sorted(known)
    ]
    document: Component = {
        "bomFormat": "CycloneDX",
        "specVersion": FORMAT,
        "version": 1,
        "metadata": {"component": own},
        "components": [*components, *files],
        "dependencies": dependencies,
    }
    digest = hashlib.sha384(json.dumps(document, sort_keys=True).encode()).hexdigest()
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(_NAMESPACE, digest)}"
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def _package(item: metadata.Distribution) -> Component:
    return {
        "type": "library",
        "bom-ref": _purl(item),
        "name": item.metadata["Name"],
        "version": item.version,
        "purl": _purl(item),
        "licenses": _licences(item),
    }


def _licences(item: metadata.Distribution) -> list[Component]:
    fields = item.metadata.json
    if "license_expression" in fields:
        return [{"expression": fields["license_expression"]}]
    classifiers = [
        text.rpartition(" :: ")[2]
        for text in fields.get("classifier", [])
        if text.startswith("License ::")
    ]
    named = classifiers or [str(fields.get("license") or "").partition("\n")[0]]
    return [{"license": {"name": name}} for name in sorted(set(named)) if name]


def _purl(item: metadata.Distribution) -> str:
    return f"pkg:pypi/{_normal(item.metadata['Name'])}@{item.version}"


def _needs(item: metadata.Distribution, known: dict[str, metadata.Distribution]) -> list[str]:
    names = set()
    for text in item.requires or ():
        match = _REQUIRED.match(text)
        if match and not _EXTRA.search(text):
            names.add(_normal(match[0]))
    return sorted(_purl(known[name]) for name in names & known.keys())


def _file(path: Path, tree: Path) -> Component:
    name = path.relative_to(tree).as_posix()
    digest = hashlib.sha384(path.read_bytes()).hexdigest()
    return {
        "type": "file",
        "bom-ref": f"file:{name}",
        "name": name,
        "hashes": [{"alg": "SHA-384", "content": digest}],
    }


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main(arguments: Sequence[str] | None = None) -> int:
    """Write one bill of materials; 1 if it cannot be made."""
    parser = argparse.ArgumentParser(prog="python -m casemate_devkit.sbom")
    parser.add_argument("--subject", required=True, help="what is described")
    parser.add_argument("--output", type=Path, required=True)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tree", type=Path)
    source.add_argument("--lock", type=Path)
    options = parser.parse_args(arguments)
    try:
        if options.tree:
            made = of_tree(options.subject, options.tree)
        else:
            made = of_lock(options.subject, options.lock)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_bytes(made)
    except (DevkitError, OSError) as error:
        print(f"sbom: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
