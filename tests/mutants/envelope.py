"""The envelope, sealed models, labels and key derivation (SPEC 1, 5, 6, 8): each binding off."""

from __future__ import annotations

from functools import partial

from tests.mutants.mutant import Mutant

VECTORS = ("tests/unit/test_vectors.py",)
SEALING = ("tests/unit/envelope/test_sealing.py",)
PROPERTIES = ("tests/property/test_envelope.py",)
HEADERS = ("tests/unit/envelope/test_header.py",)
HPKE = ("tests/unit/envelope/test_hpke.py",)
MESSAGE_SEALING = ("tests/unit/envelope/test_message_sealing.py",)
SEALED_MESSAGES = ("tests/unit/envelope/test_sealed_message.py",)
MESSAGES = ("tests/unit/envelope/test_messages.py",)
FORK = ("tests/unit/client/test_fork.py",)
REPLAY = ("tests/unit/envelope/test_replay.py", "tests/property/test_replay.py")
GUARD = ("tests/unit/envelope/test_guard.py",)
STREAM_TESTS = ("tests/unit/envelope/test_streams.py", "tests/property/test_streams.py")
MODELS = ("tests/unit/test_sealed_model.py",)

_WIRE = "wire.py"
_CHUNKS = "envelope/chunks.py"
_UNITS = "envelope/units.py"
_PADDING = "envelope/padding.py"
_HEADER = "envelope/header.py"
_HPKE = "envelope/hpke.py"
_OPENING = "envelope/opening.py"
_SEALING = "envelope/sealing.py"
_SEALED = "envelope/sealed_message.py"
_PROTOWIRE = "protowire.py"
_MESSAGES = "envelope/messages.py"
_REPLAY = "envelope/replay.py"
_STREAM_UNITS = "envelope/stream_units.py"
_STREAM_OPENING = "envelope/stream_opening.py"
_STREAMING = "envelope/streaming.py"
_READER = "sealed_model/reader.py"
_CONTENTS = "sealed_model/contents.py"
_ALIGNED = ("tests/unit/client/test_onnx_alignment.py",)
_PARTS = "sealed_model/parts.py"
_MODEL = "sealed_model/header.py"

# fmt: off
WIRE = (
    Mutant("length prefix", _WIRE, "_LENGTH.pack(len(part)) + part", "bytes(part)", VECTORS),
    Mutant("length prefix of a list", _WIRE, "return lp(lp(*parts))", "return lp(*parts)", VECTORS),
    Mutant("label: version", _WIRE, 'b"casemate/v1 " + name', 'b"casemate/v2 " + name', VECTORS),
    Mutant("label: end", _WIRE, '.encode("ascii") + b"\\x00"', '.encode("ascii")', VECTORS),
    Mutant("extract: salt", _WIRE, 'b"casemate/v1", data_key', 'b"", data_key', VECTORS),
    Mutant("expand: label", _WIRE, "info = label(name) + lp(*context)", "info = lp(*context)", VECTORS),
    Mutant("expand: context", _WIRE, "info = label(name) + lp(*context)", "info = label(name)", VECTORS),
    Mutant("expand: prefixes", _WIRE, "+ lp(*context)", '+ b"".join(context)', VECTORS),
    Mutant("expand: hash", _WIRE, "HKDFExpand(_SHA384,", "HKDFExpand(hashes.SHA256(),", VECTORS),
)

