"""The enclave's own machine (SPEC 4.5): each step of init and of the process off, and of signing."""

from __future__ import annotations

from functools import partial

from tests.mutants.mutant import Mutant

_PROCESS_TESTS = ("tests/unit/enclave/test_main.py", "tests/unit/enclave/test_hardening.py")
_process = partial(Mutant, tests=_PROCESS_TESTS, package="enclave/casemate_enclave")
_init = partial(
    Mutant, file="init.py", tests=("tests/unit/enclave/test_init.py",), package="enclave"
)
_boots = partial(
    Mutant,
    file="vm/__main__.py",
    tests=("tests/unit/devkit/vm/test_boots.py",),
    package="devkit/casemate_devkit",
)
_signing = partial(
    Mutant,
    file="eif/signing.py",
    tests=("tests/security/test_image_signing.py",),
    package="devkit/casemate_devkit",
)
_MAIN = "__main__.py"
_SERVER = "server.py"
_HARDENING = "hardening.py"

# fmt: off
MUTANTS = (
    _process("machine: gives up root", _MAIN, "        give_up_root()\n", "        pass\n"),
    _process("machine: sets its clock", _MAIN, "        set_wall_clock(assembly.clock.stated)\n", "        pass\n"),
    _process("machine: stirs randomness", _MAIN, "        seed_kernel(nsm)\n", "        pass\n"),
    _process("machine: not before confined", _MAIN, "        if not confined.enough_for(arguments.form):", "        if False:"),
    _process("machine: workers confined", _MAIN, "(confinement, spawner.greeting.confinement)", "(confinement,)"),
    _process("parent: from the command line", _MAIN, "egress.cid if isinstance(egress, VsockAddress) else None", "None"),
    _process("parent: asked for", _SERVER, "if channel.family != socket.AF_UNIX and not self._is_parent(peer):", "if False:"),
    _process("parent: the one", _SERVER, "and peer[0] == self._parent", ""),
    _process("told to end: by no error", _MAIN, "lambda *_: server.end())", "lambda *_: sys.exit(0))"),
    _process("told to end: again", _MAIN, "        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # told again: without a grace\n", ""),
    _process("told to end: wakes", _SERVER, "        self._stopping = True\n        _hang_up(self._listener)\n\n    def finish", "        _hang_up(self._listener)\n\n    def finish"),
    _process("root: the user", _HARDENING, "    os.setresuid(_NOBODY, _NOBODY, _NOBODY)\n", ""),
    _process("root: for good", _HARDENING, "    os.setresuid(_NOBODY, _NOBODY, _NOBODY)\n", "    os.seteuid(_NOBODY)\n"),
    _process("root: the group", _HARDENING, "    os.setresgid(_NOBODY, _NOBODY, _NOBODY)\n", ""),
    _process("root: its groups", _HARDENING, "    os.setgroups([])\n", ""),
    _init("init: seals the mounts", old="    for target, flags in _SEALED:", new="    for target, flags in ():"),
    _init("init: read-only", old="_REMOUNT | _BIND | _RDONLY | flags", new="_REMOUNT | _BIND | flags"),
    _init("init: waits for the module", old="    await_device()\n", new=""),
    _init("init: heartbeat", old="    if _NITRO in arguments:", new="    if False:"),
    _init("init: heartbeat comes back", old="if channel.recv(1) == _HEARTBEAT:", new="if True:"),
    _init("init: no environment", old="os.execve(sys.executable, command, {})", new="os.execve(sys.executable, command, dict(os.environ))"),
    _init("init: says an event", old="""sys.stderr.write(f'{{"event":"FAILED","count":{error.errno or 0}}}\\n')""", new="sys.stderr.write(str(error))"),
    _boots("boot: one retry", old="BOOTS: Final = 2", new="BOOTS: Final = 1"),
    _boots("boot: ends what hangs", old="    resources.callback(machine.stop)\n", new=""),
    _signing("signing: verifies what it writes", old="        public.verify(encoded, message, ec.ECDSA(algorithm))\n", new="        pass\n"),
    _signing("signing: whose fault", old="    if kind in _NOT_THIS_KEY:", new="    if False:"),
    _signing("signing: not now", old="    if failed or kind in _NOT_NOW:", new="    if False:"),
)
