"""Traces of calls for OpenTelemetry, where the operator wants them (``casemate-host[otel]``).

A span for each call that has a worker, and one beneath it for each step of the host. They carry
names from closed sets, reason codes and the caller's name in the host's configuration; never
content, and nothing goes on to the enclave. A caller's ``traceparent`` (W3C Trace Context) is the
parent. Calls refused at the gate have no span: a flood must cost nothing.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final, Protocol

from casemate.errors import CasemateError, Code
from casemate_host.status import status_code

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager

    from casemate_host.config import TracesConfig

    Metadata = Iterable[tuple[str, str | bytes]]

_PARENT = "traceparent"  # and not tracestate, which is free text


class Trace(Protocol):
    """One call's span."""

    def step(self, name: str) -> AbstractContextManager[None]:
        """Time a block as a span beneath the call's."""
        ...

    def caller(self, name: str) -> None:
        """Note who calls, by the name that the host's configuration gives it."""
        ...

    def end(self, code: Code) -> None:
        """End the call's span."""
        ...


class Tracer(Protocol):
    """Begins traces."""

    def begin(self, method: str, metadata: Metadata) -> Trace:
        """Begin the span of one call."""
        ...

    def close(self) -> None:
        """Send what is left."""
        ...


_NOTHING: Final = contextlib.nullcontext()


class NoTrace:
    """What there is without traces; a ``Trace`` and a ``Tracer`` that do nothing."""

    def begin(self, method: str, metadata: Metadata) -> Trace:  # noqa: ARG002 - the protocol's
        """Return itself."""
        return self

    def step(self, name: str) -> AbstractContextManager[None]:  # noqa: ARG002 - the protocol's
        """Return what does nothing."""
        return _NOTHING

    def caller(self, name: str) -> None:
        """Do nothing."""

    def end(self, code: Code) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


NO_TRACE = NoTrace()


class OtelTracer:
    """Begins spans with OpenTelemetry; ``provider`` is its ``TracerProvider``."""

    def __init__(self, provider: Any) -> None:  # noqa: ANN401 - OpenTelemetry is not always there
        from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415 - extra
            TraceContextTextMapPropagator,
        )

        self._provider = provider
        self._tracer = provider.get_tracer("casemate-host")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, method: str, metadata: Metadata) -> Trace:
        """Begin the span of one call, beneath the caller's own if it sent one."""
        from opentelemetry.trace import SpanKind  # noqa: PLC0415 - extra

        carrier = {key: value for key, value in metadata if key == _PARENT}
        attributes = {
            "rpc.system": "grpc",
            "rpc.service": "casemate.v1.ConfidentialInference",
            "rpc.method": method,
        }
        parent = self._propagator.extract(carrier)
        span = self._tracer.start_span(
            f"casemate.v1.ConfidentialInference/{method}",
            context=parent,
            kind=SpanKind.SERVER,
            attributes=attributes,
        )
        return _OtelTrace(self._tracer, span)

    def close(self) -> None:
        """Send what is left, for a moment."""
        self._provider.shutdown()


class _OtelTrace:
    def __init__(self, tracer: Any, span: Any) -> None:  # noqa: ANN401 - OpenTelemetry's
        self._tracer = tracer
        self._span = span

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        from opentelemetry.trace import set_span_in_context  # noqa: PLC0415 - extra

        span = self._tracer.start_span(name, context=set_span_in_context(self._span))
        try:
            yield
        finally:
            span.end()

    def caller(self, name: str) -> None:
        self._span.set_attribute("casemate.caller", name)

    def end(self, code: Code) -> None:
        from opentelemetry.trace import StatusCode  # noqa: PLC0415 - extra

        if code is Code.OK:
            self._span.set_attribute("rpc.grpc.status_code", 0)
        else:
            self._span.set_attribute("rpc.grpc.status_code", status_code(code).value[0])
            self._span.set_attribute("casemate.code", str(code))
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


def tracer_of(config: TracesConfig | None) -> Tracer:
    """Return what the configuration asks for.

    Raises CasemateError(INVALID_ARGUMENT) if the extra is not installed.
    """
    if config is None:
        return NO_TRACE
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 - extra
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - extra
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - extra
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - extra
        from opentelemetry.sdk.trace.sampling import TraceIdRatioBased  # noqa: PLC0415 - extra
    except ImportError:
        detail = "traces need the extra: pip install 'casemate-host[otel]'"
        raise CasemateError(Code.INVALID_ARGUMENT, detail) from None
    provider = TracerProvider(
        resource=Resource.create({"service.name": config.service}),
        # Not by the parent's flag: what is kept is not for callers to say.
        sampler=TraceIdRatioBased(config.percent / 100),
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=config.endpoint)))
    return OtelTracer(provider)
