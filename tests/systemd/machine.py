"""An instance without a hypervisor: systemd as process 1 over this machine's files, in namespaces.

Nothing outside is changed: the root is an overlay, /run and /dev are new, the kernel's settings
read-only. The network is this machine's, for KMS and clients are. Units of the distribution are
the few in ``_UNITS``; what AWS installs is played by ``aws/``; Casemate's own are put there by the
lines of docs/guides/nitro.md, as they stand.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from casemate_devkit.vm import child

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
AWS = Path(__file__).parent / "aws"
GUIDE = ROOT / "docs/guides/nitro.md"
SYSTEMD = "/usr/lib/systemd/systemd"
_SYSTEM = Path("/usr/lib/systemd/system")
_NEEDED = ("chroot", "mount", "nsenter", "systemctl", "systemd-analyze", "unshare")
_UNITS = (
    *("basic", "local-fs", "local-fs-pre", "multi-user", "network", "network-online"),
    *("network-pre", "paths", "shutdown", "slices", "sockets", "swap", "sysinit", "timers"),
    *("time-set", "time-sync", "umount", "final"),
)
_JOURNAL = (
    "systemd-journald.service",
    "systemd-journald.socket",
    "systemd-journald-dev-log.socket",
)
# Isolating it stops everything else in one transaction, as a shutdown does.
_REST = "[Unit]\nRequires=basic.target\nAfter=basic.target\nAllowIsolate=yes\n"
_START_S = 300.0
_INSTALLED = re.compile(r"^sudo (useradd|install) .*$", re.MULTILINE)
_ENABLED = re.compile(r"^sudo (systemctl enable .*)$", re.MULTILINE)

# The control group first: what is its root within is the group that a process is in by then.
_ENTER = """
echo $$ > "$1/cgroup.procs"
shift
exec unshare -p -f -m -u -i -C --kill-child=KILL "$@"
"""
_BOOT = """
set -eu
mount --make-rprivate /
mount -t overlay overlay -o lowerdir=/,upperdir=$BASE/upper,workdir=$BASE/work $BASE/root
cd $BASE/root
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
for name in null zero full random urandom tty; do
    touch dev/$name
    mount --bind /dev/$name dev/$name
done
mkdir dev/shm dev/pts run/hypervisor run/vsock
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount --bind $BASE/nothing usr/lib/systemd/system-generators
mount --bind $BASE/units usr/lib/systemd/system
mount --bind $BASE/enabled etc/systemd/system
mount --bind $SHARED/hypervisor run/hypervisor
mount --bind $SHARED/vsock run/vsock
chroot . /bin/sh -eu <<'END'
groupadd --system ne
install -d /etc/nitro_enclaves
install -d -m 775 -g ne /run/nitro_enclaves /var/log/nitro_enclaves
cd /srv/checkout
PATH=/usr/sbin:/usr/bin:/sbin:/bin
@INSTALL@
chgrp ne /run/hypervisor /run/hypervisor/hypervisor.sock
chown casemate-host /run/vsock
END
mount --bind $SITE opt/casemate/lib/$PYTHON/site-packages
exec env -i container=casemate PATH=/usr/sbin:/usr/bin:/sbin:/bin \\
    chroot . $SYSTEMD --unit=multi-user.target --show-status=0
"""


def missing() -> list[str]:
    """What this machine lacks for it, in words."""
    found = [f"{name} is not installed" for name in _NEEDED if shutil.which(name) is None]
    if not Path(SYSTEMD).exists():
        found.append("systemd is not installed")
    if os.geteuid() != 0:
        found.append("only root may make the namespaces")
    if _cgroup2() is None:
        found.append("no cgroup2 file system is mounted")
    if ROOT.is_relative_to("/tmp"):
        found.append("the checkout lies below /tmp, which is a new one in there")
    return found


def _cgroup2() -> Path | None:
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    return None


def _interpreter() -> Path:
    """An interpreter of this version that every user may run, as on an instance."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for folder in (Path(sys.base_prefix) / "bin", Path("/usr/bin"), Path("/usr/local/bin")):
        path = (folder / name).resolve()
        if path.exists() and all(parent.stat().st_mode & 1 for parent in path.parents):
            return path
    raise AssertionError(f"no {name} that every user may run: apt-get install {name}")


