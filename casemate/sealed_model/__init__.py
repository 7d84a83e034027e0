"""Sealed models (SPEC 8): the publisher seals and signs, the enclave opens after attestation."""

from casemate.sealed_model.header import (
    ANY_CALLER,
    ModelEntry,
    ModelHeader,
    model_digest,
)
from casemate.sealed_model.loop import LoopState, ModelLoop
from casemate.sealed_model.memory_file import ModelContents
from casemate.sealed_model.reader import ModelReader
from casemate.sealed_model.sealing import seal_model
from casemate.sealed_model.serving import Serving

__all__ = [
    "ANY_CALLER",
    "LoopState",
    "ModelContents",
    "ModelEntry",
    "ModelHeader",
    "ModelLoop",
    "ModelReader",
    "Serving",
    "model_digest",
    "seal_model",
]
