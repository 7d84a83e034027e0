"""KMS operations that go to moto unchanged, once the request's signature and the policy allow it.

The list is closed. None of these takes a Recipient, returns a symmetric key or anything encrypted
under one, or makes a key that answers to another policy.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from botocore import xform_name
from moto.core.exceptions import JsonRESTError
from moto.kms.responses import KmsResponse

from casemate_devkit.kms.errors import KmsError
from casemate_devkit.kms.parameters import encode_answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from moto.kms.models import KmsBackend

    from casemate_devkit.kms.access import Call, KeyAccess
    from casemate_devkit.kms.keys import KeyStore

Answer = dict[str, Any]

_READING: Final = (
    "GenerateMac",
    "ListKeyPolicies",
    "ListKeyRotations",
    "ListResourceTags",
    "Sign",
    "Verify",
    "VerifyMac",
)
_CHANGING: Final = ("TagResource", "UntagResource", "UpdateKeyDescription")


class MotoOperations:
    """Authorises by the key's policy as everything is, then lets moto answer."""

    def __init__(self, keys: KeyStore, access: KeyAccess) -> None:
        self._keys = keys
        self._access = access
        self.operations: dict[str, Callable[[Call], Answer]] = {
            "ListRetirableGrants": self._without_key,
            **dict.fromkeys(_READING, self._with_key),
            **dict.fromkeys(_CHANGING, self._changing),
        }

    def _with_key(self, call: Call) -> Answer:
        key = self._access.permitted(call)
        # The key that was judged, by its ARN: an alias could have been moved meanwhile.
        given = dict(call.parameters) | {"KeyId": key.arn}
        return _ask(call.operation, given, self._keys.home(key))

    def _changing(self, call: Call) -> Answer:
        with self._keys.changing():
            return self._with_key(call)

    def _without_key(self, call: Call) -> Answer:
        backend = self._keys.backend(call.principal.account, call.region)
        return _ask(call.operation, dict(call.parameters), backend)


class _Response(KmsResponse):
    """moto's own handlers, over a backend of the double's."""

    def __init__(self, backend: KmsBackend, body: bytes) -> None:
        super().__init__()
        self._backend = backend
        self.body = body
        self.region = backend.region_name
        self.current_account = backend.account_id

    @property
    def kms_backend(self) -> KmsBackend:
        return self._backend


def _ask(operation: str, parameters: dict[str, Any], backend: KmsBackend) -> Answer:
    """Return moto's answer; blobs in it are base64 already. Raises KmsError with moto's error."""
    response = _Response(backend, encode_answer(parameters))
    try:
        answer: Answer | None = json.loads(getattr(response, xform_name(operation))())
    except JsonRESTError as error:
        raise KmsError(error.error_type, str(error.message), status=error.code) from None
    return answer or {}
