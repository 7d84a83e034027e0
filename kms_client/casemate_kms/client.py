"""Attested requests to KMS: what it answers opens under a key that only this enclave holds.

``Decrypt`` releases data keys (SPEC 10.1). ``GenerateDataKey`` and ``GenerateRandom`` make new
secrets (SPEC 10.5): no commitment proves those, so they rest on TLS that ends inside, and on it
alone.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from casemate import limits
from casemate.attestation.structures import kms_user_data
from casemate.envelope.guard import Guarded
from casemate.errors import Code, KeyReleaseError
from casemate.kms_context import KeyArn, parse_key_arn
from casemate.wire import KEY_BYTES
from casemate_kms import answers
from casemate_kms.credentials import Credentials
from casemate_kms.deadline import until
from casemate_kms.isolated import kms_client
from casemate_kms.recipient import RecipientKeys
from casemate_kms.transport import RegionTransport, trusting

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cryptography.hazmat.primitives.asymmetric import rsa

    from casemate.attestation.structures import KmsConfiguration
    from casemate_kms.attester import Attester
    from casemate_kms.egress import Dial

_RECIPIENT_ALGORITHM: Final = "RSAES_OAEP_SHA_256"
_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)


class Read(Protocol[_T_co]):
    """Takes from an answer what was asked for; raises KeyReleaseError(KEY_RELEASE_INVALID)."""

    def __call__(self, answer: dict[str, Any], *, private_key: rsa.RSAPrivateKey) -> _T_co:
        """Open the answer's envelope with the private key that the request was attested with."""


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
        arn = self._accepted(key_arn)
        if not 0 < len(ciphertext_blob) <= limits.CIPHERTEXT_BLOB_MAX:
            raise _malformed("a wrapped key of impossible length")
        request = {
            "KeyId": key_arn,
            "CiphertextBlob": bytes(ciphertext_blob),
            "EncryptionContext": dict(context),
            "EncryptionAlgorithm": answers.ALGORITHM,
        }
        read = partial(answers.released_key, key_arn=key_arn)
        return self._ask(arn.region, "decrypt", request, read, deadline)

    def generate_data_key(
        self, *, key_arn: str, context: Mapping[str, str], deadline: float
    ) -> answers.GeneratedKey:
        """Return a new 32-byte data key with its wrapped form, bound to exactly ``context``.

        Raises as ``decrypt``.
        """
        arn = self._accepted(key_arn)
        request = {
            "KeyId": key_arn,
            "NumberOfBytes": KEY_BYTES,
            "EncryptionContext": dict(context),
        }
        read = partial(answers.generated_key, key_arn=key_arn)
        return self._ask(arn.region, "generate_data_key", request, read, deadline)

    def generate_random(self, count: int, *, region: str, deadline: float) -> bytes:
        """Return ``count`` (1 to 1,024) random bytes from KMS in a configured ``region``.

        To be mixed with the enclave's own randomness, never to replace it. Raises as ``decrypt``.
        """
        if region not in self._transports:
            raise _malformed("a region that is not configured")
        if not 1 <= count <= limits.KMS_RANDOM_MAX:
            raise _malformed(f"1 to {limits.KMS_RANDOM_MAX} random bytes, not {count}")
        read = partial(answers.random_bytes, count=count)
        return self._ask(region, "generate_random", {"NumberOfBytes": count}, read, deadline)

    def close(self) -> None:
        """Close idle connections."""
        for transport in self._transports.values():
            transport.close()

    def _accepted(self, key_arn: str) -> KeyArn:
        """Return the parsed ARN of a key in a configured partition and region (SPEC 5.3)."""
        arn = parse_key_arn(key_arn)
        if arn.partition != self._partition or arn.region not in self._transports:
            raise _malformed("a key outside the configured regions")
        return arn

    def _ask(
        self,
        region: str,
        operation: str,
        request: dict[str, Any],
        read: Read[_T],
        deadline: float,
    ) -> _T:
        if not self._places.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise _unavailable("too many requests to KMS in flight")
        try:
            return self._persist(partial(self._attempt, region, operation, request, read), deadline)
        finally:
            self._places.release()

    def _persist(self, work: Callable[[], _T], deadline: float) -> _T:
        """Attempt again, with a fresh document, while KMS is only unavailable and time is left."""
        for attempt in range(1, limits.KMS_ATTEMPTS + 1):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            try:
                with until(time.monotonic() + min(left, limits.KMS_TIMEOUT_S)):
                    return work()
            except answers.TransientError:
                pause = limits.KMS_BACKOFF_S * 2 ** (attempt - 1)
                if attempt == limits.KMS_ATTEMPTS or time.monotonic() + pause >= deadline:
                    raise
                time.sleep(pause)
        raise _unavailable("no time left to ask KMS")

    def _attempt(self, region: str, operation: str, request: dict[str, Any], read: Read[_T]) -> _T:
        client = self._client(region)
        key = self._keys.current()
        document = self._attester.attest(
            public_key=key.public_der, user_data=kms_user_data(), nonce=None
        )
        recipient = {
            "KeyEncryptionAlgorithm": _RECIPIENT_ALGORITHM,
            "AttestationDocument": document,
        }
        try:
            answer = getattr(client, operation)(**request, Recipient=recipient)
        except Exception as error:  # noqa: BLE001 - botocore raises anything over a foreign answer
            problem = answers.failure(error)
        else:
            try:
                return read(answer, private_key=key.private)
            except KeyReleaseError:
                self._keys.retire(key)
                raise
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


def _malformed(detail: str) -> KeyReleaseError:
    return KeyReleaseError(Code.MALFORMED, detail)
