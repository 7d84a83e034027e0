"""AWS credentials as the host hands them in (SPEC 9.3, type 2)."""

from __future__ import annotations

from dataclasses import dataclass

from casemate import limits
from casemate.envelope.guard import Guarded
from casemate.errors import Code, KeyReleaseError


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Credentials(Guarded):
    """They sign requests; what they allow, KMS decides together with the document.

    ``expires`` in milliseconds (SPEC 1.5), or None. Raises KeyReleaseError(MALFORMED) for text that
    cannot stand in an HTTP header.
    """

    access_key_id: str
    secret_access_key: str
    session_token: str | None
    expires: int | None

    def __post_init__(self) -> None:
        for name in ("access_key_id", "secret_access_key", "session_token"):
            value = getattr(self, name)
            if value is None and name == "session_token":
                continue
            if not 0 < len(value) <= limits.CREDENTIAL_MAX or not _plain(value):
                raise KeyReleaseError(
                    Code.MALFORMED, f"{name} is empty, too long or not plain text"
                )


def _plain(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text