CHUNKS = (
    Mutant("chunk: counter", _CHUNKS, "(counter << _FLAG_BITS | flag)", "flag", VECTORS + SEALING + PROPERTIES),
    Mutant("chunk: last", _CHUNKS, "Flag.LAST if last else Flag.MORE", "Flag.MORE", VECTORS),
    Mutant("chunk: flag", _CHUNKS, "    LAST = 2", "    LAST = 3", VECTORS),
    Mutant("chunk: aad sealed", _CHUNKS, "chunk, self._aad, out", "chunk, None, out", VECTORS),
    Mutant("chunk: aad opened", _CHUNKS, "sealed, self._aad, out", "sealed, None, out", VECTORS),
    Mutant("chunk: aad of one sealed", _CHUNKS, "encrypt(_ALONE, chunk, self._aad)", "encrypt(_ALONE, chunk, None)", VECTORS),
    Mutant("chunk: aad of a message sealed", _CHUNKS, "encrypt(_ALONE, chunk, aad)", "encrypt(_ALONE, chunk, None)", VECTORS + SEALING),
    Mutant("chunk: aad of one opened", _CHUNKS, "decrypt(_ALONE, sealed, aad)", "decrypt(_ALONE, sealed, None)", VECTORS),
    Mutant("chunk: flag of one", _CHUNKS, "_nonce(0, Flag.LAST)", "_nonce(0, Flag.MORE)", VECTORS),
    Mutant("chunk: tag alone", _CHUNKS, "<= TAG_BYTES or not chunks", "< 0 or not chunks", VECTORS + SEALING + PROPERTIES),
    Mutant("unit: zeros", _UNITS, "if not _ZEROS.startswith(view[at : at + _BLOCK]):", "if False:", VECTORS + SEALING + PROPERTIES),
    Mutant("unit: parts", _UNITS, "if at > size or len(parts) == most:", "if at > size:", VECTORS + SEALING + PROPERTIES),
    Mutant("unit: request's bucket", _UNITS, "or len(unit) != padded_length(length):\n        raise BrokenSealError\n    return parts\n", "or False:\n        raise BrokenSealError\n    return parts\n", VECTORS + SEALING + PROPERTIES),
    Mutant("unit: request without a message", _UNITS, "if len(parts) < _REQUEST_PARTS or", "if", VECTORS + SEALING + PROPERTIES),
    Mutant("unit: messages of a request", _UNITS, "1 + limits.QUESTIONS_MAX", "1000", VECTORS),
    Mutant("unit: zeros after the parts", _UNITS, "    require_zeros(unit[at:])\n    return parts, at", "    return parts, at", VECTORS + SEALING + PROPERTIES),
    Mutant("unit: answer's bucket", _PADDING, "bucket == padme(bucket) and ", "", VECTORS + SEALING + PROPERTIES),
    Mutant("unit: answer's room", _PADDING, " and bucket >= padded_answer(length)", "", VECTORS + SEALING + PROPERTIES),
    Mutant("unit: empty part", _UNITS, "if not size:", "if False:", SEALING + PROPERTIES),
    Mutant("unit: bound", _UNITS, "if length > limits.REQUEST_MAX:", "if False:", SEALING + PROPERTIES),
    Mutant("unit: trailer's bound", _UNITS, "size > limits.TRAILER_MAX or ", "", VECTORS),
    Mutant("unit: trailer's room", _UNITS, "if len(trailer) > limits.TRAILER_MAX:", "if False:", SEALING),
    Mutant("padding: room", _PADDING, "padme(max(floor, length) + limits.TRAILER_ROOM)", "padme(max(floor, length))", VECTORS),
    Mutant("padding: floor", _PADDING, "max(floor, length) +", "length +", VECTORS + SEALING + PROPERTIES),
    Mutant("padding: least", _PADDING, "max(limits.UNIT_MIN, length)", "length", VECTORS + SEALING + PROPERTIES),
    Mutant("padding: bucket", _PADDING, "return (length + mask) & ~mask", "return length", VECTORS),
)

HEADER = (
    Mutant("header: version", _HEADER, "if data[:1] != bytes([VERSION]):", "if False:", HEADERS),
    Mutant("header: end", _HEADER, "if fields[-1] != len(data) - _FIXED.size:", "if False:", HEADERS),
    Mutant("header: sequence", _HEADER, "if sequence >= limits.SEQUENCE_MAX:", "if False:", HEADERS),
    Mutant("header: wrapped key", _HEADER, "if len(header.wrapped_key) != KEY_ID_BYTES + WRAPPED_BYTES:", "if False:", HEADERS),
    Mutant("header: instance", _HEADER, "if header.instance_id == ANY_INSTANCE:", "if False:", HEADERS),
    Mutant("header: key mode", _HEADER, '        raise _malformed("unknown key mode")\n', "        pass\n", HEADERS),
    Mutant("header: blob's bounds", _HEADER, "if not 1 <= blob_length <= limits.CIPHERTEXT_BLOB_MAX:", "if False:", HEADERS),
    Mutant("header: ARN", _HEADER, '        parse_key_arn(wrapped_key[_U32.size : _U32.size + arn_length].decode("ascii"))\n', "        pass\n", HEADERS),
    Mutant("header: answer's version", _HEADER, "if len(data) != _RESPONSE.size or data[0] != VERSION:", "if len(data) != _RESPONSE.size:", HEADERS + SEALING),
    Mutant("hpke: label", _HPKE, 'wire.label("data-key") + key_config', "key_config", HPKE + VECTORS),
    Mutant("hpke: key_config", _HPKE, 'wire.label("data-key") + key_config', 'wire.label("data-key")', HPKE + VECTORS),
    Mutant("guard: repr", "envelope/guard.py", 'return f"<{type(self).__name__}: redacted>"', "return object.__repr__(self)", GUARD),
    Mutant("sealed message: end", _SEALED, "if end != len(view):", "if False:", SEALED_MESSAGES),
    Mutant("sealed message: order", _PROTOWIRE, "if tag != number << 3 | BYTES:", "if False:", SEALED_MESSAGES),
    Mutant("sealed message: sizes", _SEALED, "if not 0 < len(header) <= limits.HEADER_MAX or not ciphertext:", "if False:", SEALED_MESSAGES),
)

