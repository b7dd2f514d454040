"""Traces for OpenTelemetry: a span for every HTTP request that began generations, and one below it for each of them.

    POST /v1/chat/completions        server span; its parent is the caller's ``traceparent``
      chat MODEL                     one a generation, attributes ``gen_ai.*``, and ours under ``sglite.*``

Spans are made when a request is complete, from times that were noted on the way, and sent in batches by a thread. What
is not asked for costs nothing: OpenTelemetry is imported only with an endpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from sglite.runtime.config import ConfigError
from sglite.runtime.observe.exchange import Exchange, Tracked

if TYPE_CHECKING:
    from opentelemetry.trace import Span

_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/api/chat": "chat",
    "/v1/embeddings": "embeddings",
    "/api/embed": "embeddings",
}
_OWN = (
    "computed_prompt_tokens",
    "forced_tokens",
    "resampled_tokens",
    "forward_passes",
    "replayed_tokens",
    "preemptions",
)


class Traces:
    """A follower of the observer.

    Args:
        endpoint: where OTLP over HTTP is taken; without a path, ``/v1/traces`` there.
        model: the name of the model.

    ``ConfigError`` if the endpoint is no URL or the extra ``otel`` is not installed.
    """

    def __init__(self, endpoint: str, model: str) -> None:
        url = urlsplit(endpoint)
        if url.scheme not in ("http", "https") or not url.netloc:
            raise ConfigError(f"otlp_traces_endpoint={endpoint!r}: give a URL such as http://localhost:4318")
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            message = f"otlp_traces_endpoint needs the package {error.name!r}: pip install 'sglite[otel]'"
            raise ConfigError(message) from None
        where = endpoint if url.path.strip("/") else endpoint.rstrip("/") + "/v1/traces"
        resource = Resource({"service.name": "sglite"}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=where)))
        self._tracer = self._provider.get_tracer("sglite")
        self._propagator = TraceContextTextMapPropagator()
        self._model = model

    def complete(self, exchange: Exchange) -> None:
        """See ``Follower``."""
        if exchange.tracked:
            self._trace(exchange)

    def close(self) -> None:
        """Send what has not been sent, which may take some seconds, and stop the thread."""
        self._provider.shutdown()

    def _trace(self, exchange: Exchange) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        status = exchange.status or 0
        span = self._tracer.start_span(
            f"{exchange.method} {exchange.route}",
            context=self._propagator.extract(dict(exchange.parent)),
            kind=SpanKind.SERVER,
            start_time=_nanoseconds(exchange, exchange.received_at),
            attributes={
                "http.request.method": exchange.method,
                "http.route": exchange.route,
                "http.response.status_code": status,
                "sglite.request_id": exchange.id,
                "sglite.generations": exchange.num_tracked,
            },
        )
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        inside = set_span_in_context(span)
        for tracked in exchange.tracked:
            name = f"{_operation(exchange)} {self._model}"
            started = _nanoseconds(exchange, tracked.begun_at)
            child = self._tracer.start_span(
                name, context=inside, start_time=started, attributes=self._attributes(exchange, tracked)
            )
            if tracked.finish in ("error", "abort"):
                child.set_status(Status(StatusCode.ERROR, tracked.code))
                child.set_attribute("error.type", tracked.code or tracked.finish)
            _mark(child, exchange, tracked)
            child.end(_nanoseconds(exchange, tracked.ended_at or tracked.begun_at))
        last = max([exchange.answered_at or exchange.received_at, *(one.ended_at or 0.0 for one in exchange.tracked)])
        span.end(_nanoseconds(exchange, last))

    def _attributes(self, exchange: Exchange, tracked: Tracked) -> dict[str, Any]:
        accounting = tracked.accounting
        found: dict[str, Any] = {
            "gen_ai.operation.name": _operation(exchange),
            "gen_ai.provider.name": "sglite",
            "gen_ai.request.model": self._model,
            "gen_ai.response.model": self._model,
            "gen_ai.request.stream": exchange.streamed,
            "gen_ai.response.id": tracked.rid,
            "gen_ai.response.finish_reasons": [tracked.finish or ""],
            "gen_ai.usage.input_tokens": accounting.prompt_tokens,
            "gen_ai.usage.cache_read.input_tokens": accounting.cached_tokens,
            "gen_ai.usage.output_tokens": tracked.num_tokens,
            "sglite.queue_ms": accounting.queue_ms,
            "sglite.compute_ms": accounting.compute_ms,
            "sglite.constrained": tracked.constrained,
            **{f"sglite.{name}": getattr(accounting, name) for name in _OWN},
        }
        if tracked.first_at is not None:
            found["gen_ai.response.time_to_first_chunk"] = tracked.first_at - exchange.began_at
        if tracked.program:
            found["sglite.program"] = tracked.program
        return found


def _mark(span: Span, exchange: Exchange, tracked: Tracked) -> None:
    """Events: when it first ran, and its first token."""
    accounting = tracked.accounting
    if tracked.admitted_at is not None and accounting.forward_passes:
        first_run = tracked.admitted_at + accounting.queue_ms / 1000
        span.add_event("first run", timestamp=_nanoseconds(exchange, first_run))
    if tracked.first_at is not None:
        span.add_event("first token", timestamp=_nanoseconds(exchange, tracked.first_at))


def _operation(exchange: Exchange) -> str:
    return _OPERATIONS.get(exchange.route, "text_completion")


def _nanoseconds(exchange: Exchange, when: float) -> int:
    """Of the calendar."""
    return int(1e9 * (exchange.wall + when - exchange.received_at))
