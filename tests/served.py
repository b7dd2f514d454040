"""A server over the bundled model, in a thread of the tests' own process, so that its engine can be looked at."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn

import sglite as sgl
from sglite.runtime.serve.app import create_app
from sglite.runtime.serve.options import ServeOptions


@dataclass
class Served:
    """A running server. ``http``: a client of it."""

    url: str
    engine: sgl.Engine
    http: httpx.Client

    def post(self, path: str, body: Any, status: int = 200) -> Any:
        """The JSON answer, which must have ``status``."""
        response = self.http.post(path, json=body)
        assert response.status_code == status, response.text
        return response.json()

    def info(self) -> dict[str, Any]:
        return dict(self.http.get("/server_info").json())

    def posts(self, path: str = "/program") -> int:
        """Requests to a route so far."""
        return int(self.info()["http_requests"].get(path, 0))

    def load(self) -> tuple[int, ...]:
        """Everything that must come back to where it was."""
        info = self.info()
        pages, programs = info["pages"], info["programs"]
        busy = (info["num_running"], info["num_waiting"], info["num_open_requests"], info["open_sequences"])
        return (*busy, info["pins"], pages["held"], programs["sessions"], programs["sequences"])


IDLE = (0,) * 8


def settles(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether something becomes true before long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return condition()


@contextmanager
def listening(app: Any, **config: Any) -> Iterator[int]:
    """The port of a server for ``app`` in a thread; ``config``: of uvicorn."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, **config))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        assert settles(lambda: server.started)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(10)


def start(engine: sgl.Engine, **options: Any) -> tuple[uvicorn.Server, str, threading.Thread]:
    """A server over ``engine`` on a free port."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(create_app(engine, ServeOptions(**options)), log_config=None, access_log=False)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    assert settles(lambda: server.started)
    return server, f"http://127.0.0.1:{listener.getsockname()[1]}", thread
