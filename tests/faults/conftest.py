"""Faults and attacks: slow, and run by ``make test-faults`` only, which says how much of each (see ``scale``)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.scale import FULL, WANTED, figures
from faults.servers import Server, tiny_folder

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(3600 if FULL else 600))
            if not WANTED:
                item.add_marker(pytest.mark.skip(reason="run it with make test-faults"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if figures:
        terminalreporter.section("figures")
    for attack, name, value in figures:
        terminalreporter.write_line(f"{attack} | {name} | {value}")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint."""
    return tiny_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    """One that no test ends, without limits of its own."""
    server = Server(folder, "--context-length", "256", "--max-total-tokens", "16384", "--log-level", "warning")
    yield server
    server.close()
