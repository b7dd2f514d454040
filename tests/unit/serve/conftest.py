"""The server that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from served import IDLE, Served, settles, start

import sglite as sgl


@pytest.fixture(scope="session")
def engine() -> Iterator[sgl.Engine]:
    with sgl.Engine(dtype="float32", show_progress=False, num_threads=1, max_total_tokens=16_384) as engine:
        yield engine


@pytest.fixture(scope="session")
def _server(engine: sgl.Engine) -> Iterator[Served]:
    server, url, thread = start(engine)
    with httpx.Client(base_url=url, timeout=60) as http:
        yield Served(url, engine, http)
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def server(_server: Served) -> Iterator[Served]:
    """The server; every test must leave it idle."""
    yield _server
    assert settles(lambda: _server.load() == IDLE), _server.load()
