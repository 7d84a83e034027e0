"""The AWS credentials that the host hands to its enclave.

The file has the form that a ``credential_process`` of AWS prints: a JSON object
with ``Version`` 1, ``AccessKeyId``, ``SecretAccessKey`` and, for temporary ones, ``SessionToken``
and ``Expiration`` (RFC 3339). They let the enclave speak to KMS; alone they release no key.
"""

from __future__ import annotations

import hmac
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn

from casemate import cbor, limits
from casemate.errors import CasemateError, Code

if TYPE_CHECKING:
    from pathlib import Path

_REQUIRED: Final = frozenset({"Version", "AccessKeyId", "SecretAccessKey"})
_OPTIONAL: Final = frozenset({"SessionToken", "Expiration"})


class Credentials:
    """One set of credentials: redacted, not picklable, compared in constant time."""

    __slots__ = ("_payload", "expires")

    def __init__(self, payload: bytes, expires: int | None) -> None:
        """``payload``: SPEC 9.3 type 2; ``expires``: milliseconds, or None."""
        self._payload = payload
        self.expires = expires

    @classmethod
    def load(cls, path: Path) -> Credentials:
        """Read the file; raises CasemateError(INVALID_ARGUMENT), which never quotes it."""
        try:
            with path.open("rb") as file:
                data = file.read(limits.CREDENTIALS_MAX + 1)
        except OSError as error:
            raise _refused(f"cannot be read: {error.strerror}") from None
        return cls.parse(data)

    @classmethod
    def parse(cls, data: bytes) -> Credentials:
        """Parse the file's bytes; raises CasemateError(INVALID_ARGUMENT)."""
        fields = _read_json(data)
        expires = _milliseconds(fields.get("Expiration"))
        payload = {
            "access_key_id": fields["AccessKeyId"],
            "secret_access_key": fields["SecretAccessKey"],
            "session_token": fields.get("SessionToken"),
            "expires": expires,
        }
        return cls(cbor.encode(payload), expires)

    def reveal(self) -> bytes:
        """Return the frame's payload, to be sent and forgotten."""
        return self._payload

    def same_as(self, other: Credentials | None) -> bool:
        """Whether ``other`` holds the same credentials."""
        return other is not None and hmac.compare_digest(self._payload, other._payload)  # noqa: SLF001 - own class

    def __repr__(self) -> str:
        return "Credentials(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("credentials are not pickled")


def _read_json(data: bytes) -> dict[str, Any]:
    try:
        if len(data) > limits.CREDENTIALS_MAX:
            raise ValueError  # noqa: TRY301 - one refusal for all that is not such an object
        fields = json.loads(data)
    except (ValueError, RecursionError):
        raise _refused("not a JSON object as a credential_process prints") from None
    if not isinstance(fields, dict) or not fields.keys() >= _REQUIRED:
        raise _refused("lacks Version, AccessKeyId or SecretAccessKey")
    if fields.keys() - _REQUIRED - _OPTIONAL or fields.pop("Version") != 1:
        raise _refused("unknown keys, or a Version other than 1")
    if not all(isinstance(value, str) and value and value.isascii() for value in fields.values()):
        raise _refused("a value is not a non-empty ASCII text")
    return fields


def _milliseconds(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise _refused("Expiration is not an RFC 3339 time") from None
    if moment.tzinfo is None:
        raise _refused("Expiration has no time zone")
    milliseconds = int(moment.astimezone(UTC).timestamp() * 1000)
    return max(0, milliseconds)


def _refused(detail: str) -> CasemateError:
    return CasemateError(Code.INVALID_ARGUMENT, f"credentials file: {detail}")
