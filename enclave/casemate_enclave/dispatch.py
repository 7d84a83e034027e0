"""What each frame does in each state: a table, and what is not in it is refused (SPEC 9.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from casemate import cbor, limits
from casemate.errors import CasemateError, Code, KeyReleaseError
from casemate.frames import COUNTED, FrameType
from casemate_enclave.enclave import State
from casemate_enclave.events import Counter, Event
from casemate_enclave.stream_link import HungUpError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casemate.hangups import Watched
    from casemate.wire import Buffer
    from casemate_enclave.context import RequestContext
    from casemate_enclave.enclave import Enclave
    from casemate_enclave.events import Journal
    from casemate_enclave.runs import Steps
    from casemate_enclave.stream_link import StreamLink

    # None: all has been said, and the connection ends.
    Answer = Buffer | tuple[Buffer, ...] | None
    Keys = dict[str, type | tuple[type, ...]]
    Handlers = dict[FrameType, Callable[["Exchange"], Answer]]

_SEALED_OVERHEAD = (
    limits.HEADER_MAX + 64
)  # beside the ciphertext: the header and protobuf's own bytes
_NONE = type(None)


class Exchange(Protocol):
    """One frame and the connection that it came on."""

    @property
    def payload(self) -> memoryview:
        """The frame's payload."""
        ...

    @property
    def deadline(self) -> float:
        """When the sender stops waiting, in seconds of ``time.monotonic``."""
        ...

    @property
    def context(self) -> RequestContext:
        """What goes along with the question."""
        ...

    def watched(self) -> Watched:
        """Return a context manager that cancels if the sender hangs up meanwhile."""
        ...

    def model_data(self, size: int) -> Iterator[memoryview]:
        """Yield the frames of type 7 that follow, ``size`` bytes; raises ConnectionEndError.

        Each lies in memory of its own, which is the caller's.
        """
        ...

    def link(self) -> StreamLink:
        """Give the connection to the stream that this frame begins."""
        ...


class ConnectionEndError(CasemateError):
    """Answered as an error, and then the connection is closed: its framing cannot be trusted."""