ENVELOPE = (
    Mutant("open: commitment", _OPENING, 'if not hmac.compare_digest(wire.expand(prk, "commit"), header.key_commitment):', "if False:", SEALING),
    Mutant("open: label of commitment", _OPENING, 'wire.expand(prk, "commit")', 'wire.expand(prk, "request")', SEALING),
    Mutant("open: data key", _OPENING, "if len(data_key) != wire.KEY_BYTES:", "if False:", SEALING),
    Mutant("open: header in the key", _OPENING, 'wire.expand(prk, "request", th)', 'wire.expand(prk, "request")', VECTORS + SEALING),
    Mutant("open: label", _OPENING, 'wire.expand(prk, "request", th)', 'wire.expand(prk, "response", th)', VECTORS + SEALING),
    Mutant("open: header as aad", _OPENING, '"request", th), th, ciphertext, place)', '"request", th), b"", ciphertext, place)', VECTORS + SEALING),
    Mutant("asker: preamble", _OPENING, "if known is not None and known.encoded == bytes(preamble[: limits.PREAMBLE_MAX + 1]):", "if known is not None:", SEALING),
    Mutant("asker: signed", _OPENING, "if signed == (parsed.caller, parsed.signature):", "if True:", SEALING),
    Mutant("open: caller", _OPENING, "        key.verify(preamble.signature, caller_statement(header))\n", "        pass\n", SEALING),
    Mutant("answer: request in the key", _OPENING, '"response", self.th, rh)', '"response", rh)', VECTORS + SEALING + PROPERTIES),
    Mutant("answer: header in the key", _OPENING, '"response", self.th, rh)', '"response", self.th)', VECTORS + SEALING + PROPERTIES),
    Mutant("answer: label", _OPENING, '"response", self.th, rh)', '"request", self.th, rh)', VECTORS + SEALING + PROPERTIES),
    Mutant("answer: aad", _OPENING, "ChunkCipher(self.response_key(rh), rh)", 'ChunkCipher(self.response_key(rh), b"")', SEALING + PROPERTIES),
    Mutant("answer: a key for each", _OPENING, "ahead, self._ahead = self._ahead, None", "ahead = self._ahead", SEALING),
    Mutant("answer: nonce", _OPENING, "secrets.token_bytes(_RESPONSE_NONCE_BYTES)", "bytes(_RESPONSE_NONCE_BYTES)", SEALING + PROPERTIES),
    Mutant("answer: message and status", _OPENING, "if len(messages) != (len(opened.messages) if trailer.status == Code.OK else 0):", "if False:", SEALING + PROPERTIES),
    Mutant("seal: commitment, hpke", _SEALING, 'key_commitment=wire.expand(prk, "commit"),\n            wrapped_key=key_id(', "key_commitment=bytes(32),\n            wrapped_key=key_id(", SEALING),
    Mutant("seal: commitment, kms", _SEALING, 'key_commitment=wire.expand(prk, "commit"),\n            wrapped_key=wire.lp(', "key_commitment=bytes(32),\n            wrapped_key=wire.lp(", SEALING),
    Mutant("seal: key", _SEALING, 'key = wire.expand(self._prk, "request", th)', 'key = wire.expand(self._prk, "request")', VECTORS),
    Mutant("seal: label", _SEALING, 'key = wire.expand(self._prk, "request", th)', 'key = wire.expand(self._prk, "response", th)', VECTORS),
    Mutant("seal: aad", _SEALING, "seal_message(header, key, th, unit)", 'seal_message(header, key, b"", unit)', VECTORS),
    Mutant("long: aad", _CHUNKS, "sealing.authenticate_additional_data(aad)", 'sealing.authenticate_additional_data(b"")', MESSAGE_SEALING),
    Mutant("long: order", _CHUNKS, "for counter, pieces in enumerate(chunks):", "for counter, pieces in enumerate(chunks, 1):", MESSAGE_SEALING),
    Mutant("long: end", _CHUNKS, "_of_one_unit(last=end == len(out))", "_of_one_unit(last=False)", MESSAGE_SEALING),
    Mutant("opened in place: tag", _CHUNKS, "        AESGCM(key).decrypt_into(_ALONE, sealed, aad, plain)\n    except InvalidTag:\n        raise BrokenSealError from None\n", "        AESGCM(key).decrypt_into(_ALONE, sealed, aad, plain)\n    except InvalidTag:\n        pass\n", MESSAGE_SEALING),
    Mutant("seal: another process", _SEALING, "if os.getpid() != self._process:", "if False:", FORK),
    Mutant("seal: sequence", _SEALING, "self._sequence += 1", "pass", SEALING),
    Mutant("seal: last sequence", _SEALING, "if sequence >= limits.SEQUENCE_MAX:", "if False:", SEALING),
    Mutant("seal: request id", _SEALING, "secrets.token_bytes(16), sequence)", "bytes(16), sequence)", SEALING),
    Mutant("seal: data key", _SEALING, "data_key = secrets.token_bytes(wire.KEY_BYTES)", "data_key = bytes(wire.KEY_BYTES)", SEALING),
    Mutant("answer opened: key", _SEALING, '"response", self._th, rh)', '"response", self._th)', VECTORS + SEALING + PROPERTIES),
    Mutant("answer opened: request", _SEALING, '"response", self._th, rh)', '"response", rh)', VECTORS + SEALING + PROPERTIES),
    Mutant("answer opened: aad", _SEALING, "open_content(key, rh, ciphertext)", 'open_content(key, b"", ciphertext)', VECTORS + SEALING + PROPERTIES),
)

