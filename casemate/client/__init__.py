"""The client SDK: verify an enclave, seal tensors to it, open its answers."""

from casemate.client.client import Client, Inference
from casemate.client.kms import DataKey, DataKeySource, KmsDataKeys
from casemate.client.objects import seal_tensors

__all__ = ["Client", "DataKey", "DataKeySource", "Inference", "KmsDataKeys", "seal_tensors"]
