"""Every bound of size and time, with its reason.

Sizes are in bytes, times in milliseconds, unless the name says otherwise.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

# Attestation documents (SPEC 3.7)
# The NSM's answer buffer is 12 KiB; the largest genuine one seen is 5.2 KiB.
DOCUMENT_MAX: Final = 20 * KIB
DOCUMENT_PAYLOAD_MAX: Final = 16 * KIB  # AWS's attestation_process.md section 3.1
DOCUMENT_FIELD_MAX: Final = 1024  # public_key, user_data, nonce, each certificate: AWS's CDDL
CABUNDLE_MAX: Final = 8  # genuine chains have 4 entries
CHAIN_CACHE_MAX: Final = 64  # one live leaf for each enclave; some KiB each
PCR_MAX: Final = 32  # NSM banks have 32 registers
PCR_BYTES: Final = 48  # SHA-384

# Evidence (SPEC 3)
CONFIGURATION_MAX: Final = 128 * KIB  # 16 TLS roots of 4 KiB and 256 minimum versions fit with room
KEY_CONFIG_MAX: Final = 2 * KIB  # a 1,216-byte public key and seven short fields
INSTANCE_CONFIG_MAX: Final = 1 * KIB
MEASUREMENT_LOG_MAX: Final = 512 * KIB  # 1,024 entries of at most 400 bytes
MEASUREMENT_LOG_ENTRIES: Final = 1024  # a busy day of model updates; then the enclave must restart
EVIDENCE_MAX: Final = 1 * MIB  # all of the above in one message
AUDIENCE_MAX: Final = 255  # bytes of UTF-8: a name for people, not a payload
PUBLISHERS_MAX: Final = 16  # keys of the model owners one service trusts
MINIMUM_VERSIONS_MAX: Final = 256  # one for each model that a policy can name
MODELS_MAX: Final = 64  # loaded side by side; memory runs out earlier
RUN_THREADS_MAX: Final = 64  # of one run; beyond it few models gain
KMS_REGIONS_MAX: Final = 8
TLS_ROOTS_MAX: Final = 16  # AWS publishes five
TLS_ROOT_MAX: Final = 4 * KIB  # an RSA-4096 root takes 1.4 KiB
KEY_CONFIGS_MAX: Final = 2  # the current key, and during rotation the previous one
NONCE_MIN: Final = 16  # 128 bits: cannot be guessed
NONCE_MAX: Final = 64
CLOCK_SKEW: Final = 60_000  # how far a document may lie in the verifier's future
AGE_MAX_SECONDS: Final = 10_800  # a leaf certificate lives three hours
KEM_LIFETIME_MAX: Final = 24 * 3_600_000  # an enclave drains and restarts within a day
LIFETIME_MIN: Final = 10_000  # below this an enclave would restart before it has loaded a model
LIFETIME_MAX: Final = KEM_LIFETIME_MAX
LIFETIME_SPREAD: Final = 8  # replicas that started together drain over an eighth of their lives
KEM_KEEP_AFTER: Final = 3_600_000  # the longest session that a key may have started

# CBOR (SPEC 1.6)
CBOR_DEPTH: Final = 8  # our deepest structure has 4
CBOR_ITEMS: Final = 4096  # above the measurement log's 1,024 entries; bounds work per message

# Envelope (SPEC 5)
# A large tensor opens while it arrives; per-chunk cost below 0.1 % of AES-GCM.
CHUNK: Final = 1 * MIB
# Shorter contents are sealed quicker by one call, though they are copied twice.
SEALED_IN_PLACE_MIN: Final = 64 * KIB
UNIT_MIN: Final = 1024  # smallest bucket: short requests look alike
WRAPPED_KEY_MAX: Final = 6404  # a KMS ciphertext blob of 6,144 with its LP(ARN) of at most 260
CIPHERTEXT_BLOB_MAX: Final = 6144  # KMS API limit
KEY_ARN_MAX: Final = 256
HEADER_MAX: Final = 118 + 4 + WRAPPED_KEY_MAX
REQUEST_MAX: Final = 64 * MIB  # ceiling of limits.request_bytes: one unary message in memory
PREAMBLE_MAX: Final = 1 * KIB
# Of one request (SPEC 5.10): with so many, what a seal costs is little beside what each costs.
QUESTIONS_MAX: Final = 32
# The messages of one request that a client gathers: it shares a connection with others.
QUESTIONS_REQUEST: Final = 32 * KIB
# The answer buckets of one request: larger answers gain nothing, and would keep others waiting.
QUESTIONS_ANSWERS: Final = 64 * KIB
TRAILER_ROOM: Final = (
    1 * KIB
)  # a full error text, or a receipt with its blinders, and both names fit
TRAILER_MAX: Final = TRAILER_ROOM - 4  # beside its length prefix
RECEIPT_MAX: Final = 512  # six hashes, a name of 128 bytes and the signature take 471
NAME_MAX: Final = 255  # names of models and tensors: a line in an error text
DETAIL_MAX: Final = 512  # error texts name things; they never quote content

# Streams (SPEC 5.9)
STREAM_PART_MAX: Final = (1 << 32) - 1  # what a length prefix can say
# A message is closed at the first size; one chunk more may be in it. Larger ones gain nothing.
STREAM_MESSAGE: Final = 256 * KIB
STREAM_MESSAGE_MAX: Final = STREAM_MESSAGE + 2 * MIB
# Questions of one stream that are read and not answered: some milliseconds of a small model.
STREAM_UNITS_MAX: Final = 64
STREAM_WORKERS: Final = 4  # runs of one stream side by side; more helped no model
STREAM_RUNS_MAX: Final = 32  # of all streams: half of what one model takes on at most
# Answers of one stream that wait for a slow client; while there are more, no run begins.
STREAM_READY_MAX: Final = 16 * MIB
# While more questions wait, an answer may wait this long for others to share its message.
STREAM_LINGER_S: Final = 0.0005
STREAM_LOOK_S: Final = 0.1  # how long it may take to notice that nobody waits any more
STREAM_END_S: Final = 2.0  # for saying that a stream ends with the enclave; its runs end first
STREAM_BYTES_MAX: Final = 1 << 40
STREAM_BYTES_DEFAULT: Final = 256 * MIB  # of a configuration that is written without a number
# For units of one chunk beside STREAM_BYTES: as many as one stream may have under way.
STREAM_SHORT: Final = STREAM_UNITS_MAX * CHUNK
STREAMS_OPEN_MAX: Final = 32  # in one enclave; each has a few threads
STREAM_LONG: Final = 64 * KIB  # a tensor from this size on is laid out so that it need not move
LOOP_STEPS_MAX: Final = 1 << 16
LOOP_INTERVAL_MAX: Final = 60_000

# Sessions (SPEC 6)
SESSION_SPAN_MAX: Final = 3_600_000  # one hour bounds the replay table and a stolen data key's use
DRAIN_MAX: Final = SESSION_SPAN_MAX  # nothing that is live when a drain begins lasts longer
SEQUENCE_MAX: Final = 1 << 20  # far below AES-GCM's limits for one key hierarchy
REPLAY_WINDOW: Final = 1024  # requests of one session that may overtake each other
SESSIONS_MAX: Final = 1 << 20
STRANGERS_DIVISOR: Final = 2  # whoever has no name here leaves half of the sessions to those who do
OWNER_DIVISOR: Final = (
    8  # one process holds one or two sessions; no caller runs out by itself alone
)
# Of what askers share inside: whoever holds more than an eighth leaves a quarter to the others.
SHARE_DIVISOR: Final = OWNER_DIVISOR
RESERVE_DIVISOR: Final = 4
KEY_CACHE_MAX: Final = 16_384  # unwrapped data keys; an unwrap costs 0.1 ms (hpke) to 20 ms (kms)
# By sight, some 2 KiB each with who asked, 9 at most; of others each header is judged anew.
SESSIONS_KNOWN: Final = KEY_CACHE_MAX
# New sessions: a tenth of one core at 0.1 ms each. Ten thousand clients that renew every five
# minutes need 33 a second.
HPKE_UNWRAPS_PER_SECOND: Final = 1000.0
HPKE_UNWRAPS_BURST: Final = 2000
# For each KMS key: at 20 ms each two of the 16 places, and far below an account's quota.
RELEASES_PER_SECOND: Final = 100.0
RELEASES_BURST: Final = 200
RELEASE_BUCKETS_MAX: Final = 1024  # KMS keys that have released here, each with its own bucket
CLOCK_REFRESH: Final = 60_000
CLOCK_SILENCE_MAX: Final = 300_000  # a host that freezes the device cannot stretch time further
CLOCK_READING_MAX: Final = 5_000  # a reading that took longer says too little about the present
CLOCK_READINGS: Final = 3  # in turn, while each takes longer

# The Nitro Security Module (linux/nsm.h)
NSM_REQUEST_MAX: Final = 0x1000
NSM_RESPONSE_MAX: Final = 0x3000
NSM_TIMEOUT_S: Final = 10.0  # a document takes some 10 ms; the driver itself would wait two minutes

# Release log (SPEC 15)
RELEASE_LOG_MAX: Final = 2 * MIB  # 1,024 entries of at most 1.6 KiB as JSON
RELEASE_ENTRIES_MAX: Final = 1024  # a release a week for two decades
RELEASE_REVISION_MAX: Final = 128  # a commit of any version control
RELEASE_SIGNERS_MAX: Final = 16  # past and present keys of one project

# Sealed models (SPEC 8)
MODEL_HEADER_MAX: Final = 64 * KIB
MODEL_ENTRIES_MAX: Final = 64
MODEL_CALLERS_MAX: Final = 1024
MODEL_BYTES_MAX: Final = 1 << 40
LOAD_THREADS_MAX: Final = 4  # receiving a part, one at a time, is a sixth of the work on it
ANSWER_BUCKET_MAX: Final = 63 * MIB  # with the trailer's room still a padded unit of REQUEST_MAX
TENSORS_MAX: Final = 64  # inputs or outputs of one model
RANK_MAX: Final = 8
BATCH_ROWS_MAX: Final = 4096  # rows run together; above some hundred nothing is gained
ELEMENTS_MAX: Final = STREAM_PART_MAX  # no unit carries a tensor of more, whatever its datatype
# Of the inputs of one run. They are copied to lie together: for larger rows, such as images, that
# costs more than one run in place of several spares.
BATCH_BYTES_MAX: Final = MIB
TRIAL_S: Final = 10.0  # for three runs while a model is loaded
BATCH_LEAST_S: Final = 0.05  # less time than this is not shared with others' rows
# What a model costs in memory (SPEC 8.8.4), as measured: the sealed contents that outlive a worker,
# and in the worker contents, parsed message and session while it is loaded; then the sealed
# contents and the session, its weights prepared for the processor.
MODEL_LOAD_FACTOR: Final = 4
MODEL_SERVE_FACTOR: Final = 2.25
MODEL_OVERHEAD: Final = 8 * MIB  # of a process and a session, however small the model
# A name, a datatype, eight dimensions of ten bytes, with room.
TENSOR_DESCRIPTION_MAX: Final = 1 * KIB
DESCRIPTIONS_KEPT: Final = 64  # of one model's messages that are known by sight
DESCRIPTION_KEPT_MAX: Final = 4 * KIB  # some fifty tensors; longer ones are read each time
STRINGS_MAX: Final = 1 << 16  # BYTES elements of one message: each costs some 0.3 us in Python
DATA_HEADER_MAX: Final = 64 * KIB  # all readers and models that are allowed fit
DATA_READERS_MAX: Final = 1024  # as callers of a model
DATA_MODELS_MAX: Final = 64  # as many as an enclave can serve
ONNX_SIGNATURE_MAX: Final = 16 * MIB  # names of a hundred thousand initialisers fit
ONNX_DEPTH: Final = 32  # graphs within graphs: loops and branches of real models nest a few levels
ONNX_WEIGHT_APART: Final = 16 * KIB  # smaller ones cost more to refer to than to copy

# What a process keeps of freed memory: an image, opened, and its answer fit several times.
ARENAS_MAX: Final = 4  # more threads than this seldom allocate at the same time
ARENA_KEPT: Final = 16 * MIB
ARENA_BLOCK_MAX: Final = 4 * MIB  # what is larger is rare, and given back at once
# A client's: of freed memory glibc keeps twice as much in each of its heaps. With three times as
# much as this a stream of 1 GiB leaves 70 MiB behind.
ARENA_EXPECTED: Final = MIB

# Workers: the processes in which models run (SPEC 8.10)
# Tensors up to this size go within a message, which is copied twice; larger ones through memory
# that both map, which costs two mappings and is copied once.
WORKER_INLINE_MAX: Final = 32 * KIB
WORKER_DESCRIPTION_MAX: Final = 48 * KIB  # 64 tensors with names of 255 bytes fit
WORKER_MESSAGE_MAX: Final = WORKER_INLINE_MAX + WORKER_DESCRIPTION_MAX + 4 * KIB
# Of several runs that came together: how long the first answer waits for others to share a packet.
WORKER_LINGER_S: Final = 0.0005
# Shared memory that a connection keeps for its next run: an image fits. Larger is given back.
WORKER_ROOM_KEPT: Final = 4 * MIB
WORKER_GRACE_S: Final = 1.0  # after a deadline, until the next operator begins; then it is killed
WORKER_HEEDS_S: Final = 2  # that takes no commands for so long, hundreds of them waiting, is killed
WORKER_START_S: Final = 30.0  # a fork and a filter take milliseconds
# What a worker may allocate beside its model and its tensors: a stack of 8 MiB for each of its
# connections, an interpreter, what native code takes for itself.
WORKER_DATA: Final = GIB
# What a provider that makes machine code takes beside it, and what the driver of a GPU does:
# mappings of its own for the device, and memory that both read.
WORKER_CODE_DATA: Final = GIB
WORKER_GPU_DATA: Final = 16 * GIB
WORKER_DESCRIPTORS: Final = 512  # a connection and its shared memory for each run at a time
WORKER_ENDS_MAX: Final = 10  # within the window: then its model is out of service
WORKER_WINDOW_S: Final = 300.0
# Of one asker's runs that each ended two workers, within the window: then it is refused the model.
WORKER_BLAME_MAX: Final = 3
WORKER_BLAMED_MAX: Final = 256  # askers that one model remembers; each has cost it two loads
WORKER_BACKOFF_S: Final = 0.1  # before the third start within the window; doubled for each further
WORKER_BACKOFF_MAX_S: Final = 5.0

# Frames (SPEC 9)
MODEL_DATA_MAX: Final = CHUNK + 16  # a sealed chunk, which is then opened where it was received
FRAME_MAX: Final = REQUEST_MAX + 64 * KIB  # the largest sealed request with its header
VSOCK_AWAITED: Final = 128 * KIB  # one call may wait for: half of what a vsock buffer takes
FRAME_BUDGET_DEFAULT: Final = 30_000
NUMBERED_MAX: Final = 64 * KIB  # of a question: larger ones would keep others waiting
# Larger ones are received and answered so many at a time, or as many as there are processors: one
# waits for its model while another is received. Each counts for some times what an image takes.
LARGE_AT_ONCE_LEAST: Final = 2
LARGE_HOLD_S: Final = 0.01
CONTROL_FRAME_MAX: Final = 32 * KIB  # three credential fields of 8 KiB; decoding costs time
CALL_BUDGET_MAX_S: Final = 600.0  # a worker of the host is held no longer, whatever a caller asks
FRAME_BUDGET_MAX: Final = 600_000  # a run ends after this, however long the sender says it waits
FRAME_HEAD_TIMEOUT_S: Final = 30.0  # a half-sent frame may hold a connection this long
LIFE_LOOK_S: Final = 1.0  # how late an enclave may notice that its time is over
THREAD_IDLE_S: Final = 10.0  # a thread that nobody needed for so long ends
# A run that takes longer is waited for by a thread of its own, and with nobody behind it.
LATE_S: Final = 0.005
QUICK_S: Final = 0.0003  # runs that take less are done one after the other in one place
TOGETHER_MAX: Final = 32  # questions that are answered together, and runs in one place
# Threads that answer numbered frames, for all connections: twice what a host has under way.
NUMBERED_THREADS: Final = 64
# Questions of one connection that wait for a thread, unread: all that one host may have under way.
NUMBERED_WAITING: Final = 64
# Answers that are made and not sent, before further runs wait: four of the largest. What runs then
# may add what `limits.run_bytes` allows.
UNSENT_BYTES: Final = 4 * FRAME_MAX
HANG_UP_LOOK_S: Final = 0.1  # how long a run may go on that its host has hung up on
FINISH_TIMEOUT_S: Final = 30.0  # at a drain's end: for requests of sessions that are over
# Enclave side: 32 relay connections, 32 streams, control, and room for a reconnect.
CONNECTIONS_MAX: Final = 96
MODEL_REQUESTS_MAX: Final = 64  # of one model, running or waiting: as many as are relayed, twice
STOP_TIMEOUT_S: Final = 5.0  # for what is under way when the enclave is told to end
EGRESS_NAME_MAX: Final = 259  # a 253-byte host name, colon, port
# Upper bounds of the durations of steps, in microseconds; a last bucket takes what is longer.
STEP_BOUNDS_US: Final = (
    *(50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000),
    *(1_000_000, 2_500_000, 5_000_000, 10_000_000, 60_000_000),
)
# Answers between two publications: no single one's steps show. A busy enclave takes a moment.
STEP_GROUP: Final = 32

TOKEN_FILE_MAX: Final = 1 * KIB  # a bearer token and a line's end
# Client (SPEC 11.5)
RETRY_HINT_MAX_S: Final = 5.0  # longer is the user's to wait, not a call's
RECEIPT_FILE_MAX: Final = 2 * REQUEST_MAX + 2 * MIB  # question and answer shown, evidence, the rest

# Calls of one client on one stream (SPEC 9.6.2). What is larger travels by itself, and shares
# no connection to the enclave either.
CALL_STREAM_REQUEST_MAX: Final = NUMBERED_MAX
# A message is closed at the first size; one request more may be in it. Larger ones gain nothing.
CALL_STREAM_MESSAGE: Final = 256 * KIB
CALL_STREAM_MESSAGE_MAX: Final = CALL_STREAM_MESSAGE + CALL_STREAM_REQUEST_MAX + KIB
CALL_STREAM_ENTRIES_MAX: Final = (
    256  # in one message: as many requests of the smallest bucket fill it
)
# Of one stream: read and not answered, or answered and not taken. More stay in gRPC's window. As
# many as a host executes by default, and as many again that may be refused.
CALL_STREAM_UNDER_WAY: Final = 128
CALL_STREAM_READY_MAX: Final = 4 * MIB  # of answers not taken; while there are more nothing is read
# A stream costs the host two threads. Clients beyond them make unary calls.
CALL_STREAMS_MAX: Final = 64
CALL_STREAMS_SHARE: Final = CALL_STREAMS_MAX // 4  # of one caller, where callers have shares
CALL_STREAM_IDLE_S: Final = 60.0  # without a request the host asks the client to end the stream
CALL_STREAM_AGE_S: Final = 120.0  # so often may a balancer send the client elsewhere
CALL_STREAM_CLOSE_S: Final = 10.0  # a client that was asked to end its side and does not is cut off
CALL_STREAM_AFTER: Final = 4  # unary calls of a client before it begins a stream: it will make more
CALL_STREAM_AGAIN_S: Final = 30.0  # before a client asks for a stream again that it was refused
CALL_STREAM_ABSENT_S: Final = 600.0  # and of a host that does not know of any
CALL_STREAM_GIVEN_UP_MAX: Final = 1024  # of one stream, without the answer that each of them gets

# Framed connections (SPEC 9.6.3): a stream takes two threads of the host, another connection one.
FRAMED_MAX: Final = 256
FRAMED_SHARE: Final = FRAMED_MAX // 4  # of one caller, where callers have shares
FRAMED_HELLO_MAX: Final = 1 * KIB  # a client's hello: a bearer token
FRAMED_HELLO_S: Final = 10.0  # for a client's hello; a connection without one holds a thread
# A pipe through which a request passes uncopied: an image fits. As much as Linux gives a process
# without privileges (fs.pipe-max-size).
PIPE_BYTES: Final = MIB
FRAMED_IDLE_S: Final = 60.0  # without a request; clients come again
FRAMED_READ_S: Final = 30.0  # a client may take this long to take an answer
# Client, gRPC: of an attempt to connect, greetings included; two lost packets cost three seconds of
# it. A target whose machine is gone answers nothing, and others are asked only after this time.
CONNECT_MAX_MS: Final = 5_000
RECONNECT_FIRST_MS: Final = 100  # after a failure, then longer: within the waits of a call
RECONNECT_MAX_MS: Final = 2_000
# Client: connections of one client for large requests, one each; more are unary calls of gRPC.
FRAMED_POOL: Final = 32
FRAMED_POOL_IDLE_S: Final = FRAMED_IDLE_S / 2  # one idle for longer may be ending at the host
FRAMED_CONNECT_S: Final = 2.0  # to connect and to be greeted: behind a firewall nobody answers

# Host (SPEC 9.1, 9.4, 9.6): what one host takes on, whoever sends it
RELAY_CONNECTIONS: Final = 32  # one exchange each: this caps what the enclave can batch
RELAY_SEND_BUFFER: Final = MIB  # of each: an image leaves in one call, whatever the enclave does
RELAY_IDLE_S: Final = 30.0  # one that was not needed for so long is closed: a burst is over
UNARY_DEFAULT: Final = 64  # as many executing as waiting for a relay connection
UNARY_MAX: Final = 256  # a thread each; beyond it switching costs more than it gains
# Two threads and a connection to the enclave each; as many as it opens, which gives out shares.
INFER_STREAMS_DEFAULT: Final = 32
INFER_STREAMS_MAX: Final = STREAMS_OPEN_MAX  # more the enclave would refuse
# Fresh documents being made; a stalled device must not hold the workers.
EVIDENCE_CALLS_MAX: Final = 4
EVIDENCE_RATE: Final = 10.0  # fresh documents a second: the device signs some tens
EVIDENCE_BURST: Final = 20
# Where callers have shares, calls for evidence that one may have open: half of their workers.
EVIDENCE_SHARE: Final = 6
# Health watches and reflection; each holds a worker for as long as it is open.
STREAMS_MAX: Final = 16
SPARE_WORKERS: Final = 8  # answer health checks and refusals while all others are busy
# HTTP/2 streams of one connection: what exceeds the workers must arrive to be refused.
STREAMS_PER_CONNECTION: Final = 1024
HANDSHAKE_S: Final = 20.0  # a connection that has not said what it wants by then is closed
CONNECTION_IDLE_S: Final = 600.0  # one without calls for so long is closed; clients come again
KEEPALIVE_S: Final = 60.0  # how often a silent peer is asked whether it is still there
DESCRIPTORS: Final = 65_536  # what the host asks the kernel for: 14 KiB a connection
RETRY_S: Final = 0.1  # hint to whoever is refused for want of room, where nothing better is known
RETRY_MAX_S: Final = 5.0  # and its end: load changes faster than an estimate
CALLERS_MAX: Final = 1024  # known to one host; each is a label of metrics
CALLER_TOKENS_MAX: Final = 4  # of one caller: the present one, the next, and some room
CALLER_RATE_MAX: Final = 1_000_000
CALLER_DAILY_MAX: Final = 1 << 50
USAGE_SAVE_S: Final = 5.0  # what callers used in so many seconds may be forgotten by a crash
USAGE_FILE_MAX: Final = 1 * MIB  # a thousand callers with their numbers take a tenth of it
RECEIVE_TIMEOUT_S: Final = 30.0  # a caller may take this long to deliver its message
# From then on calls that wait for their message give way, where they hold too many workers.
RECEIVE_GRACE_S: Final = 0.25
# Answers of one caller that gRPC holds because it does not read them: eight of the largest, or a
# thousand small ones; of a caller with a bound on its calls twice as many as these, as some may
# have ended just now.
UNREAD_BYTES: Final = 8 * FRAME_MAX
UNREAD_ANSWERS: Final = 1024
UNREAD_LEAST: Final = 8
DRAIN_DEFAULT_S: Final = 10.0
HEALTH_PERIOD_S: Final = 2.0  # how long the loss of an idle enclave may go unseen
# Health, evidence, configuration: the enclave answers in milliseconds.
CONTROL_TIMEOUT_S: Final = 10.0
# Gigabytes of model, attested key release and optimisation by the runtime.
LOAD_TIMEOUT_S: Final = 600.0
BACKOFF_FIRST_S: Final = 0.25
BACKOFF_MAX_S: Final = 1.0  # a restarted enclave waits no longer than this for its configuration
RELOAD_MAX_S: Final = 60.0  # between attempts to load a model that failed
CREDENTIALS_MAX: Final = 16 * KIB  # a session token is below 4 KiB
CREDENTIALS_WARN_S: Final = 300.0  # tools renew credentials at least this long before their end
HOST_CONFIG_MAX: Final = 256 * KIB
ADMIN_WAIT_S: Final = 30.0  # for a change of models that is under way, before another is refused
ADMIN_DRAIN_MAX_S: Final = 3600.0  # as the longest drain of a configuration
METRICS_TIMEOUT_S: Final = 5.0  # a reader of the metrics page may hold a thread this long
METRICS_PAGE_MAX: Final = 4 * MIB  # a thousand callers and sixty models fit with room
METRICS_READERS_MAX: Final = 8  # a collector or two, a dashboard and a person
EGRESS_CONNECTIONS: Final = 32
EGRESS_HANDSHAKE_S: Final = 10.0
EGRESS_CONNECT_S: Final = 5.0
EGRESS_IDLE_S: Final = 120.0  # above the idle time after which KMS closes a connection
EGRESS_BUFFER: Final = 64 * KIB  # in each direction of each connection

# Key release (SPEC 10)
KMS_TIMEOUT_S: Final = 5.0
KMS_ATTEMPTS: Final = 3
KMS_ENVELOPE_MAX: Final = 6144  # KMS API limit of CiphertextForRecipient
KEY_POLICY_MAX: Final = 32 * KIB  # KMS API limit of a key policy
KMS_ANSWER_MAX: Final = 64 * KIB  # an HTTP body; an envelope in base64 is below 10 KiB
KMS_BACKOFF_S: Final = 0.1  # before the second attempt; twice that before the third
KMS_CONCURRENT: Final = 16  # unwraps in flight: a flood must not drain the account's quota
KMS_RANDOM_MAX: Final = 1024  # KMS API limit of GenerateRandom
KMS_IDLE_CONNECTIONS: Final = 4  # kept alive for each region; a handshake is 3 round trips
KMS_IDLE_S: Final = 20.0  # KMS closes idle connections soon after
KMS_RECIPIENT_KEY_S: Final = 3600.0  # an RSA key made inside the enclave serves for one hour
CREDENTIAL_MAX: Final = 8 * KIB  # session tokens reach 4 KiB

# Enclave images (SPEC 4.4)
# A certificate and a COSE_Sign1 as arrays of numbers take 4 KiB; the rest of an image is streamed.
EIF_SIGNATURE_MAX: Final = 32 * KIB

# Trust policy (SPEC 12)
POLICY_MAX: Final = 256 * KIB
POLICY_ROOTS_MAX: Final = 8
POLICY_RELEASES_MAX: Final = 16
POLICY_MODELS_MAX: Final = 256
