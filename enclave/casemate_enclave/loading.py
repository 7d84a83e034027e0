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
    from casemate.sealed_model import ModelHeader
    from casemate_enclave.dispatch import Exchange
    from casemate_enclave.registry import ModelRegistry
    from casemate_kms.models import KeyReleaser

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

    def load(self, size: int, exchange: Exchange, replaces: int | None = None) -> ModelHeader:
        """Load the sealed file of ``size`` bytes that follows on the connection, and serve it.

        In the same step the version ``replaces`` of the same name is unloaded.
        Raises CasemateError with the code of the step that failed, after the file's last frame:
        the host sends to the end before it reads the answer.
        """
        if not 0 < size <= self._largest:
            raise ConnectionEndError(Code.TOO_LARGE, f"{size} bytes, limit {self._largest}")
        data = exchange.model_data(size)
        try:
            return self._take(data, exchange.deadline, replaces)
        except CasemateError:
            for _ in data:
                pass
            raise

    def _take(
        self, data: Iterator[memoryview], deadline: float, replaces: int | None
    ) -> ModelHeader:
        if self._kms is None:
            raise KeyReleaseError(Code.KEY_RELEASE_UNAVAILABLE, "no key release is configured")
        if not self._busy.acquire(blocking=False):
            raise CasemateError(Code.OVERLOADED, "another model is being loaded")
        try:
            with self._models.loading(replaces) as loading:
                opened = open_sealed_model(
                    data,
                    configuration=self._configuration,
                    kms=self._kms,
                    deadline=deadline,
                    admit=loading.admit,
                )
                loading.serve(opened)
        finally:
            self._busy.release()
        return opened.header
