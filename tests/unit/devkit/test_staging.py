"""What belongs into a staged tree, and that what is built is what is measured."""

import ast
import os
import sys
from pathlib import Path

import pytest

from casemate.attestation.measurement import Measurement, measure_tree
from casemate_devkit import cmdline, enclave_process, measure
from casemate_devkit.errors import DevkitError
from casemate_devkit.staging import application, files, libraries, packages, runtime

LINE = cmdline.enclave_cmdline(cmdline.PROCESS)


# --- the application part


def imported(module: Path) -> set[str]:
    """Every module that a file's import statements may name, wherever they stand."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names | {parent for name in names for parent in parents(name)}


def parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def modules() -> dict[str, Path]:
    """Every module of ours by name."""
    found = {}
    for package in application.PACKAGES:
        folder = application.source(package)
        for path in folder.rglob("*.py"):
            name = path.relative_to(folder.parent).with_suffix("").as_posix().replace("/", ".")
            found[name.removesuffix(".__init__")] = path
    return found


def needed() -> set[str]:
    """Our modules that the first code of the enclave reaches by imports, for types or to run."""
    known = modules()
    reached: set[str] = set()
    pending = imported(application.boot_module()) & known.keys()
    while pending:
        name = pending.pop()
        reached.add(name)
        pending |= (imported(known[name]) & known.keys()) - reached
    return reached


def staged() -> set[str]:
    known = {path: name for name, path in modules().items()}
    first = {application.boot_module(), application.init_module()}
    return {known[path] for path in application.sources() if path not in first}


def test_what_the_enclave_imports_is_staged() -> None:
    assert not needed() - staged()


def test_what_is_staged_is_imported_by_the_enclave() -> None:
    surplus = staged() - needed()
    assert not surplus, "list them in LEFT_OUT of casemate_devkit.staging.application"


def test_neither_client_nor_grpc_nor_command_line_is_staged() -> None:
    foreign = {name for path in application.sources() for name in imported(path)}
    assert foreign.isdisjoint({"boto3", "casemate.client", "click", "grpc", "casemate_devkit"})
    assert not any("client" in path.parts for path in application.sources())


# --- the packages part


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("numpy/__init__.py", True),
        ("numpy-2.4.6.dist-info/METADATA", True),
        ("numpy-2.4.6.dist-info/licenses/LICENSE.txt", True),
        ("numpy-2.4.6.dist-info/RECORD", False),
        ("numpy-2.4.6.dist-info/INSTALLER", False),
        ("numpy-2.4.6.dist-info/REQUESTED", False),
        ("x-1.dist-info/direct_url.json", False),
        ("numpy/tests/test_all.py", False),
        ("numpy/__pycache__/x.cpython-311.pyc", False),
        ("numpy/f2py/f2py2e.py", False),
        ("bin/f2py", False),
        ("onnxruntime/transformers/benchmark.py", False),
        ("onnxruntime/capi/onnxruntime_pybind11_state.so", True),
        ("botocore/data/kms/2014-11-01/service-2.json.gz", True),
        ("botocore/data/partitions.json", True),
        ("botocore/data/ec2/2016-11-15/service-2.json.gz", False),
        ("botocore/data/kms-other/x.json", False),
        ("botocore/cacert.pem", False),
        ("botocore/session.py", True),
    ],
)
def test_what_of_a_package_is_staged(path: str, *, expected: bool) -> None:
    assert packages.belongs(Path(path)) is expected


# --- the runtime part


def test_the_loader_of_this_interpreter() -> None:
    assert libraries.loader_of(runtime.interpreter()).name.startswith("ld-linux")


def test_no_loader_in_what_is_no_program(tmp_path: Path) -> None:
    (tmp_path / "script").write_bytes(b"#!/bin/sh\n" + bytes(64))
    with pytest.raises(DevkitError, match="not a 64-bit"):
        libraries.loader_of(tmp_path / "script")


def test_the_closure_reaches_the_c_library(tmp_path: Path) -> None:
    found = libraries.closure(runtime.interpreter(), [], inside=tmp_path)
    assert "libc.so.6" in found.libraries
    found.copy_to(tmp_path)
    assert (tmp_path / found.loader.relative_to("/")).stat().st_mode & 0o777 == 0o755
    assert not (tmp_path / found.loader.relative_to("/")).is_symlink()


def test_the_standard_library_without_tests_caches_and_other_software(tmp_path: Path) -> None:
    library = tmp_path / "lib"
    kept = ["os.py", "json/decoder.py", "lib-dynload/_ssl.so", "unittest/mock.py"]
    left = [
        *("test/x.py", "json/__pycache__/decoder.pyc", "site-packages/evil.pth", "idlelib/x.py"),
        *("config-3.11-x86_64-linux-gnu/Makefile", "lib-dynload/_testcapi.so", "ensurepip/x.whl"),
        *("lib-dynload/_sqlite3.so", "sitecustomize.py", "unittest/test/x.py"),
    ]
    for name in (*kept, *left):
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).touch()
    (library / "dangling.py").symlink_to("/nonexistent")
    files.copy_tree(library, tmp_path / "out", runtime.belongs)
    out = (path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*"))
    assert sorted(str(path) for path in out if path.suffix) == sorted(kept)


# --- files


def test_modes_do_not_depend_on_the_builder(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "data").touch(mode=0o600)
        (tmp_path / "folder" / "program").touch(mode=0o700)
    finally:
        os.umask(before)
    files.normalise(tmp_path)
    modes = [oct(path.stat().st_mode & 0o777) for path in sorted(tmp_path.rglob("*"))]
    assert modes == ["0o755", "0o644", "0o755"]


def test_links_are_resolved_and_modes_reduced_to_two(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("x")
    (tmp_path / "real").chmod(0o4700)
    (tmp_path / "link").symlink_to("real")
    files.copy_file(tmp_path / "link", tmp_path / "copy")
    assert not (tmp_path / "copy").is_symlink()
    assert (tmp_path / "copy").stat().st_mode & 0o7777 == 0o755


# --- measurement of what was staged (SPEC 4)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A tree of the real shape in miniature."""
    root = tmp_path / "tree"
    for name in ("usr/bin/python3", "usr/lib/python3.11/os.py", "app/boot.py", "app/casemate/a.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "packages" / "numpy").mkdir(parents=True)
    (root / "packages" / "numpy" / "__init__.py").write_text("numpy")
    runtime.make_mount_points(root)
    files.normalise(root)
    return root


def registers(before: Measurement, after: Measurement) -> set[int]:
    pairs = zip(
        (before.pcr0, before.pcr1, before.pcr2), (after.pcr0, after.pcr1, after.pcr2), strict=True
    )
    return {index for index, (one, other) in enumerate(pairs) if one != other}


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("app/casemate/__pycache__/a.cpython-311.pyc", {0, 2}),
        ("app/casemate/added.py", {0, 2}),
        ("app/casemate/a.py", {0, 2}),
        ("app/sitecustomize.py", {0, 2}),
        ("packages/evil.pth", {0, 1}),
        ("packages/numpy/__init__.py", {0, 1}),
        ("usr/lib/python3.11/__pycache__/os.cpython-311.pyc", {0, 1}),
        ("usr/lib/python3.11/os.py", {0, 1}),
        ("etc/ld.so.preload", {0, 1}),
        ("proc/cpuinfo", {0, 1}),
    ],
)
def test_a_planted_or_changed_file_changes_the_registers(
    small: Path, name: str, changed: set[int]
) -> None:
    before = measure_tree(small, LINE)
    (small / name).parent.mkdir(parents=True, exist_ok=True)
    (small / name).write_text("planted")
    assert registers(before, measure_tree(small, LINE)) == changed


