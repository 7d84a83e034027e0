"""What every call of the front has in common: its deadline, its message, its end, its counts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from casemate import framed, limits
from casemate.errors import CasemateError, Code
from casemate_host.call import Call
from casemate_host.events import Traffic, describe, log
from casemate_host.status import abort
from casemate_host.tracing import NO_TRACE

if TYPE_CHECKING:
    from collections.abc import Iterator

    Answers = Callable[[Call], Iterator[bytes]]

    import grpc

    from casemate.framed import Offer
    from casemate_host.admission import Patience
    from casemate_host.callers import Caller, Callers
    from casemate_host.metrics import Metrics
    from casemate_host.relay import Relay
    from casemate_host.tracing import Tracer
    from casemate_host.workers import Workers

Answer = Callable[[Call], tuple[bytes, int]]  # response, and the size of the request


class Desk:
    """Takes calls that a worker has; thread-safe."""

    def __init__(
        self,
        relay: Relay,
        callers: Callers,
        metrics: Metrics,
        patience: Patience,
        tracer: Tracer = NO_TRACE,
    ) -> None:
        self._relay = relay
        self._callers = callers
        self._metrics = metrics
        self._patience = patience
        self._tracer = tracer
        self.traffic = Traffic()
        self.offer: Offer | None = None  # of framed connections, which good answers carry

    @contextlib.contextmanager
    def admitted(self, caller: Caller | None, context: grpc.ServicerContext) -> Iterator[Caller]:
        """Yield who calls; one known by a certificate alone is let in here, and not at the gate.

        Raises CasemateError(UNAUTHENTICATED), ShedError.
        """
        if caller is not None:
            yield caller
            return
        certified = self._callers.certified(context)
        with certified.call():
            yield certified

    def known(self, caller: Caller | None, context: grpc.ServicerContext) -> Caller:
        """Return who calls, without letting the call count; raises CasemateError."""
        return caller or self._callers.certified(context)

    def receive(
        self,
        messages: Iterator[bytes],
        context: grpc.ServicerContext,
        limit: int,
        workers: Workers | None = None,
    ) -> bytes:
        """Return the call's message; raises CasemateError, and ends the call if none comes.

        ``workers``: whose worker waits, so that it may give way when all of them are taken.
        """
        with self._patience.waiting(context, workers):
            request = next(messages, None)
        if request is None:
            raise CasemateError(Code.MALFORMED, "a call without a message")
        if len(request) > limit:
            raise CasemateError(Code.TOO_LARGE, f"{len(request)} bytes, limit {limit}")
        return request

    def refused(self, method: str, code: Code, caller: str | None = None) -> None:
        """Count a call that ended with ``code``; ``caller``: whose, where known."""
        self.traffic.refused(method, code)
        self._metrics.ended(method, code, caller)

    def answered(self, method: str, size: int, caller: str | None = None) -> None:
        """Count a call that was answered; ``size`` in bytes."""
        self.traffic.answered(method, size)
        self._metrics.ended(method, Code.OK, caller)

    def serve(self, method: str, context: grpc.ServicerContext, answer: Answer) -> bytes:
        """Return what ``answer`` makes of the call, or end the call with its error."""
        trace = self._tracer.begin(method, context.invocation_metadata() or ())
        call = Call(context.time_remaining(), trace=trace)
        result = self._outcome(method, context, answer, call)
        trace.end(result.code if isinstance(result, CasemateError) else Code.OK)
        if isinstance(result, CasemateError):
            self.refused(method, result.code, call.caller)
            abort(context, result)
        self._metrics.ended(method, Code.OK, call.caller)
        if self.offer is not None:
            context.set_trailing_metadata(((framed.METADATA, self.offer.text),))
        return result

    def serve_stream(
        self, method: str, context: grpc.ServicerContext, answers: Answers
    ) -> Iterator[bytes]:
        """Yield what ``answers`` makes of the call, or end the call with its error."""
        trace = self._tracer.begin(method, context.invocation_metadata() or ())
        call = Call(context.time_remaining(), limits.CALL_BUDGET_MAX_S, trace)
        refusal, size = None, 0

        def gone() -> None:
            call.cancel()

        try:
            if not context.add_callback(gone):
                return
            for message in answers(call):
                size += len(message)
                yield message
        except CasemateError as error:
            refusal = error
        except Exception as error:  # noqa: BLE001 - no foreign text may reach a caller
            refusal = _unexpected(error, method, context)
        finally:
            call.finish()
            trace.end(refusal.code if refusal is not None else Code.OK)
        if refusal is not None:
            self.refused(method, refusal.code, call.caller)
            abort(context, refusal)
        self.answered(method, size, call.caller)

    def _outcome(
        self, method: str, context: grpc.ServicerContext, answer: Answer, call: Call
    ) -> bytes | CasemateError:
        def ended() -> None:
            if call.cancel():
                self._relay.wake()
            elif call.unread is not None:
                call.unread.ended(context)

        if not context.add_callback(ended):
            return _gone()
        try:
            response, size = answer(call)
            if call.unread is not None:
                call.unread.keep(context, len(response), self._patience.timeout_s)
        except CasemateError as error:
            return error
        except Exception as error:  # noqa: BLE001 - no foreign text may reach a caller
            return _unexpected(error, method, context)
        finally:
            if not call.finish() and call.unread is not None:
                call.unread.ended(context)
        self.traffic.answered(method, size)
        return response


def _gone() -> CasemateError:
    return CasemateError(Code.DEADLINE_EXCEEDED, "the caller went away")


def _unexpected(error: Exception, method: str, context: grpc.ServicerContext) -> CasemateError:
    if not context.is_active():
        return _gone()
    log.error("internal_error", method=method, **describe(error))
    return CasemateError(Code.INTERNAL, "internal error")
