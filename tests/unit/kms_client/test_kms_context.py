"""Key ARNs and encryption contexts (SPEC 5.3, 8.2; C7)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import Code, KeyReleaseError
from casemate.kms_context import data_context, model_context, parse_key_arn

KEY = "01234567-89ab-cdef-0123-456789abcdef"


@pytest.mark.parametrize("partition", ["aws", "aws-cn", "aws-us-gov"])
@pytest.mark.parametrize("region", ["eu-central-1", "us-gov-west-1", "ap-southeast-5"])
def test_a_full_arn_is_taken_apart_and_put_together(partition: str, region: str) -> None:
    text = f"arn:{partition}:kms:{region}:111122223333:key/{KEY}"
    arn = parse_key_arn(text)
    assert (arn.partition, arn.region, arn.account, arn.key_id) == (
        partition,
        region,
        "111122223333",
        KEY,
    )
    assert str(arn) == text


@pytest.mark.parametrize(
    "text",
    [
        f"arn:aws:kms:eu-central-1:111122223333:key/{KEY} ",
        f"arn:aws:kms:eu-central-1:111122223333:key/{KEY}\n",
        f" arn:aws:kms:eu-central-1:111122223333:key/{KEY}",
        f"arn:aws:kms:eu-central-1:111122223333:key/{KEY.upper()}",
        f"arn:aws:kms:eu-central-1:111122223333:key/{KEY}0",
        f"arn:aws:kms:eu-central-1:111122223333:key/{KEY.replace('-', '')}",
        "arn:aws:kms:eu-central-1:111122223333:key/mrk-0123456789abcdef0123456789abcdef",
        f"arn:aws:kms:eu-central-1:111122223333:alias/{KEY}",
        f"arn:aws:kms:eu-central-1:11112222333:key/{KEY}",
        f"arn:aws:kms:eu-central-1:11112222333\u0663:key/{KEY}",
        f"arn:aws:kms:eu-central-1.example.org:111122223333:key/{KEY}",
        f"arn:aws:kms:eu.central-1:111122223333:key/{KEY}",
        f"arn:aws:kms:eu-central-10:111122223333:key/{KEY}",
        f"arn:aws:kms:eu-central-1@x:111122223333:key/{KEY}",
        f"arn:aws-iso:kms:eu-central-1:111122223333:key/{KEY}",
        f"arn:aws:s3:eu-central-1:111122223333:key/{KEY}",
        f"arn:aws:kms:eu-{'a' * 256}-1:111122223333:key/{KEY}",
    ],
)
def test_anything_else_is_malformed(text: str) -> None:
    with pytest.raises(KeyReleaseError) as caught:
        parse_key_arn(text)
    assert caught.value.code is Code.MALFORMED


@given(st.text())
def test_any_text_is_parsed_or_malformed(text: str) -> None:
    with pytest.raises(KeyReleaseError):
        parse_key_arn(text)


def test_contexts_are_those_of_the_specification() -> None:
    assert data_context("clinic.example/screening") == {
        "casemate:v": "1",
        "casemate:purpose": "data",
        "casemate:scope": "clinic.example/screening",
    }
    assert model_context(bytes(31) + b"\xff", "wdbc") == {
        "casemate:v": "1",
        "casemate:purpose": "model",
        "casemate:scope": "00" * 31 + "ff/wdbc",
    }
