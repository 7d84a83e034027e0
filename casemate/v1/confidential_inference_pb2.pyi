from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class GetEvidenceRequest(_message.Message):
    __slots__ = ("nonce", "instance_config_digest")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_CONFIG_DIGEST_FIELD_NUMBER: _ClassVar[int]
    nonce: bytes
    instance_config_digest: bytes
    def __init__(self, nonce: _Optional[bytes] = ..., instance_config_digest: _Optional[bytes] = ...) -> None: ...

class Evidence(_message.Message):
    __slots__ = ("platform", "attestation_document", "configuration", "key_configs", "instance_config", "measurement_log", "accelerator")
    PLATFORM_FIELD_NUMBER: _ClassVar[int]
    ATTESTATION_DOCUMENT_FIELD_NUMBER: _ClassVar[int]
    CONFIGURATION_FIELD_NUMBER: _ClassVar[int]
    KEY_CONFIGS_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_CONFIG_FIELD_NUMBER: _ClassVar[int]
    MEASUREMENT_LOG_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    platform: str
    attestation_document: bytes
    configuration: bytes
    key_configs: _containers.RepeatedScalarFieldContainer[bytes]
    instance_config: bytes
    measurement_log: bytes
    accelerator: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, platform: _Optional[str] = ..., attestation_document: _Optional[bytes] = ..., configuration: _Optional[bytes] = ..., key_configs: _Optional[_Iterable[bytes]] = ..., instance_config: _Optional[bytes] = ..., measurement_log: _Optional[bytes] = ..., accelerator: _Optional[_Iterable[bytes]] = ...) -> None: ...

class SealedRequest(_message.Message):
    __slots__ = ("header", "ciphertext")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CIPHERTEXT_FIELD_NUMBER: _ClassVar[int]
    header: bytes
    ciphertext: bytes
    def __init__(self, header: _Optional[bytes] = ..., ciphertext: _Optional[bytes] = ...) -> None: ...

class SealedResponse(_message.Message):
    __slots__ = ("header", "ciphertext")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CIPHERTEXT_FIELD_NUMBER: _ClassVar[int]
    header: bytes
    ciphertext: bytes
    def __init__(self, header: _Optional[bytes] = ..., ciphertext: _Optional[bytes] = ...) -> None: ...

class SealedChunks(_message.Message):
    __slots__ = ("header", "chunks")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    header: bytes
    chunks: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, header: _Optional[bytes] = ..., chunks: _Optional[_Iterable[bytes]] = ...) -> None: ...
