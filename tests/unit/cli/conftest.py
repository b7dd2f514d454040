"""The server that the tests of commands share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from served import start

import sglite as sgl


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """Of a server over the bundled model."""
    with sgl.Engine(dtype="float32", show_progress=False, num_threads=1, max_total_tokens=16_384) as engine:
        server, address, thread = start(engine)[:3]
        yield address
        server.should_exit = True
        thread.join(10)


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SGLITE_API_KEY", "SGLITE_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)
