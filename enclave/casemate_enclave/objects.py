"""Sealed data, opened for a reader whom its owner listed, for a model likewise (SPEC 8.7)."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from casemate.errors import Code, KeyReleaseError, ObjectError, RequestError
from casemate.kms_context import object_context
from casemate.sealed_data import SealedData

if TYPE_CHECKING:
    from casemate.sealed_data import DataHeader
    from casemate_enclave.unwraps import Unwraps


class ObjectOpener:
    """Opens sealed data; thread-safe. Its keys are not cached: a revoked one ends at once."""

    def __init__(self, audience: str, unwraps: Unwraps) -> None:
        self._audience = audience
        self._unwraps = unwraps

    def open(
        self,
        message: memoryview,
        named: bytes,
        *,
        caller: bytes | None,
        model: bytes,
        deadline: float,
    ) -> memoryview:
        """Return the tensors in ``message``, the sealed object with ``H(m)`` = ``named``.

        ``caller`` is verified, ``model`` the served model's digest. Raises ObjectError,
        RequestError (CALLER_REFUSED), KeyReleaseError, in the order of SPEC 8.7.
        """
        sealed = SealedData.parse(message)
        if not hmac.compare_digest(sealed.digest, named):
            raise ObjectError(Code.OBJECT_MALFORMED, "not the object that the request names")
        self._check(sealed.header, caller, model)
        return sealed.open(self._release(sealed.header, deadline))

    def _check(self, header: DataHeader, caller: bytes | None, model: bytes) -> None:
        """Judge what the object says of itself; only its key, afterwards, proves that it does."""
        if header.audience != self._audience:
            raise ObjectError(Code.OBJECT_REFUSED, "the data is for another audience")
        if caller is None or caller not in header.readers:
            raise RequestError(Code.CALLER_REFUSED, "the data's owner does not list this caller")
        if model not in header.models:
            raise ObjectError(Code.OBJECT_REFUSED, "the data's owner does not list this model")

    def _release(self, header: DataHeader, deadline: float) -> bytes:
        try:
            return self._unwraps.release(
                header.kms_key, header.wrapped_key, object_context(self._audience), deadline
            )
        except KeyReleaseError as error:
            if error.code is Code.MALFORMED:  # the header names a key that is not for this enclave
                detail = f"sealed data: {error.detail}"
                raise ObjectError(Code.OBJECT_REFUSED, detail) from None
            raise
