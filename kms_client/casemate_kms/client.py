"""Attested key release: KMS ``Decrypt`` to a key that only this enclave holds (SPEC 10)."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final

from casemate import limits
from casemate.attestation.structures import kms_user_data
from casemate.envelope.guard import Guarded
from casemate.errors import Code, KeyReleaseError
from casemate.kms_context import KeyArn, parse_key_arn
from casemate_kms import answers
from casemate_kms.credentials import Credentials
from casemate_kms.deadline import until
from casemate_kms.isolated import kms_client
from casemate_kms.recipient import RecipientKeys
from casemate_kms.transport import RegionTransport, trusting

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from casemate.attestation.structures import KmsConfiguration
    from casemate_kms.attester import Attester
    from casemate_kms.egress import Dial

_RECIPIENT_ALGORITHM: Final = "RSAES_OAEP_SHA_256"


def _wall_clock() -> int:
    return time.time_ns() // 1_000_000


class AttestedKms(Guarded):
    """Unwraps data keys by attested Decrypt; safe to share between threads.

    It reaches the regions of ``configuration`` and nothing else, over streams that ``dial`` opens,
    in TLS that trusts the configured roots. ``now`` gives milliseconds (SPEC 1.5) and is asked only
    whether credentials have expired.
    """

    def __init__(
        self,
        configuration: KmsConfiguration,
        attester: Attester,
        dial: Dial,
        now: Callable[[], int] = _wall_clock,
    ) -> None:
        context = trusting(configuration.tls_roots)
        self._partition = configuration.partition
        self._transports = {
            region: RegionTransport(host, context, dial)
            for region, host in configuration.endpoints.items()
        }
        self._attester = attester
        self._now = now
        self._keys = RecipientKeys()
        self._places = threading.BoundedSemaphore(limits.KMS_CONCURRENT)
        self._lock = threading.Lock()
        self._credentials: Credentials | None = None
        self._clients: dict[str, Any] = {}

    def set_credentials(
        self,
        access_key_id: str,
        secret_access_key: str,
        session_token: str | None,
        expires: int | None,
    ) -> None:
        """Replace the credentials; calls in flight end with those they began with.

        ``expires`` in milliseconds, or None. Raises KeyReleaseError(MALFORMED).
        """
        credentials = Credentials(access_key_id, secret_access_key, session_token, expires)
        with self._lock:
            self._credentials = credentials
            self._clients = {}

    def decrypt(
        self,
        *,
        key_arn: str,
        ciphertext_blob: bytes,
        context: Mapping[str, str],
        deadline: float,
    ) -> bytes:
        """Return the candidate for the 32-byte data key in ``ciphertext_blob``.

        It may be used only after its commitment matched (SPEC 10.4). ``context`` is the exact
        encryption context, ``deadline`` in ``time.monotonic`` seconds.
        Raises KeyReleaseError: MALFORMED before anything is dialled; KEY_RELEASE_DENIED,
        KEY_RELEASE_UNAVAILABLE or KEY_RELEASE_INVALID (SPEC 10.3); or what the attester raises.
        """
        arn = self._accepted(key_arn, ciphertext_blob)
        request = {
            "KeyId": key_arn,
            "CiphertextBlob": bytes(ciphertext_blob),
            "EncryptionContext": dict(context),
            "EncryptionAlgorithm": answers.ALGORITHM,
        }
        if not self._places.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise _unavailable("too many unwraps in flight")
        try:
            return self._persist(arn, request, deadline)
        finally:
            self._places.release()

    def close(self) -> None:
        """Close idle connections."""
        for transport in self._transports.values():
            transport.close()

    def _accepted(self, key_arn: str, ciphertext_blob: bytes) -> KeyArn:
        """Return the parsed ARN of a key in a configured partition and region (SPEC 5.3)."""
        arn = parse_key_arn(key_arn)
        if arn.partition != self._partition or arn.region not in self._transports:
            raise KeyReleaseError(Code.MALFORMED, "a key outside the configured regions")
        if not 0 < len(ciphertext_blob) <= limits.CIPHERTEXT_BLOB_MAX:
            raise KeyReleaseError(Code.MALFORMED, "a wrapped key of impossible length")
        return arn

    def _persist(self, arn: KeyArn, request: dict[str, Any], deadline: float) -> bytes:
        """Attempt again, with a fresh document, while KMS is only unavailable and time is left."""
        for attempt in range(1, limits.KMS_ATTEMPTS + 1):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            try:
                with until(time.monotonic() + min(left, limits.KMS_TIMEOUT_S)):
                    return self._attempt(arn, request)
            except answers.TransientError:
                pause = limits.KMS_BACKOFF_S * 2 ** (attempt - 1)
                if attempt == limits.KMS_ATTEMPTS or time.monotonic() + pause >= deadline:
                    raise
                time.sleep(pause)
        raise _unavailable("no time left to ask KMS")

    def _attempt(self, arn: KeyArn, request: dict[str, Any]) -> bytes:
        client = self._client(arn.region)
        key = self._keys.current()
        document = self._attester.attest(
            public_key=key.public_der, user_data=kms_user_data(), nonce=None
        )
        recipient = {
            "KeyEncryptionAlgorithm": _RECIPIENT_ALGORITHM,
            "AttestationDocument": document,
        }
        try:
            answer = client.decrypt(**request, Recipient=recipient)
        except Exception as error:  # noqa: BLE001 - botocore raises anything over a foreign answer
            problem = answers.failure(error)
        else:
            return answers.released_key(answer, request["KeyId"], key.private)
        # Raised here, so that no chain of exceptions leads to frames that hold the credentials.
        raise problem

    def _client(self, region: str) -> Any:  # noqa: ANN401 - botocore makes classes at run time
        with self._lock:
            credentials = self._credentials
            if credentials is None:
                raise _unavailable("the host has not handed in credentials")
            if credentials.expires is not None and credentials.expires <= self._now():
                raise _unavailable("the credentials have expired; the host must renew them")
            if region not in self._clients:
                client = kms_client(region, credentials, self._transports[region])
                client.meta.events.register("before-parse.kms", answers.refuse_plaintext)
                self._clients[region] = client
            return self._clients[region]


def _unavailable(detail: str) -> KeyReleaseError:
    return KeyReleaseError(Code.KEY_RELEASE_UNAVAILABLE, detail)
