"""Enclave images: what lies in which section, and what is the same in every build (SPEC 4.5)."""

from __future__ import annotations

import importlib.util
import json
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from casemate.attestation.cmdline import image_cmdline
from casemate_devkit.eif import image
from casemate_devkit.eif.build import METADATA_BYTES, build, measured
from casemate_devkit.eif.cpio import Entry, from_tree
from casemate_devkit.eif.profile import Profile
from casemate_devkit.errors import DevkitError
from tests.support import eif_builder as eb
from tests.support.newc import Member, members
from tests.support.small_tree import PROFILE, VERSION, make_parts

ROOT = Path(__file__).resolve().parents[4]


def contents(path: Path) -> list[tuple[int, bytes]]:
    """Each section's type and content, read apart from the code that wrote it."""
    data, at, found = path.read_bytes(), eb.HEAD, []
    while at < len(data):
        kind, size = int.from_bytes(data[at : at + 2]), int.from_bytes(data[at + 4 : at + 12])
        found.append((kind, data[at + 12 : at + 12 + size]))
        at += 12 + size
    return found


def ramdisks(path: Path) -> list[dict[str, Member]]:
    return [members(content) for kind, content in contents(path) if kind == eb.RAMDISK]


def test_registers_are_those_that_aws_documents(tmp_path: Path) -> None:
    found = build(make_parts(tmp_path), PROFILE, tmp_path / "a.eif")
    sections = contents(tmp_path / "a.eif")
    assert (found.pcr0, found.pcr1, found.pcr2) == eb.registers(sections)
    assert [kind for kind, _ in sections] == [1, 2, 5, 3, 3]
    assert found.pcr8 is None


def test_the_command_line_is_the_enclaves_own(tmp_path: Path) -> None:
    build(make_parts(tmp_path), PROFILE, tmp_path / "a.eif")
    line = dict(contents(tmp_path / "a.eif"))[eb.CMDLINE].decode()
    interpreter, *arguments = image_cmdline("vm")
    assert line == f"console=ttyS0 panic=-1 rdinit={interpreter} -- {' '.join(arguments)}"


def test_our_code_is_apart_from_what_it_stands_on(tmp_path: Path) -> None:
    build(make_parts(tmp_path), PROFILE, tmp_path / "a.eif")
    runtime, application = ramdisks(tmp_path / "a.eif")
    assert sorted(application) == [
        *("app/boot.py", "app/casemate", "app/casemate/wire.pyc", "app/init.py"),
    ]
    assert runtime["usr/bin/python3"].content.decode() == VERSION
    assert stat.S_ISCHR(runtime["dev/console"].mode)
    assert runtime["dev/console"].device == (5, 1)
    drivers = [name for name in runtime if name.startswith("modules/")]
    assert drivers == ["modules/00-virtio_mmio.ko", "modules/01-nsm.ko"]
    assert runtime["modules/00-virtio_mmio.ko"].content == b"driver one"


def test_nothing_of_the_builder_is_in_an_entry(tmp_path: Path) -> None:
    build(make_parts(tmp_path, umask=0o077), PROFILE, tmp_path / "a.eif")
    for disk in ramdisks(tmp_path / "a.eif"):
        assert list(disk) == sorted(disk, key=str.encode)
        for number, (name, member) in enumerate(disk.items(), 1):
            assert (member.inode, member.owner, member.group, member.time) == (number, 0, 0, 0)
            kinds = {stat.S_IFREG: {0o644, 0o755}, stat.S_IFDIR: {0o755}, stat.S_IFLNK: {0o777}}
            allowed = kinds.get(stat.S_IFMT(member.mode), {0o600})
            assert stat.S_IMODE(member.mode) in allowed, name
            assert member.links == 1


def test_modules_are_compiled_and_run(tmp_path: Path) -> None:
    build(make_parts(tmp_path), PROFILE, tmp_path / "a.eif")
    runtime, application = ramdisks(tmp_path / "a.eif")
    content = application["app/casemate/wire.pyc"].content
    assert content[:16] == importlib.util.MAGIC_NUMBER + b"\x01" + bytes(11)
    (tmp_path / "wire.pyc").write_bytes(content)
    program = "import sys; sys.path[:0] = ['.']; import wire; print(len(wire.SIZES))"
    command = [sys.executable, "-I", "-S", "-X", "pycache_prefix=/nonexistent", "-c", program]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout == "3\n"
    # What cannot be compiled is no module, and what is started by its path stays a source.
    assert "packages/numpy/template.py" in runtime
    assert application["app/boot.py"].content == b"import os\n"
    assert f"usr/lib/{VERSION}/os.pyc" in runtime
    assert not [name for name in runtime if name.endswith("__init__.py")]


def test_metadata_says_the_same_of_every_image(tmp_path: Path) -> None:
    parts = make_parts(tmp_path)
    build(parts, PROFILE, tmp_path / "a.eif")
    (parts.tree / "app/casemate/wire.py").write_text("SIZES = 1\n")
    build(parts, replace(PROFILE, kernel_arguments="quiet"), tmp_path / "b.eif")
    one, two = (dict(contents(tmp_path / name))[eb.METADATA] for name in ("a.eif", "b.eif"))
    assert one == two == METADATA_BYTES
    said = json.loads(one)
    assert said["BuildMetadata"]["BuildTime"] == "1970-01-01T00:00:00Z"
    # nitro-cli reads these and refuses an image without one of them
    assert list(said) == [
        *("ImageName", "ImageVersion", "BuildMetadata", "DockerInfo", "CustomMetadata"),
    ]


