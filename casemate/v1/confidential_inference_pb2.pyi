from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

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

class SealedRequests(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[NumberedRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[NumberedRequest, _Mapping]]] = ...) -> None: ...

class NumberedRequest(_message.Message):
    __slots__ = ("number", "budget", "request")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    number: int
    budget: int
    request: bytes
    def __init__(self, number: _Optional[int] = ..., budget: _Optional[int] = ..., request: _Optional[bytes] = ...) -> None: ...

class SealedResponses(_message.Message):
    __slots__ = ("responses", "last")
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    responses: _containers.RepeatedCompositeFieldContainer[NumberedResponse]
    last: bool
    def __init__(self, responses: _Optional[_Iterable[_Union[NumberedResponse, _Mapping]]] = ..., last: bool = ...) -> None: ...

class NumberedResponse(_message.Message):
    __slots__ = ("number", "response", "refusal")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    number: int
    response: bytes
    refusal: Refusal
    def __init__(self, number: _Optional[int] = ..., response: _Optional[bytes] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("reason", "detail", "retry_delay")
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    RETRY_DELAY_FIELD_NUMBER: _ClassVar[int]
    reason: str
    detail: str
    retry_delay: int
    def __init__(self, reason: _Optional[str] = ..., detail: _Optional[str] = ..., retry_delay: _Optional[int] = ...) -> None: ...
