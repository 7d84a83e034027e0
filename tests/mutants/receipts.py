"""Receipts (SPEC 14): each field that is hashed or signed, each step of judging one."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

VECTORS = ("tests/unit/test_vectors.py",)
RECEIPTS = ("tests/unit/test_receipts.py",)

_RECEIPT = "envelope/receipt.py"
_STORED = "receipts/stored.py"
_VERIFY = "receipts/verify.py"

# fmt: off
MADE = (
    Mutant("receipt: label", _RECEIPT, 'wire.label("receipt"), payload', 'wire.label("caller"), payload', VECTORS),
    Mutant("receipt: context", _RECEIPT, '"Signature1", _PROTECTED', '"Signature", _PROTECTED', VECTORS),
    Mutant("receipt: protected header", _RECEIPT, '"Signature1", _PROTECTED', '"Signature1", b""', VECTORS),
    Mutant("receipt: hash's label", _RECEIPT, "hashlib.sha384(wire.label(kind) + blinder)", "hashlib.sha384(blinder)", VECTORS),
    Mutant("receipt: blinder", _RECEIPT, "hashlib.sha384(wire.label(kind) + blinder)", "hashlib.sha384(wire.label(kind))", VECTORS),
    Mutant("receipt: boundary", _RECEIPT, "        self._state.update(_LENGTH.pack(sum(map(len, message))))\n", "", VECTORS),
    Mutant("receipt: message", _RECEIPT, "            self._state.update(piece)\n", "            pass\n", VECTORS),
    Mutant("receipt: shape", _RECEIPT, "_require(kinds == [bytes, dict, bytes, bytes],", "_require(kinds[2:] == [bytes, bytes],", RECEIPTS),
    Mutant("receipt: algorithm", _RECEIPT, "_require(protected == _PROTECTED and not unprotected,", "_require(not unprotected,", RECEIPTS),
    Mutant("receipt: unprotected header", _RECEIPT, "_require(protected == _PROTECTED and not unprotected,", "_require(protected == _PROTECTED,", RECEIPTS),
    Mutant("receipt: signature's length", _RECEIPT, "_require(len(signature) == _SIGNATURE_BYTES,", "_require(True,", RECEIPTS),
    Mutant("receipt: signature", _RECEIPT, "            key.verify(self.signature, signed_bytes(self.payload))\n", "            pass\n", RECEIPTS),
    Mutant("receipt: items", _RECEIPT, "_require([type(value) for value in values] == [*_TYPES],", "_require(len(values) == len(_TYPES),", RECEIPTS),
    Mutant("receipt: version", _RECEIPT, "_require(version == VERSION,", "_require(True,", RECEIPTS),
    Mutant("receipt: digests", _RECEIPT, '"a digest has a wrong length")', '"") if False else None', RECEIPTS),
    Mutant("receipt: hashes", _RECEIPT, '"a hash has a wrong length")', '"") if False else None', RECEIPTS),
    Mutant("receipt: name", _RECEIPT, "_require(1 <= len(self.model.encode()) <= _NAME_MAX,", "_require(True,", RECEIPTS),
    Mutant("receipt: model's version", _RECEIPT, "_require(1 <= self.version <= _U32_MAX,", "_require(True,", RECEIPTS),
)

KEPT = (
    Mutant("stored: magic", _STORED, "_require(data.startswith(MAGIC),", "_require(True,", RECEIPTS),
    Mutant("stored: version", _STORED, '_require(fields.pop("v") == VERSION,', '_require(fields.pop("v") or True,', RECEIPTS),
    Mutant("stored: blinder", _STORED, "_require(len(self.blinder) == BLINDER_BYTES,", "_require(True,", RECEIPTS),
    Mutant("stored: messages", _STORED, "_require(1 <= len(self.messages) <= limits.CBOR_ITEMS,", "_require(True,", RECEIPTS),
    Mutant("stored: kinds", _STORED, '_require({type(message) for message in fields["messages"]} <= {bytes},', "_require(True,", RECEIPTS),
    Mutant("stored: one question", _STORED, '_require(one, "a question', '_require(True, "a question', RECEIPTS),
    Mutant("stored: question hidden", _STORED, "question=self.question if question else None,", "question=self.question,", RECEIPTS),
    Mutant("stored: answer hidden", _STORED, "answer=self.answer if answer else None,", "answer=self.answer,", RECEIPTS),
)

STEPS = (
    Mutant("receipt 2 evidence", _VERIFY, "verify_kept(bundle, policy, now=at, observe=observe_evidence)", "verify_kept(bundle, policy, now=bundle and __import__('casemate.attestation').attestation.parse_document(bundle.attestation_document).timestamp, observe=observe_evidence)", RECEIPTS),
    Mutant("receipt 3 instance", _VERIFY, "    run(3, lambda: _check_instance(said, evidence))\n", "", RECEIPTS),
    Mutant("receipt 3 digest", _VERIFY, "same = said.instance_digest == evidence.instance_digest", "same = True", RECEIPTS),
    Mutant("receipt 4 signature", _VERIFY, "    run(4, lambda: receipt.check_signature(evidence.instance.receipt_key))\n", "", RECEIPTS),
    Mutant("receipt 5 time", _VERIFY, "    run(5, lambda: _check_time(said, evidence))\n", "", RECEIPTS),
    Mutant("receipt 5 boot", _VERIFY, "lived = begin <= said.time <= end", "lived = said.time <= end", RECEIPTS),
    Mutant("receipt 5 lifetime", _VERIFY, "lived = begin <= said.time <= end", "lived = begin <= said.time", RECEIPTS),
    Mutant("receipt 6 request", _VERIFY, "_require(digest(raw) == said.request_digest,", "_require(True,", RECEIPTS),
    Mutant("receipt 6 audience", _VERIFY, "_require(header.audience == audience,", "_require(True,", RECEIPTS),
    Mutant("receipt 6 instance", _VERIFY, "_require(meant,", "_require(True,", RECEIPTS),
    Mutant("receipt 7 model", _VERIFY, "    run(7, lambda: _check_model(said, evidence))\n", "", RECEIPTS),
    Mutant("receipt 7 time", _VERIFY, 'if entry.op == "load" and entry.time <= said.time', 'if entry.op == "load"', RECEIPTS),
    Mutant("receipt 8 question", _VERIFY, "    run.shown(8, stored.question, said.question_hash)\n", "", RECEIPTS),
    Mutant("receipt 9 answer", _VERIFY, "    run.shown(9, stored.answer, said.answer_hash)\n", "", RECEIPTS),
    Mutant("receipt 8 and 9 hashes", _VERIFY, "_require(part.hash(name) == stated,", "_require(True,", RECEIPTS),
)
# fmt: on

MUTANTS = MADE + KEPT + STEPS
