"""What is written by hand on a stream of calls is what protobuf would write (SPEC 9.6.2)."""

from __future__ import annotations

import pytest

from casemate.errors import CasemateError, Code
from casemate.v1.confidential_inference_pb2 import NumberedResponse, SealedResponses
from casemate_host import call_messages
from casemate_host.status import to_refusal

ERROR = CasemateError(Code.OVERLOADED, "too many")


@pytest.mark.parametrize("number", [1, 127, 128, (1 << 14) - 1, 1 << 14, (1 << 32) - 1])
@pytest.mark.parametrize("size", [1, 120, 127, 128, 16_383, 16_384, 300_000])
def test_an_answer_is_written_as_protobuf_would(number: int, size: int) -> None:
    answer = bytes(index % 251 for index in range(size))
    written = call_messages.write_responses([call_messages.answered(number, answer)])
    entry = NumberedResponse(number=number, response=answer)
    assert written == SealedResponses(responses=[entry]).SerializeToString()


def test_answers_and_refusals_share_a_message() -> None:
    entries = [
        call_messages.answered(7, b"seven"),
        call_messages.refused(8, ERROR),
        call_messages.answered(9, b"nine"),
    ]
    expected = SealedResponses(
        responses=[
            NumberedResponse(number=7, response=b"seven"),
            NumberedResponse(number=8, refusal=to_refusal(ERROR)),
            NumberedResponse(number=9, response=b"nine"),
        ]
    )
    assert call_messages.write_responses(entries) == expected.SerializeToString()
    assert SealedResponses.FromString(call_messages.LAST) == SealedResponses(last=True)
