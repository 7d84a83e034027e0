"""AWS Signature Version 4, checked by recomputing it with botocore's signer."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.compat import HTTPHeaders
from botocore.credentials import Credentials

from casemate_devkit.kms.errors import KmsError, Reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from casemate_devkit.kms.principals import Principal

Aws = Any  # botocore carries no types

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256\s+Credential=([^/,\s]{1,128})/([0-9]{8})/([a-z0-9-]{1,32})/([a-z0-9-]{1,32})"
    r"/aws4_request,\s*SignedHeaders=([a-z0-9;-]{1,1024}),\s*Signature=([0-9a-f]{64})",
    re.ASCII,
)
_UNSIGNED = re.compile(r"UNSIGNED-PAYLOAD|STREAMING-[A-Z0-9-]{1,64}")
KMS = "kms"
_TIMESTAMP = "%Y%m%dT%H%M%SZ"
_SKEW = dt.timedelta(minutes=15)  # AWS's limit
_UNKNOWN_TOKEN = "The security token included in the request is invalid."  # noqa: S105 - a message
_MISMATCH = (
    "The request signature we calculated does not match the signature you provided. Check your AWS"
    " Secret Access Key and signing method. Consult the service documentation for details."
)


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request as received; ``headers`` maps lower-case names to all their values."""

    method: str
    target: str
    headers: Mapping[str, tuple[str, ...]]
    body: bytes

    def header(self, name: str) -> str | None:
        """Return a header that is present exactly once, else None."""
        values = self.headers.get(name, ())
        return values[0] if len(values) == 1 else None


class _ExactHeaders(SigV4Auth):  # type: ignore[misc]  # botocore carries no types
    """Signs the headers it is given; botocore's own choice of headers is the client's business."""

    def headers_to_sign(self, request: Aws) -> Aws:
        return request.headers


class _ExactPath(_ExactHeaders, S3SigV4Auth):  # type: ignore[misc]  # botocore carries no types
    """As S3 does: the path is signed as it is sent."""


def claimed_service(authorization: str | None) -> str:
    """Return the service that an Authorization header says it was made for; unproven."""
    match = _AUTHORIZATION.fullmatch(authorization or "")
    return match[4] if match else KMS


def authenticate(
    request: HttpRequest,
    principals: Mapping[str, Principal],
    *,
    region: str | None,
    now: dt.datetime,
    service: str = KMS,
) -> tuple[Principal, str]:
    """Return who signed ``request`` for ``service`` and the region it was signed for.

    ``region`` is the one the Host header names, or None. Raises KmsError with the error types and
    messages of AWS.
    """
    header = request.header("authorization")
    if header is None:
        raise _fault("MissingAuthenticationTokenException", "Missing Authentication Token")
    match = _AUTHORIZATION.fullmatch(header)
    if match is None:
        raise _fault(
            "IncompleteSignatureException",
            "Authorization header requires 'Credential', 'SignedHeaders' and 'Signature' parameters"
            " of AWS4-HMAC-SHA256.",
        )
    access_key_id, date, scope_region, scope_service, names, signature = match.groups()
    timestamp = _check_time(request, date, now)
    if scope_service != service or region not in {None, scope_region}:
        message = f"Credential should be scoped to a valid region and to service: '{service}'."
        raise _fault("InvalidSignatureException", message)
    principal = principals.get(access_key_id)
    if principal is None:
        raise _fault("UnrecognizedClientException", _UNKNOWN_TOKEN)
    _check_token(request, principal)
    signed = _signed_headers(request, names.split(";"))
    _check_content(request, service)
    credentials = Credentials(principal.access_key_id, principal.secret_access_key)
    signer = (_ExactPath if service == "s3" else _ExactHeaders)(credentials, service, scope_region)
    expected = _signature(request, signed, signer, timestamp)
    if not hmac.compare_digest(expected, signature):
        raise _fault("InvalidSignatureException", _MISMATCH)
    return principal, scope_region


def _fault(kind: str, message: str) -> KmsError:
    return KmsError(kind, message, Reason("signature", message))


def _check_time(request: HttpRequest, date: str, now: dt.datetime) -> str:
    timestamp = request.header("x-amz-date") or ""
    try:
        signed_at = dt.datetime.strptime(timestamp, _TIMESTAMP).replace(tzinfo=dt.UTC)
    except ValueError:
        message = "Authorization header requires existence of an 'X-Amz-Date' header."
        raise _fault("IncompleteSignatureException", message) from None
    if timestamp[:8] != date:
        raise _fault("InvalidSignatureException", "Date in Credential scope does not match.")
    if abs(now - signed_at) > _SKEW:
        word = "expired" if signed_at < now else "not yet current"
        message = f"Signature {word}: {timestamp} and now {now.strftime(_TIMESTAMP)} (15 min.)"
        raise _fault("InvalidSignatureException", message)
    return timestamp


def _check_token(request: HttpRequest, principal: Principal) -> None:
    token = request.headers.get("x-amz-security-token", ())
    expected = () if principal.session_token is None else (principal.session_token,)
    if len(token) != len(expected):
        raise _fault("UnrecognizedClientException", _UNKNOWN_TOKEN)
    for given, wanted in zip(token, expected, strict=True):
        if not hmac.compare_digest(given.encode(), wanted.encode()):
            raise _fault("UnrecognizedClientException", _UNKNOWN_TOKEN)


def _signed_headers(request: HttpRequest, names: list[str]) -> Aws:
    """Return the headers that were signed; host and every x-amz-* header must be among them."""
    needed = {name for name in request.headers if name.startswith("x-amz-")} | {"host"}
    if not needed <= set(names) or len(set(names)) != len(names):
        message = "'Host' and all 'X-Amz-*' headers must be signed, once."
        raise _fault("IncompleteSignatureException", message)
    headers = HTTPHeaders()
    for name in names:
        value = request.header(name)
        if value is None:
            message = f"The signed header {name[:64]} is not in the request exactly once."
            raise _fault("InvalidSignatureException", message)
        headers[name] = value
    return headers


def _check_content(request: HttpRequest, service: str) -> None:
    """Compare the body with its signed digest; S3 alone has bodies whose digest is not signed."""
    stated = request.header("x-amz-content-sha256")
    if service == "s3" and stated is not None and _UNSIGNED.fullmatch(stated):
        return
    if stated not in {None, hashlib.sha256(request.body).hexdigest()}:
        raise _fault("InvalidSignatureException", _MISMATCH)


def _signature(request: HttpRequest, headers: Aws, signer: Aws, timestamp: str) -> str:
    url = f"https://{request.header('host')}{request.target}"
    aws = AWSRequest(method=request.method, url=url, data=request.body)
    aws.headers = headers
    aws.context["timestamp"] = timestamp
    to_sign = signer.string_to_sign(aws, signer.canonical_request(aws))
    return str(signer.signature(to_sign, aws))
