"""The evidence bundle that travels from enclave to client (SPEC 3.1, 3.6)."""

from __future__ import annotations

from dataclasses import dataclass, fields

from google.protobuf.message import DecodeError

from casemate import limits
from casemate.attestation._checks import between, require, sized
from casemate.attestation.cose import check_document_size
from casemate.errors import Code, EvidenceError
from casemate.v1 import confidential_inference_pb2 as pb
from casemate.wire import digest, label, lp, lp_list


@dataclass(frozen=True, slots=True)
class EvidenceBundle:
    """The parts of ``casemate.v1.Evidence``, as bytes: authenticated by nothing until verified.

    ``key_configs`` lists the current key last; ``accelerator`` is empty in version 1.
    """

    platform: str
    attestation_document: bytes
    configuration: bytes
    key_configs: tuple[bytes, ...]
    instance_config: bytes
    measurement_log: bytes
    accelerator: tuple[bytes, ...] = ()

    def user_data(self) -> bytes:
        """Return the 48 bytes with which the document binds the other parts (SPEC 3.6)."""
        return digest(
            label("evidence"),
            lp(self.configuration),
            lp_list(self.key_configs),
            lp(self.instance_config),
            lp(self.measurement_log),
            lp_list(self.accelerator),
        )

    def check_sizes(self) -> None:
        """Step 1 of SPEC 3.8; raises EvidenceError (EVIDENCE_SIZE)."""
        code = Code.EVIDENCE_SIZE
        check_document_size(self.attestation_document)
        sized(self.configuration, 0, limits.CONFIGURATION_MAX, code, "configuration")
        sized(self.instance_config, 0, limits.INSTANCE_CONFIG_MAX, code, "instance_config")
        sized(self.measurement_log, 0, limits.MEASUREMENT_LOG_MAX, code, "measurement_log")
        for key_config in self.key_configs:
            sized(key_config, 0, limits.KEY_CONFIG_MAX, code, "key_config")
        require(not self.accelerator, code, "accelerator evidence: version 1 has none")

    def serialize(self) -> bytes:
        """Return the ``Evidence`` protobuf."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return pb.Evidence(**parts).SerializeToString()

    @classmethod
    def parse(cls, data: bytes) -> EvidenceBundle:
        """Parse an ``Evidence`` protobuf.

        Raises EvidenceError: EVIDENCE_SIZE above the bound, MALFORMED if it is no such protobuf.
        """
        between(len(data), 0, limits.EVIDENCE_MAX, Code.EVIDENCE_SIZE, "bytes of evidence")
        message = pb.Evidence()
        try:
            message.ParseFromString(data)
        except DecodeError:
            raise EvidenceError(Code.MALFORMED, "not an Evidence message") from None
        return cls(
            platform=message.platform,
            attestation_document=message.attestation_document,
            configuration=message.configuration,
            key_configs=tuple(message.key_configs),
            instance_config=message.instance_config,
            measurement_log=message.measurement_log,
            accelerator=tuple(message.accelerator),
        )
