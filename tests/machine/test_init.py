"""What init and the start of the enclave have made of a real machine, seen from inside process 1.

The image is the one that serves, but for ``boot.py``: it looks around just before the enclave
confines its system calls, and says what it found as counts of events, the one way out there is.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
from typing import TYPE_CHECKING

import pytest

from casemate_devkit.eif.build import Parts, build
from casemate_devkit.eif.profile import Profile
from casemate_devkit.pki import NitroPki
from casemate_devkit.staging.files import link_tree
from casemate_devkit.supervision import EventRelay
from casemate_devkit.vm.__main__ import BOOTS, CID, serves
from casemate_devkit.vm.machine import WRONG_TIME, Machine
from casemate_devkit.vm.toolbox import Toolbox
from casemate_devkit.vm.vsock import Vsock
from tests.support.deployment import ROOT, VM

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.integration, pytest.mark.slow]
MINUTES_S = 10 * 60
END = "    raise SystemExit(main())\n"
PROBE = """
    import time
    from casemate_enclave import __main__ as enclave

    said = os.dup(2)
    confine = enclave.confine_calls

    def looks_around(form):
        flags = {path: os.statvfs(path).f_flag for path in ("/", "/dev", "/proc", "/sys")}
        facts = (
            os.getpid() == 1,
            os.getresuid() == os.getresgid() == (65534,) * 3,
            os.getgroups() == [],
            flags["/"] & os.ST_RDONLY,
            flags["/dev"] & os.ST_RDONLY,
            flags["/sys"] & os.ST_RDONLY,
            flags["/proc"] & os.ST_NOEXEC,
            set(os.environ) == set(_ENVIRONMENT),
        )
        bits = sum(1 << place for place, fact in enumerate(facts) if fact)
        os.write(said, b'{"event":"UNSAFE_FORM","count":%d}\\n' % bits)
        os.write(said, b'{"event":"DRAINING","count":%d}\\n' % int(time.time()))
        return confine(form)

    enclave.confine_calls = looks_around
"""
FACTS = (
    *("process 1", "nobody", "no groups", "sealed root", "sealed devices", "sealed sysfs"),
    *("nothing runs from proc", "no environment"),
)


class Seen:
    """One boot: the facts found inside, the clock there, and what the module was asked."""

    def __init__(self, tree: Path, folder: Path) -> None:
        changed = folder / "tree"
        link_tree(tree, changed)
        boot = (changed / "app/boot.py").read_text()
        assert boot.endswith(END)
        (changed / "app/boot.py").unlink()
        (changed / "app/boot.py").write_text(boot.removesuffix(END) + PROBE + END)
        tools = Toolbox.open(VM / "tools")
        parts = Parts(tree=changed, kernel=tools.kernel, drivers=tools.drivers)
        build(parts, Profile.load(ROOT / "docker/eif/qemu.toml"), folder / "probe.eif")
        self.asked: list[bytes] = []
        self.events: dict[str, int] = {}
        assert any(self._boots(folder / "probe.eif", tools) for _ in range(BOOTS))

    def _boots(self, eif: Path, tools: Toolbox) -> bool:
        sink, machine = io.StringIO(), Machine(eif, NitroPki.create(), tools)
        answer = machine.nsm.handle

        def asked(request: bytes) -> bytes:
            self.asked.append(request)
            return answer(request)

        machine.nsm.handle = asked  # type: ignore[method-assign]
        with contextlib.ExitStack() as resources:
            vsock = resources.enter_context(Vsock(tools, [CID]))
            events = resources.enter_context(EventRelay(sink))
            machine.boot(vsock.device(CID), events.stream)
            resources.callback(machine.stop)
            served = serves(machine, events)
        lines = [json.loads(line) for line in sink.getvalue().splitlines()]
        self.events = {line["event"]: line.get("count", 0) for line in lines}
        return served


@pytest.fixture(scope="module")
def seen(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return Seen(tree, tmp_path_factory.mktemp("probe"))


@pytest.mark.parametrize("place", range(len(FACTS)), ids=FACTS)
def test_h12_before_it_serves_the_machine_is_sealed_and_root_is_gone(
    seen: Seen, place: int
) -> None:
    assert seen.events["UNSAFE_FORM"] >> place & 1


def test_h10_the_machines_own_clock_is_the_devices(seen: Seen) -> None:
    """The hypervisor had set it to 2001."""
    assert WRONG_TIME.startswith("2001-")
    assert abs(seen.events["DRAINING"] - time.time()) < MINUTES_S


def test_the_kernels_randomness_came_from_the_module(seen: Seen) -> None:
    """Linux's driver asks for some, too; that the enclave does is unit/enclave/test_main.py's."""
    assert [request for request in seen.asked if b"GetRandom" in request]
