"""Signatures are recomputed; whatever was changed after signing is refused."""

from __future__ import annotations

import dataclasses
import datetime as dt

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from casemate_devkit.kms.errors import KmsError
from casemate_devkit.kms.principals import Principal
from casemate_devkit.kms.sigv4 import HttpRequest, authenticate

ARN = "arn:aws:iam::111122223333:user/ada"
PLAIN = Principal("AKIAPLAIN", "plain-secret", ARN)
TEMPORARY = Principal("ASIATEMP", "temp-secret", ARN, "session-token")
PRINCIPALS = {item.access_key_id: item for item in (PLAIN, TEMPORARY)}
REGION = "eu-central-1"
HOST = f"kms.{REGION}.amazonaws.com"


def signed(
    principal: Principal = PLAIN,
    *,
    secret: str | None = None,
    region: str = REGION,
    service: str = "kms",
    headers: dict[str, str] | None = None,
) -> HttpRequest:
    fields = {"Host": HOST, "X-Amz-Target": "TrentService.ListKeys"} | (headers or {})
    aws = AWSRequest("POST", f"https://{HOST}/", headers=fields, data=b"{}")
    credentials = Credentials(
        principal.access_key_id, secret or principal.secret_access_key, principal.session_token
    )
    SigV4Auth(credentials, service, region).add_auth(aws)
    received = {name.lower(): (value,) for name, value in aws.headers.items()}
    return HttpRequest("POST", "/", received, b"{}")


def check(
    request: HttpRequest, region: str | None = REGION, now: dt.datetime | None = None
) -> tuple[Principal, str]:
    now = now or dt.datetime.now(dt.UTC)
    return authenticate(request, PRINCIPALS, region=region, now=now)


def changed(request: HttpRequest, **headers: tuple[str, ...] | None) -> HttpRequest:
    """Return the request with headers replaced; ``None`` removes one."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    merged = dict(request.headers) | named
    return dataclasses.replace(request, headers={k: v for k, v in merged.items() if v is not None})


def refused(request: HttpRequest, now: dt.datetime | None = None) -> str:
    with pytest.raises(KmsError) as caught:
        check(request, now=now)
    assert caught.value.reason.code == "signature"
    return caught.value.kind


@pytest.mark.parametrize("principal", [PLAIN, TEMPORARY])
def test_genuine_signature(principal: Principal) -> None:
    assert check(signed(principal)) == (principal, REGION)
    assert check(signed(principal), region=None) == (principal, REGION)


def test_missing_and_incomplete() -> None:
    request = signed()
    value = request.headers["authorization"][0]
    missing = changed(request, authorization=None)
    assert refused(missing) == "MissingAuthenticationTokenException"
    for broken in ("", "Basic eDp5", value[:-1], value.replace("SignedHeaders=", "Signed=")):
        kind = refused(changed(request, authorization=(broken,)))
        assert kind == "IncompleteSignatureException"
    twice = changed(request, authorization=(value, value))
    assert refused(twice) == "MissingAuthenticationTokenException"


def test_unknown_key_and_wrong_secret() -> None:
    stranger = Principal("AKIASTRANGER", "x", ARN)
    assert refused(signed(stranger)) == "UnrecognizedClientException"
    assert refused(signed(secret="wrong")) == "InvalidSignatureException"


def test_session_token_must_be_the_principals() -> None:
    with_other = dataclasses.replace(TEMPORARY, session_token="other")
    without = dataclasses.replace(TEMPORARY, session_token=None)
    unasked = dataclasses.replace(PLAIN, session_token="other")
    for principal in (with_other, without, unasked):
        assert refused(signed(principal)) == "UnrecognizedClientException"


def test_changes_after_signing() -> None:
    request = signed()
    cases = [
        dataclasses.replace(request, body=b'{"Limit":1}'),
        dataclasses.replace(request, target="/?x=1"),
        dataclasses.replace(request, method="PUT"),
        changed(request, x_amz_target=("TrentService.Decrypt",)),
        changed(request, host=("kms.us-east-1.amazonaws.com",)),
        changed(request, x_amz_target=None),
        changed(request, x_amz_target=request.headers["x-amz-target"] * 2),
    ]
    for case in cases:
        assert refused(case) == "InvalidSignatureException"


def test_stated_body_hash_must_be_the_bodys() -> None:
    for stated in ("UNSIGNED-PAYLOAD", "0" * 64):
        request = signed(headers={"X-Amz-Content-SHA256": stated})
        assert refused(request) == "InvalidSignatureException"


def test_amz_headers_must_be_signed() -> None:
    request = changed(signed(), x_amz_extra=("x",))
    assert refused(request) == "IncompleteSignatureException"
    value = request.headers["authorization"][0].replace("SignedHeaders=host;", "SignedHeaders=")
    assert refused(changed(signed(), authorization=(value,))) == "IncompleteSignatureException"


@pytest.mark.parametrize("minutes", [-16, 16])
def test_clock_skew(minutes: int) -> None:
    later = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=minutes)
    assert refused(signed(), now=later) == "InvalidSignatureException"
    near = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=minutes / 16 * 14)
    assert check(signed(), now=near)[0] is PLAIN


def test_scope() -> None:
    assert refused(signed(region="us-east-1")) == "InvalidSignatureException"
    assert refused(signed(service="s3")) == "InvalidSignatureException"
    dated = signed()
    assert refused(changed(dated, x_amz_date=None)) == "IncompleteSignatureException"
    assert refused(changed(dated, x_amz_date=("20200101T000000Z",))) == "InvalidSignatureException"