def test_an_init_of_its_own_finds_what_awss_expects(tmp_path: Path) -> None:
    parts = make_parts(tmp_path)
    (tmp_path / "init").write_bytes(b"\x7fELF bootstrap")
    profile = replace(PROFILE, form="nitro-enclave", modules=("nsm",))
    build(replace(parts, init=tmp_path / "init"), profile, tmp_path / "a.eif")
    assert dict(contents(tmp_path / "a.eif"))[eb.CMDLINE] == b"console=ttyS0 panic=-1"
    bootstrap, application = ramdisks(tmp_path / "a.eif")
    assert sorted(bootstrap) == ["dev", "dev/console", "init", "nsm.ko"]
    assert stat.S_IMODE(bootstrap["init"].mode) == 0o755
    command = application["cmd"].content.decode().splitlines()
    assert command == list(image_cmdline("nitro-enclave", "boot"))
    assert "/app/boot.py" in command
    assert application["env"].content == b""
    assert "rootfs/app/casemate/wire.pyc" in application
    assert "rootfs/usr/bin/python3" in application


@pytest.mark.parametrize("name", ["qemu", "nitro"])
def test_the_profiles_of_this_repository(name: str, tmp_path: Path) -> None:
    profile = Profile.load(ROOT / f"docker/eif/{name}.toml")
    line = profile.cmdline(own_init=True).decode()
    assert line.endswith(f"--form {profile.form}")
    parent = {"qemu": 2, "nitro": 3}[name]
    assert f"--egress vsock:{parent}:5001 " in line
    assert profile.modules[-1] == "nsm"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"form": "process"}, "no enclave image boots"),
        ({"kernel_arguments": "a -- b"}, "the builder's to say"),
        ({"kernel_arguments": "quiet init=/bin/sh"}, "the builder's to say"),
        ({"kernel_arguments": "rdinit=/bin/sh"}, "the builder's to say"),
        ({"kernel_arguments": "a  b"}, "one space"),
        ({"kernel_arguments": 'a="b'}, "one space"),
        ({"kernel_arguments": ""}, "one space"),
        ({"modules": ("../nsm",)}, "names of drivers"),
    ],
)
def test_profiles_that_would_mean_something_else(changes: dict[str, object], text: str) -> None:
    with pytest.raises(DevkitError, match=text):
        replace(PROFILE, **changes).check("x")  # type: ignore[arg-type]


def test_a_profile_that_is_none(tmp_path: Path) -> None:
    for text in ("", "form = 1", 'form = "vm"\nmodules = [1]', "]"):
        (tmp_path / "p.toml").write_text(text)
        with pytest.raises(DevkitError, match="is no profile"):
            Profile.load(tmp_path / "p.toml")
    long = replace(PROFILE, kernel_arguments="a" * 2000)
    with pytest.raises(DevkitError, match="2047"):
        long.cmdline(own_init=True)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    parts = make_parts(tmp_path)
    output = tmp_path / "a.eif"
    for wrong, text in (
        (replace(parts, tree=tmp_path), "no staged tree"),
        (replace(parts, kernel=tmp_path / "none"), "none cannot be read"),
        (replace(parts, drivers=None), "wants the driver virtio_mmio"),
        (replace(parts, drivers=parts.tree), "no driver virtio_mmio"),
    ):
        with pytest.raises(DevkitError, match=text):
            build(wrong, PROFILE, output)
    (parts.tree / f"usr/bin/{VERSION}").rename(parts.tree / "usr/bin/python3.0")
    (parts.tree / "usr/bin/python3").unlink()
    (parts.tree / "usr/bin/python3").symlink_to("python3.0")
    with pytest.raises(DevkitError, match="another interpreter"):
        build(parts, PROFILE, output)
    assert not list(tmp_path.glob("*.eif"))


def test_what_no_ramdisk_holds(tmp_path: Path) -> None:
    parts = make_parts(tmp_path)
    (parts.tree / "app/casemate/wire.pyc").write_bytes(b"forged")
    with pytest.raises(DevkitError, match="two files of one name"):
        build(parts, PROFILE, tmp_path / "a.eif")
    (parts.tree / "app/casemate/wire.pyc").unlink()
    fifo = parts.tree / "app/fifo"
    subprocess.run(["mkfifo", fifo], check=True)
    with pytest.raises(DevkitError, match="neither a file"):
        from_tree(parts.tree)
    fifo.unlink()
    assert Entry("x", stat.S_IFREG).size == 0


def write_sections(path: Path, count: int) -> None:
    with image.ImageWriter.open(path, "x86_64") as writer:
        for _ in range(count):
            writer.add(image.RAMDISK, b"k")


def test_an_image_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(DevkitError, match="32 sections"):
        write_sections(tmp_path / "a", 33)
    assert not list(tmp_path.iterdir())
    with pytest.raises(DevkitError, match="aarch64"), image.ImageWriter.open(tmp_path / "a", "arm"):
        pass


def test_sections_are_found_again(tmp_path: Path) -> None:
    parts = make_parts(tmp_path)
    build(parts, PROFILE, tmp_path / "a.eif")
    with (tmp_path / "a.eif").open("rb") as file:
        listed = image.sections(file)
        for section, (kind, content) in zip(listed, contents(tmp_path / "a.eif"), strict=True):
            with (tmp_path / "part").open("wb") as sink:
                image.copy(file, section, sink)
            assert (section.kind, (tmp_path / "part").read_bytes()) == (kind, content)
    assert measured(tmp_path / "a.eif").architecture == "x86_64"
    shutil.rmtree(parts.tree)
