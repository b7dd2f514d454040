"""Whatever happens to programs on an engine, they end, and the engine has back all that it lent them."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_programs import bodies, write
from sequence_engines import ScriptedEngine, held, scripted_engine, text_folder
from tiny_engines import settles

import sglite as sgl
from sglite.lang.session import SESSION

pytestmark = pytest.mark.timeout(60)
LENT = ("open_sequences", "pins", "pinned_pages", "num_running", "num_waiting")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptedEngine]:
    with scripted_engine(text_folder(tmp_path_factory.mktemp("text")), max_total_tokens=40_000) as engine:
        yield engine


def lent(engine: ScriptedEngine) -> dict[str, int]:
    info = engine.get_server_info()
    return {name: info[name] for name in LENT if info[name]}


def check_rest(engine: ScriptedEngine) -> None:
    """Handles, pins, requests and, once nothing is cached, pages are what they were before any program."""
    assert settles(lambda: not lent(engine)), lent(engine)
    info = engine.rest()
    assert info["pages"]["free"] == info["pages"]["total"] and info["page_mismatches"] == 0


@pytest.fixture(autouse=True)
def back_to_baseline(engine: ScriptedEngine) -> Iterator[None]:
    yield
    check_rest(engine)


def tasks() -> int:
    """What runs on the programs' loop."""

    async def count() -> int:
        return len(asyncio.all_tasks()) - 1

    return SESSION.loop.spawn(count()).result(5)


@sgl.function
def wide(s: Any, check: Any = None) -> Any:
    s += "hello" + sgl.gen("x", max_tokens=5)
    group = s.fork(64)
    for index, branch in enumerate(group):
        branch += f"{index}" + sgl.gen("v", max_tokens=4, check=check if index == 17 else None)
    group.join()
    s += sgl.select("c", ["yes", "no"]) + sgl.gen("z", max_tokens=3)
    return group


# --- random programs, random faults ------------------------------------------------------------------------------


@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    body=bodies(depth=2, width=3, length=4),
    fault=st.sampled_from(["none", "cancel", "raise", "deadline", "budget", "close", "caller"]),
    after=st.integers(0, 12),
    stream=st.booleans(),
)
def test_programs_end_and_give_everything_back(
    engine: ScriptedEngine, body: Any, fault: str, after: int, stream: bool
) -> None:
    @sgl.function
    def program(s: Any) -> None:
        write(s, body, [])
        if fault == "raise":
            time.sleep(after / 2000)
            raise LookupError("the body")

    options: dict[str, Any] = {"backend": engine, "seed": 1}
    if fault == "deadline":
        options["deadline"] = (after + 1) / 2000
    elif fault == "budget":
        options["token_budget"] = after + 1
    if fault == "caller":
        asyncio.run(cancelled(program.arun(**options), after / 2000))
    elif fault == "raise" and not stream:
        with pytest.raises(LookupError):
            program.run(**options)
    else:
        state = program.run(stream=stream, **options)
        if fault == "cancel":
            time.sleep(after / 2000)
            state.cancel()
        elif fault == "close" and stream:
            next(state.text_iter(), None)
        error = state.error()
        assert error is None or fault in ("cancel", "raise", "deadline", "budget")
        state.run.finished.result(10)
        if fault == "budget":
            assert state.usage.completion_tokens <= after + 1
    check_rest(engine)
    assert settles(lambda: tasks() == 0)


async def cancelled(call: Any, seconds: float) -> None:
    task = asyncio.ensure_future(call)
    await asyncio.sleep(seconds)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# --- one fault after the other -----------------------------------------------------------------------------------


def test_one_branch_of_64_fails_alone(engine: ScriptedEngine) -> None:
    def check(value: str) -> bool:
        raise ZeroDivisionError("branch 17")

    state = wide.run(check, backend=engine)
    with pytest.raises(sgl.VariableError, match="branch 17"):
        state["v"]
    assert [i for i, branch in enumerate(state.ret_value) if branch.error() is not None] == [17]
    assert state.error() is None and state["c"] in ("yes", "no")
    state.run.finished.result(10)


@pytest.mark.parametrize("where", ["gen", "fork", "select", "value"])
def test_a_deadline_passes_anywhere(engine: ScriptedEngine, where: str) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "a" * 50
        if where == "gen":
            s += sgl.gen("x")
        elif where == "fork":
            group = s.fork(8)
            group += sgl.gen("x", max_tokens=50)
            group.join()
        elif where == "select":
            s += sgl.select("x", ["a", "b"])
        else:
            branch = s.branch()
            branch += sgl.gen("y", max_tokens=50)
            s += branch.var("y") + sgl.gen("x")
        s["x"]

    with held(engine), pytest.raises(sgl.VariableError, match=r"deadline=0\.1") as caught:
        f.run(backend=engine, deadline=0.1)
    assert caught.value.variable == "x"