def test_a_files_time_and_owner_do_not_matter_but_its_executable_bit_does(small: Path) -> None:
    before = measure_tree(small, LINE)
    os.utime(small / "app" / "boot.py", (1, 1))
    assert measure_tree(small, LINE) == before
    (small / "app" / "boot.py").chmod(0o755)
    assert registers(before, measure_tree(small, LINE)) == {0, 2}


def test_each_form_is_measured_differently(small: Path) -> None:
    measured = [enclave_process.measure(small, form) for form in cmdline.FORMS]
    assert len({item.pcr0 for item in measured}) == len(cmdline.FORMS)
    assert len({item.pcr1 for item in measured}) == len(cmdline.FORMS)


def test_the_measured_command_line() -> None:
    assert " ".join(cmdline.enclave_cmdline("process")) == (
        "/usr/bin/python3 -I -S -B -X pycache_prefix=/nonexistent /app/boot.py"
        " --listen unix:/run/casemate/enclave.sock --egress unix:/run/casemate/egress.sock"
        " --nsm unix:/run/nsm/nsm.sock --form process"
    )
    with pytest.raises(ValueError, match="no staged tree"):
        cmdline.enclave_cmdline("nitro-enclave")


def test_the_measure_command(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure.main([str(small)]) == 0
    assert measure_tree(small, LINE).pcr0.hex() in capsys.readouterr().out
    assert measure.main([str(small), "--form", "unsafe-process"]) == 0
    assert measure_tree(small, LINE).pcr0.hex() not in capsys.readouterr().out
    assert measure.main([str(small / "app")]) == 1
    assert "no staged tree" in capsys.readouterr().err


def test_elsewhere_staging_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(DevkitError, match="Linux with glibc"):
        runtime.check_platform()
