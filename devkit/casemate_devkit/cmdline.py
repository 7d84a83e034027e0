"""The enclave's command line, as everyone who measures it knows it (SPEC 4.3)."""

from __future__ import annotations

from casemate.attestation.cmdline import (
    FORMS,
    INTERPRETER,
    NSM,
    PROCESS,
    RUN,
    UNSAFE_PROCESS,
    enclave_cmdline,
)

__all__ = ["FORMS", "INTERPRETER", "NSM", "PROCESS", "RUN", "UNSAFE_PROCESS", "enclave_cmdline"]
