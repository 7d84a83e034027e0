"""Bills of materials: valid CycloneDX, complete, and the same bytes each time."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from casemate_devkit import sbom
from casemate_devkit.errors import DevkitError
from tests.support.bills import valid

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).resolve().parents[3]


def packages(document: dict[str, Any]) -> dict[str, str]:
    components: Iterable[dict[str, Any]] = document["components"]
    return {
        item["purl"].split("/")[1].split("@")[0]: item["version"]
        for item in components
        if item["type"] == "library"
    }


@pytest.mark.parametrize("name", ["enclave", "host", "client", "devkit"])
def test_a_lock_is_described_whole(name: str) -> None:
    lock = ROOT / f"requirements/{name}.txt"
    document = valid(sbom.of_lock(f"casemate-{name}", lock))
    pins = re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)(.*)$", lock.read_text(), re.MULTILINE)
    here = {package: version for package, version, rest in pins if "win32" not in rest}
    assert packages(document) == here
    for item in document["components"]:
        assert item["type"] != "library" or item["licenses"], item["name"]


def test_a_tree_is_described_with_its_binaries(tmp_path: Path) -> None:
    info = tmp_path / "packages/some_thing-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.4\nName: Some.Thing\nVersion: 1.0\nLicense-Expression: MIT\n"
        'Requires-Dist: other>1\nRequires-Dist: absent; extra == "x"\n'
    )
    other = tmp_path / "packages/other-2.dist-info"
    other.mkdir()
    (other / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: other\nVersion: 2\nClassifier: License :: OSI Approved :: X\n"
    )
    (tmp_path / "packages/inside.so").write_bytes(b"\x7fELF inside a package")
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/libone.so.1").write_bytes(b"\x7fELF one")
    (tmp_path / "usr/lib/text").write_text("no binary")
    document = valid(sbom.of_tree("casemate-enclave", tmp_path))
    assert packages(document) == {"some-thing": "1.0", "other": "2"}
    files = [item["name"] for item in document["components"] if item["type"] == "file"]
    assert files == ["usr/lib/libone.so.1"]
    needs = {item["ref"]: item["dependsOn"] for item in document["dependencies"]}
    assert needs["pkg:pypi/some-thing@1.0"] == ["pkg:pypi/other@2"]
    assert sbom.of_tree("casemate-enclave", tmp_path) == sbom.of_tree("casemate-enclave", tmp_path)
    (tmp_path / "usr/lib/libone.so.1").write_bytes(b"\x7fELF two")
    changed = valid(sbom.of_tree("casemate-enclave", tmp_path))
    assert changed["serialNumber"] != document["serialNumber"]


def test_a_lock_that_is_not_what_is_installed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lock.txt").write_text("numpy==0.0.1 \\\n    --hash=sha256:00\n")
    with pytest.raises(DevkitError, match="numpy"):
        sbom.of_lock("x", tmp_path / "lock.txt")
    output = str(tmp_path / "out.json")
    arguments = ["--subject", "x", "--lock", str(tmp_path / "lock.txt"), "--output", output]
    assert sbom.main(arguments) == 1
    assert not Path(output).exists()
