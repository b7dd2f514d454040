"""``/health`` and ``/ready`` say what an engine can do, without waiting for it; here over one on a thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from scripted_process import local_engine
from sequence_engines import text_folder
from served import Served, settles, start

LONG = {"max_new_tokens": 300, "ignore_eos": True}


@contextmanager
def serving(folder: Path, step_seconds: float, heartbeat_timeout_s: float, **arguments: Any) -> Iterator[Served]:
    with local_engine(folder, step_seconds, **arguments) as engine:
        server, url, thread = start(engine, heartbeat_timeout_s=heartbeat_timeout_s)
        with httpx.Client(base_url=url, timeout=20) as http:
            yield Served(url, engine, http)
            server.should_exit = True
            thread.join(10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_folder(tmp_path_factory.mktemp("texts"))


def said(server: Served, path: str) -> tuple[int, str, str]:
    response = server.http.get(path)
    return response.status_code, response.json()["status"], response.json().get("reason", "")


def test_ready_knows_of_pauses_and_full_queues(folder: Path) -> None:
    with serving(folder, 0.02, 5.0, max_running_requests=1, max_queued_requests=2) as server:
        assert said(server, "/ready") == said(server, "/health") == said(server, "/ping") == (200, "ok", "")
        assert server.http.post("/ping").status_code == 200
        server.engine.pause("in_place")
        assert settles(lambda: said(server, "/ready")[:2] == (503, "paused"), 2)
        assert said(server, "/health") == (200, "ok", "")
        server.engine.resume()
        generations = [server.engine.submit([41, 42], LONG)]
        assert settles(lambda: server.engine.get_server_info()["num_running"] == 1)
        generations += [server.engine.submit([41, 43 + i], LONG) for i in range(2)]
        assert settles(lambda: said(server, "/ready") == (503, "full", "2 requests wait, which is all that may"), 2)
        assert said(server, "/health")[0] == 200
        for generation in generations:
            generation.abort()
        assert settles(lambda: said(server, "/ready")[0] == 200, 2)


def test_an_engine_that_is_not_heard_of_is_not_healthy_and_may_come_back(folder: Path) -> None:
    with serving(folder, 0.5, 0.15) as server:
        generation = server.engine.submit([41, 42], {"max_new_tokens": 2, "ignore_eos": True})
        assert settles(lambda: said(server, "/health")[:2] == (503, "stalled"), 1)
        assert said(server, "/ready")[:2] == (503, "stalled")
        generation.result(10)
        assert settles(lambda: said(server, "/health")[0] == 200, 1)
        server.engine.shutdown()
        assert said(server, "/health") == (503, "dead", "the engine has been shut down")
        assert server.http.get("/health_generate").status_code == 503
