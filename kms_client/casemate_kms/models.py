"""Opening of a sealed model while it arrives, with attested key release in between (SPEC 8.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from casemate import limits
from casemate.envelope.guard import Guarded
from casemate.errors import Code, KeyReleaseError, ModelError
from casemate.kms_context import model_context
from casemate.sealed_model import ModelReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from casemate.attestation.structures import Configuration
    from casemate.sealed_model import ModelContents, ModelHeader


class KeyReleaser(Protocol):
    """The part of ``AttestedKms`` that is needed here."""

    def decrypt(
        self, *, key_arn: str, ciphertext_blob: bytes, context: Mapping[str, str], deadline: float
    ) -> bytes:
        """Return a candidate for the data key; raises KeyReleaseError."""
        ...


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class OpenedModel(Guarded):
    """A model that a configured publisher signed and of which every byte is verified.

    ``digest`` is the model digest (SPEC 8.4), 48 bytes.
    """

    header: ModelHeader
    contents: ModelContents
    digest: bytes


def open_sealed_model(
    chunks: Iterable[bytes | memoryview],
    *,
    configuration: Configuration,
    kms: KeyReleaser,
    deadline: float,
    admit: Callable[[ModelHeader], None] = lambda _header: None,
) -> OpenedModel:
    """Open the sealed file that ``chunks`` make up; ``deadline`` in ``time.monotonic`` seconds.

    ``admit`` sees the header once its publisher is verified, and may refuse it by raising.
    No key is asked for before the publisher's signature, the version and the size are accepted, and
    nothing is released before everything is verified. Memory: the contents once, and some chunks.
    Raises ModelError with the code of the step that failed, and KeyReleaseError.
    """
    header: ModelHeader | None = None
    with ModelReader(configuration.limits.model_bytes) as reader:
        pieces = _pieces(chunks)
        for piece in pieces:
            reader.feed(piece)
            if reader.header is not None:
                header = reader.verify_publisher(
                    configuration.publishers, configuration.minimum_versions
                )
                admit(header)
                reader.expect()
                reader.unlock(_release(header, kms, deadline))
                reader.feed_all(pieces)
        contents = reader.finish()
    if header is None:
        raise ModelError(Code.MODEL_MALFORMED, "the file ends within its header")
    return OpenedModel(header, contents, header.digest)


def _pieces(chunks: Iterable[bytes | memoryview]) -> Iterator[memoryview]:
    """Cut what arrives into pieces that the reader takes before it is unlocked."""
    for chunk in chunks:
        view = memoryview(chunk)
        for at in range(0, len(view), limits.MODEL_DATA_MAX):
            yield view[at : at + limits.MODEL_DATA_MAX]


def _release(header: ModelHeader, kms: KeyReleaser, deadline: float) -> bytes:
    try:
        return kms.decrypt(
            key_arn=header.kms_key,
            ciphertext_blob=header.wrapped_key,
            context=model_context(header.publisher, header.name),
            deadline=deadline,
        )
    except KeyReleaseError as error:
        if error.code is Code.MALFORMED:  # the header names a key that is not for this enclave
            raise ModelError(Code.MODEL_MALFORMED, f"model header: {error.detail}") from None
        raise
