"""The host's own frames: configuration, credentials, models, evidence, health (SPEC 9.3)."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from casemate import cbor, frames, limits
from casemate.channel import connect
from casemate.errors import Code, FrameError
from casemate.frames import FrameType
from casemate.sealed_model.header import PREFIX_BYTES, head_bytes
from casemate.wire import HASH_BYTES
from casemate_host.histogram import Buckets

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from io import BufferedReader
    from pathlib import Path

    from casemate.channel import Address

_COUNTER_NAME: Final = re.compile(r"[a-z][a-z_]{0,63}")
_STATES: Final = frozenset({"unconfigured", "ready", "draining", "failed"})
_MODEL: Final[dict[str, type]] = {"name": str, "version": int, "digest": bytes}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model as the enclave names it; ``digest``: 48 bytes (SPEC 8.4)."""

    name: str
    version: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class StatedModel:
    """A loaded model; ``publisher``: 32 bytes; ``size``: bytes that it counts (SPEC 8.8.4)."""

    model: LoadedModel
    publisher: bytes
    size: int


@dataclass(frozen=True, slots=True)
class EnclaveModels:
    """What is loaded, and of ``most`` bytes for models how many are ``held``."""

    held: int
    most: int
    models: tuple[StatedModel, ...]


@dataclass(frozen=True, slots=True)
class EnclaveHealth:
    """The enclave's word about itself; ``ready`` are those of its ``models`` that answer."""

    state: str
    form: str
    models: frozenset[LoadedModel]
    ready: frozenset[LoadedModel]


@dataclass(frozen=True, slots=True)
class EnclaveCounters:
    """The enclave's counters by name, and its steps' durations (SPEC 9.3.1)."""

    counters: Mapping[str, int]
    steps: Mapping[str, Buckets]


