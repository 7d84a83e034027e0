"""Other services of AWS at the same endpoint: moto answers, as within ``mock_aws``.

S3 for sealed data, STS, IAM, SSM and whatever else moto has. Their state is moto's own, one for the
process; the double's KMS keys are not in it.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from botocore.awsrequest import AWSPreparedRequest, HeadersDict
from moto.core.botocore_stubber import BotocoreStubber

from casemate_devkit.kms.errors import REASON_HEADER, HttpAnswer, KmsError, Reason

if TYPE_CHECKING:
    from casemate_devkit.kms.sigv4 import HttpRequest

ACCOUNT_HEADER = "x-moto-account-id"


def answer(request: HttpRequest, service: str, region: str, account: str) -> HttpAnswer:
    """Return moto's answer to an authenticated request; raises KmsError if moto has none."""
    host = f"{service}.{region}.amazonaws.com"
    headers = HeadersDict()
    for name, values in request.headers.items():
        headers[name] = ",".join(values)
    headers["host"], headers[ACCOUNT_HEADER] = host, account
    url = f"https://{host}{request.target}"
    prepared = AWSPreparedRequest(request.method, url, headers, request.body, stream_output=False)
    answered = BotocoreStubber().process_request(prepared)
    if answered is None:
        text = f"moto has no service {service}"
        raise KmsError("UnknownOperationException", text, Reason("unsupported", text))
    status, told, body = answered
    content = body.encode() if isinstance(body, str) else body
    return HttpAnswer(status, content, {name: str(value) for name, value in dict(told).items()})


def refusal(fault: KmsError) -> HttpAnswer:
    """Return an error in XML, which clients of every protocol but JSON understand."""
    status = HTTPStatus.FORBIDDEN if fault.reason.code == "signature" else fault.status
    inner = f"<Code>{escape(fault.kind)}</Code><Message>{escape(fault.message)}</Message>"
    body = f"<ErrorResponse><Error>{inner}</Error></ErrorResponse>".encode()
    headers = {"Content-Type": "text/xml", REASON_HEADER: fault.reason.header()}
    return HttpAnswer(status, body, headers)
