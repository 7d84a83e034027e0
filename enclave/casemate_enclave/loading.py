"""Taking a sealed model from the host: streamed, opened, loaded (SPEC 8.3, 9.3)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from casemate import limits
from casemate.errors import CasemateError, Code, KeyReleaseError
from casemate.sealed_model import ModelReader
from casemate_kms.models import open_sealed_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate.attestation.structures import Configuration
    from casemate.sealed_model import ModelHeader
    from casemate_enclave.dispatch import Exchange
    from casemate_enclave.registry import ModelRegistry
    from casemate_enclave.service import KeyReleaser
