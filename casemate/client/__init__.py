"""The client SDK: verify an enclave, seal tensors to it, open its answers.

`Client` for threads, `AsyncClient` for event loops. Every error is a
`casemate.errors.CasemateError` with a stable ``code``; SPEC 11.5 says which may pass, and a client
answers those by itself.
"""

from casemate.client.access import HostAccess
from casemate.client.aio import AsyncClient
from casemate.client.aio_streaming import AsyncStream
from casemate.client.client import Client, Inference
from casemate.client.kms import DataKey, DataKeySource, KmsDataKeys
from casemate.client.objects import seal_tensors
from casemate.client.retry import RetryPolicy
from casemate.client.streaming import Stream

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "Client",
    "DataKey",
    "DataKeySource",
    "HostAccess",
    "Inference",
    "KmsDataKeys",
    "RetryPolicy",
    "Stream",
    "seal_tensors",
]
