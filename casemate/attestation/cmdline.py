"""The enclave's command line: what runs and what is measured, in one place (SPEC 4.3).

Whoever starts an enclave from a staged tree and whoever measures one take it from here.
"""

from __future__ import annotations

from typing import Final

PROCESS: Final = "process"
UNSAFE_PROCESS: Final = "unsafe-process"
FORMS: Final = (PROCESS, "container", UNSAFE_PROCESS)  # those that run a staged tree

INTERPRETER: Final = "/usr/bin/python3"
RUN: Final = "/run/casemate"
NSM: Final = "/run/nsm"


def enclave_cmdline(form: str) -> tuple[str, ...]:
    """The argument vector of the enclave in ``form``; raises ValueError for a form without a tree.

    ``-I -S`` keep environment, working directory and site hooks out; without ``pycache_prefix`` a
    forged ``__pycache__`` file would run in place of the measured source, whatever ``-B`` says.
    """
    if form not in FORMS:
        raise ValueError(f"no staged tree runs as {form!r}")
    return (
        *(INTERPRETER, "-I", "-S", "-B", "-X", "pycache_prefix=/nonexistent", "/app/boot.py"),
        *("--listen", f"unix:{RUN}/enclave.sock"),
        *("--egress", f"unix:{RUN}/egress.sock"),
        *("--nsm", f"unix:{NSM}/nsm.sock"),
        *("--form", form),
    )
