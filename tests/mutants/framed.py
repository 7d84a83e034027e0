"""How a client reaches a host, and framed connections (SPEC 9.6.3): each check off."""

from __future__ import annotations

from functools import partial

from tests.mutants.mutant import Mutant

_HOST = "host/casemate_host"
_CLIENT = "casemate/client"
_OFFER = ("tests/unit/test_framed.py",)
_RULES = ("tests/integration/host/test_framed.py",)
_BOUNDS = ("tests/integration/host/test_framed_bounds.py",)
_CHUNKS = ("tests/integration/host/test_framed_chunks.py",)
_OPENING = ("tests/unit/client/test_framed_opening.py",)
_POOL = ("tests/unit/client/test_framed_pool.py",)
_ALONE = ("tests/unit/client/test_framed_alone.py",)
_STREAM = ("tests/unit/client/test_framed_stream.py",)
_INFER_STREAM = ("tests/unit/client/test_framed_infer_stream.py",)
_AIO = ("tests/unit/client/test_aio_framed.py",)
_AIO_MANY = ("tests/unit/client/test_aio_framed_many.py",)
_AIO_POOL = ("tests/unit/client/test_aio_framed_pool.py",)

_reach = partial(
    Mutant, file="transport.py", package=_CLIENT, tests=("tests/unit/client/test_connecting.py",)
)
_offer = partial(
    Mutant, file="framed.py", package="casemate", tests=("tests/unit/client/test_framed.py",)
)
_heard = partial(
    Mutant, file="framed.py", package=_CLIENT, tests=("tests/unit/client/test_framed.py",)
)
_listener = partial(Mutant, file="framed.py", package=_HOST, tests=_BOUNDS)
_channel = partial(Mutant, file="framed_channel.py", package=_HOST, tests=_RULES)
_connection = partial(Mutant, file="framed_connection.py", package=_HOST, tests=_RULES)
_calls = partial(Mutant, file="framed_calls.py", package=_HOST, tests=_RULES)
_streams = partial(Mutant, file="framed_streams.py", package=_HOST, tests=_RULES)
_passage = partial(Mutant, file="stream_passage.py", package=_HOST, tests=_CHUNKS)
_chunks = partial(Mutant, file="framed_chunks.py", package=_HOST, tests=_CHUNKS)
_config = partial(
    Mutant, file="config.py", package=_HOST, tests=("tests/unit/host/test_config.py",)
)
_dial = partial(Mutant, file="framed_dial.py", package=_CLIENT, tests=_OPENING)
_way = partial(Mutant, file="framed_way.py", package=_CLIENT, tests=_OPENING)
_pool = partial(Mutant, file="framed_pool.py", package=_CLIENT, tests=_POOL)
_alone = partial(Mutant, file="transport.py", package=_CLIENT, tests=_ALONE)
_exchange = partial(Mutant, file="framed_exchange.py", package=_CLIENT, tests=_POOL)
_buffer = partial(Mutant, file="framed_buffer.py", package=_CLIENT, tests=_STREAM)
_call = partial(Mutant, file="framed_call.py", package=_CLIENT, tests=_STREAM)
_stream = partial(Mutant, file="framed_stream.py", package=_CLIENT, tests=_INFER_STREAM)
_loop_stream = partial(Mutant, file="aio_framed_stream.py", package=_CLIENT, tests=_INFER_STREAM)
_loop_opening = partial(Mutant, file="aio_framed_opening.py", package=_CLIENT, tests=_AIO)
_loop = partial(Mutant, file="aio_framed.py", package=_CLIENT, tests=_AIO)
_loop_one = partial(Mutant, file="aio_framed_exchange.py", package=_CLIENT, tests=_AIO_POOL)
_loop_many = partial(Mutant, file="aio_framed_many.py", package=_CLIENT, tests=_AIO_MANY)
_loop_pool = partial(Mutant, file="aio_framed_pool.py", package=_CLIENT, tests=_AIO_POOL)