PARTS = (
    *(
        Mutant(f"caller: {name}", _MESSAGES, f"            {value},\n", f"            {nothing},\n", VECTORS + MESSAGES)
        for name, value, nothing in (
            ("key mode", "header.key_mode", "1"),
            ("not before", "header.not_before", "0"),
            ("not after", "header.not_after", "0"),
            ("audience", "header.audience", "bytes(32)"),
            ("instance", "header.instance_id", "bytes(16)"),
            ("commitment", "header.key_commitment", "bytes(32)"),
            ("wrapped key", "wire.digest(header.wrapped_key)", "bytes(48)"),
        )
    ),
    Mutant("caller: label", _MESSAGES, 'wire.label("caller") + wire.lp(', 'wire.label("callers") + wire.lp(', VECTORS + MESSAGES),
    Mutant("preamble: signature", _MESSAGES, "_require((self.caller is None) == (self.signature is None),", "_require(True,", MESSAGES),
    Mutant("preamble: digest", _MESSAGES, "_require(digest is None or len(digest) == wire.HASH_BYTES,", "_require(True,", MESSAGES),
    Mutant("trailer: status", _MESSAGES, "_require(self.status in SEALED_STATUSES,", "_require(True,", MESSAGES),
    Mutant("trailer: receipt's status", _MESSAGES, "_require(self.status is Code.OK and self.final,", "_require(True,", MESSAGES),
    Mutant("trailer: receipt's bounds", _MESSAGES, "_require(1 <= len(self.receipt) <= limits.RECEIPT_MAX,", "_require(True,", MESSAGES),
    Mutant("trailer: blinders alone", _MESSAGES, "_require(self.question_blinder is self.answer_blinder is None,", "_require(True,", MESSAGES),
    Mutant("trailer: blinders", _MESSAGES, "_require(blinder is not None and len(blinder) == BLINDER_BYTES,", "_require(True,", MESSAGES),
    Mutant("answer opened: receipt", _SEALING, "if (trailer.receipt is not None) != (good and self._receipt):", "if False:", SEALING),
    Mutant("trailer: detail", _MESSAGES, "_require(len(trailer.detail.encode()) <= limits.DETAIL_MAX,", "_require(True,", MESSAGES),
    Mutant("replay: boot", _REPLAY, "if not self._boot_time <= not_before <= now:", "if not not_before <= now:", REPLAY),
    Mutant("replay: future", _REPLAY, "if not self._boot_time <= not_before <= now:", "if not self._boot_time <= not_before:", REPLAY),
    Mutant("replay: expired", _REPLAY, "if now >= not_after:", "if False:", REPLAY),
    Mutant("replay: last moment", _REPLAY, "if now >= not_after:", "if now > not_after:", REPLAY),
    Mutant("replay: span", _REPLAY, "if not_after - not_before > limits.SESSION_SPAN_MAX:", "if False:", REPLAY),
    Mutant("replay: seen", _REPLAY, "or self.below & bit:", "or False:", REPLAY),
    Mutant("replay: highest", _REPLAY, "if not bit or -ahead", "if -ahead", REPLAY),
    Mutant("replay: too old", _REPLAY, "or -ahead > limits.REPLAY_WINDOW or", "or", REPLAY),
    Mutant("replay: marked", _REPLAY, "        self.below |= bit\n", "", REPLAY),
    Mutant("replay: slides", _REPLAY, "(seen << (ahead - 1)) & _WINDOW", "seen & _WINDOW", REPLAY),
    Mutant("replay: capacity", _REPLAY, "if full or self._held[owner]", "if self._held[owner]", REPLAY),
    Mutant("replay: share", _REPLAY, "if full or self._held[owner] >= self._share(owner):", "if full:", REPLAY),
    Mutant("replay: strangers' share", _REPLAY, "limits.STRANGERS_DIVISOR if owner is None else limits.OWNER_DIVISOR", "limits.OWNER_DIVISOR", REPLAY),
    Mutant("replay: owner's share", _REPLAY, "limits.STRANGERS_DIVISOR if owner is None else limits.OWNER_DIVISOR", "limits.STRANGERS_DIVISOR", REPLAY),
    Mutant("replay: share given back", _REPLAY, "            self._held[owner] -= 1\n", "", REPLAY),
    Mutant("replay: other times", _REPLAY, "elif (session.not_before, session.not_after) != (not_before, not_after):", "elif False:", REPLAY),
    Mutant("replay: held up", _REPLAY, "must not bring back a session whose window is gone.\n            self._latest = now = max(self._latest, now)", "\n            pass", REPLAY),
    Mutant("replay: pruned early", _REPLAY, "while self._ends and self._ends[0][0] <= now:", "while self._ends:", REPLAY),
)

