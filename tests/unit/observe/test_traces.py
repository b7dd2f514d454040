"""Traces, as a collector gets them: a stand-in takes OTLP over HTTP."""

from __future__ import annotations

import builtins
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from sglite.runtime.config import ConfigError
from sglite.runtime.observe.traces import Traces

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector(ThreadingHTTPServer):
    """Takes traces. ``spans``: what came; ``paths``: where."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.spans: list[Any] = []
        self.paths: list[str] = []
        self.names: set[str] = set()


class Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        import gzip

        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        data = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            data = gzip.decompress(data)
        found = ExportTraceServiceRequest.FromString(data)
        self.server.paths.append(self.path)
        for resource in found.resource_spans:
            self.server.names.update(
                a.value.string_value for a in resource.resource.attributes if a.key == "service.name"
            )
            for scope in resource.scope_spans:
                self.server.spans.extend(scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: Any) -> None: ...


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def attributes(span: Any) -> dict[str, Any]:
    def value(one: Any) -> Any:
        kind = one.WhichOneof("value")
        return [value(item) for item in one.array_value.values] if kind == "array_value" else getattr(one, kind)

    return {a.key: value(a.value) for a in span.attributes}


def test_a_request_is_a_span_below_the_callers_and_its_generations_below_it(serve: Any, collector: Collector) -> None:
    served = serve(otlp_traces_endpoint=f"http://127.0.0.1:{collector.server_port}")
    body = {"input_ids": [[5] * 10, [6] * 4], "sampling_params": {"max_new_tokens": 3, "ignore_eos": True}}
    context = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "h1"}
    assert served.http.post("/generate", json={**body, "rid": ["a", "b"]}, headers=context).status_code == 200
    served.http.get("/health", headers=context)
    served.observer.close()
    assert set(collector.paths) == {"/v1/traces"} and collector.names == {"sglite"}
    (root,) = [span for span in collector.spans if span.parent_span_id.hex() == PARENT]
    children = [span for span in collector.spans if span is not root]
    assert root.name == "POST /generate" and {span.trace_id.hex() for span in collector.spans} == {TRACE}
    assert {span.parent_span_id for span in children} == {root.span_id} and len(children) == 2
    seen = attributes(root)
    assert (seen["http.route"], seen["http.response.status_code"], seen["sglite.request_id"]) == (
        "/generate",
        200,
        "h1",
    )
    for span, rid, prompt in zip(
        sorted(children, key=lambda s: attributes(s)["gen_ai.response.id"]), "ab", (10, 4), strict=True
    ):
        seen = attributes(span)
        assert span.name == "text_completion sglite-demo"
        assert seen["gen_ai.response.id"] == rid and seen["gen_ai.usage.input_tokens"] == prompt
        assert seen["gen_ai.usage.output_tokens"] == 3 and seen["gen_ai.response.finish_reasons"] == ["length"]
        assert seen["gen_ai.provider.name"] == "sglite" and seen["sglite.forward_passes"] >= 3
        assert [event.name for event in span.events] == ["first run", "first token"]
        assert (
            root.start_time_unix_nano <= span.start_time_unix_nano < span.end_time_unix_nano <= root.end_time_unix_nano
        )
        moments = [event.time_unix_nano for event in span.events]
        assert span.start_time_unix_nano <= moments[0] <= moments[1] <= span.end_time_unix_nano


def test_a_caller_that_does_not_sample_gets_no_spans(serve: Any, collector: Collector) -> None:
    served = serve(otlp_traces_endpoint=f"http://127.0.0.1:{collector.server_port}/elsewhere")
    body = {"input_ids": [1, 2], "sampling_params": {"max_new_tokens": 1}}
    served.http.post("/generate", json=body, headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    served.http.post("/generate", json=body, headers={"traceparent": "nonsense~"})
    served.observer.close()
    assert set(collector.paths) == {"/elsewhere"}
    assert TRACE not in {span.trace_id.hex() for span in collector.spans} and len(collector.spans) == 2


def test_without_the_extra_or_with_a_bad_url_it_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for endpoint in ("localhost:4318", "grpc://x", "http://"):
        with pytest.raises(ConfigError, match="otlp_traces_endpoint"):
            Traces(endpoint, "m")
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("opentelemetry.exporter"):
            raise ModuleNotFoundError(f"No module named {name!r}", name="opentelemetry.exporter")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=r"pip install 'sglite\[otel\]'"):
        Traces("http://localhost:4318", "m")


def test_nothing_of_it_is_imported_without_an_endpoint() -> None:
    code = (
        "import sys, sglite.runtime.serve.app, sglite.runtime.serve.observed as o\n"
        "from sglite.runtime.serve.options import ServeOptions\n"
        "o.observer_of(ServeOptions(), 'm')\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == "[]"