# fmt: off
MUTANTS = (
    _reach("reach: one who greets late", old="limits.CONNECT_MAX_MS", new="limits.RECONNECT_FIRST_MS"),
    _reach("reach: not for long", old="limits.CONNECT_MAX_MS", new="100_000"),
    _reach("reach: soon again", old='("grpc.initial_reconnect_backoff_ms", limits.RECONNECT_FIRST_MS)', new='("grpc.initial_reconnect_backoff_ms", 1000)'),
    _alone("alone: no small call is", old="            if alone and (", new="            if False and ("),
    _alone("alone: every small call is", old="            alone = not self._asking\n", new="            alone = True\n"),
    _alone("alone: again later", old="                self._asking -= 1\n", new="                pass\n"),
    _alone("alone: waits for no connection", old="request, until, patient=False)", new="request, until)"),
    _alone("alone: one is made for the next", file="framed_pool.py", old="            self._prepare()\n", new="            pass\n"),
    _heard("offer: none with TLS", old="if match is None or access.tls_roots is not None or match[2] in _SCHEMES:", new="if match is None or match[2] in _SCHEMES:"),
    _heard("offer: no resolver's names", old=" or match[2] in _SCHEMES", new=""),
    _offer("offer: ports", old="if match is None or int(match[1]) >= _PORTS:", new="if match is None:", tests=_OFFER),
    _offer("offer: nothing beside it", old='_OFFER.fullmatch(text or "")', new='_OFFER.match(text or "")', tests=_OFFER),
    _listener("listener: bounded", old="        if self._workers.full:\n", new="        if False:\n"),
    _listener("listener: who says nothing gives way", old="            self._patience.press(self._workers)\n", new=""),
    _listener("listener: shares", old="        with caller.framed():\n", new="        with contextlib.nullcontext():\n"),
    _listener("listener: strangers", old='self._callers.claimed([("authorization", words)] if words else ())', new="self._callers.claimed(())"),
    _listener("listener: no thread to spare", old="        except RuntimeError:  #", new="        except ZeroDivisionError:  #"),
    _listener("listener: a drain tells who is idle", old="            connection.retire()\n", new="            pass\n", tests=_RULES),
    _listener("listener: a drain ends", old="            connection.cancel()\n", new="            pass\n", tests=_RULES),
    _channel("channel: begins with a hello", old="        if kind != Kind.HELLO:\n", new="        if False:\n"),
    _channel("channel: a hello's length", old="        if size > limits.FRAMED_HELLO_MAX:\n", new="        if False:\n"),
    _channel("channel: a hello's time", old="until = time.monotonic() + limits.FRAMED_HELLO_S", new="until = time.monotonic() + 1e6"),
    _channel("channel: one kind of frame", old="            if given != kind:\n", new="            if False:\n"),
    _channel("channel: a message's length", old="            if length - frames.COUNTED > most:\n", new="            if False:\n"),
    _channel("channel: answers are taken in time", old='                raise TimeoutError("the client takes no answers") from None\n', new="                continue\n", tests=_BOUNDS),
    _channel("channel: what is refused is read", old="            size -= got\n", new="            size = 0\n", tests=_BOUNDS),
    _connection("connection: idle ones end", old="        except TimeoutError:\n            self.retire()\n            return None\n", new="        except TimeoutError:\n            return self.next_frame()\n"),
    _connection("connection: nothing begins when it parts", old="            if self._parted:\n                return None\n", new=""),
    _connection("connection: what is under way is answered", old="            if not self._busy:\n                self._part()\n", new="            self._part()\n"),
    _connection("connection: who has gone waits no more", old="        if call is not None and call.cancel():\n", new="        if False:\n"),
    _calls("calls: requests alone", old="            if kind != Kind.REQUEST:\n", new="            if False:\n"),
    _calls("calls: the rest of a refused one", old="            channel.discard(size)\n", new="", tests=_BOUNDS),
    _calls("calls: places come back", old="            self._admission.leave(caller)  #", new="            pass  #", tests=_BOUNDS),
    _calls("calls: a day's bytes", old="            caller.spend(size)\n", new="", tests=_BOUNDS),
    _calls("calls: counted, taken or not", old="        finally:  # counted", new="        except ZeroDivisionError:\n            raise\n        else:  # counted", tests=_BOUNDS),
    _calls("calls: the client's budget", old="call = Call(budget_ms / 1000, trace=trace)", new="call = Call(600.0, trace=trace)"),
    _streams("streams: the first message's length", old="    if size > most:\n", new="    if False:\n"),
    _streams("streams: the client's end", old="    if stream.busy:\n        connection.cancel()\n", new=""),
    _passage("passage: lengths", old="            if not 0 < size <= limits.STREAM_MESSAGE_MAX:\n", new="            if size == 0:\n"),
    _passage("passage: kinds", old="            if kind != self._kind:\n", new="            if kind == ERROR:\n"),
    _passage("passage: nothing after the end", old="        if self.complete and self.within:\n", new="        if False:\n"),
    _passage("passage: heads in pieces", old="            block[:held] = self._held\n", new=""),
    _passage("passage: who leaves is heard", old="        if event & _GONE:\n            raise GoneError\n", new=""),
    _passage("passage: leaving in order", old="select.POLLRDHUP | client)", new="client)"),
    _passage("passage: a frame's time", old="        if asks and questions.within:\n", new="        if False:\n"),
    _passage("passage: of the frame in hand", old="if within and (not self.within or self._ends != ends):", new="if within:"),
    _passage("passage: the budget's end", old="        if left <= 0:\n            raise FrameError(Code.DEADLINE", new="        if left <= -1e6:\n            raise FrameError(Code.DEADLINE"),
    _passage("passage: no more than is taken", old="        asks = questions.pending is None and not self._deaf\n", new="        asks = not self._deaf\n"),
    _passage("passage: a hang-up that nobody reads", old="        if enclave:  #", new="        if True:  #"),
    _passage("passage: errors are not passed on", old="        if kind != ERROR or not 0 <= size <= _ERROR_MAX:\n", new="        if True:\n"),
    _passage("passage: an error's length", old="not 0 <= size <= _ERROR_MAX:", new="size < 0:"),
    _chunks("chunks: no refusal within a frame", old="        elif self.passage is None or self.passage.clear:\n", new="        else:\n            channel.farewell(error)\n            return\n        if error is not None and self.passage is None:\n"),
    _chunks("chunks: places come back", old="            self._admission.leave(caller)  #", new="            pass  #"),
    _chunks("chunks: shares of streams", old="            with stream.caller.stream():\n", new="            with contextlib.nullcontext():\n"),
    _chunks("chunks: a day's bytes", old="        stream.caller.spend(size)\n", new=""),
    _chunks("chunks: a day's bytes, all", old="stream.passage.run(stream.caller.spend)", new="stream.passage.run(lambda _: None)"),
    _chunks("chunks: the client's budget", old="Call(budget_ms / 1000, trace=trace)", new="Call(600.0, trace=trace)"),
    _chunks("chunks: what is left of it", old="int(remaining_s * 1000) or 1", new="600_000"),
    _chunks("chunks: who is slow gives way", old="        with patience.waiting(connection, self._admission.workers):\n", new="        with contextlib.nullcontext():\n"),
    _chunks("chunks: a first message", old="        if not size:\n", new="        if False:\n"),
    _config("config: not beside TLS", old="        if result.tls is not None:\n", new="        if False:\n"),
    _config("config: no token in the clear", old="listens = [front.listen, *([front.frames] if front.frames else [])]", new="listens = [front.listen]"),
    _dial("dial: greeted first", old="        _expect(channel, self.host.offer.greeting, until)\n", new=""),
    _dial("dial: at the first wrong byte", old="if not piece or not words.startswith(heard):", new="if not piece:"),
    _dial("dial: welcomed", old="        _expect(channel, WELCOME, until)\n", new=""),
    _way("way: not again at once", old="if self._host is None or time.monotonic() < self._not_before:", new="if self._host is None:"),
    _way("way: the same offer", old="            if host == self._host:\n                return False\n", new=""),
    _pool("pool: bounded", old=" or len(self._all) >= limits.FRAMED_POOL:", new=":"),
    _pool("pool: too old", old="if connection.used >= oldest and connection.quiet:", new="if connection.quiet:"),
    _pool("pool: not quiet", old="if connection.used >= oldest and connection.quiet:", new="if connection.used >= oldest:"),
    _pool("pool: after a failure", old="if not connection.usable or not self._of_now(connection):", new="if not self._of_now(connection):"),
    _exchange("exchange: one answer", old='        if len(payload) > size:\n            raise BrokenError("more than one answer")\n', new=""),
    _exchange("exchange: dead before a byte left", old="        except OSError:\n            raise UnsentError from None\n", new="        except ZeroDivisionError:\n            raise UnsentError from None\n"),
    _buffer("buffer: kinds", old="    if kind not in {expected, ERROR}:\n", new="    if False:\n"),
    _buffer("buffer: lengths", old="    if not COUNTED <= length <= most:\n", new="    if False:\n"),
    _call("call: sent is said once", old="if self._unsent and self._flush(channel):", new="if self._flush(channel):"),
    _call("call: refused at the end", old="        return self._refused(payload) if refused else Event(Kind.MESSAGE, payload)\n", new="        return Event(Kind.MESSAGE, payload)\n"),
    _dial("dial: a stream may be held back", old="        channel.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, 0)\n", new="        pass\n", tests=_INFER_STREAM),
    _dial("dial: half a stream's time", old="return min(limits.FRAMED_CONNECT_S, left_s / 2)", new="return limits.FRAMED_CONNECT_S", tests=_INFER_STREAM),
    _dial("dial: silence within little time", old="return not self.silent or within_s >= limits.FRAMED_CONNECT_S", new="return True", tests=_INFER_STREAM),
    _stream("stream: its messages' length", old="COUNTED + limits.STREAM_MESSAGE_MAX", new="limits.FRAME_MAX"),
    _stream("stream: refused", old="                if self._refused is not None:\n                    raise self._refused.error()\n", new=""),
    _stream("stream: nowhere is not asked again at once", old="                self._way.led_nowhere(self._dial.host)\n", new="                pass\n"),
    _stream("stream: cut when it fails", old="                self._over = True\n                self._dial.cut()\n", new="                self._over = True\n"),
    _loop_stream("loop stream: its messages' length", old="limits.STREAM_MESSAGE_MAX)", new="limits.FRAME_MAX)"),
    _loop_stream("loop stream: the deadline", old="self._timer = self._loop.call_later(timeout_s, self._end, late)", new="self._timer = self._loop.call_later(1e6, self._end, late)"),
    _loop_stream("loop stream: nobody takes", old="            self._wire.pause()\n", new="            pass\n"),
    _loop_stream("loop stream: what the host does not take", old="        while wire.sending:\n", new="        while False:\n"),
    _loop_opening("loop opening: greeted first", old="        await _expect(channel, greeting)\n", new=""),
    _loop_opening("loop opening: welcomed", old="        await _expect(channel, WELCOME)\n", new=""),
    _loop_pool("loop pool: too old", old="            if self._loop.time() - since > limits.FRAMED_POOL_IDLE_S:\n", new="            if False:\n"),
)
