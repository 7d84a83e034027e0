"""One request: authenticate it, let faults strike, have it answered, write the audit trail."""

from __future__ import annotations

import datetime as dt
import logging
import time
from typing import TYPE_CHECKING, Any

from casemate_devkit.kms import moto_services
from casemate_devkit.kms.access import Call
from casemate_devkit.kms.errors import HttpAnswer, KmsError, Reason
from casemate_devkit.kms.parameters import decode_parameters, encode_answer, operation_name
from casemate_devkit.kms.sigv4 import KMS, HttpRequest, authenticate, claimed_service

if TYPE_CHECKING:
    from casemate_devkit.kms.faults import Faults
    from casemate_devkit.kms.principals import Principal
    from casemate_devkit.kms.server import KmsServer

_LOG = logging.getLogger("casemate_devkit.kms")


def respond(server: KmsServer, request: HttpRequest) -> HttpAnswer:
    """Return the answer; raises ConnectionAbortedError for a fault that wants none."""
    service = claimed_service(request.header("authorization"))
    event: dict[str, Any] = {"eventSource": f"{service}.amazonaws.com"}
    event["eventTime"] = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
    refusal = KmsError.answer if service == KMS else moto_services.refusal
    try:
        if service != KMS:
            return _pass_on(server, request, service, event)
        return HttpAnswer(200, _serve(server, request, event))
    except KmsError as fault:
        refused = {"decision": "refused", "errorCode": fault.kind, "reason": fault.reason.text}
        server.audit.write(event | refused)
        return refusal(fault)
    except ConnectionAbortedError:
        server.audit.write(event | {"decision": "failed", "reason": "fault: disconnect"})
        raise
    except Exception as error:  # noqa: BLE001 - a bug must not end as a traceback of secrets
        # The class only: a message could quote what was decrypted.
        _LOG.error("internal failure: %s", type(error).__name__)
        server.audit.write(event | {"decision": "failed", "reason": type(error).__name__})
        return refusal(KmsError("KMSInternalException", "The double failed.", status=500))


def _serve(server: KmsServer, request: HttpRequest, event: dict[str, Any]) -> bytes:
    if (request.method, request.target) != ("POST", "/"):
        raise KmsError("UnknownOperationException", "Operations are sent to / by POST.")
    operation = operation_name(request.header("x-amz-target"))
    event["eventName"] = operation
    principal, region = _caller(server, request, KMS, event)
    if region not in server.regions.values():
        raise KmsError("InvalidSignatureException", "The double does not serve this region.")
    _strike(server.faults, operation)
    parameters = decode_parameters(operation, request.body)
    call = Call(principal, region, operation, parameters, server.faults)
    try:
        answer = encode_answer(server.service.answer(call))
    finally:
        event |= _observed(call)
    server.audit.write(event | {"decision": "allowed", "reason": call.reason.text})
    return answer


def _pass_on(
    server: KmsServer, request: HttpRequest, service: str, event: dict[str, Any]
) -> HttpAnswer:
    """Let moto answer for another service: no policy is judged there, and no fault strikes."""
    event["eventName"] = f"{request.method} {request.target.partition('?')[0]}"
    principal, region = _caller(server, request, service, event)
    answer = moto_services.answer(request, service, region, principal.account)
    server.audit.write(event | {"decision": "passed on", "reason": f"moto: {answer.status}"})
    return answer


def _caller(
    server: KmsServer, request: HttpRequest, service: str, event: dict[str, Any]
) -> tuple[Principal, str]:
    named = _host_region(server, request)
    if service != KMS and named is not None:
        raise KmsError("UnknownOperationException", "This host name is that of KMS.")
    now = dt.datetime.now(dt.UTC)
    principal, region = authenticate(
        request, server.principals, region=named, now=now, service=service
    )
    event |= {"principal": principal.arn, "awsRegion": region}
    return principal, region


def _strike(faults: Faults, operation: str) -> None:
    """Let faults take the place of the answer."""
    seconds = faults.take("slow", operation)
    if seconds is not None:
        time.sleep(seconds)
    if faults.take("disconnect", operation) is not None:
        raise ConnectionAbortedError
    if faults.take("throttle", operation) is not None:
        text = "You have exceeded the rate at which you may call KMS."
        raise KmsError("ThrottlingException", text, Reason("fault", "throttle"))
    status = faults.take("error", operation)
    if status is not None:
        reason = Reason("fault", "error")
        raise KmsError("KMSInternalException", "Fault.", reason, status=int(status))


def _host_region(server: KmsServer, request: HttpRequest) -> str | None:
    """Return the region of the endpoint that Host names; None on a loopback name."""
    host = (request.header("host") or "").rpartition(":")[0] or request.header("host") or ""
    if host in {"localhost", "127.0.0.1"}:
        return None
    if host not in server.regions:
        raise KmsError("UnknownOperationException", "The double does not serve this host name.")
    return server.regions[host]


def _observed(call: Call) -> dict[str, Any]:
    """Return what the audit trail may say: names, contexts and registers, never content."""
    shown = ("KeyId", "SourceKeyId", "DestinationKeyId", "EncryptionContext")
    observed: dict[str, Any] = {
        "requestParameters": {
            name: call.parameters[name] for name in shown if name in call.parameters
        },
        "resources": call.keys,
    }
    if call.recipient is not None:
        observed["additionalEventData"] = {"recipient": call.recipient.record()}
    if call.unknown:
        observed["notUnderstood"] = call.unknown
    return observed
