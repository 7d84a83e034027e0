"""Steps 1 to 18 of SPEC 3.8, the parsers beneath them and the trust policy: each check off."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

DOCUMENTS = ("tests/security/test_documents.py",)
CERTIFICATES = ("tests/security/test_certificates.py",)
CACHE = ("tests/security/test_chain_cache.py",)
BINDING = ("tests/security/test_evidence_binding.py",)
VERIFY = ("tests/unit/attestation/test_verify.py",)
STRUCTURES = ("tests/unit/attestation/test_structures.py",)
POLICY = ("tests/unit/attestation/test_policy.py",)
VECTORS = ("tests/unit/test_vectors.py",)
JUDGED = BINDING + VERIFY

_STEPS = "attestation/verify.py"
_COSE = "attestation/cose.py"
_BUNDLE = "attestation/evidence.py"
_DOCUMENT = "attestation/document.py"
_CHAIN = "attestation/chain.py"
_CACHE = "attestation/chain_cache.py"
_APPRAISAL = "attestation/appraisal.py"
_STRUCTURES = "attestation/structures.py"
_CONFIGURATION = "attestation/configuration.py"
_POLICY = "attestation/policy.py"
_TOML = "attestation/_toml.py"
_CBOR = "cbor.py"

# fmt: off
STEPS = (
    # 1 size
    Mutant("1 size", _STEPS, "    run(1, bundle.check_sizes)\n", "", VERIFY),
    Mutant("1 document", _COSE, "sized(data, 1, limits.DOCUMENT_MAX,", "sized(data, 0, 1 << 30,", DOCUMENTS),
    *(
        Mutant(f"1 {part}", _BUNDLE, f"sized(self.{part}, 0, limits.{bound},", f"sized(self.{part}, 0, 1 << 30,", STRUCTURES)
        for part, bound in (
            ("configuration", "CONFIGURATION_MAX"),
            ("instance_config", "INSTANCE_CONFIG_MAX"),
            ("measurement_log", "MEASUREMENT_LOG_MAX"),
        )
    ),
    Mutant("1 key_config", _BUNDLE, "sized(key_config, 0, limits.KEY_CONFIG_MAX,", "sized(key_config, 0, 1 << 30,", STRUCTURES),
    Mutant("1 accelerator", _BUNDLE, "require(not self.accelerator,", "require(True,", JUDGED),
    # 2 cose
    Mutant("2 items", _COSE, "len(value) != _ITEMS", "len(value) < _ITEMS", DOCUMENTS),
    Mutant("2 tag", _COSE, "data[:1] == bytes([_TAG_18])", "data[:1] >= b'\\xc0'", DOCUMENTS),
    Mutant("2 unprotected", _COSE, "require(isinstance(unprotected, dict),", "require(True,", DOCUMENTS),
    Mutant("2 payload", _COSE, "sized(payload, 1, limits.DOCUMENT_PAYLOAD_MAX,", "sized(payload, 0, 1 << 30,", DOCUMENTS),
    Mutant("2 signature", _COSE, "sized(signature, SIGNATURE_BYTES, SIGNATURE_BYTES,", "sized(signature, 0, 1024,", DOCUMENTS),
    # 3 algorithm
    Mutant("3 algorithm", _STEPS, "    run(3, check_algorithm, cose)\n", "", VERIFY),
    Mutant("3 protected", _COSE, "require(cose.protected == ES384,", "require(True,", DOCUMENTS),
    Mutant("3 unprotected", _COSE, "require(not cose.unprotected,", "require(True,", DOCUMENTS),
    # 4 payload
    Mutant("4 module_id", _DOCUMENT, '1, _MODULE_ID_MAX, _CODE, "bytes of', '0, 1024, _CODE, "bytes of', DOCUMENTS),
    Mutant("4 digest", _DOCUMENT, 'require(value["digest"] == "SHA384",', "require(True,", DOCUMENTS),
    Mutant("4 timestamp", _DOCUMENT, 'require(value["timestamp"] > 0,', "require(True,", DOCUMENTS),
    Mutant("4 optional", _DOCUMENT, "sized(value[name], 0, limits.DOCUMENT_FIELD_MAX,", "sized(value[name], 0, 1 << 30,", DOCUMENTS),
    Mutant("4 register count", _DOCUMENT, "between(len(pcrs), 1, limits.PCR_MAX,", "between(len(pcrs), 0, 99,", DOCUMENTS),
    Mutant("4 register index", _DOCUMENT, "between(index, 0, limits.PCR_MAX - 1,", "between(index, 0, 1 << 60,", DOCUMENTS),
    Mutant("4 register size", _DOCUMENT, "sized(register, limits.PCR_BYTES, limits.PCR_BYTES,", "sized(register, 0, 99,", DOCUMENTS),
    Mutant("4 cabundle", _DOCUMENT, "if not 1 <= len(value", "if not 0 <= len(value", DOCUMENTS),
    Mutant("4 cabundle bound", _DOCUMENT, '["cabundle"]) <= limits.CABUNDLE_MAX:', '["cabundle"]) <= 99:', DOCUMENTS),
    Mutant("4 certificate", _DOCUMENT, "sized(certificate, 1, limits.DOCUMENT_FIELD_MAX,", "sized(certificate, 0, 1 << 30,", DOCUMENTS),
    Mutant("4 trailing bytes", _CBOR, "if self._at != len(self._data):", "if False:", DOCUMENTS),
    Mutant("4 shortest head", _CBOR, "if value < (24 if", "if value < 0 * (24 if", DOCUMENTS),
    Mutant("4 depth", _CBOR, "if depth > limits.CBOR_DEPTH:", "if False:", VECTORS),
    Mutant("4 items", _CBOR, "if items > limits.CBOR_ITEMS or items > len(self._data) - self._at:", "if False:", VECTORS),
    Mutant("4 UTF-8", _CBOR, "self._take(argument).decode()", "self._take(argument).decode(errors='replace')", DOCUMENTS),
    Mutant("4 key type", _CBOR, "if type(key) not in (int, str):", "if type(key) not in (int, str, bool, bytes):", VECTORS),
    Mutant("4 duplicate key", _CBOR, "if key in result:", "if False:", DOCUMENTS),
    Mutant("4 sorted keys", _CBOR, "if not self._nsm and previous and encoded <= previous:", "if False:", VECTORS),
    Mutant("4 indefinite map", _CBOR, "indefinite = self._nsm and info == _INDEFINITE", "indefinite = info == _INDEFINITE", VECTORS),
    Mutant("4 unknown keys", _CBOR, "if value.keys() != keys.keys():", "if not value.keys() >= keys.keys():", DOCUMENTS),
    Mutant("4 value types", _CBOR, "if type(item) not in accepted:", "if False:", DOCUMENTS),
    # 5 platform
    Mutant("5 platform", _STEPS, "    run(5, appraisal.check_platform, bundle, claimed, policy)\n", "", JUDGED),
    Mutant("5 bundle", _APPRAISAL, "require(bundle.platform == policy.platform,", "require(True,", JUDGED),
    Mutant("5 registers", _APPRAISAL, "require(expected, code, f\"the document's", "require(True, code, f\"the document's", JUDGED),
    # 6 root
    Mutant("6 root", _STEPS, "    run(6, check_root, claimed, policy.roots)\n", "", JUDGED),
    Mutant("6 digest", _STEPS, "require(anchored,", "require(True,", CERTIFICATES),
    # 7 chain
    Mutant("7 twice", _CHAIN, "if len(set(certificates)) < len(certificates):", "if False:", CERTIFICATES),
    Mutant("7 re-encoding", _CHAIN, "if certificate.public_bytes(Encoding.DER) != der:", "if False:", CERTIFICATES),
    Mutant("7 unused bits", _CHAIN, "if not der.endswith(_WHOLE_BYTES + certificate.signature):", "if False:", CERTIFICATES),
    Mutant("7 version", _CHAIN, "if certificate.version is not x509.Version.v3:", "if False:", CERTIFICATES),
    Mutant("7 serial", _CHAIN, "if certificate.serial_number <= 0:", "if False:", CERTIFICATES),
    Mutant("7 hash", _CHAIN, "if certificate.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA384:", "if False:", CERTIFICATES),
    Mutant("7 critical", _CHAIN, "if extension.critical and not isinstance(extension.value, _UNDERSTOOD):", "if False:", CERTIFICATES),
    Mutant("7 curve", _CHAIN, "or not isinstance(key.curve, ec.SECP384R1):", "or False:", CERTIFICATES),
    Mutant("7 not before", _CHAIN, "if now < lifetime.not_before:", "if False:", CERTIFICATES),
    Mutant("7 not after", _CHAIN, "if now > lifetime.not_after:", "if False:", CERTIFICATES),
    Mutant("7 last moment", _CHAIN, "if now > lifetime.not_after:", "if now >= lifetime.not_after:", CERTIFICATES),
    Mutant("7 leaf alone", _CHAIN, "for depth, lifetime in enumerate(chain.lifetimes):", "for depth, lifetime in [(last, chain.lifetimes[last])]:", CERTIFICATES),
    Mutant("7 CA", _CHAIN, "if constraints is None or not constraints.critical or not constraints.value.ca:", "if constraints is None or not constraints.critical:", CERTIFICATES),
    Mutant("7 CA critical", _CHAIN, "or not constraints.critical or not", "or not", CERTIFICATES),
    Mutant("7 pathLen", _CHAIN, "if path_length is not None and below > path_length:", "if False:", CERTIFICATES),
    Mutant("7 keyCertSign", _CHAIN, "if usage is None or not usage.value.key_cert_sign:", "if False:", CERTIFICATES),
    Mutant("7 leaf CA", _CHAIN, "if constraints is not None and constraints.value.ca:", "if False:", CERTIFICATES),
    Mutant("7 leaf usage", _CHAIN, "if usage is None or not usage.value.digital_signature:", "if False:", CERTIFICATES),
    Mutant("7 issued", _CHAIN, "        subject.verify_directly_issued_by(issuer)\n", "        pass\n", CERTIFICATES),
    Mutant("7 first link", _CHAIN, "in pairwise(chain):", "in pairwise(chain[1:]):", CERTIFICATES),
    Mutant("7 last link", _CHAIN, "in pairwise(chain):", "in pairwise(chain[:-1]):", CERTIFICATES),
    Mutant("7 seen, expired", _CHAIN, "        _check_lifetimes(known, now)\n", "", CACHE),
    Mutant("7 seen, by leaf", _CACHE, "digest(lp(*certificates))", "digest(certificates[-1])", CACHE),
    Mutant("7 seen, by issuers", _CACHE, "digest(lp(*certificates))", "digest(lp(*certificates[:-1]))", CACHE),
    Mutant("7 seen, unbounded", _CACHE, "while len(self._chains) > self._capacity:", "while False:", CACHE),
    Mutant("7 seen, oldest", _CACHE, "self._chains.move_to_end(key)", "pass", CACHE),
    # 8 signature
    Mutant("8 signature", _STEPS, "        leaf.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA384()))\n", "        pass\n", DOCUMENTS),
    Mutant("8 protected", _STEPS, "CoseSign1(document.protected, {},", "CoseSign1(b'', {},", DOCUMENTS),
    Mutant("8 context", _COSE, '["Signature1", self.protected, b"", self.payload]', '["Signature", self.protected, b"", self.payload]', DOCUMENTS),
    # 9 age
    Mutant("9 age", _STEPS, "    run(9, appraisal.check_age, document, policy.maximum_age_seconds, now)\n", "", VERIFY),
    Mutant("9 future", _APPRAISAL, "require(age >= -limits.CLOCK_SKEW,", "require(True,", JUDGED),
    Mutant("9 old", _APPRAISAL, "require(age <= maximum_age_seconds * 1000,", "require(True,", JUDGED),
    # 10 nonce
    Mutant("10 nonce", _STEPS, "    run(10, appraisal.check_nonce, document, policy, nonce)\n", "", JUDGED),
    Mutant("10 fresh", _APPRAISAL, "require(policy.evidence != FRESH,", "require(True,", JUDGED),
    Mutant("10 somebody's", _APPRAISAL, "require(document.nonce is None, code,", "require(True, code,", JUDGED),
    Mutant("10 size", _APPRAISAL, "require(usable,", "require(True,", JUDGED),
    Mutant("10 equal", _APPRAISAL, "require(document.nonce == nonce,", "require(True,", JUDGED),
    Mutant("10 prefix", _APPRAISAL, "require(document.nonce == nonce,", "require(nonce.startswith(document.nonce or b''),", JUDGED),
    # 11 debug
    Mutant("11 missing", _APPRAISAL, "require(not missing,", "require(True,", JUDGED),
    Mutant("11 zero", _APPRAISAL, "require(not zero or (debug and policy.allow_debug),", "require(True,", JUDGED),
    Mutant("11 allowed", _APPRAISAL, "(debug and policy.allow_debug)", "debug", JUDGED),
    Mutant("11 one zero", _APPRAISAL, "(debug and policy.allow_debug)", "policy.allow_debug", JUDGED),
    # 12 measurements
    *(
        Mutant(f"12 PCR{index}", _POLICY, f"{index}: self.pcr{index}{end}", f"{rest}{end}", BINDING)
        for index, end, rest in ((0, ", 1: ", "3: bytes(48)"), (1, ", 2: ", "3: bytes(48)"), (2, "}", "3: bytes(48)"))
    ),
    Mutant("12 PCR8", _POLICY, "image | {8: self.pcr8}", "image", BINDING),
    Mutant("12 any", _APPRAISAL, "    if not matching:\n", "    if False:\n", BINDING),
    Mutant("12 minimum", _APPRAISAL, "require(bool(accepted), Code", "require(True, Code", BINDING),
    Mutant("12 minimum kept", _APPRAISAL, "if release in policy.accepted)", "if True)", BINDING),
    Mutant("12 minimum, debug", _STEPS, "candidates = policy.accepted", "candidates = policy.releases", BINDING),
    # 13 configuration
    Mutant("13 present", _APPRAISAL, "require(register is not None,", "require(True,", BINDING),
    Mutant("13 ours", _APPRAISAL, "    require(ours, code,", "    require(True, code,", JUDGED),
    Mutant("13 release", _APPRAISAL, "if release.pcr16 == register:", "if True:", JUDGED),
    Mutant("13 event", _CONFIGURATION, 'digest(label("config"), lp(configuration))', 'digest(label("config"), configuration)', VECTORS),
    Mutant("13 publishers", _CONFIGURATION, "require(ascending(self.publishers),", "require(True,", STRUCTURES),
    Mutant("13 audience", _CONFIGURATION, "require(KEY_POLICY_VARIABLE not in self.audience,", "require(True,", STRUCTURES),
    Mutant("13 provider", _CONFIGURATION, 'require(known, _CODE, "unknown execution provider")', "", STRUCTURES),
    Mutant("13 partition", _CONFIGURATION, "require(self.partition in PARTITIONS,", "require(True,", STRUCTURES),
    Mutant("13 region", _CONFIGURATION, "matching(region, _REGION,", "matching('us-east-1', _REGION,", STRUCTURES),
    # 14 binding
    Mutant("14 binding", _STEPS, "    run(14, appraisal.check_binding, document, bundle)\n", "", JUDGED),
    Mutant("14 public key", _APPRAISAL, "require(document.public_key is None,", "require(True,", JUDGED),
    Mutant("14 user data", _APPRAISAL, "    require(bound, code,", "    require(True, code,", JUDGED),
    *(
        Mutant(f"14 {part}", _BUNDLE, f"            {form}(self.{part}),\n", "", BINDING + VECTORS)
        for part, form in (
            ("configuration", "lp"),
            ("key_configs", "lp_list"),
            ("instance_config", "lp"),
            ("measurement_log", "lp"),
            ("accelerator", "lp_list"),
        )
    ),
    Mutant("14 label", _BUNDLE, 'label("evidence")', 'label("kms")', VECTORS),
    # 15 keys
    Mutant("15 count", _APPRAISAL, "    require(few, code,", "    require(True, code,", JUDGED),
    Mutant("15 valid", _APPRAISAL, "    require(valid, code,", "    require(True, code,", JUDGED),
    Mutant("15 suite", _STRUCTURES, "require(known, Code.EVIDENCE_KEYS,", "require(True, Code.EVIDENCE_KEYS,", STRUCTURES),
    Mutant("15 size", _STRUCTURES, "sized(self.public_key, KEM_PUBLIC_BYTES, KEM_PUBLIC_BYTES,", "sized(self.public_key, 0, 4096,", STRUCTURES),
    Mutant("15 lifetime", _STRUCTURES, "0 < span <= limits.KEM_LIFETIME_MAX,", "True,", STRUCTURES),
    Mutant("15 current", _STEPS, "if key.valid_at(self.document.timestamp)][-1]", "][0]", VERIFY),
    # 16 instance
    Mutant("16 boot time", _APPRAISAL, "require(instance.boot_time <= timestamp,", "require(True,", JUDGED),
    Mutant("16 form", _STRUCTURES, "require(self.form in FORMS,", "require(True,", STRUCTURES),
    Mutant("16 zero", _STRUCTURES, "require(any(self.instance_id),", "require(True,", STRUCTURES),
    # 17 audience
    Mutant("17 audience", _STEPS, "    run(17, appraisal.check_audience, configuration, policy.audience)\n", "", JUDGED),
    Mutant("17 equal", _APPRAISAL, "require(configuration.audience == audience,", "require(True,", JUDGED),
    # 18 models
    Mutant("18 allowed", _APPRAISAL, "require(known or not load,", "require(True,", JUDGED),
    Mutant("18 latest alone", _APPRAISAL, "    for entry in log:\n", "    for entry in log[-1:]:\n", JUDGED),
    Mutant("18 unloads", _APPRAISAL, "require(known or not load,", "require(known,", JUDGED),
    Mutant("18 entries", _STRUCTURES, "require(len(value) <= limits.MEASUREMENT_LOG_ENTRIES,", "require(True,", STRUCTURES),
    Mutant("18 operation", _STRUCTURES, 'require(self.op in {"load", "unload"},', "require(True,", STRUCTURES),
    Mutant("18 name", _POLICY, "return known and (name, publisher) == (self.name, self.publisher)", "return known and publisher == self.publisher", JUDGED),
    Mutant("18 publisher", _POLICY, "return known and (name, publisher) == (self.name, self.publisher)", "return known and name == self.name", JUDGED),
    Mutant("18 digest", _POLICY, "known = self.digests is None or digest in self.digests", "known = True", JUDGED),
)

TRUST_POLICY = (
    Mutant("policy: version", _POLICY, '_require(table.take("version", int) == VERSION,', '_require(table.take("version", int) > 0,', POLICY),
    Mutant("policy: unknown keys", _TOML, "        if self._left:\n", "        if False:\n", POLICY),
    Mutant("policy: types", _TOML, "if type(value) is not kind:", "if not isinstance(value, kind):", POLICY),
    Mutant("policy: hex", _TOML, "not isinstance(value, str) or not _HEX.fullmatch(value)", "not isinstance(value, str)", POLICY),
    Mutant("policy: twice in a list", _TOML, "if len(set(values)) != len(values):", "if False:", POLICY),
    Mutant("policy: size", _POLICY, "_require(len(text) <= limits.POLICY_MAX,", "_require(True,", POLICY),
    Mutant("policy: platform", _POLICY, "_require(self.platform == PLATFORM_NITRO_ENCLAVE,", "_require(True,", POLICY),
    Mutant("policy: audience", _POLICY, "_between(len(self.audience.encode()), limits.AUDIENCE_MAX,", "_between(1, 1,", POLICY),
    Mutant("policy: variable", _POLICY, "_require(KEY_POLICY_VARIABLE not in self.audience,", "_require(True,", POLICY),
    Mutant("policy: roots", _POLICY, "_between(len(self.roots), limits.POLICY_ROOTS_MAX,", "_between(1, 1,", POLICY),
    Mutant("policy: root size", _POLICY, '_sizes(self.roots, ROOT_BYTES, "roots")', "pass", POLICY),
    Mutant("policy: evidence", _POLICY, "_require(self.evidence in {FRESH, STAPLED},", "_require(True,", POLICY),
    Mutant("policy: age", _POLICY, "_between(self.maximum_age_seconds, limits.AGE_MAX_SECONDS,", "_between(1, 1,", POLICY),
    Mutant("policy: releases", _POLICY, "_between(len(self.releases), limits.POLICY_RELEASES_MAX,", "_between(1, 1,", POLICY),
    Mutant("policy: models", _POLICY, "_between(len(self.models), limits.POLICY_MODELS_MAX,", "_between(1, 1,", POLICY),
    Mutant("policy: release names", _POLICY, '_distinct([release.name for release in self.releases], "release name")', "pass", POLICY),
    Mutant("policy: releases twice", _POLICY, '_distinct([tuple(release.registers.values()) for release in self.releases], "release")', "pass", POLICY),
    Mutant("policy: models twice", _POLICY, '_distinct([(model.name, model.publisher) for model in self.models], "model")', "pass", POLICY),
    Mutant("policy: release name", _POLICY, "_require(bool(RELEASE_NAME.fullmatch(self.name)),", "_require(True,", POLICY),
    Mutant("policy: register size", _POLICY, '_require(len(value) == HASH_BYTES, f"release', '_require(True, f"release', POLICY),
    Mutant("policy: zero register", _POLICY, "_require(any(value),", "_require(True,", POLICY),
    Mutant("policy: PCR8 checked", _POLICY, "(*REGISTERS, SIGNER) if self.pcr8 is not None else REGISTERS", "REGISTERS", POLICY),
    Mutant("policy: number", _POLICY, "_between(self.number, VERSION_MAX,", "_between(1, VERSION_MAX,", POLICY),
    Mutant("policy: some numbers", _POLICY, "_require(len(numbers) in {0, len(self.releases)},", "_require(True,", POLICY),
    Mutant("policy: order", _POLICY, "_require(ascending(numbers),", "_require(True,", POLICY),
    Mutant("policy: minimum alone", _POLICY, "_require(bool(numbers),", "numbers or numbers.append(1)\n            _require(True,", POLICY),
    Mutant("policy: minimum", _POLICY, "_between(self.minimum_release, numbers[-1],", "_between(1, numbers[-1],", POLICY),
    Mutant("policy: accepted", _POLICY, "if (release.number or 0) >= minimum)", "if True)", POLICY),
    Mutant("policy: model name", _POLICY, "_require(bool(MODEL_NAME.fullmatch(self.name)),", "_require(True,", POLICY),
    Mutant("policy: publisher", _POLICY, "len(self.publisher) == _PUBLISHER_BYTES,", "True,", POLICY),
    Mutant("policy: digests", _POLICY, "_sizes(self.digests, HASH_BYTES,", "_sizes(frozenset([bytes(48)]), HASH_BYTES,", POLICY),
    Mutant("policy: key release", "kms_policy_check.py", "trust.accepted, context", "trust.releases, context", ("tests/unit/test_kms_policy.py",)),
)
# fmt: on

MUTANTS = STEPS + TRUST_POLICY