STREAMS = (
    Mutant("stream: flag in the nonce", _STREAM_UNITS, "        flag = _FLAGS[chunk[0]]\n", "        flag = _FLAGS[min(chunk[0], 2)]\n", STREAM_TESTS),
    Mutant("stream: flag sealed", _CHUNKS, "(counter << _FLAG_BITS | flag)", "(counter << _FLAG_BITS)", VECTORS + STREAM_TESTS),
    Mutant("stream: counter sealed", _CHUNKS, "chunk, self._aad, out)\n        self._counter += 1", "chunk, self._aad, out)", VECTORS + STREAM_TESTS),
    Mutant("stream: counter opened", _CHUNKS, "            raise BrokenSealError from None\n        self._counter += 1\n\n", "            raise BrokenSealError from None\n\n", STREAM_TESTS),
    Mutant("stream: counter opened, short", _CHUNKS, "            raise BrokenSealError from None\n        self._counter += 1\n        return plain", "            raise BrokenSealError from None\n        return plain", VECTORS + STREAM_TESTS),
    Mutant("stream: counter sealed, short", _CHUNKS, "        self._counter += 1\n        return _BYTES", "        return _BYTES", VECTORS + STREAM_TESTS),
    Mutant("stream: aad opened, short", _CHUNKS, "plain = self._aead.decrypt(_nonce(self._counter, flag), sealed, self._aad)", 'plain = self._aead.decrypt(_nonce(self._counter, flag), sealed, b"")', VECTORS + STREAM_TESTS),
    Mutant("stream: chunks within a unit", _STREAM_UNITS, " or (flag is _MORE and size != limits.CHUNK):", ":", STREAM_TESTS),
    Mutant("stream: size of a chunk", _STREAM_UNITS, "if not 0 < size <= limits.CHUNK or", "if not 0 < size or", STREAM_TESTS),
    Mutant("stream: nothing after a failure", _STREAM_UNITS, "cipher, self._cipher = self._cipher, None", "cipher = self._cipher", STREAM_TESTS),
    Mutant("stream: memory asked for", _STREAM_UNITS, "        self._take(length)\n", "", STREAM_TESTS),
    Mutant("stream: memory of a short unit", _STREAM_UNITS, "        self._take(size)\n", "", STREAM_TESTS),
    Mutant("stream: zeros of a long unit", _STREAM_UNITS, "        require_zeros(rest[len(kept) :])\n", "", STREAM_TESTS),
    Mutant("stream: a long unit is whole", _STREAM_UNITS, "if self._filled != len(self._body):", "if False:", STREAM_TESTS),
    Mutant("stream: a long unit has a part", _STREAM_UNITS, "        if not length:\n", "        if False:\n", STREAM_TESTS),
    Mutant("stream: alignment", _STREAM_UNITS, "lead = -self._lead(plain[_LENGTH.size :][:length]) % _ALIGNMENT", "lead = 3", STREAM_TESTS),
    Mutant("stream opened: key", _STREAM_OPENING, 'wire.expand(prk, "request", self.th),', 'wire.expand(prk, "request"),', VECTORS + STREAM_TESTS),
    Mutant("stream opened: label", _STREAM_OPENING, 'wire.expand(prk, "request", self.th),', 'wire.expand(prk, "response", self.th),', VECTORS + STREAM_TESTS),
    Mutant("stream opened: aad", _STREAM_OPENING, '            wire.expand(prk, "request", self.th),\n            self.th,', '            wire.expand(prk, "request", self.th),\n            b"",', VECTORS + STREAM_TESTS),
    Mutant("stream opened: end", _STREAM_OPENING, "if bool(unit.parts) == self._ended or unit.length", "if unit.length", STREAM_TESTS),
    Mutant("stream opened: bucket", _STREAM_OPENING, "if bool(unit.parts) == self._ended or unit.length != padded_length(unit.filled):", "if bool(unit.parts) == self._ended:", STREAM_TESTS),
    Mutant("stream opened: after the end", _STREAM_OPENING, "        if self._ended:\n            raise open_failed()\n", "", STREAM_TESTS),
    Mutant("stream opened: preamble", _STREAM_OPENING, "        if len(parts) != 1:\n", "        if not parts:\n", STREAM_TESTS),
    Mutant("stream answer: nonce", _STREAM_OPENING, "secrets.token_bytes(_RESPONSE_NONCE_BYTES)", "bytes(_RESPONSE_NONCE_BYTES)", VECTORS + STREAM_TESTS),
    Mutant("stream answer: request in the key", _STREAM_OPENING, '"response", self.th, rh)', '"response", rh)', VECTORS + STREAM_TESTS),
    Mutant("stream answer: header in the key", _STREAM_OPENING, '"response", self.th, rh)', '"response", self.th)', VECTORS + STREAM_TESTS),
    Mutant("stream answer: aad", _STREAM_OPENING, "self._writer = UnitWriter(key, rh)", 'self._writer = UnitWriter(key, b"")', VECTORS + STREAM_TESTS),
    Mutant("stream answer: message and status", _STREAM_OPENING, "if bool(messages) != (trailer.status is Code.OK):", "if False:", STREAM_TESTS),
    Mutant("stream answer: floor", _STREAM_OPENING, "padded_answer(size, floor)", "padded_answer(size)", VECTORS + STREAM_TESTS),
    Mutant("stream answer: last", _STREAM_OPENING, "self._seal([], 0, trailer, floor, Flag.LAST)", "self._seal([], 0, trailer, floor, Flag.UNIT_ENDS)", VECTORS + STREAM_TESTS),
    Mutant("stream sealed: key", _STREAMING, 'wire.expand(prk, "request", self._th), self._th)', 'wire.expand(prk, "request"), self._th)', VECTORS + STREAM_TESTS),
    Mutant("stream sealed: aad", _STREAMING, 'wire.expand(prk, "request", self._th), self._th)', 'wire.expand(prk, "request", self._th), b"")', VECTORS + STREAM_TESTS),
    Mutant("stream sealed: end", _STREAMING, "limits.UNIT_MIN, Flag.LAST)", "limits.UNIT_MIN, Flag.UNIT_ENDS)", VECTORS + STREAM_TESTS),
    Mutant("stream read: request in the key", _STREAMING, '"response", self._th, rh)', '"response", rh)', VECTORS + STREAM_TESTS),
    Mutant("stream read: header in the key", _STREAMING, '"response", self._th, rh)', '"response", self._th)', VECTORS + STREAM_TESTS),
    Mutant("stream read: aad", _STREAMING, '"response", self._th, rh),\n            rh,', '"response", self._th, rh),\n            b"",', VECTORS + STREAM_TESTS),
    Mutant("stream read: one header", _STREAMING, "        if self._reader is not None:\n", "        if False:\n", STREAM_TESTS),
    Mutant("stream read: after the end", _STREAMING, "if self._reader is None or self._ended:", "if self._reader is None:", STREAM_TESTS),
    Mutant("stream read: bucket", _STREAMING, "if not parts or length != padme(length):", "if not parts:", STREAM_TESTS),
    Mutant("stream read: room", _STREAMING, "if length < padded_answer(filled - PREFIX_BYTES - len(trailer_bytes)):", "if False:", STREAM_TESTS),
    Mutant("stream read: message and status", _STREAMING, "if len(messages) != self._due(trailer):", "if False:", STREAM_TESTS),
    Mutant("stream read: receipt", _STREAMING, "if (trailer.receipt is not None) != receipt_due:", "if False:", STREAM_TESTS),
    Mutant("trailer: refusals are final", _MESSAGES, "_require(self.final or self.status is Code.OK,", "_require(True,", MESSAGES),
    Mutant("trailer: unit", _MESSAGES, "_require(self.unit <= _U32_MAX,", "_require(True,", MESSAGES),
    Mutant("trailer: unit of a good one", _MESSAGES, "_require(0 <= unit <= _U32_MAX,", "_require(True,", MESSAGES),
    Mutant("trailer: unit of a known one", _MESSAGES, "if unit > _U32_MAX:", "if False:", MESSAGES),
)

