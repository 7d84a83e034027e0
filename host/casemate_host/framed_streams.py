"""Framed connections that carry a stream of calls, as ``InferMany`` does (SPEC 9.6.3, 9.6.2)."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Final

from casemate import limits
from casemate.errors import CasemateError, Code
from casemate.framed import Kind
from casemate.frames import ANSWER
from casemate_host.call import Call
from casemate_host.call_streams import METHOD

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate.hangups import HangUps
    from casemate_host.call_stream import CallStream
    from casemate_host.call_streams import OpenStreams
    from casemate_host.callers import Caller
    from casemate_host.desk import Desk
    from casemate_host.framed_connection import FramedConnection

_LAST_S: Final = 1.0  # for a client to end its side, after the host has


class FramedStreams:
    """Carries streams; thread-safe."""

    def __init__(self, desk: Desk, streams: OpenStreams, hang_ups: HangUps) -> None:
        self._desk = desk
        self._streams = streams
        self._hang_ups = hang_ups

    def serve(self, connection: FramedConnection, caller: Caller, size: int) -> None:
        """Carry one stream, whose first message of ``size`` bytes is there to be read.

        Raises GoneError.
        """
        call = Call(default_s=limits.CALL_BUDGET_MAX_S)
        call.of(caller.name)
        connection.run(call)
        try:
            deaf = partial(self._hang_ups.watching, connection.channel.socket, connection)
            with self._streams.open(caller, call, (), deaf) as stream:
                sent = _carry(connection, stream, size)
        except CasemateError as error:
            connection.channel.farewell(error)
            self._desk.refused(METHOD, error.code, caller.name)
        except OSError:  # it takes no answers, or has gone
            self._desk.refused(METHOD, Code.DEADLINE_EXCEEDED, caller.name)
        else:
            self._desk.answered(METHOD, sent, caller.name)


def _carry(connection: FramedConnection, stream: CallStream, size: int) -> int:
    """Return how many bytes were answered; raises CasemateError, OSError."""
    channel = connection.channel
    thread = threading.Thread(
        target=stream.take,
        args=(_messages(connection, stream, size),),
        name="framed-in",
        daemon=True,
    )
    thread.start()
    sent = 0
    try:
        for message in stream.answers():
            if message:  # the first one is not needed here
                channel.send(Kind.MANY | ANSWER, message)
                sent += len(message)
    except CasemateError as error:
        channel.farewell(error)
        raise
    finally:
        stream.end()
        thread.join(_LAST_S)
        channel.shut()
        thread.join()
    return sent


def _messages(connection: FramedConnection, stream: CallStream, size: int) -> Iterator[bytes]:
    """Yield the client's messages; when it ends its side it waits for nothing any more."""
    most = limits.CALL_STREAM_MESSAGE_MAX
    if size > most:
        raise CasemateError(Code.TOO_LARGE, f"a message of {size} bytes")
    yield connection.channel.payload(size)
    yield from connection.channel.messages(Kind.MANY, most)
    if stream.busy:
        connection.cancel()
