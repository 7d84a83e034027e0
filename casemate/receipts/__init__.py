"""Receipts: an enclave's signed word that it answered a question with an answer (SPEC 14).

A client asks for one with ``infer(..., receipt=True)`` and keeps ``result.receipt.encode()``.
Whoever has that file and a trust policy judges it later, without the service: ``verify_receipt``.
"""

from casemate.envelope.receipt import ReceiptStatement, UnverifiedReceipt
from casemate.receipts.stored import Shown, StoredReceipt
from casemate.receipts.verify import STEPS, VerifiedReceipt, verify_receipt

__all__ = [
    "STEPS",
    "ReceiptStatement",
    "Shown",
    "StoredReceipt",
    "UnverifiedReceipt",
    "VerifiedReceipt",
    "verify_receipt",
]
