"""What KMS answered: a key, a refusal, or something that is neither (SPEC 10.3)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    ProxyConnectionError,
    ReadTimeoutError,
    SSLError,
)

from casemate import limits
from casemate.envelope.guard import Guarded
from casemate.errors import Code, KeyReleaseError
from casemate.wire import KEY_BYTES
from casemate_kms.cms import open_enveloped

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import rsa

ALGORITHM: Final = "SYMMETRIC_DEFAULT"
_ERRORS: Final = 300
_TOO_MANY: Final = 429
_SERVER_ERROR: Final = 500
_NAME: Final = re.compile(r"[A-Za-z]{1,64}")

_DENIED: Final = frozenset({"AccessDenied", "AccessDeniedException"})
_BUSY: Final = frozenset(
    {
        "DependencyTimeoutException",
        "InternalFailure",
        "KMSInternalException",
        "KeyUnavailableException",
        "RequestLimitExceeded",
        "ServiceUnavailable",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
_EXPIRED: Final = frozenset({"ExpiredToken", "ExpiredTokenException"})

# First match decides; the last column: whether another attempt may end otherwise.
_FAILURES: Final[tuple[tuple[type[Exception], str, bool], ...]] = (
    (ProxyConnectionError, "not allowed to reach KMS", False),
    (EndpointConnectionError, "KMS cannot be reached", True),
    (SSLError, "TLS to KMS failed", False),
    (ReadTimeoutError, "KMS did not answer in time", True),
    (ConnectionClosedError, "the connection to KMS was closed", True),
)


class TransientError(KeyReleaseError):
    """KMS could not answer now; a further attempt with a fresh document may succeed."""


def refuse_plaintext(response_dict: dict[str, Any], **_event: object) -> None:
    """Handle ``before-parse``: an answer that bears any Plaintext is refused before it is parsed.

    botocore's base64 decoder drops foreign characters, which makes some values look empty.
    """
    if response_dict["status_code"] >= _ERRORS:
        return
    try:
        answer = json.loads(response_dict["body"])
        plaintext = answer.get("Plaintext")
    except (ValueError, AttributeError, RecursionError):
        raise invalid("KMS's answer cannot be read") from None
    if plaintext is not None and plaintext != "":
        raise invalid("KMS answered with a plaintext")


def released_key(answer: dict[str, Any], key_arn: str, private_key: rsa.RSAPrivateKey) -> bytes:
    """Return the candidate for a 32-byte data key; its commitment is still to be checked.

    Raises KeyReleaseError(KEY_RELEASE_INVALID).
    """
    if answer.get("KeyId") != key_arn:
        raise invalid("KMS answered for another key")
    if answer.get("EncryptionAlgorithm") != ALGORITHM:
        raise invalid("KMS answered with another algorithm")
    return _opened(answer, KEY_BYTES, private_key)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class GeneratedKey(Guarded):
    """A new 32-byte data key, and the same wrapped under the KMS key."""

    key: bytes
    ciphertext_blob: bytes


def generated_key(
    answer: dict[str, Any], key_arn: str, private_key: rsa.RSAPrivateKey
) -> GeneratedKey:
    """Return the data key that KMS made; raises KeyReleaseError(KEY_RELEASE_INVALID)."""
    if answer.get("KeyId") != key_arn:
        raise invalid("KMS answered for another key")
    blob = answer.get("CiphertextBlob")
    if not isinstance(blob, bytes) or not 0 < len(blob) <= limits.CIPHERTEXT_BLOB_MAX:
        raise invalid("KMS answered without a wrapped key")
    return GeneratedKey(_opened(answer, KEY_BYTES, private_key), blob)


def random_bytes(answer: dict[str, Any], count: int, private_key: rsa.RSAPrivateKey) -> bytes:
    """Return ``count`` random bytes; raises KeyReleaseError(KEY_RELEASE_INVALID)."""
    return _opened(answer, count, private_key)


def _opened(answer: dict[str, Any], length: int, private_key: rsa.RSAPrivateKey) -> bytes:
    if answer.get("Plaintext"):
        raise invalid("KMS answered with a plaintext")
    envelope = answer.get("CiphertextForRecipient")
    if not isinstance(envelope, bytes) or not envelope:
        raise invalid("KMS answered without an envelope")
    content = open_enveloped(envelope, private_key)
    if len(content) != length:
        raise invalid("the key's envelope does not open")
    return content


def failure(error: Exception) -> KeyReleaseError:
    """Translate what botocore or the transport raised; nothing of a request gets into the text."""
    if isinstance(error, KeyReleaseError):
        return KeyReleaseError(error.code, error.detail)
    if isinstance(error, ClientError):
        return _refusal(error.response)
    for kind, text, transient in _FAILURES:
        if isinstance(error, kind):
            cause = getattr(error, "kwargs", {}).get("error")
            detail = f"{text}: {cause}" if cause else text
            return (TransientError if transient else KeyReleaseError)(
                Code.KEY_RELEASE_UNAVAILABLE, detail
            )
    return invalid("KMS's answer cannot be read")


def _refusal(response: dict[str, Any]) -> KeyReleaseError:
    code = response.get("Error", {}).get("Code", "")
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    name = code if isinstance(code, str) and _NAME.fullmatch(code) else "an error without a name"
    if code in _DENIED:
        return KeyReleaseError(Code.KEY_RELEASE_DENIED, "KMS denied the key")
    if code in _BUSY or status == _TOO_MANY or status >= _SERVER_ERROR:
        return TransientError(Code.KEY_RELEASE_UNAVAILABLE, f"KMS answered {name}")
    if code in _EXPIRED:
        text = "KMS says that the credentials have expired"
        return KeyReleaseError(Code.KEY_RELEASE_UNAVAILABLE, text)
    return invalid(f"KMS answered {name}")


def invalid(detail: str) -> KeyReleaseError:
    """Return the error for an answer that is not one."""
    return KeyReleaseError(Code.KEY_RELEASE_INVALID, detail)
