"""The owner's side of KMS: data keys for requests and for sealed models (SPEC 5.3, 8.2).

Needs `pip install casemate[aws]`. These calls are the owner's own and carry no attestation: the
plaintext key is for the owner. Only the enclave's Decrypt is attested.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from casemate import limits
from casemate.errors import CasemateError, Code
from casemate.kms_context import data_context, parse_key_arn
from casemate.kms_policy import check_key_policy
from casemate.wire import KEY_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

    from casemate.attestation import TrustPolicy
    from casemate.kms_policy import Purpose


@dataclass(frozen=True, slots=True, eq=False)
class DataKey:
    """A 32-byte data key with its wrapped form under the KMS key ``key_arn``."""

    key_arn: str
    ciphertext_blob: bytes
    key: bytes = field(repr=False)

    def __reduce__(self) -> NoReturn:
        """Refuse pickling: a key leaves this process only wrapped."""
        raise TypeError("a data key cannot be pickled")


class DataKeySource(Protocol):
    """Where a client's data keys come from; each call gives a new one."""

    def generate(self, policy: TrustPolicy) -> DataKey:
        """Return a new data key that only enclaves which ``policy`` accepts can unwrap."""


class KmsDataKeys:
    """Data keys under the data owner's own KMS key (key mode kms).

    Before each key the KMS key's policy is read and compared with the trust policy: a key policy
    that would release to more than the accepted releases is refused (KMS_POLICY_TOO_WIDE).
    """

    def __init__(self, key_arn: str, *, kms: Any = None) -> None:  # noqa: ANN401 - boto3 is untyped
        """Use the KMS key ``key_arn``; ``kms`` is a boto3 KMS client, made from its ARN if None."""
        parse_key_arn(key_arn)  # no alias and no multi-Region key, whose replicas have policies too
        self._key_arn = key_arn
        self._kms = kms if kms is not None else kms_client(key_arn)

    def generate(self, policy: TrustPolicy) -> DataKey:
        """Return a new data key; raises PolicyError or CasemateError(KMS_FAILED)."""
        check_policy_of(self._kms, self._key_arn, policy, purpose="data")
        return generate_data_key(self._kms, self._key_arn, data_context(policy.audience))


def check_policy_of(kms: Any, key_arn: str, trust: TrustPolicy, *, purpose: Purpose) -> None:  # noqa: ANN401
    """Refuse a key that more than the accepted releases could use; raises PolicyError."""
    document = _call(kms.get_key_policy, KeyId=key_arn, PolicyName="default")
    # As text: parsed here, the last of two equal keys would hide the first.
    check_key_policy(document["Policy"], trust, purpose=purpose, scope=trust.audience)


def kms_client(key_arn: str) -> Any:  # noqa: ANN401 - boto3 is untyped
    """Make a boto3 KMS client for the key's region, with the caller's own AWS configuration."""
    try:
        import boto3  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise CasemateError(
            Code.INVALID_ARGUMENT, "KMS keys need the AWS extra: pip install 'casemate[aws]'"
        ) from None
    from botocore.config import Config  # noqa: PLC0415 - comes with boto3

    region = parse_key_arn(key_arn).region
    bounded = Config(
        connect_timeout=limits.KMS_TIMEOUT_S,
        read_timeout=limits.KMS_TIMEOUT_S,
        retries={"total_max_attempts": limits.KMS_ATTEMPTS},
    )
    return boto3.client("kms", region_name=region, config=bounded)


def generate_data_key(kms: Any, key_arn: str, context: Mapping[str, str]) -> DataKey:  # noqa: ANN401
    """Ask KMS for a data key under ``key_arn`` with exactly ``context``."""
    answer = _call(
        kms.generate_data_key,
        KeyId=key_arn,
        NumberOfBytes=KEY_BYTES,
        EncryptionContext=dict(context),
    )
    if answer.get("KeyId") != key_arn or len(answer.get("Plaintext", b"")) != KEY_BYTES:
        raise CasemateError(Code.KMS_FAILED, "KMS answered with another key than was asked for")
    return DataKey(key_arn, answer["CiphertextBlob"], answer["Plaintext"])


def _call(operation: Any, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401 - boto3 is untyped
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - an optional extra

    try:
        answer: dict[str, Any] = operation(**arguments)
    except ClientError as error:
        reason = error.response.get("Error", {})
        detail = f"{error.operation_name}: {reason.get('Code')}: {reason.get('Message')}"
        raise CasemateError(Code.KMS_FAILED, detail) from None
    except BotoCoreError as error:
        raise CasemateError(Code.KMS_FAILED, f"{type(error).__name__}: {error}") from None
    return answer
