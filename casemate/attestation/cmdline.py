"""The enclave's command line: what runs and what is measured, in one place (SPEC 4.3).

Whoever starts an enclave from a staged tree and whoever measures one take it from here.
"""

from __future__ import annotations

from typing import Final

PROCESS: Final = "process"
UNSAFE_PROCESS: Final = "unsafe-process"
FORMS: Final = (PROCESS, "container", UNSAFE_PROCESS)  # those that run a staged tree

# Forms that an enclave image boots in, and the context id under which each finds its parent: a
# Nitro enclave is started by an instance, which is 3; the hypervisor's own host is 2.
PARENT_CID: Final = {"nitro-enclave": 3, "vm": 2}

INTERPRETER: Final = "/usr/bin/python3"
RUN: Final = "/run/casemate"
NSM: Final = "/run/nsm"
ENCLAVE_PORT: Final = 5000
EGRESS_PORT: Final = 5001
_ANY_CID: Final = 0xFFFFFFFF  # VMADDR_CID_ANY


def enclave_cmdline(form: str) -> tuple[str, ...]:
    """The argument vector of the enclave in ``form``; raises ValueError for a form without a tree.

    ``-I -S`` keep environment, working directory and site hooks out; without ``pycache_prefix`` a
    forged ``__pycache__`` file would run in place of the measured source, whatever ``-B`` says.
    """
    if form not in FORMS:
        raise ValueError(f"no staged tree runs as {form!r}")
    return (
        *_started("boot"),
        *("--listen", f"unix:{RUN}/enclave.sock"),
        *("--egress", f"unix:{RUN}/egress.sock"),
        *("--nsm", f"unix:{NSM}/nsm.sock"),
        *("--form", form),
    )


def image_cmdline(form: str, first: str = "init") -> tuple[str, ...]:
    """The argument vector inside an enclave image that boots in ``form`` (SPEC 4.4).

    ``first`` is the module that runs first: ``init`` as process 1, or ``boot`` where an image
    brings an init of its own. Raises ValueError for a form that no image boots in.
    """
    if form not in PARENT_CID:
        raise ValueError(f"no enclave image boots as {form!r}")
    return (
        *_started(first),
        *("--listen", f"vsock:{_ANY_CID}:{ENCLAVE_PORT}"),
        *("--egress", f"vsock:{PARENT_CID[form]}:{EGRESS_PORT}"),
        *("--nsm", "/dev/nsm"),
        *("--form", form),
    )


def _started(module: str) -> tuple[str, ...]:
    flags = ("-I", "-S", "-B", "-X", "pycache_prefix=/nonexistent")
    return (INTERPRETER, *flags, f"/app/{module}.py")
