"""Key states, as AWS's table of key states has them, and the operations that change them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from casemate_devkit.kms.errors import KmsError, Reason
from casemate_devkit.kms.keys import SYMMETRIC

if TYPE_CHECKING:
    from collections.abc import Callable

    from moto.kms.models import Key

    from casemate_devkit.kms.access import Call, KeyAccess
    from casemate_devkit.kms.keys import KeyStore

Answer = dict[str, Any]

# What works whatever the state is.
_ALWAYS: Final = {
    "DeleteAlias",
    "DescribeKey",
    "GetKeyPolicy",
    "ListAliases",
    "ListGrants",
    "ListKeyPolicies",
    "ListKeyRotations",
    "ListResourceTags",
    "PutKeyPolicy",
    "RetireGrant",
    "RevokeGrant",
}
# What works on a disabled key, but not on one that waits for its deletion.
_UNLESS_PENDING: Final = {
    "CreateAlias",
    "DisableKey",
    "EnableKey",
    "GetKeyRotationStatus",
    "ScheduleKeyDeletion",
    "TagResource",
    "UntagResource",
    "UpdateAlias",
    "UpdateKeyDescription",
}
_WINDOW_DAYS: Final = 30


def check_state(key: Key, operation: str) -> None:
    """Refuse ``operation`` in a state that forbids it."""
    if operation == "CancelKeyDeletion":
        if key.key_state != "PendingDeletion":
            raise _state("KMSInvalidStateException", f"{key.arn} is not pending deletion.")
        return
    if operation in _ALWAYS or key.key_state == "Enabled":
        return
    if key.key_state == "PendingDeletion":
        raise _state("KMSInvalidStateException", f"{key.arn} is pending deletion.")
    if operation not in _UNLESS_PENDING:
        raise _state("DisabledException", f"{key.arn} is disabled.")


def _state(kind: str, text: str) -> KmsError:
    return KmsError(kind, text, Reason("state", text))


class Lifecycle:
    """Enabling, disabling, deleting and rotating keys."""

    def __init__(self, keys: KeyStore, access: KeyAccess) -> None:
        self._keys = keys
        self._access = access
        self.operations: dict[str, Callable[[Call], Answer]] = {
            "CancelKeyDeletion": self._cancel_deletion,
            "DisableKey": self._disable,
            "DisableKeyRotation": self._rotation,
            "EnableKey": self._enable,
            "EnableKeyRotation": self._rotation,
            "GetKeyRotationStatus": self._rotation_status,
            "RotateKeyOnDemand": self._rotate,
            "ScheduleKeyDeletion": self._schedule_deletion,
        }

    def _enable(self, call: Call) -> Answer:
        key = self._access.permitted(call)
        with self._keys.changing():
            self._keys.home(key).enable_key(key.id)
        return {}

    def _disable(self, call: Call) -> Answer:
        key = self._access.permitted(call)
        with self._keys.changing():
            self._keys.home(key).disable_key(key.id)
        return {}

    def _cancel_deletion(self, call: Call) -> Answer:
        key = self._access.permitted(call)
        with self._keys.changing():
            self._keys.home(key).cancel_key_deletion(key.id)
        return {"KeyId": key.arn}

    def _schedule_deletion(self, call: Call) -> Answer:
        key = self._access.permitted(call)
        days = call.parameters.get("PendingWindowInDays", _WINDOW_DAYS)
        with self._keys.changing():
            date = self._keys.home(key).schedule_key_deletion(key.id, days)
        return {
            "KeyId": key.arn,
            "DeletionDate": date,
            "KeyState": key.key_state,
            "PendingWindowInDays": days,
        }

    def _rotation(self, call: Call) -> Answer:
        key = self._symmetric(call)
        with self._keys.changing():
            key.key_rotation_status = call.operation == "EnableKeyRotation"
            beside = self._keys.beside(key)
            days = call.parameters.get("RotationPeriodInDays", beside.rotation_days)
            beside.rotation_days = days
        return {}

    def _rotation_status(self, call: Call) -> Answer:
        key = self._access.permitted(call)
        answer = {"KeyId": key.arn, "KeyRotationEnabled": key.key_rotation_status}
        if key.key_rotation_status:
            answer["RotationPeriodInDays"] = self._keys.beside(key).rotation_days
        return answer

    def _rotate(self, call: Call) -> Answer:
        key = self._symmetric(call)
        self._keys.rotate(key)
        return {"KeyId": key.arn}

    def _symmetric(self, call: Call) -> Key:
        key = self._access.permitted(call)
        if key.key_spec != SYMMETRIC:
            raise KmsError("UnsupportedOperationException", "The key is not symmetric.")
        return key