def test_a_deadline_passes_while_a_constraint_is_compiled(engine: ScriptedEngine) -> None:
    pattern = "(" + "|".join(f"[a-z]{{{i},{i + 40}}}x[0-9]{{{i},{i + 60}}}" for i in range(1, 60)) + ")+"

    @sgl.function
    def f(s: Any) -> None:
        s += "a" + sgl.gen("c", regex=pattern, max_tokens=10)
        s["c"]

    began = time.monotonic()
    with pytest.raises(sgl.VariableError, match=r"deadline=0\.02"):
        f.run(backend=engine, deadline=0.02)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\ud800", "lone surrogate at index 1"),
        ("", "is empty"),
        ("x" * 30_000, "the engine holds 512"),
        ("\x00", None),
        (" ", None),
        ("\n\n", None),
    ],
)
def test_odd_text_runs_or_is_refused_in_words(engine: ScriptedEngine, text: str, message: str | None) -> None:
    state = sgl.function(lambda s: s.__iadd__(text + sgl.gen("x", max_tokens=3))).run(backend=engine)
    error = state.error()
    assert (error is None) if message is None else (error is not None and message in str(error))
    state.run.finished.result(10)


def test_going_back_mixes_with_forks(engine: ScriptedEngine) -> None:
    @sgl.function
    def f(s: Any) -> Any:
        s += "abc"
        first = s.checkpoint()
        s += "tried" + sgl.gen("x", max_tokens=4)
        tried = s.fork(3)
        tried += sgl.gen("v", max_tokens=4)
        s.rollback(first)
        s += "then" + sgl.gen("y", max_tokens=4)
        second = s.checkpoint()
        group = s.fork(2)
        group += sgl.gen("w", max_tokens=3)
        group.join("concate_and_append")
        s += sgl.gen("z", max_tokens=2)
        s.rollback(second)
        s += sgl.gen("z", max_tokens=3)
        s.rollback(first)
        s += sgl.gen("k", max_tokens=3)
        return tried

    concurrent, inline = f.run(backend=engine), f.run(backend=engine, use_thread=False)
    assert concurrent.text() == inline.text() and concurrent.variable_names() == inline.variable_names() == ["k"]
    assert [b.text() for b in concurrent.ret_value] == [b.text() for b in inline.ret_value]
    for state in (concurrent, inline):
        state.run.finished.result(10)


@pytest.mark.parametrize("how", ["shutdown", "step"])
def test_the_engine_fails_under_its_programs(tmp_path: Any, how: str) -> None:
    engine = scripted_engine(text_folder(tmp_path))
    execute, steps = engine.worker.execute, iter(range(100))

    def fails(step: Any, masks: Any) -> Any:
        if how == "step" and next(steps) > 3:
            raise RuntimeError("device lost")
        return execute(step, masks)

    engine.worker.execute = fails  # type: ignore[method-assign]
    engine.worker.gate.clear()
    states = [wide.run(backend=engine) for _ in range(3)]
    threading.Timer(0.05, engine.worker.gate.set).start()
    if how == "shutdown":
        engine.shutdown()
    said = "shut down" if how == "shutdown" else "device lost"
    states.append(wide.run(backend=engine))
    for state in states:
        assert said in str(state.error())
        state.run.finished.result(10)
    assert how == "shutdown" or settles(lambda: not lent(engine))
    engine.shutdown()


# --- many --------------------------------------------------------------------------------------------------------


def test_a_thousand_finished_programs_leave_nothing(engine: ScriptedEngine) -> None:
    @sgl.function
    def f(s: Any, i: int) -> None:
        s += f"{i}" + sgl.gen("x", max_tokens=2)
        s += f"{s.branch().gen(str, max_tokens=2)}"
        if i == 500:
            raise LookupError

    gc.collect()
    threads, marks = threading.active_count(), len(SESSION.marks)
    states = f.run_batch([(i,) for i in range(1000)], backend=engine, on_error="return")
    assert settles(lambda: not lent(engine))  # although every state is still held
    runs = [weakref.ref(state.run) for state in states]
    assert len(SESSION.marks) == marks + 1000
    del states
    assert settles(lambda: bool(gc.collect() or True) and all(run() is None for run in runs))
    assert len(SESSION.marks) == marks and tasks() == 0
    assert threading.active_count() <= threads + 130  # a batch's own, which end when they have been idle


def test_rows_that_were_taken_hold_no_sequence(engine: ScriptedEngine) -> None:
    @sgl.function
    def f(s: Any, i: int) -> None:
        s += f"{i}" + sgl.gen("x", max_tokens=2)

    rows = f.run_batch([(i,) for i in range(400)], backend=engine, generator_style=True, num_threads=8)
    kept, most = [], 0
    for state in rows:
        kept.append(state)
        most = max(most, engine.get_server_info()["open_sequences"])
    assert len(kept) == 400 and most <= 8


@pytest.mark.parametrize(("shape", "count"), [("wide", 5000), ("deep", 300)])
def test_forks_of_any_shape(engine: ScriptedEngine, shape: str, count: int) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "p" * 40
        states = [s]
        if shape == "wide":
            states += s.fork(count)
        else:
            for _ in range(count):
                states.append(states[-1].fork(1)[0])
        for branch in random.Random(3).sample(states, 5):
            branch += sgl.gen("x", max_tokens=2)

    state = f.run(backend=engine)
    state.run.finished.result(30)
    assert state.error() is None


def test_twenty_thousand_literals(engine: ScriptedEngine) -> None:
    @sgl.function
    def f(s: Any) -> None:
        for i in range(20_000):
            s += "a" if i < 100 else ""
        s += sgl.gen("x", max_tokens=2)

    state = f.run(backend=engine)
    assert state.error() is None and state.text().startswith("a" * 100)
    state.run.finished.result(10)