SEALED_MODELS = (
    Mutant("model: publisher", _READER, "if header.publisher not in publishers:", "if False:", MODELS),
    Mutant("model: signature", _READER, 'self._signature, wire.label("model") + wire.digest(self._signed)\n', 'self._signature, Ed25519PublicKey.from_public_bytes(header.publisher) and b""\n', MODELS),
    Mutant("model: signature's label", _READER, 'wire.label("model") + wire.digest(self._signed)', "wire.digest(self._signed)", MODELS + VECTORS),
    Mutant("model: minimum version", _READER, "if header.version < minimum:", "if False:", MODELS),
    Mutant("model: size", _READER, "if header.total_bytes > self._max_bytes:", "if False:", MODELS),
    Mutant("model: commitment", _READER, 'if not hmac.compare_digest(wire.expand(prk, "commit"), header.key_commitment):', "if False:", MODELS),
    Mutant("model: file in the key", _READER, 'wire.expand(prk, "model", file_hash), file_hash', 'wire.expand(prk, "model"), file_hash', MODELS),
    Mutant("model: file as aad", _READER, 'wire.expand(prk, "model", file_hash), file_hash', 'wire.expand(prk, "model", file_hash), b""', MODELS),
    Mutant("model: last chunk", _CONTENTS, "self._count, last=self.last)", "self._count, last=False)", MODELS),
    Mutant("model: number of a chunk", _CONTENTS, "sealed, self._count, last", "sealed, 0, last", MODELS),
    Mutant("model: after a failure", _READER, "if self._failed or (piece", "if (piece", MODELS),
    Mutant("model: one at a time", _READER, "                with self._taking:\n", "                if True:\n", MODELS),
    Mutant("model: bytes after the end", _READER, "                raise open_failed()  # the file ends with the last chunk\n", "                return\n", MODELS),
    Mutant("model: digest", _CONTENTS, "if not hmac.compare_digest(digest, entry.digest):", "if False:", MODELS),
    Mutant("model: missing chunks", _READER, "if contents is None or contents.wanted:", "if contents is None:", MODELS),
    Mutant("model: memory of the unverified", _READER, "self._require(_State.VERIFIED)\n        if self._header is not None and", "if self._header is not None and", MODELS),
    Mutant("model: what is given up", _READER, "    def __exit__(self, *_: object) -> None:\n        self._end()", "    def __exit__(self, *_: object) -> None:\n        pass", MODELS),
    Mutant("model: contents, aligned", "sealed_model/memory_file.py", "places[path] = -(-end // _ALIGNMENT) * _ALIGNMENT", "places[path] = end", ("tests/unit/test_memory_file.py",)),
    Mutant("model: last part", _CONTENTS, "return self.wanted == self._missing", "return not self._missing", MODELS),
    Mutant("model: weights, where they begin", "client/onnx_alignment.py", "(data[0].start + shift + edit.growth) % _ALIGNMENT == 0", "(data[0].start + edit.growth) % _ALIGNMENT == 0", _ALIGNED),
    Mutant("model: weights, length of the graph", "client/onnx_alignment.py", "length = graph.end - graph.start + sum(edit.growth for edit in edits)", "length = graph.end - graph.start", _ALIGNED),
    Mutant("model: weights, a length that grows", "client/onnx_alignment.py", "graph.start - graph.head + 2)", "graph.start - graph.head + 1)", _ALIGNED),
    Mutant("model: content's label", _PARTS, 'wire.label("content"), length', "b'', length", VECTORS + MODELS),
    Mutant("model: content's length", _PARTS, 'wire.label("content"), length.to_bytes(_LENGTH_BYTES, "big"), *parts', 'wire.label("content"), *parts', VECTORS + MODELS),
    Mutant("model: part's digest", _PARTS, "hashlib.sha256(part)", "hashlib.sha256(part[:-1])", VECTORS + MODELS),
    Mutant("model: magic", _READER, "if buffer[: len(MAGIC)] != MAGIC[: len(buffer)]:", "if False:", MODELS),
    Mutant("model: header's length", _READER, "if not 0 < length <= limits.MODEL_HEADER_MAX:", "if False:", MODELS),
    Mutant("model: signature's length", _READER, "[0] != SIGNATURE_BYTES:", "[0] < 0:", MODELS),
    Mutant("model: unvouched chunks", _READER, "if len(self._buffer) + len(view) > limits.MODEL_HEADER_MAX + 2 * limits.MIB:", "if False:", MODELS),
    Mutant("model: digest's label", _MODEL, 'wire.digest(wire.label("digest"), wire.lp(encoded))', "wire.digest(wire.lp(encoded))", VECTORS),
    Mutant("model: paths", _MODEL, '_require(not {"", ".", ".."} & set(components),', "_require(True,", MODELS),
    Mutant("model: path's letters", _MODEL, "_require(_PATH.fullmatch(self.path) is not None,", "_require(True,", MODELS),
    Mutant("model: a path twice", _MODEL, "_require(len({entry.path for entry in entries}) == len(entries),", "_require(True,", MODELS),
    Mutant("model: name", _MODEL, "_require(_NAME.fullmatch(self.name),", "_require(True,", MODELS),
    Mutant("model: runtime", _MODEL, "_require(self.runtime == RUNTIME,", "_require(True,", MODELS),
    Mutant("model: callers' order", _MODEL, "_require(sorted(set(callers)) == list(callers),", "_require(True,", MODELS),
    Mutant("model: callers' keys", _MODEL, '_require(good, "a caller', '_require(True, "a caller', MODELS),
)
_ADMISSION = "tests/unit/enclave/test_admission.py"
_admitted = partial(
    Mutant, file="admission.py", tests=(_ADMISSION,), package="enclave/casemate_enclave"
)
ADMISSION = (
    _admitted("admission: key", old="if session is not None and now < session.kept_until:", new="if session is not None:"),
    _admitted("admission: size", old="if size > self._request_bytes:", new="if False:"),
    _admitted("admission: times", old="        self._replay.check_times(session.not_before, session.not_after, now)\n", new=""),
    _admitted("admission: bound", old="if len(self._known) > limits.SESSIONS_KNOWN:", new="if False:"),
    _admitted("admission: room for one", old="self._known.popitem(last=False)", new="self._known.clear()"),
    _admitted("admission: end", old="if now >= session.not_after]:", new="if False]:"),
    _admitted("admission: maintained", file="service.py", old="        self._admission.expire(now)\n", new="", tests=("tests/integration/test_enclave_service.py",)),
    _admitted("keys: maintained", file="service.py", old="        self._cache.expire(now)\n", new="", tests=("tests/integration/test_enclave_service.py",)),
    Mutant("admission: session", _HEADER, "return data[:_MODE_END] + data[_TIMES:]", "return data[_TIMES:]", (_ADMISSION,)),
    Mutant("admission: sequence", _HEADER, "    _check_sequence(sequence)\n", "", (_ADMISSION,)),
)
# fmt: on

MUTANTS = ADMISSION + WIRE + CHUNKS + HEADER + ENVELOPE + PARTS + STREAMS + SEALED_MODELS
