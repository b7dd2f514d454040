"""Servers that die, hang or slow down under programs, and seeds beside other work: on the bundled model."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sequence_engines import ScriptedEngine, held, scripted_engine, text_folder
from served import IDLE, Served, settles, start

import sglite as sgl
from sglite.lang import executor
from sglite.lang.session import SESSION

pytestmark = pytest.mark.timeout(100)


@sgl.function
def story(s: Any) -> None:
    s += "Once upon a time" + sgl.gen("x", max_tokens=150, ignore_eos=True)
    group = s.fork(4)
    group += lambda i: f"{i}" + sgl.gen("v", max_tokens=150, ignore_eos=True)
    group.join()
    s += sgl.select("c", ["a", "b"]) + sgl.gen("z", max_tokens=100, ignore_eos=True)


def tasks() -> list[str]:
    """What runs on the programs' loop."""

    async def names() -> list[str]:
        return [str(t.get_coro()) for t in asyncio.all_tasks() if t is not asyncio.current_task()]

    return SESSION.loop.spawn(names()).result(5)


# --- a server of its own -----------------------------------------------------------------------------------------


@pytest.fixture
def process() -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "sglite", "serve", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        assert settles(lambda: answers(url), 60)
        yield server, url
    finally:
        server.kill()
        server.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=1).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("program", [True, False])
def test_a_server_that_is_killed_ends_its_programs(process: Any, program: bool) -> None:
    server, url = process
    states = [story.run(backend=sgl.RuntimeEndpoint(url, program=program)) for _ in range(3)]
    time.sleep(0.3)
    server.send_signal(signal.SIGKILL)
    for state in states:
        error = state.error()
        assert isinstance(error.__cause__, sgl.BackendError)
        said = str(error)
        # whichever call was under way
        assert url in said and "is the server running there?" in said and said.startswith(("gen(", "select("))
        with pytest.raises(sgl.VariableError, match="is the server running there"):
            state["z"]
        state.run.finished.result(20)
    assert settles(lambda: tasks() == [], 20), tasks()


@pytest.mark.slow
@pytest.mark.parametrize("program", [True, False])
def test_a_server_that_hangs_ends_at_the_deadline(process: Any, program: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "_CLOSE_S", 1.0)
    server, url = process
    backend = sgl.RuntimeEndpoint(url, program=program)
    began = time.monotonic()
    states = [story.run(backend=backend, deadline=1.0) for _ in range(3)]
    time.sleep(0.2)
    server.send_signal(signal.SIGSTOP)
    for state in states:
        assert isinstance(state.error().__cause__, sgl.DeadlineExceeded)
    assert time.monotonic() - began < 3
    for state in states:
        state.run.finished.result(5)
    server.send_signal(signal.SIGCONT)
    assert settles(lambda: answers(url))
    if program:
        idle = ("open_sequences", "pins", "num_running", "num_waiting")
        assert settles(lambda: not any(backend.get_server_info()[name] for name in idle), 20)


# --- a server in this process ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with scripted_engine(text_folder(tmp_path_factory.mktemp("text"))) as engine:
        server, url, thread = start(engine)
        with httpx.Client(base_url=url, timeout=30) as http:
            yield Served(url, engine, http)
        server.should_exit = True
        thread.join(10)


@pytest.mark.parametrize("program", [True, False])
@pytest.mark.parametrize("fault", ["cancel", "deadline", "body", "branch", "reader", "caller"])
def test_every_fault_gives_the_server_everything_back(served: Served, fault: str, program: bool) -> None:
    backend = sgl.RuntimeEndpoint(served.url, program=program)
    engine: ScriptedEngine = served.engine  # type: ignore[assignment]

    def check(value: str) -> bool:
        raise ZeroDivisionError("branch 7")

    @sgl.function
    def f(s: Any) -> None:
        s += "hello" + sgl.gen("x", max_tokens=5)
        group = s.fork(16)
        for i, branch in enumerate(group):
            branch += f"{i}" + sgl.gen("v", max_tokens=20, check=check if (fault, i) == ("branch", 7) else None)
        group.join()
        s += sgl.select("c", ["a", "b"])
        if fault == "body":
            raise LookupError("the body")

    def run() -> None:
        if fault == "caller":
            with held(engine):
                asyncio.run(gives_up(f.arun_batch([{}] * 4, backend=backend)))
        elif fault == "body":
            with held(engine), pytest.raises(LookupError):
                f.run(backend=backend)
        elif fault in ("cancel", "deadline"):
            with held(engine):
                state = f.run(backend=backend, deadline=0.1 if fault == "deadline" else None)
                time.sleep(0.05)
                if fault == "cancel":
                    state.cancel()
                assert fault in str(state.error())  # although the server stands still
            state.run.finished.result(10)
        elif fault == "branch":
            with pytest.raises(sgl.VariableError, match="branch 7"):
                f.run(backend=backend)["v"]
        else:
            state = f.run(backend=backend, stream=True)
            next(state.text_iter("v"), None)
            next(state.text_iter())
            state.run.finished.result(10)

    run()
    assert settles(lambda: served.load() == IDLE), served.load()


async def gives_up(call: Any) -> None:
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(call, 0.1)


# --- seeds -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine() -> Iterator[sgl.Engine]:
    with sgl.Engine(show_progress=False, num_threads=1, dtype="float32") as engine:
        yield engine


def test_seeded_values_do_not_depend_on_what_runs_beside_them(engine: sgl.Engine, tmp_path: Path) -> None:
    """Sampled at temperature 1. Sums of floats may depend on the batch, so a token may differ where two probabilities
    meet the random number: that is rare, and everything behind it may then differ too."""

    @sgl.function
    def f(s: Any) -> None:
        s += "Once upon a time" + sgl.gen("x", max_tokens=8)
        group = s.fork(3)
        group += lambda i: f" {i}" + sgl.gen("v", max_tokens=6)
        group.join()
        s += " and" + sgl.gen("y", max_tokens=8)

    def values(state: Any) -> list[str]:
        return [state["x"], *state["v"], state["y"]]

    async def several() -> list[Any]:
        return list(await asyncio.gather(*(f.arun(backend=engine, seed=seed) for seed in range(6))))

    for seed in range(6):
        engine.flush_cache()
        f.run(backend=engine, seed=seed, use_thread=False)
    alone = [values(f.run(backend=engine, seed=seed, use_thread=False)) for seed in range(6)]
    styles: dict[str, Callable[[], list[Any]]] = {
        "concurrent": lambda: [f.run(backend=engine, seed=seed) for seed in range(6)],
        "streamed": lambda: [f.run(backend=engine, seed=seed, stream=True) for seed in range(6)],
        "coroutines": lambda: asyncio.run(several()),
        "batch": lambda: [f.run_batch([{}] * 4, backend=engine, seed=seed)[3] for seed in range(6)],
    }
    for style, run in styles.items():
        found = [values(state) for state in run()]
        same = sum(a == b for a, b in zip(alone, found, strict=True))
        assert same >= 5, (style, alone, found)
    assert len({tuple(row) for row in alone}) == 6