class Instance:
    """A context manager; ``shared`` has the folders hypervisor and vsock, seen below /run.

    ``files`` is what the operator brings to the folder from which the guide installs.
    """

    def __init__(self, shared: Path, files: Path) -> None:
        self._shared, self._files = shared, files
        self._resources = contextlib.ExitStack()
        self.pid = 0
        self.log = ""

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as resources:
            base = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="cm-sd-")))
            for name in ("upper", "work", "root", "units", "enabled", "nothing"):
                (base / name).mkdir(mode=0o755)
            base.chmod(0o755)
            self._fill(base)
            log = resources.enter_context((base / "log").open("wb"))
            group = _cgroup(resources)
            process = child.start(
                ["sh", "-c", _ENTER, "sh", str(group), "sh", "-c", self._script()],
                output=log,
                environment=self._environment(base),
            )
            resources.callback(child.end, process)
            self.pid = self._await(process, base)
            self._resources = resources.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def run(self, *command: str, check: bool = True, timeout_s: float = 90) -> str:
        """Run a command there as root; return what it printed on both streams."""
        entering = ["nsenter", "-t", f"{self.pid}", "-m", "-p", "-u", "-i", "-C", "-r", "-w"]
        done = subprocess.run(
            [*entering, *command],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        assert not check or done.returncode == 0, (command, done.stdout)
        return done.stdout

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Properties of a unit, as systemd says them."""
        said = self.run("systemctl", "show", unit, *(f"-p{name}" for name in names))
        return dict(line.split("=", 1) for line in said.splitlines())

    def journal(self, unit: str) -> str:
        return self.run("journalctl", "--no-pager", "-o", "cat", "-u", unit)

    def enable(self) -> None:
        """Run the guide's line that starts everything."""
        (line,) = _ENABLED.findall(GUIDE.read_text())
        self.run(*line.split())

    def _fill(self, base: Path) -> None:
        for name in (*(f"{unit}.target" for unit in _UNITS), *_JOURNAL):
            shutil.copy(_SYSTEM / name, base / "units")
        wanted = base / "units/sysinit.target.wants"
        wanted.mkdir()
        for name in _JOURNAL:
            (wanted / name).symlink_to(f"../{name}")
        (base / "units/rest.target").write_text(_REST)
        upper = base / "upper"
        for path in ("usr/bin", "srv", "opt"):
            (upper / path).mkdir(parents=True)
        for name, source in (
            ("nitro-cli", "nitro_cli.py"),
            ("nitro-enclaves-allocator", "allocator.py"),
            ("aws", "aws_cli.py"),
        ):
            shutil.copy(AWS / source, upper / "usr/bin" / name)
            (upper / "usr/bin" / name).chmod(0o755)
        shutil.copy(AWS / "nitro-enclaves-allocator.service", base / "units")
        checkout = upper / "srv/checkout"
        shutil.copytree(self._files, checkout)
        shutil.copytree(ROOT / "deploy", checkout / "deploy")
        self._install_host(upper / "opt/casemate")

    def _install_host(self, folder: Path) -> None:
        """An environment as the guide makes it; its packages are those of this test's own."""
        interpreter = _interpreter()
        command = [str(interpreter), "-m", "venv", "--without-pip", str(folder)]
        subprocess.run(command, check=True, env={"PATH": os.defpath})
        script = folder / "bin/casemate-host"
        script.write_text(
            "#!/opt/casemate/bin/python\nimport sys\n"
            "from casemate_host.__main__ import main\nsys.exit(main())\n"
        )
        script.chmod(0o755)

    def _script(self) -> str:
        lines = [found[0].removeprefix("sudo ") for found in _matches(_INSTALLED)]
        assert len(lines) > 5
        return _BOOT.replace("@INSTALL@", "\n".join(lines))

    def _environment(self, base: Path) -> dict[str, str]:
        packages = next(path for path in sys.path if path.endswith("/site-packages"))
        return {
            "BASE": f"{base}",
            "SHARED": f"{self._shared}",
            "SITE": packages,
            "SYSTEMD": SYSTEMD,
            "PYTHON": Path(packages).parent.name,
        }

    def _await(self, outer: subprocess.Popen[bytes], base: Path) -> int:
        """The process id of systemd, once what it starts by itself has started."""
        deadline = time.monotonic() + _START_S
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        while time.monotonic() < deadline and outer.poll() is None:
            time.sleep(0.1)
            with contextlib.suppress(OSError, ValueError, LookupError, AssertionError):
                self.pid = int(children.read_text().split()[0])
                if Path(f"/proc/{self.pid}/comm").read_text() == "systemd\n":
                    self.run("systemctl", "is-active", "multi-user.target")
                    return self.pid
        raise AssertionError(f"systemd did not start: {(base / 'log').read_text()[-2000:]}")


def _matches(pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
    return pattern.finditer(GUIDE.read_text())


def _cgroup(resources: contextlib.ExitStack) -> Path:
    """A control group for what is started here, which goes when all of it has ended."""
    folder = Path(tempfile.mkdtemp(prefix="casemate-systemd-", dir=_cgroup2()))
    resources.callback(_remove, folder)
    return folder


def _remove(folder: Path) -> None:
    deadline = time.monotonic() + 60
    for path in sorted(folder.rglob("*"), reverse=True):
        while path.is_dir() and path.exists():
            try:
                path.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
    folder.rmdir()
