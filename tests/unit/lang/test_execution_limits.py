"""Budgets, deadlines, cancelling, going back, batches that stop: what was promised holds, and nothing stays open."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sglite as sgl
from sglite.lang import executor, run

pytestmark = pytest.mark.timeout(30)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.time() + 10
    while not condition():
        assert time.time() < deadline, "it never came true"
        time.sleep(0.005)


def at_rest(echo: Any) -> bool:
    return echo.running == 0 and echo.opened == echo.closed


@sgl.function
def ask(s: Any, text: str = "a") -> None:
    s += text + sgl.gen("x")


# --- token budgets -----------------------------------------------------------------------------------------------


def spends_its_limit(prompt: str, call: Any) -> str:
    return "x" * call.sampling.max_new_tokens


@pytest.mark.parametrize(("limit", "n"), [(6, 1), (7, 3), (200, 1), (None, 1)])
def test_a_budget_holds_for_branches_that_generate_at_once(echo: Any, limit: int | None, n: int) -> None:
    echo.answers, echo.gate = spends_its_limit, threading.Event()
    threading.Timer(0.2, echo.gate.set).start()

    @sgl.function
    def f(s: Any) -> None:
        group = s.fork(16)
        for branch in group:
            branch.gen(str, "v", max_tokens=limit, n=n)

    state = f.run(backend=echo, token_budget=50)
    state.run.finished.result(10)
    assert 50 - n < sum(c.sampling.max_new_tokens * n for _, c in echo.calls) <= 50


def test_what_an_output_did_not_use_is_there_for_the_others(echo: Any) -> None:
    echo.answers = lambda prompt, call: "xx"

    @sgl.function
    def f(s: Any) -> None:
        group = s.fork(10)
        group += sgl.gen("v", max_tokens=8)
        group.join()

    state = f.run(backend=echo, token_budget=26)  # one after the other they need 9 * 2 + 8
    assert state["v"] == ["xx"] * 10
    assert {call.sampling.max_new_tokens for _, call in echo.calls} == {8}


def test_a_request_that_waits_for_tokens_can_be_cancelled(echo: Any) -> None:
    echo.gate = threading.Event()

    @sgl.function
    def f(s: Any) -> None:
        s.fork(4).__iadd__(sgl.gen("v", max_tokens=10))

    state = f.run(backend=echo, token_budget=10)
    until(lambda: echo.running == 1)
    state.cancel()
    state.run.finished.result(5)
    assert len(echo.calls) == 1 and at_rest(echo)


# --- deadlines and cancelling ------------------------------------------------------------------------------------


def test_a_deadline_ends_an_async_body_that_waits_for_something_else(echo: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(run, "_GRACE_S", 0.1)

    @sgl.function
    async def f(s: Any, seconds: float) -> str:
        s += "a" + sgl.gen("x")
        await asyncio.sleep(seconds)
        return str(await s.get("x"))

    with pytest.raises(sgl.ProgramError) as caught:
        f.run(60, backend=echo, deadline=0.1)
    assert isinstance(caught.value.__cause__, sgl.DeadlineExceeded)
    rows = [{"seconds": s} for s in (0, 60, 0)]
    for states in (
        f.run_batch(rows, backend=echo, deadline=0.1),
        asyncio.run(f.arun_batch(rows, backend=echo, deadline=0.1)),
    ):
        assert [state.error() is None for state in states] == [True, False, True]
        assert "deadline=0.1" in str(states[1].error())
    until(lambda: at_rest(echo))


def test_who_follows_a_body_that_is_stuck_is_told_when_the_run_is_stopped(echo: Any) -> None:
    go = threading.Event()

    @sgl.function
    def f(s: Any) -> None:
        s += "a"
        go.wait(20)
        s += sgl.gen("x")

    state = f.run(backend=echo, deadline=0.1, stream=True)
    with pytest.raises(sgl.VariableError, match="deadline"):
        state["x"]
    assert "".join(state.text_iter()) == "a"
    with pytest.raises(sgl.ProgramError, match="deadline"):
        state.text()
    go.set()
    state.run.finished.result(5)
    assert echo.calls == []


def test_a_deadline_names_what_was_under_way(echo: Any) -> None:
    echo.gate = threading.Event()

    @sgl.function
    def f(s: Any) -> None:
        s += "p"
        branch = s.branch()
        branch += "b" + sgl.gen("v")
        s += branch.var("v") + sgl.gen("w")

    state = f.run(backend=echo, deadline=0.05)
    for part in ("the deadline, during variable 'v' after 'p'", "deadline=0.05"):
        assert part in str(state.error())
    state.run.finished.result(5)
    assert at_rest(echo) and echo.cancelled == 1


def test_cancelling_what_has_finished_changes_nothing(echo: Any) -> None:
    state = ask.run(backend=echo)
    state.run.finished.result(5)
    state.cancel()
    assert state.error() is None and state.text() == "a" + echo.answer("a")


def test_cancelling_a_caller_stops_runs_of_every_kind(echo: Any) -> None:
    echo.gate = threading.Event()

    @sgl.program
    async def typed(s: sgl.State) -> str:
        s += "t"
        return s.gen(str)  # type: ignore[return-value]

    @sgl.function
    def reads(s: Any) -> None:
        s += "r" + sgl.gen("x")
        s["x"]

    async def main() -> None:
        calls = [typed(backend=echo), reads.arun(backend=echo), ask.arun_batch([{}] * 8, backend=echo)]
        for number, call in enumerate(calls):
            task = asyncio.ensure_future(call)
            while echo.running < (8 if number == 2 else 1):
                await asyncio.sleep(0.002)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while not at_rest(echo):
                await asyncio.sleep(0.002)

    asyncio.run(main())
    assert echo.cancelled == 10


def test_a_back_end_that_does_not_answer_keeps_no_run_open(echo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "_CLOSE_S", 0.3)
    stuck = threading.Event()
    opened = echo.open

    def open_stuck(program_id: str) -> Any:
        stream = opened(program_id)

        async def aclose() -> None:
            stuck.set()
            await asyncio.sleep(60)

        stream.aclose = aclose
        return stream

    echo.open = open_stuck
    state = ask.run(backend=echo)
    assert stuck.wait(5) and state.text() == "a" + echo.answer("a") and not state.run.finished.done()
    state.run.finished.result(5)


def test_wrong_arguments_leave_no_run(echo: Any) -> None:
    runs: list[Any] = []
    with pytest.raises(TypeError), pytest.MonkeyPatch.context() as patch:
        patch.setattr("sglite.lang.function.Run", lambda *a, **k: runs.append(a))
        ask.run(nothing=1, backend=echo)
    assert runs == []
    for wrong in ({"on_error": "ignore"}, {"max_concurrency": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            asyncio.run(ask.arun_batch([{}, {}], backend=echo, **wrong))  # type: ignore[arg-type]


# --- going back --------------------------------------------------------------------------------------------------


def test_only_places_that_are_still_there_can_be_come_back_to(echo: Any) -> None:
    kept: list[Any] = []

    @sgl.function
    def f(s: Any) -> None:
        s += "a"
        first = s.checkpoint()
        s += "b"
        second = s.checkpoint()
        kept.append(first)
        with pytest.raises(ValueError, match="not on this stream"):
            s.branch().rollback(first)
        s.rollback(second)
        s.rollback(first)
        with pytest.raises(ValueError, match="taken back"):
            s.rollback(second)
        s.rollback(first)
        s += "c"
        third = s.checkpoint()
        s.compact("d")
        with pytest.raises(ValueError, match="compact"):
            s.rollback(third)

    @sgl.function
    def other(s: Any) -> None:
        s += "z"
        s.checkpoint()
        with pytest.raises(ValueError, match="another one"):
            s.rollback(kept[0])

    assert f.run(backend=echo).text() == "USER: d\n" and other.run(backend=echo).text() == "z"


def test_a_scope_whose_beginning_was_taken_back_says_so(echo: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        place = s.checkpoint()
        with s.var_scope("inner"):
            s.rollback(place)

    assert "var_scope('inner')" in str(f.run(backend=echo).error())


def test_a_compacted_branch_joins_with_all_its_text(echo: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "p"
        group = s.fork(1)
        group[0].compact("short")
        group.join("concate_and_append")

    assert f.run(backend=echo).text() == "pUSER: short\n"


# --- batches -----------------------------------------------------------------------------------------------------


def test_a_batch_that_stops_begins_no_more_bodies(echo: Any) -> None:
    ran: list[int] = []

    @sgl.function
    def f(s: Any, i: int) -> None:
        ran.append(i)
        time.sleep(0.1 if i else 0.3)
        if i == 0:
            raise LookupError

    with pytest.raises(LookupError):
        f.run_batch([(i,) for i in range(900)], backend=echo)
    count = len(ran)
    time.sleep(0.4)
    assert len(ran) <= count + 96 < 600 and at_rest(echo)  # as many may have been about to begin


@pytest.mark.parametrize("style", ["threads", "loop"])
def test_one_bad_row_in_many(echo: Any, style: str) -> None:
    @sgl.function
    def f(s: Any, i: int) -> None:
        s += f"{i}"
        if i == 777:
            raise LookupError("row 777")
        s += sgl.gen("v")

    def batch(**options: Any) -> list[Any]:
        rows = [(i,) for i in range(1000)]
        if style == "threads":
            return list(f.run_batch(rows, backend=echo, **options))
        return asyncio.run(f.arun_batch(rows, backend=echo, **options))

    states = batch(on_error="return")
    assert [i for i, state in enumerate(states) if state.error() is not None] == [777]
    assert states[999]["v"] == echo.answer("999") and at_rest(echo)
    with pytest.raises(LookupError, match="row 777"):
        batch()
    until(lambda: at_rest(echo))


def test_a_row_whose_branch_failed_is_saved_with_what_it_has(echo: Any, tmp_path: Path) -> None:
    @sgl.function
    def f(s: Any, q: str) -> Any:
        group = s.fork(2)
        group += [q, "good"]
        group += sgl.gen("v")
        group.join()
        s["bytes"] = b"\xff"
        s += sgl.gen("w")
        return [s.var("w")]

    rows, path = [{"q": "a"}, {"q": "bad!"}, {"q": "c"}], tmp_path / "rows.jsonl"
    states = f.run_batch(rows, backend=echo, output=path)
    again = f.run_batch(rows, backend=echo, output=path)
    assert again[0]["v"] == states[0]["v"] and again[2].ret_value == [states[2]["w"]]
    assert again[1]["w"] == states[1]["w"] and again[1].error() is None
    with pytest.raises(KeyError, match="exclamation"):
        again[1]["v"]


# --- what stays --------------------------------------------------------------------------------------------------


def test_finished_runs_are_let_go_and_readers_leave_nothing(echo: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += f"{s.branch().gen(str)}" + sgl.gen("x", check=lambda value: True)

    state = f.run(backend=echo, deadline=60)
    state["x"]
    state.run.finished.result(5)
    for _ in range(100):
        assert list(state.text_iter("x")) and list(state.text_iter())
    assert not state._cells["x"].feed._changed._waiters and not state._runner.feed._changed._waiters
    runs = [weakref.ref(state.run), *(weakref.ref(s.run) for s in f.run_batch([{}] * 50, backend=echo, deadline=60))]
    del state
    until(lambda: bool(gc.collect() or True) and all(one() is None for one in runs))
