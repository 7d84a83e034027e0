"""One boot of an enclave image in QEMU: its parts as measured, a fresh module, a vsock of its own.

QEMU is the hypervisor here, so whoever runs it can do anything to the enclave; what this shows is
that the image boots and serves by the drivers and the init that it has, not that it is isolated.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from casemate.attestation.measurement import Measurement
from casemate_devkit.eif import image
from casemate_devkit.eif.build import measured
from casemate_devkit.errors import DevkitError
from casemate_devkit.nsm import SimulatedNsm, boot_registers
from casemate_devkit.vm import child
from casemate_devkit.vm.nsm_device import VIRTIO_ID, NsmBackend

if TYPE_CHECKING:
    from casemate_devkit.pki import NitroPki
    from casemate_devkit.vm.toolbox import Toolbox

WRONG_TIME: Final = "2001-02-03T04:05:06"
MEMORY_MIB: Final = 1536  # the image twice, as archive and unpacked, and the enclave
_NOMINAL: Final = re.compile(r"^model name\s*:.*@ ([0-9.]+)GHz", re.MULTILINE)
_PRESENT: Final = re.compile(r"^cpu MHz\s*:\s*([0-9.]+)", re.MULTILINE)
# Emulated, a string instruction copies one byte at a time; without these two features kernel and C
# library copy words, and a boot takes two thirds of the processor's time.
_PROCESSOR: Final = "max,-erms,-fsrm"
_PARTS: Final = {image.KERNEL: "kernel", image.CMDLINE: "cmdline", image.RAMDISK: "initrd"}


class Machine:
    """A context manager: entering boots the image, leaving ends the machine at once.

    ``measurement`` is the image's, ``nsm`` the module of this one boot, ``pid`` QEMU's.
    """

    def __init__(
        self,
        eif: Path,
        pki: NitroPki,
        tools: Toolbox,
        *,
        debug: bool = False,
    ) -> None:
        """Measure the image; raises EvidenceError (MALFORMED) if it is none."""
        found = measured(eif)
        self.measurement = Measurement(found.pcr0, found.pcr1, found.pcr2)
        registers = boot_registers(self.measurement, pki.instance_id, debug=debug)
        if found.pcr8 is not None and not debug:
            registers[8] = found.pcr8
        self.nsm = SimulatedNsm(pki, registers)
        self.pid = 0
        self._eif, self._tools = eif, tools
        self._resources = contextlib.ExitStack()
        self._qemu: subprocess.Popen[bytes] | None = None

    def boot(self, vsock: Path, console: child.Stream) -> Self:
        """Start it, once; ``vsock`` is the socket of its vsock device.

        ``console`` takes what the guest prints: the enclave's events, and the kernel's last words.
        """
        with contextlib.ExitStack() as resources:
            folder = Path(tempfile.mkdtemp(prefix="casemate-vm-"))  # mode 0700
            resources.callback(shutil.rmtree, folder, ignore_errors=True)
            _unpack(self._eif, folder)
            resources.enter_context(NsmBackend(self.nsm, folder / "nsm.sock"))
            self._qemu = child.start(
                [*self._tools.emulator, *_options(folder, vsock)],
                output=console,
                environment=self._tools.environment,
            )
            resources.callback(child.end, self._qemu)
            self.pid = self._qemu.pid
            self._resources = resources.pop_all()
        return self

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait until the machine has ended; raises TimeoutError while it runs on."""
        if self._qemu is None:
            raise DevkitError("the machine was not started")
        try:
            return self._qemu.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError("the machine still runs") from None

    def running(self) -> bool:
        """Whether it still runs."""
        return self._qemu is not None and self._qemu.poll() is None

    def processor_s(self) -> float:
        """How long it has computed so far, in seconds of one processor; 0 when it has ended."""
        try:
            facts = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8")
        except OSError:
            return 0.0
        user, system = facts.rpartition(")")[2].split()[11:13]  # proc_pid_stat(5): 14 and 15
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """End it at once, as a hypervisor does; idempotent."""
        self._resources.close()


def _unpack(eif: Path, folder: Path) -> None:
    """Write the image's parts as QEMU takes them: what was measured, byte for byte."""
    with eif.open("rb") as file:
        for section in image.sections(file):
            if section.kind in _PARTS:
                with (folder / _PARTS[section.kind]).open("ab") as sink:
                    image.copy(file, section, sink)


def _options(folder: Path, vsock: Path) -> list[str]:
    cmdline = (folder / "cmdline").read_text(encoding="ascii")
    # The one word that is not measured. Emulated, the time stamp counter is this machine's; a busy
    # machine makes a kernel that calibrates it by itself hang at boot.
    hint = f"tsc_early_khz={processor_khz()}"
    memory = f"{MEMORY_MIB}M"
    return [
        *("-accel", "tcg,thread=multi", "-cpu", _PROCESSOR, "-smp", "1", "-m", memory),
        *("-M", "microvm,acpi=on,pit=on,pic=on,rtc=on,memory-backend=ram"),
        *("-object", f"memory-backend-memfd,id=ram,size={memory},share=on"),
        *("-chardev", f"socket,id=vsock,path={vsock}"),
        *("-device", "vhost-user-vsock-device,chardev=vsock"),
        *("-chardev", f"socket,id=nsm,path={folder / 'nsm.sock'}"),
        "-device",
        f"vhost-user-test-device,chardev=nsm,virtio-id={VIRTIO_ID},num_vqs=1,vq_size=64",
        *("-kernel", f"{folder / 'kernel'}", "-initrd", f"{folder / 'initrd'}"),
        *("-append", f"{hint} {cmdline}"),
        # A hypervisor sets this clock as it likes; the enclave must not care (THREATS H10).
        *("-rtc", f"base={WRONG_TIME}"),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"),
    ]


def processor_khz() -> int:
    """The rate of this machine's time stamp counter; raises DevkitError if it does not say."""
    facts = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    present = _PRESENT.search(facts)
    nominal = _NOMINAL.search(facts)
    if present is None and nominal is None:
        raise DevkitError("/proc/cpuinfo does not say how fast this processor is")
    mhz = float(present[1]) if present else 0.0
    if nominal is None:
        return round(mhz * 1000)
    # The name is rounded; the present rate is exact unless the processor saves power.
    named = float(nominal[1]) * 1000
    return round((mhz if abs(mhz - named) < named / 100 else named) * 1000)
