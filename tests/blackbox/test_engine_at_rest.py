"""Engines next to other processes: without work they take no processor time, and their threads do not spin long."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from sglite import Engine
from sglite.runtime.engine.child import EngineProcess
from sglite.runtime.engine.remote import RemoteClient
from sglite.runtime.engine.spawned import Spawned

SECONDS = 2.0
SHARE = 0.05


def cpu_seconds(pid: int) -> float:
    """That a process has taken, over all its threads (fields 14 and 15 of proc(5)'s stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_an_engine_that_has_nothing_to_do_takes_no_time() -> None:
    """Neither its process nor what is left with the caller, after a call that ran on two threads."""
    with Engine(dtype="float32", show_progress=False, num_threads=2, max_total_tokens=4096, launch=Spawned) as engine:
        engine.generate(["Once", "There was"], {"max_new_tokens": 40, "ignore_eos": True, "temperature": 1.0})
        client = engine.client
        assert isinstance(client, RemoteClient)
        time.sleep(0.2)  # what follows a request
        before = time.process_time(), cpu_seconds(client.pid)
        time.sleep(SECONDS)
        taken = time.process_time() - before[0], cpu_seconds(client.pid) - before[1]
    assert max(taken) < SHARE * SECONDS


@pytest.mark.parametrize(
    ("said", "expected"),
    [({}, "20000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
    ids=["nothing", "a count", "a policy"],
)
def test_threads_of_torch_do_not_spin_long_unless_somebody_says_so(
    monkeypatch: pytest.MonkeyPatch, said: dict[str, str], expected: str | None, tmp_path: Path
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    found = tmp_path / "found"
    process = EngineProcess(("sh", "-c", f'echo "${{GOMP_SPINCOUNT-none}}" > {found}'))
    assert process.wait(10)
    process.end()
    assert found.read_text().strip() == (expected or "none")