class Dispatcher:
    """Answers frames; thread-safe."""

    def __init__(self, enclave: Enclave, journal: Journal) -> None:
        self._enclave = enclave
        self._journal = journal
        ready: Handlers = {
            FrameType.CREDENTIALS: self._credentials,
            FrameType.REQUEST: self._request,
            FrameType.STREAM: self._stream,
            FrameType.EVIDENCE: self._evidence,
            FrameType.LOAD: self._load,
            FrameType.HEALTH: self._health,
            FrameType.COUNTERS: self._counters,
            FrameType.UNLOAD: self._unload,
            FrameType.REPLACE: self._replace,
            FrameType.MODELS: self._models,
            FrameType.DRAIN: self._drain,
        }
        changing = {FrameType.LOAD, FrameType.UNLOAD}
        self._table: dict[State, Handlers] = {
            State.UNCONFIGURED: {
                FrameType.CONFIGURE: self._configure,
                FrameType.HEALTH: self._health,
            },
            State.READY: ready,
            State.DRAINING: {kind: ready[kind] for kind in ready if kind not in changing},
            State.FAILED: {FrameType.HEALTH: self._health},
        }

    @property
    def frame_limit(self) -> int:
        """The longest frame that makes sense in the present state, by the count of SPEC 9.2."""
        if self._enclave.state not in {State.READY, State.DRAINING}:
            return COUNTED + limits.CONFIGURATION_MAX
        request_bytes = self._enclave.parts.configuration.limits.request_bytes
        return COUNTED + max(request_bytes + _SEALED_OVERHEAD, limits.CONFIGURATION_MAX)

    def answer(self, kind: int, exchange: Exchange) -> Answer:
        """Return the answer's payload; raises CasemateError, ConnectionEndError to hang up."""
        state = self._enclave.state
        frame_type = _frame_type(kind)
        handler = self._table[state].get(frame_type)
        if handler is None:
            raise _refusal(state, frame_type)
        return handler(exchange)

    def numbered(
        self, kind: int, payload: memoryview, deadline: float, context: RequestContext
    ) -> Steps[tuple[Buffer, ...]]:
        """Return the steps that answer a question of a numbered frame (SPEC 9.2.1).

        Raises CasemateError, as they do.
        """
        if kind != FrameType.REQUEST:
            raise CasemateError(Code.MALFORMED, "no type that is numbered")
        state = self._enclave.state
        if FrameType.REQUEST not in self._table[state]:
            raise _refusal(state, FrameType.REQUEST)
        return self._enclave.parts.service.answering(payload, deadline, context)

    def _configure(self, exchange: Exchange) -> Answer:
        try:
            register = self._enclave.configure(bytes(exchange.payload))
        except CasemateError as error:
            self._journal.emit(Event.CONFIGURE_REFUSED, code=error.code)
            raise
        return cbor.encode({"pcr16": register})

    def _credentials(self, exchange: Exchange) -> Answer:
        keys: Keys = {
            "access_key_id": str,
            "secret_access_key": str,
            "session_token": (str, _NONE),
            "expires": (int, _NONE),
        }
        fields = _fields(exchange.payload, keys)
        kms = self._enclave.parts.kms
        if kms is None:
            raise KeyReleaseError(Code.KEY_RELEASE_UNAVAILABLE, "no key release is configured")
        kms.set_credentials(**fields)
        return b""

    def _request(self, exchange: Exchange) -> Answer:
        with exchange.watched():
            service = self._enclave.parts.service
            return service.answer(exchange.payload, exchange.deadline, exchange.context)

    def _stream(self, exchange: Exchange) -> None:
        self._journal.count(Counter.STREAMS)
        try:
            link = exchange.link()
            self._enclave.parts.streams.serve(exchange.payload, link, exchange.deadline)
        except (HungUpError, TimeoutError):  # a host that takes nothing has left as well
            self._journal.count(Counter.STREAMS_CUT)
        except CasemateError as error:
            self._journal.count(Counter.STREAMS_REFUSED)
            raise ConnectionEndError(error.code, error.detail) from None

    def _evidence(self, exchange: Exchange) -> Answer:
        nonce = bytes(exchange.payload)
        if nonce and not limits.NONCE_MIN <= len(nonce) <= limits.NONCE_MAX:
            raise CasemateError(Code.MALFORMED, "a nonce has 16 to 64 bytes")
        self._journal.count(Counter.EVIDENCE)
        return self._enclave.parts.identity.evidence(nonce or None)

    def _load(self, exchange: Exchange) -> Answer:
        size = _fields(exchange.payload, {"size": int})["size"]
        return self._take(size, exchange, None)

    def _replace(self, exchange: Exchange) -> Answer:
        fields = _fields(exchange.payload, {"size": int, "replaces": int})
        return self._take(fields["size"], exchange, fields["replaces"])

    def _take(self, size: int, exchange: Exchange, replaces: int | None) -> Answer:
        try:
            header = self._enclave.parts.loader.load(size, exchange, replaces)
        except CasemateError as error:
            self._journal.count(Counter.MODELS_REFUSED)
            self._journal.emit(Event.MODEL_REFUSED, code=error.code)
            raise
        self._journal.count(Counter.MODELS_LOADED)
        self._journal.emit(Event.MODEL_LOADED if replaces is None else Event.MODEL_REPLACED)
        named = {"name": header.name, "version": header.version, "digest": header.digest}
        return cbor.encode(named)

    def _unload(self, exchange: Exchange) -> Answer:
        fields = _fields(exchange.payload, {"name": str, "version": int})
        self._enclave.parts.models.remove(fields["name"], fields["version"])
        self._journal.emit(Event.MODEL_UNLOADED)
        return b""

    def _drain(self, exchange: Exchange) -> Answer:
        within = _fields(exchange.payload, {"within": int})["within"]
        return cbor.encode({"until": self._enclave.drain(within)})

    def _models(self, exchange: Exchange) -> Answer:
        _empty(exchange.payload)
        return cbor.encode(self._enclave.parts.models.statement())

    def _health(self, exchange: Exchange) -> Answer:
        _empty(exchange.payload)
        return self._enclave.health()

    def _counters(self, exchange: Exchange) -> Answer:
        _empty(exchange.payload)
        counters, histograms = self._journal.counters(), self._journal.histograms()
        return cbor.encode({"counters": counters, "histograms": histograms})


def _frame_type(kind: int) -> FrameType:
    try:
        frame_type = FrameType(kind)
    except ValueError:
        raise ConnectionEndError(Code.MALFORMED, "unknown type of frame") from None
    if frame_type is FrameType.MODEL_DATA:
        raise ConnectionEndError(Code.MALFORMED, "model data without a load")
    if frame_type is FrameType.CANCEL:
        raise ConnectionEndError(Code.MALFORMED, "a cancel frame that is not numbered")
    return frame_type


def _refusal(state: State, frame_type: FrameType) -> CasemateError:
    if state is State.UNCONFIGURED:
        return CasemateError(Code.NOT_CONFIGURED, "the enclave is not configured")
    if state is State.DRAINING and frame_type is not FrameType.CONFIGURE:
        return CasemateError(Code.UNAVAILABLE, "the enclave is draining")
    if state in {State.READY, State.DRAINING}:
        return CasemateError(Code.ALREADY_CONFIGURED, "the enclave has its configuration")
    return CasemateError(Code.UNAVAILABLE, "the enclave has failed: restart it")


def _fields(payload: memoryview, keys: Keys) -> dict[str, cbor.Value]:
    if len(payload) > limits.CONTROL_FRAME_MAX:
        raise CasemateError(Code.TOO_LARGE, f"more than {limits.CONTROL_FRAME_MAX} bytes")
    try:
        return cbor.decode_map(bytes(payload), keys)
    except cbor.CborError:
        # Without its reason: it may quote keys of the map, and one frame carries credentials.
        raise CasemateError(Code.MALFORMED, "not the map of this frame") from None


def _empty(payload: memoryview) -> None:
    if payload:
        raise CasemateError(Code.MALFORMED, "this frame has no payload")
