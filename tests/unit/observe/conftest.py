"""A server that is seen, and what its engine says of itself to compare with."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from served import Served, settles

import sglite as sgl
from sglite.runtime.observe.observer import Observer
from sglite.runtime.serve.app import create_app
from sglite.runtime.serve.observed import Observed
from sglite.runtime.serve.options import ServeOptions


@dataclass
class Seen(Served):
    """A running server and its metrics."""

    observer: Observer

    def metrics(self) -> dict[str, float]:
        """Every sample without labels but the model's, by its name; those with labels by ``name{values}``."""
        found = {}
        for family in text_string_to_metric_families(self.http.get("/metrics").text):
            for sample in family.samples:
                labels = {k: v for k, v in sample.labels.items() if k != "model_name"}
                found[sample.name + (str(sorted(labels.items())) if labels else "")] = sample.value
        return found

    def idle(self) -> bool:
        """Nothing is under way, in the engine or among HTTP requests but the one that asks."""
        info = self.info()
        return info["num_running"] == info["num_waiting"] == info["num_open_requests"] == 0

    def totals(self) -> dict[str, int]:
        """The engine's own sums over ended requests."""
        assert settles(self.idle)
        return dict(self.info()["totals"])


@pytest.fixture(scope="session")
def engine() -> Iterator[sgl.Engine]:
    with sgl.Engine(dtype="float32", show_progress=False, num_threads=1, max_total_tokens=16_384) as engine:
        yield engine


@pytest.fixture
def serve(engine: sgl.Engine) -> Iterator:
    """Starts servers over the engine, with options."""
    started = []

    def begin(**options: object) -> Seen:
        app = create_app(engine, ServeOptions(**options))
        assert isinstance(app, Observed)
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        assert settles(lambda: server.started)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        http = httpx.Client(base_url=url, timeout=60)
        started.append((server, thread, http))
        return Seen(url, engine, http, app._observer)

    yield begin
    for server, thread, http in started:
        http.close()
        server.should_exit = True
        thread.join(10)
