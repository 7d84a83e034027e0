"""Taking a sealed model from the host: streamed, opened, loaded (SPEC 8.3, 9.3)."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from casemate import limits
from casemate.errors import CasemateError, Code, KeyReleaseError
from casemate_enclave.dispatch import ConnectionEndError
from casemate_kms.models import open_sealed_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate.attestation.structures import Configuration
    from casemate_enclave.dispatch import Exchange
    from casemate_enclave.registry import ModelRegistry
    from casemate_kms.models import KeyReleaser, OpenedModel

_TAG_BYTES = 16
_AROUND = 8 + 4 + limits.MODEL_HEADER_MAX + 4 + 64  # magic, header and signature with their lengths


class ModelLoader:
    """Loads one model at a time, so that memory holds at most one that is not yet served."""

    def __init__(
        self, configuration: Configuration, kms: KeyReleaser | None, models: ModelRegistry
    ) -> None:
        self._configuration = configuration
        self._kms = kms
        self._models = models
        self._busy = threading.Lock()
        contents = configuration.limits.model_bytes
        chunks = -(-contents // limits.CHUNK)
        self._largest = contents + chunks * _TAG_BYTES + _AROUND

    def load(self, size: int, exchange: Exchange) -> OpenedModel:
        """Load the sealed file of ``size`` bytes that follows on the connection, and serve it.

        Raises CasemateError with the code of the step that failed, after the file's last frame:
        the host sends to the end before it reads the answer.
        """
        if not 0 < size <= self._largest:
            raise ConnectionEndError(Code.TOO_LARGE, f"{size} bytes, limit {self._largest}")
        data = exchange.model_data(size)
        try:
            return self._take(data, exchange.deadline)
        except CasemateError:
            for _ in data:
                pass
            raise

    def _take(self, data: Iterator[memoryview], deadline: float) -> OpenedModel:
        if self._kms is None:
            raise KeyReleaseError(Code.KEY_RELEASE_UNAVAILABLE, "no key release is configured")
        if not self._busy.acquire(blocking=False):
            raise CasemateError(Code.OVERLOADED, "another model is being loaded")
        try:
            self._models.check_room()
            opened = open_sealed_model(
                data, configuration=self._configuration, kms=self._kms, deadline=deadline
            )
            self._models.add(opened)
        finally:
            self._busy.release()
        return opened
