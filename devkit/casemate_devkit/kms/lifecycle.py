"""Key states, as AWS's table of key states has them, and the operations that change them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from casemate_devkit.kms.errors import KmsError, Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate_devkit.kms.access import Call, KeyAccess
    from casemate_devkit.kms.keys import KeyStore, KmsKey

Answer = dict[str, Any]

# What works whatever the state is.
_ALWAYS: Final = {
    "DeleteAlias",
    "DescribeKey",
    "GetKeyPolicy",
    "ListAliases",
    "ListGrants",
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
_DAY_S: Final = 86_400


def check_state(key: KmsKey, operation: str) -> None:
    """Refuse ``operation`` in a state that forbids it."""
    if operation == "CancelKeyDeletion":
        if key.state != "PendingDeletion":
            raise _state("KMSInvalidStateException", f"{key.arn} is not pending deletion.")
        return
    if operation in _ALWAYS or key.state == "Enabled":
        return
    if key.state == "PendingDeletion":
        raise _state("KMSInvalidStateException", f"{key.arn} is pending deletion.")
    if operation not in _UNLESS_PENDING:
        raise _state("DisabledException", f"{key.arn} is disabled.")


def _state(kind: str, text: str) -> KmsError:
    return KmsError(kind, text, Reason("state", text))


class Lifecycle:
    """Enabling, disabling, deleting, rotating and describing keys."""

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
            "ListResourceTags": self._list_tags,
            "RotateKeyOnDemand": self._rotate,
            "ScheduleKeyDeletion": self._schedule_deletion,
            "TagResource": self._tag,
            "UntagResource": self._untag,
            "UpdateKeyDescription": self._describe,
        }

    def _enable(self, call: Call) -> Answer:
        return self._set_state(call, "Enabled")

    def _disable(self, call: Call) -> Answer:
        return self._set_state(call, "Disabled")

    def _set_state(self, call: Call, state: str) -> Answer:
        key = self._access.permitted(call)
        with self._keys.changing():
            key.state, key.deletion = state, None
        return {}

    def _cancel_deletion(self, call: Call) -> Answer:
        self._set_state(call, "Disabled")
        return {"KeyId": call.keys[-1]}

    def _schedule_deletion(self, call: Call) -> Answer:
        key = self._access.permitted(call)
        days = call.parameters.get("PendingWindowInDays", _WINDOW_DAYS)
        date = time.time() + days * _DAY_S
        with self._keys.changing():
            key.state, key.deletion = "PendingDeletion", date
        return {
            "KeyId": key.arn,
            "DeletionDate": date,
            "KeyState": key.state,
            "PendingWindowInDays": days,
        }

    def _rotation(self, call: Call) -> Answer:
        key = self._symmetric(call)
        with self._keys.changing():
            key.rotates = call.operation == "EnableKeyRotation"
            key.rotation_days = call.parameters.get("RotationPeriodInDays", key.rotation_days)
        return {}

    def _rotation_status(self, call: Call) -> Answer:
        key = self._access.permitted(call)
        answer = {"KeyId": key.arn, "KeyRotationEnabled": key.rotates}
        if key.rotates:
            answer["RotationPeriodInDays"] = key.rotation_days
        return answer

    def _rotate(self, call: Call) -> Answer:
        key = self._symmetric(call)
        self._keys.rotate(key)
        return {"KeyId": key.arn}

    def _symmetric(self, call: Call) -> KmsKey:
        key = self._access.permitted(call)
        if key.agreement_key is not None:
            raise KmsError("UnsupportedOperationException", "The key is not symmetric.")
        return key

    def _describe(self, call: Call) -> Answer:
        key = self._access.permitted(call)
        with self._keys.changing():
            key.description = call.parameters["Description"]
        return {}

    def _tag(self, call: Call) -> Answer:
        key = self._access.permitted(call)
        with self._keys.changing():
            key.tags |= {item["TagKey"]: item["TagValue"] for item in call.parameters["Tags"]}
        return {}

    def _untag(self, call: Call) -> Answer:
        key = self._access.permitted(call)
        with self._keys.changing():
            for name in call.parameters["TagKeys"]:
                key.tags.pop(name, None)
        return {}

    def _list_tags(self, call: Call) -> Answer:
        key = self._access.permitted(call)
        tags = [{"TagKey": name, "TagValue": value} for name, value in key.tags.items()]
        return {"Tags": tags, "Truncated": False}
