"""Feeds and cells between threads; how many threads there are; Ctrl-C, forked processes and interpreter exit."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import Future
from typing import Any

import pytest

import sglite as sgl
from sglite.lang.cells import Cell, Feed, Signal
from sglite.lang.errors import Failure
from sglite.lang.threads import BodyPool, LoopThread


def test_a_feed_is_read_whole_by_readers_that_come_early_late_and_from_a_loop() -> None:
    feed = Feed()
    early: list[str] = []
    reader = threading.Thread(target=lambda: early.extend(text for text, _ in feed.read()))
    reader.start()

    async def follow() -> list[str]:
        threading.Thread(target=write).start()
        return [text async for text, _ in feed.aread()]

    def write() -> None:
        for i in range(200):
            feed.write(f"{i},")
        feed.close()

    whole = [f"{i}," for i in range(200)]
    assert asyncio.run(follow()) == whole
    reader.join(5)
    assert early == whole == [text for text, _ in feed.read()]


def test_a_waiter_that_gave_up_does_not_disturb_the_others() -> None:
    signal_ = Signal()
    gone, there = signal_.waiter(), signal_.waiter()
    gone.cancel()
    signal_.fire()
    assert there.done()


def test_a_cell_shows_only_what_was_not_streamed_when_it_resolves() -> None:
    cell = Cell("v")
    cell.feed.write("ab")
    cell.resolve("abcd", {"id": 1})
    assert [text for text, _ in cell.feed.read()] == ["ab", "cd"] and cell.get() == "abcd"


def test_a_gathered_cell_waits_for_all_parts_and_fails_with_any() -> None:
    parts = [Cell("v"), Cell("v")]
    whole = Cell.gathered("v", parts, 0)
    parts[0].resolve("a", None)
    assert not whole.done.done()
    parts[1].resolve("b", None)
    assert whole.get() == ["a", "b"]
    bad = Cell("v")
    bad.fail(Failure("gen('v')", "v", ValueError("why"), ""))
    with pytest.raises(sgl.VariableError, match="why"):
        Cell.gathered("v", [parts[0], bad], 0).get()


def test_a_body_pool_keeps_its_limit() -> None:
    pool = BodyPool(3, "test-pool")
    running, peak, lock = [0], [0], threading.Lock()

    def work() -> int:
        with lock:
            running[0] += 1
            peak[0] = max(peak[0], running[0])
        time.sleep(0.002)
        with lock:
            running[0] -= 1
        return 1

    assert sum(f.result(10) for f in [pool.submit(work) for _ in range(60)]) == 60
    assert peak[0] <= 3


def test_a_body_pool_reuses_idle_threads() -> None:
    pool = BodyPool(50, "test-reuse")
    for _ in range(30):
        pool.submit(lambda: None).result(5)
        time.sleep(0.001)
    assert sum(t.name == "test-reuse" for t in threading.enumerate()) <= 2


def test_a_full_pool_still_runs_what_its_own_threads_submit() -> None:
    pool = BodyPool(1, "test-nested")
    depth = pool.submit(lambda: pool.submit(lambda: pool.submit(lambda: 3).result(5)).result(5))
    assert depth.result(5) == 3


def test_a_blocking_read_on_the_loop_is_an_error_and_not_a_deadlock() -> None:
    loop = LoopThread("test-loop")
    never: Future[None] = Future()

    async def read() -> None:
        loop.wait(never)

    with pytest.raises(RuntimeError, match="would never end"):
        loop.spawn(read()).result(5)


def test_programs_run_inside_a_running_loop(echo: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "a" + sgl.gen("v")

    async def cell() -> str:
        return f.run(backend=echo)["v"]

    assert asyncio.run(cell()) == echo.answer("a")


def test_a_thousand_programs_in_flight_use_no_thread_each(echo: Any) -> None:
    echo.gate = threading.Event()
    before = threading.active_count()

    @sgl.function
    def f(s: Any, i: int) -> Any:
        s += f"{i}" + sgl.gen("v")
        return s.fork(2)

    states = [f.run(i, backend=echo) for i in range(1000)]
    while echo.running < 1000:
        time.sleep(0.01)
    assert threading.active_count() <= before + 1
    echo.gate.set()
    assert [s["v"] for s in states] == [echo.answer(str(i)) for i in range(1000)]


_SLOW = """
import asyncio, os, signal, sys, threading, time
import sglite as sgl

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs

class Slow(sgl.testing.Mock):
    def open(self, program_id):
        stream = super().open(program_id)
        async def fork(n):
            print("waiting", flush=True)
            await asyncio.sleep(60)
        stream.fork = fork
        return stream

@sgl.function
def f(s, q="q"):
    s += q
    s.fork(1)
    s.sync()
"""


def run_script(script: str) -> subprocess.Popen[str]:
    source = textwrap.dedent(_SLOW) + textwrap.dedent(script)
    return subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("call", ["f.run(backend=Slow({}))", "f.run_batch([{'q': 'a'}] * 4, backend=Slow({}))"])
def test_ctrl_c_ends_a_run_at_once(call: str) -> None:
    process = run_script(call)
    assert process.stdout is not None and process.stdout.readline() == "waiting\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert "KeyboardInterrupt" in errors and process.returncode != 0


def test_an_unfinished_streamed_run_does_not_keep_the_interpreter_alive() -> None:
    process = run_script("state = f.run(backend=Slow({}), stream=True); time.sleep(0.5); print('end')")
    out, errors = process.communicate(timeout=15)
    assert (out, process.returncode) == ("waiting\nend\n", 0), errors


def test_a_forked_process_runs_programs_of_its_own() -> None:
    process = run_script("""
        @sgl.function
        def g(s):
            s += "a" + sgl.gen("v")
        mock = sgl.testing.Mock({"v": "b"})
        print(g.run(backend=mock, stream=True).text(), flush=True)
        if os.fork() == 0:
            print(g.run(backend=mock, stream=True).text(), flush=True)
            os._exit(0)
        os.wait()
    """)
    out, errors = process.communicate(timeout=15)
    assert out == "ab\nab\n", errors
