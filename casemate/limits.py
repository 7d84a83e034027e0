"""Every bound of size and time, with its reason.

Sizes are in bytes, times in milliseconds, unless the name says otherwise.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# Attestation documents (SPEC 3.7)
# The NSM's answer buffer is 12 KiB; the largest genuine one seen is 5.2 KiB.
DOCUMENT_MAX: Final = 20 * KIB
DOCUMENT_PAYLOAD_MAX: Final = 16 * KIB  # AWS's attestation_process.md section 3.1
DOCUMENT_FIELD_MAX: Final = 1024  # public_key, user_data, nonce, each certificate: AWS's CDDL
CABUNDLE_MAX: Final = 8  # genuine chains have 4 entries
PCR_MAX: Final = 32  # NSM banks have 32 registers
PCR_BYTES: Final = 48  # SHA-384

# Evidence (SPEC 3)
CONFIGURATION_MAX: Final = 128 * KIB  # 16 TLS roots of 4 KiB and 256 minimum versions fit with room
KEY_CONFIG_MAX: Final = 2 * KIB  # a 1,216-byte public key and seven short fields
INSTANCE_CONFIG_MAX: Final = 1 * KIB
MEASUREMENT_LOG_MAX: Final = 512 * KIB  # 1,024 entries of at most 400 bytes
MEASUREMENT_LOG_ENTRIES: Final = 1024  # a busy day of model updates; then the enclave must restart
EVIDENCE_MAX: Final = 1 * MIB  # all of the above in one message
NONCE_MIN: Final = 16  # 128 bits: cannot be guessed
NONCE_MAX: Final = 64
CLOCK_SKEW: Final = 60_000  # how far a document may lie in the verifier's future
AGE_MAX_SECONDS: Final = 10_800  # a leaf certificate lives three hours
KEM_LIFETIME_MAX: Final = 24 * 3_600_000  # an enclave drains and restarts within a day
KEM_KEEP_AFTER: Final = 3_600_000  # the longest session that a key may have started

# CBOR (SPEC 1.6)
CBOR_DEPTH: Final = 8  # our deepest structure has 4
CBOR_ITEMS: Final = 4096  # above the measurement log's 1,024 entries; bounds work per message

# Envelope (SPEC 5)
# A large tensor opens while it arrives; per-chunk cost below 0.1 % of AES-GCM.
CHUNK: Final = 1 * MIB
UNIT_MIN: Final = 1024  # smallest bucket: short requests look alike
WRAPPED_KEY_MAX: Final = 6400  # a KMS ciphertext blob of 6,144 with its ARN
CIPHERTEXT_BLOB_MAX: Final = 6144  # KMS API limit
KEY_ARN_MAX: Final = 256
HEADER_MAX: Final = 118 + 4 + WRAPPED_KEY_MAX
REQUEST_MAX: Final = 64 * MIB  # ceiling of limits.request_bytes: one unary message in memory
PREAMBLE_MAX: Final = 1 * KIB
TRAILER_MAX: Final = 2 * KIB
DETAIL_MAX: Final = 512  # error texts name things; they never quote content

# Sessions (SPEC 6)
SESSION_SPAN_MAX: Final = 3_600_000  # one hour bounds the replay table and a stolen data key's use
SEQUENCE_MAX: Final = 1 << 20  # far below AES-GCM's limits for one key hierarchy
REPLAY_WINDOW: Final = 1024  # requests of one session that may overtake each other
SESSIONS_MAX: Final = 1 << 20
KEY_CACHE_MAX: Final = 4096  # unwrapped data keys; an unwrap costs 0.1 ms (hpke) to 20 ms (kms)
CLOCK_REFRESH: Final = 60_000
CLOCK_SILENCE_MAX: Final = 300_000  # a host that freezes the device cannot stretch time further

# Sealed models (SPEC 8)
MODEL_HEADER_MAX: Final = 64 * KIB
MODEL_ENTRIES_MAX: Final = 64
MODEL_CALLERS_MAX: Final = 1024
MODEL_BYTES_MAX: Final = 1 << 40
ANSWER_BUCKET_MAX: Final = 64 * MIB
TENSORS_MAX: Final = 64  # inputs or outputs of one model
RANK_MAX: Final = 8

# Frames (SPEC 9)
FRAME_MAX: Final = REQUEST_MAX + 64 * KIB  # the largest sealed request with its header
FRAME_BUDGET_DEFAULT: Final = 30_000
FRAME_HEAD_TIMEOUT_S: Final = 30.0  # a half-sent frame may hold a connection this long
CONNECTIONS_MAX: Final = 64  # enclave side: 32 relay connections, control, and room for a reconnect
EGRESS_NAME_MAX: Final = 259  # a 253-byte host name, colon, port

# Key release (SPEC 10)
KMS_TIMEOUT_S: Final = 5.0
KMS_ATTEMPTS: Final = 3
KMS_ENVELOPE_MAX: Final = 6144  # KMS API limit of CiphertextForRecipient

# Trust policy (SPEC 12)
POLICY_MAX: Final = 256 * KIB
POLICY_ROOTS_MAX: Final = 8
POLICY_RELEASES_MAX: Final = 16
POLICY_MODELS_MAX: Final = 256
