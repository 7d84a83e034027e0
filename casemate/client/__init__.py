"""The client SDK: verify an enclave, seal tensors to it, open its answers."""

from casemate.client.access import HostAccess
from casemate.client.client import Client, Inference
from casemate.client.kms import DataKey, DataKeySource, KmsDataKeys
from casemate.client.objects import seal_tensors

__all__ = [
    "Client",
    "DataKey",
    "DataKeySource",
    "HostAccess",
    "Inference",
    "KmsDataKeys",
    "seal_tensors",
]
