"""run_batch: order, limits, failures, stopping early, the common prefix."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import sglite as sgl
from sglite.lang.batch import PrefixWarmup, common_start
from sglite.lang.session import SESSION

SHARED = "s" * 80


@sgl.function
def ask(s: Any, q: str, tag: str = "t") -> None:
    s += f"[{tag}] {q}:" + sgl.gen("v")


def rows(n: int) -> list[dict[str, Any]]:
    return [{"q": f"q{i}"} for i in range(n)]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.time() + 10
    while not condition():
        assert time.time() < deadline, "it never came true"
        time.sleep(0.005)


@pytest.mark.parametrize("threads", ["auto", 1, 3])
@pytest.mark.parametrize("lazy", [False, True])
def test_states_come_in_row_order_and_finished(echo: Any, threads: Any, lazy: bool) -> None:
    states = ask.run_batch(rows(40), backend=echo, num_threads=threads, generator_style=lazy)
    for i, state in enumerate(states):
        assert state.run.finished.done() and state["v"] == echo.answer(f"[t] q{i}:")
    assert echo.opened == echo.closed == 40


@pytest.mark.parametrize("threads", [1, 3])
def test_num_threads_bounds_the_requests_in_flight(echo: Any, threads: int) -> None:
    gate = echo.gate = threading.Event()

    def open_gate() -> None:
        until(lambda: echo.running == threads)
        time.sleep(0.1)  # for those that would come beyond the limit
        gate.set()

    threading.Thread(target=open_gate).start()
    ask.run_batch(rows(30), backend=echo, num_threads=threads)
    assert echo.peak == threads


def test_rows_wait_for_outputs_without_a_thread(echo: Any) -> None:
    gate = echo.gate = threading.Event()
    bodies: list[str] = []

    def open_gate() -> None:
        until(lambda: echo.running == 500)
        bodies.extend(thread.name for thread in threading.enumerate() if thread.name == "sglite-batch")
        gate.set()

    threading.Thread(target=open_gate).start()
    ask.run_batch(rows(500), backend=echo)
    assert 0 < len(bodies) < 130  # started for the rush, at most


def test_a_row_that_fails_spoils_only_itself_even_when_its_body_reads(echo: Any) -> None:
    @sgl.function
    def f(s: Any, q: str) -> str:
        s += q + sgl.gen("v")
        return str(s["v"])

    good, bad = f.run_batch([{"q": "a"}, {"q": "b!"}], backend=echo)
    assert good.ret_value == echo.answer("a") and bad.ret_value is None
    assert good.error() is None and "exclamation" in str(bad.error())


def test_an_exception_of_a_body_ends_the_batch_and_stops_the_other_rows(echo: Any) -> None:
    echo.gate = threading.Event()

    @sgl.function
    def f(s: Any, q: int) -> None:
        if q == 0:
            until(lambda: echo.running == 7)
            raise LookupError("row zero")
        s += f"{q}" + sgl.gen("v")
        s["v"]

    with pytest.raises(LookupError, match="row zero"):
        f.run_batch([{"q": i} for i in range(8)], backend=echo)
    until(lambda: echo.running == 0)


def test_closing_a_generator_stops_what_is_in_flight(echo: Any) -> None:
    echo.gate, echo.held = threading.Event(), lambda prompt: prompt != "0"

    @sgl.function
    def f(s: Any, q: int) -> None:
        if q == 0:
            until(lambda: echo.running == 3)
        s += f"{q}" + sgl.gen("v")

    states = f.run_batch([{"q": i} for i in range(20)], backend=echo, generator_style=True, num_threads=4)
    assert next(states)["v"] == echo.answer("0")
    states.close()
    until(lambda: echo.running == 0)
    assert echo.opened < 20


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"q": "x"}, "must be a list or a tuple"),
        ([("a", "b", "c")], "row 0.*too many positional"),
        ([{"q": "a"}, ()], "row 1.*missing"),
        (["abc"], "row 0.*no dict"),
    ],
)
def test_rows_are_checked_before_any_runs(echo: Any, bad: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        ask.run_batch(bad, backend=echo)
    assert echo.opened == 0


def test_zero_threads_are_refused(echo: Any) -> None:
    with pytest.raises(ValueError, match="num_threads=0"):
        ask.run_batch(rows(2), backend=echo, num_threads=0)


def test_the_common_start_of_the_rows_is_computed_once_before_any_row(echo: Any) -> None:
    ran = []

    @sgl.function
    def f(s: Any, q: str) -> None:
        ran.append(q)
        s += f"{SHARED}Question: {q}" + sgl.gen("v")

    f.run_batch([{"q": q} for q in "abc"], backend=echo)
    assert echo.prefilled == [SHARED + "Question: "]
    assert sorted(ran) == ["a", "b", "c"], "bodies ran once each"


def test_short_or_lonely_prefixes_cost_no_request(echo: Any) -> None:
    ask.run_batch(rows(3), backend=echo)

    @sgl.function
    def f(s: Any, q: str) -> None:
        s += SHARED + q
        if q == "a":
            s += sgl.gen("v")

    f.run_batch([{"q": "a"}, {"q": "b"}], backend=echo)  # nobody else ever sends a request
    assert echo.prefilled == []


def test_a_prefix_that_cannot_be_computed_costs_time_and_not_the_batch(echo: Any) -> None:
    async def refuse(text: str) -> None:
        raise sgl.BackendError("no")

    echo.prefill = refuse
    warmup = PrefixWarmup(echo)
    arrivals = [SESSION.loop.spawn(warmup.arrive(SHARED + q)) for q in "ab"]
    assert [a.result(5) for a in arrivals] == [None, None]


def test_common_start() -> None:
    assert common_start("abc", "abd") == "ab" and common_start("ab", "abc") == "ab" and common_start("", "x") == ""


def test_a_progress_bar_goes_to_stderr_and_only_when_asked(echo: Any, capsys: Any) -> None:
    ask.run_batch(rows(3), backend=echo)
    assert capsys.readouterr().err == ""
    ask.run_batch(rows(3), backend=echo, progress_bar=True)
    shown = capsys.readouterr()
    assert "100%" in shown.err and shown.out == ""


def test_bound_arguments_and_sampling_apply_to_every_row(echo: Any) -> None:
    ask.bind(tag="B").run_batch(rows(2), backend=echo, max_new_tokens=6, stop="x")
    assert sorted(prompt for prompt, _ in echo.calls) == ["[B] q0:", "[B] q1:"]
    assert {(c.sampling.max_new_tokens, c.sampling.stop) for _, c in echo.calls} == {(6, ("x",))}