class Control:
    """One exchange at a time, each over a connection of its own.

    Every method raises FrameError: the enclave's own error, UNAVAILABLE when it does not answer,
    MALFORMED when its answer cannot be read.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._channel: socket.socket | None = None
        self._interrupted = False

    def interrupt(self) -> None:
        """End the exchange under way and refuse others: the host is stopping."""
        with self._lock:
            self._interrupted = True
            if self._channel is not None:
                with contextlib.suppress(OSError):
                    self._channel.shutdown(socket.SHUT_RDWR)

    def health(self) -> EnclaveHealth:
        """Ask how the enclave is; works before it is configured."""
        answer = _map(self._ask(FrameType.HEALTH), {"state": str, "form": str, "models": list})
        if answer["state"] not in _STATES:
            raise FrameError(Code.MALFORMED, "unknown state in a health answer")
        models = [_fields(item, {**_MODEL, "ready": bool}) for item in answer["models"]]
        ready = frozenset(_model(item) for item in models if item["ready"])
        known = frozenset(_model(item) for item in models)
        return EnclaveHealth(answer["state"], answer["form"][:64], known, ready)

    def configure(self, configuration: bytes) -> bytes:
        """Send the configuration, exact bytes; return PCR16 as the enclave states it, 48 bytes."""
        answer = _map(self._ask(FrameType.CONFIGURE, configuration), {"pcr16": bytes})
        pcr16: bytes = answer["pcr16"]
        return pcr16

    def credentials(self, payload: bytes) -> None:
        """Send credentials, encoded as SPEC 9.3 type 2."""
        self._ask(FrameType.CREDENTIALS, payload)

    def drain(self, within_s: float) -> int:
        """Have it take no new sessions; return when it ends at the latest, in milliseconds."""
        payload = cbor.encode({"within": int(within_s * 1000)})
        until: int = _map(self._ask(FrameType.DRAIN, payload), {"until": int})["until"]
        return until

    def evidence(self) -> bytes:
        """Return evidence without a nonce, as ``Evidence`` protobuf."""
        return bytes(self._ask(FrameType.EVIDENCE))

    def counters(self) -> EnclaveCounters:
        """Ask for the counters and the durations of steps."""
        answer = _map(self._ask(FrameType.COUNTERS), {"counters": dict, "histograms": dict})
        counters = {_name(name): _uint(count) for name, count in answer["counters"].items()}
        steps = {_name(step): _buckets(item) for step, item in answer["histograms"].items()}
        return EnclaveCounters(counters, steps)

    def load(self, path: Path, replaces: int | None = None) -> LoadedModel:
        """Send a sealed model; return what the enclave opened. OSError if it cannot be read.

        With ``replaces``, that version of the same name is unloaded in the same step (SPEC 8.8.3).
        """
        kind, fields = FrameType.LOAD, {}
        if replaces is not None:
            kind, fields = FrameType.REPLACE, {"replaces": replaces}
        with path.open("rb") as file, self._connected(limits.LOAD_TIMEOUT_S) as channel:
            size = file.seek(0, 2)
            file.seek(0)
            budget = int(limits.LOAD_TIMEOUT_S * 1000)
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # read what it said
                frames.send_frame(channel, kind, cbor.encode({"size": size, **fields}), budget)
                for start, length in _cuts(file, size):
                    if _readable(channel):
                        break  # refused before the end
                    frames.send_file(channel, FrameType.MODEL_DATA, (file, start, length), budget)
            answer = frames.expect_answer(channel, kind)
        return _model(_map(answer, _MODEL))

    def unload(self, name: str, version: int) -> None:
        """Have one version no longer served; runs under way end (SPEC 8.8.3)."""
        self._ask(FrameType.UNLOAD, cbor.encode({"name": name, "version": version}))

    def models(self) -> EnclaveModels:
        """Ask what is loaded and what memory it takes."""
        answer = _map(self._ask(FrameType.MODELS), {"held": int, "most": int, "models": list})
        keys = {**_MODEL, "publisher": bytes, "bytes": int, "serving": dict}
        models = [_fields(item, keys) for item in answer["models"]]
        stated = tuple(
            StatedModel(_model(item), item["publisher"], item["bytes"]) for item in models
        )
        return EnclaveModels(answer["held"], answer["most"], stated)

    def _ask(self, kind: FrameType, payload: bytes = b"") -> memoryview:
        with self._connected(limits.CONTROL_TIMEOUT_S) as channel:
            budget = int(limits.CONTROL_TIMEOUT_S * 1000)
            return frames.exchange(channel, kind, payload, budget)

    @contextlib.contextmanager
    def _connected(self, timeout_s: float) -> Iterator[socket.socket]:
        channel = connect(self._address, limits.CONTROL_TIMEOUT_S)
        try:
            channel.settimeout(timeout_s)
            with self._lock:
                if self._interrupted:
                    raise FrameError(Code.UNAVAILABLE, "the host is stopping")
                self._channel = channel
            yield channel
        except TimeoutError:
            raise FrameError(Code.DEADLINE_EXCEEDED, "the enclave did not answer in time") from None
        except ConnectionError:
            raise FrameError(Code.UNAVAILABLE, "the enclave closed the connection") from None
        finally:
            with self._lock:
                self._channel = None
            channel.close()


def _cuts(file: BufferedReader, size: int) -> Iterator[tuple[int, int]]:
    """Cut the file as SPEC 9.3 would have it: where each frame's bytes begin, and how many."""
    start, most = 0, head_bytes(file.read(PREFIX_BYTES))
    while start < size:
        length = min(most, size - start)
        yield start, length
        start, most = start + length, limits.MODEL_DATA_MAX


def _readable(channel: socket.socket) -> bool:
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    return bool(poll.poll(0))


def _map(payload: memoryview, keys: dict[str, type]) -> dict[str, Any]:
    try:
        return cbor.decode_map(bytes(payload), keys)
    except cbor.CborError as error:
        raise FrameError(Code.MALFORMED, f"the enclave's answer: {error}") from None


def _fields(value: object, keys: dict[str, type]) -> dict[str, Any]:
    try:
        return cbor.fields(value, keys)
    except cbor.CborError as error:
        raise FrameError(Code.MALFORMED, f"the enclave's answer: {error}") from None


def _model(item: dict[str, Any]) -> LoadedModel:
    if len(item["digest"]) != HASH_BYTES:
        raise FrameError(Code.MALFORMED, "the enclave's answer: digest of another length")
    return LoadedModel(item["name"], item["version"], item["digest"])


def _name(name: object) -> str:
    """Names become labels of metrics, whoever sent them."""
    if not isinstance(name, str) or not _COUNTER_NAME.fullmatch(name):
        raise FrameError(Code.MALFORMED, "the enclave's answer: not a counter's name")
    return name


def _uint(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise FrameError(Code.MALFORMED, "the enclave's answer: not a count")
    return value


def _buckets(item: object) -> Buckets:
    fields = _fields(item, {"counts": list, "sum_us": int})
    counts = tuple(_uint(count) for count in fields["counts"])
    if len(counts) != len(limits.STEP_BOUNDS_US) + 1:
        raise FrameError(Code.MALFORMED, "the enclave's answer: another number of buckets")
    return Buckets(counts, fields["sum_us"])
