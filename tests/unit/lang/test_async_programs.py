"""Programs as coroutines: nothing blocks, nothing hangs, values may be used before they exist."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

import sglite as sgl
from sglite.lang.errors import SymbolicValueError


def test_the_call_of_a_typed_program_gives_its_value(echo: Any) -> None:
    echo.answers = lambda prompt, call: "42"

    @sgl.program
    async def count(s: sgl.State, what: str) -> int:
        s.user(f"How many {what}?")
        return await s.gen(int)

    async def main() -> Any:
        return await asyncio.gather(count("cats", backend=echo), count("dogs", backend=echo))

    assert asyncio.run(main()) == [42, 42]
    assert count.run_value("cats", backend=echo) == 42
    prompt, call = echo.calls[0]
    assert prompt == "USER: How many cats?\nASSISTANT: "
    assert call.params()["max_new_tokens"] is None  # the rest of the context, said aloud


def test_a_plain_function_is_a_typed_program_too_and_may_return_a_value_that_does_not_exist_yet(echo: Any) -> None:
    @sgl.program
    def draft(state: sgl.State, topic: str) -> str:
        state += f"About {topic}: "
        return state.gen(str)  # type: ignore[return-value]

    assert draft("tea", backend=echo) == echo.answer("About tea: ")


def test_run_works_while_the_callers_own_loop_runs(echo: Any) -> None:
    @sgl.program
    async def f(s: sgl.State) -> str:
        s += "a"
        return str(await s.gen(str))

    async def notebook_cell() -> Any:
        return f.run_value(backend=echo)

    assert asyncio.run(notebook_cell()) == echo.answer("a")


@pytest.mark.parametrize(
    ("read", "instead"),
    [
        (lambda s: s["x"], "await s.get('x')"),
        (lambda s: s.text(), "await s.get_text()"),
        (lambda s: s.sync(), "await s.finished()"),
        (lambda s: s.get_meta_info("x"), "await s.get('x')"),
        (lambda s: s.var("x").value(), "`await`"),
    ],
)
def test_a_blocking_read_in_a_coroutine_says_what_to_write(echo: Any, read: Any, instead: str) -> None:
    echo.gate = threading.Event()
    seen: list[str] = []

    @sgl.program
    async def f(s: sgl.State) -> Any:
        s += "a" + sgl.gen("x")
        with pytest.raises(sgl.BlockingReadError) as caught:
            read(s)
        seen.append(str(caught.value))
        echo.gate.set()
        return await s.get("x")

    assert f.run_value(backend=echo) == echo.answer("a")
    assert instead in seen[0]


def test_what_exists_already_may_be_read_without_await(echo: Any) -> None:
    @sgl.function
    async def f(s: Any) -> Any:
        s += "a" + sgl.gen("x")
        await s.finished()
        return s["x"], s["x"] in await s.get_text()

    assert f.run(backend=echo).ret_value == (echo.answer("a"), True)


def test_values_stand_for_outputs_in_sums_and_f_strings_and_wait_for_nothing(echo: Any) -> None:
    echo.gate = threading.Event()

    @sgl.function
    def f(s: Any) -> None:
        a, b = s.branch(), s.branch()
        a += "left" + sgl.gen("v")
        b += "right" + sgl.gen("v")
        s += f"<{a.var('v')}|{b.var('v')!s}>" + a.var("v") + sgl.user(f"{b.var('v')}?")
        s += sgl.gen("end")

    state = f.run(backend=echo)  # returned although no answer exists
    deadline = time.time() + 5
    while echo.peak < 2 and time.time() < deadline:
        time.sleep(0.005)
    assert echo.peak == 2  # both branches at once
    echo.gate.set()
    left, right = echo.answer("left"), echo.answer("right")
    head = f"<{left}|{right}>{left}USER: {right}?\n"
    assert state.text() == head + echo.answer(head)


def test_a_value_cannot_be_looked_at_and_says_how_to_read_it(echo: Any) -> None:
    refused: list[str] = []

    @sgl.function
    def f(s: Any) -> None:
        s += "a" + sgl.gen("x")
        value = s.var("x")
        for look in (bool, len, int, float, list, lambda v: v == "x", lambda v: v[0], lambda v: f"{v:>3}"):
            with pytest.raises(SymbolicValueError) as caught:
                look(value)
            refused.append(str(caught.value))

    f.run(backend=echo).sync()
    assert all("'x'" in message for message in refused)


def test_what_is_left_of_a_value_that_was_cut_is_refused_where_it_is_appended(echo: Any) -> None:
    @sgl.function
    def f(s: Any, cut: Any) -> None:
        s += "a" + sgl.gen("x")
        s += cut(f"{s.var('x')}")

    for cut in (lambda t: t[:-1], lambda t: t[1:], lambda t: t.upper(), lambda t: t.replace("0", "1")[:-3]):
        with pytest.raises(ValueError, match="symbolic value"):
            f.run(cut, backend=echo)
    other = f.run(lambda t: t + t, backend=echo)
    x = echo.answer("a")
    assert other.text() == "a" + x + x + x


def test_a_choice_cannot_be_a_value_that_does_not_exist(echo: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "a" + sgl.gen("x")
        s += sgl.select("c", [f"{s.var('x')}", "b"])

    with pytest.raises(ValueError, match="cannot be a choice"):
        f.run(backend=echo)


def test_map_runs_branches_at_once_and_joins_without_waiting(echo: Any) -> None:
    @sgl.program
    async def summarise(s: sgl.State, chunks: list[str]) -> str:
        s.system("rules")
        parts = s.map(chunks, lambda b, c: b.user(c).gen(str))
        s.user("Merge:\n", sgl.join(parts, "\n"))
        return str(await s.gen(str))

    base = "SYSTEM: rules\n"
    parts = [echo.answer(f"{base}USER: {c}\nASSISTANT: ") for c in "abc"]
    merged = f"{base}USER: Merge:\n{parts[0]}\n{parts[1]}\n{parts[2]}\nASSISTANT: "
    assert summarise.run_value(["a", "b", "c"], backend=echo) == echo.answer(merged)
    assert summarise.run_value([], backend=echo) == echo.answer(f"{base}USER: Merge:\n\nASSISTANT: ")


def test_map_takes_coroutines_whose_results_may_be_appended(echo: Any) -> None:
    @sgl.function
    async def f(s: Any) -> Any:
        async def work(branch: Any, item: str) -> str:
            branch += item + sgl.gen("x")
            return (await branch.get("x")).upper()

        left, right = s.map(["l", "r"], work)
        s += left + "," + right
        return await left, await s.get_text()

    left, text = f.run(backend=echo).ret_value
    assert left == echo.answer("l").upper() and text == f"{left},{echo.answer('r').upper()}"


def test_a_failing_coroutine_of_map_reaches_whoever_waits_for_it(echo: Any) -> None:
    @sgl.function
    async def f(s: Any) -> Any:
        async def work(branch: Any, item: str) -> str:
            raise LookupError("nothing there")

        (value,) = s.map(["l"], work)
        with pytest.raises(sgl.VariableError, match="nothing there"):
            await value
        return "went on"

    assert f.run(backend=echo).ret_value == "went on"


def test_programs_called_in_a_body_use_its_back_end(echo: Any) -> None:
    @sgl.program
    async def inner(s: sgl.State, x: str) -> str:
        s += x
        return str(await s.gen(str))

    @sgl.program
    async def outer(s: sgl.State) -> list[str]:
        return list(await asyncio.gather(inner("a"), inner("b")))

    assert outer.run_value(backend=echo) == [echo.answer("a"), echo.answer("b")]
    with pytest.raises(RuntimeError, match="no back end"):
        inner.run_value("a")


def test_cancelling_the_caller_stops_the_run(echo: Any) -> None:
    echo.gate = threading.Event()

    @sgl.function
    async def f(s: Any) -> None:
        s += "a" + sgl.gen("x")
        await s.get("x")

    async def main() -> None:
        task = asyncio.ensure_future(f.arun(backend=echo))
        while not echo.running:
            await asyncio.sleep(0.002)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    deadline = time.time() + 5
    while echo.closed < echo.opened and time.time() < deadline:
        time.sleep(0.005)
    assert (echo.cancelled, echo.running, echo.closed) == (1, 0, echo.opened)


def test_a_thousand_programs_in_flight_need_no_thread_each(echo: Any) -> None:
    echo.gate = threading.Event()

    @sgl.function
    async def f(s: Any, i: int) -> Any:
        s += f"{i}:" + sgl.gen("x")
        return await s.get("x")

    async def main() -> list[Any]:
        before = threading.active_count()
        jobs = [asyncio.ensure_future(f.arun(i, backend=echo)) for i in range(1000)]
        while echo.running < 1000:
            await asyncio.sleep(0.01)
        assert threading.active_count() - before <= 2
        echo.gate.set()
        states = await asyncio.gather(*jobs)
        for state in states:
            state.run.finished.result(5)
        return [state.ret_value for state in states]

    assert asyncio.run(main()) == [echo.answer(f"{i}:") for i in range(1000)]
    assert echo.closed == echo.opened == 1000


def test_async_batches_keep_order_and_say_which_row_failed(echo: Any) -> None:
    @sgl.function
    async def f(s: Any, i: int) -> Any:
        if i == 3:
            raise LookupError("row three")
        s += f"{i}:" + sgl.gen("x")
        return await s.get("x")

    async def main() -> Any:
        with pytest.raises(LookupError):
            await f.arun_batch([{"i": i} for i in range(6)], backend=echo)
        return await f.arun_batch([(i,) for i in range(6)], backend=echo, on_error="return", max_concurrency=2)

    states = asyncio.run(main())
    assert [state.ret_value for state in states] == [None if i == 3 else echo.answer(f"{i}:") for i in range(6)]
    assert isinstance(states[3].error().__cause__, LookupError)
    assert all(state.error() is None for i, state in enumerate(states) if i != 3)


def test_async_streams_follow_a_run_whose_body_waits(echo: Any) -> None:
    @sgl.function
    async def f(s: Any) -> None:
        s += "a" + sgl.gen("x")
        await s.get("x")
        s += "b" + sgl.gen("y")

    async def main() -> tuple[list[str], str]:
        state = await f.arun(backend=echo, stream=True)
        pieces = [piece async for piece in state.text_async_iter("y")]
        await state.body
        return pieces, await state.get_text()

    pieces, text = asyncio.run(main())
    x = echo.answer("a")
    assert "".join(pieces) == echo.answer(f"a{x}b") and len(pieces) > 1 and text.endswith("".join(pieces))


def test_a_result_may_hold_values_that_do_not_exist_yet(echo: Any) -> None:
    @sgl.program
    async def f(s: sgl.State) -> Any:
        parts = s.map(["a", "b"], lambda branch, text: (branch.user(text), branch.gen(str))[1])
        return {"parts": parts, "pair": (1, parts[0])}

    wanted = [echo.answer(f"USER: {text}\nASSISTANT: ") for text in "ab"]
    assert f.run_value(backend=echo) == {"parts": wanted, "pair": (1, wanted[0])}
    assert asyncio.run(f(backend=echo)) == {"parts": wanted, "pair": (1, wanted[0])}


def test_a_constraint_takes_the_place_of_the_type(echo: Any) -> None:
    @sgl.program
    def f(s: sgl.State) -> Any:
        return s.gen(regex="[a-z]+")

    echo.answers = lambda prompt, call: "abc"
    assert f(backend=echo) == "abc" and echo.calls[0][1].sampling.regex == "[a-z]+"


def test_appends_one_by_one_are_for_plain_functions(echo: Any) -> None:
    @sgl.function
    async def f(s: Any) -> Any:
        s += "a" + sgl.gen("x")
        return await s.get("x")

    assert f.run(backend=echo, use_thread=False).ret_value == echo.answer("a")
