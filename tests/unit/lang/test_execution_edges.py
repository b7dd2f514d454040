"""Programs that could wait for themselves, never begin or kill a loop: they end, and say what to write instead."""

from __future__ import annotations

import asyncio
import os
import pickle
import select
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import sglite as sgl
from sglite.lang.session import SESSION

pytestmark = pytest.mark.timeout(30)


@sgl.program
async def later(s: sgl.State, text: str) -> str:
    s += text
    return str(await s.gen(str))


@sgl.program
def now(s: sgl.State, text: str) -> str:
    s += text
    return s.gen(str)  # type: ignore[return-value]


@sgl.function
def ask(s: Any, text: str = "a") -> None:
    s += text + sgl.gen("x")


# --- runs inside of runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [lambda: later.run_value("a"), lambda: later.run_batch([("a",), ("b",)])])
def test_an_async_program_inside_an_async_body_must_be_awaited(echo: Any, call: Callable[[], Any]) -> None:
    @sgl.program
    async def outer(s: sgl.State) -> str:
        with pytest.raises(sgl.BlockingReadError, match=r"await later\.arun"):
            call()
        return await later("a")

    assert outer.run_value(backend=echo) == echo.answer("a")


def test_a_plain_program_inside_an_async_body_may_be_called(echo: Any) -> None:
    @sgl.program
    async def outer(s: sgl.State) -> str:
        return str(now("a"))

    assert outer.run_value(backend=echo) == echo.answer("a")


def test_checks_run_programs_and_the_checks_of_those_run_programs(echo: Any) -> None:
    """More at once than there are threads for checks: those inside of others never wait for a thread."""

    @sgl.program
    def inner(s: sgl.State, text: str) -> str:
        s += text
        return s.gen(str, check=lambda value: bool(now(value)))  # type: ignore[return-value]

    @sgl.function
    def outer(s: Any) -> None:
        group = s.fork(200)
        group += lambda i: f"{i}" + sgl.gen("v", check=lambda value: bool(inner(value)))
        group.join()

    assert outer.run(backend=echo)["v"] == [echo.answer(str(i)) for i in range(200)]


def test_an_async_check_awaits_programs_and_may_not_block_the_loop(echo: Any) -> None:
    async def awaits(value: str) -> bool:
        return bool(await later(value))

    async def blocks(value: str) -> bool:
        return bool(later.run_value(value))

    async def reads(value: str) -> bool:
        return bool(now(value))

    @sgl.function
    def f(s: Any, check: Any) -> None:
        s += "a" + sgl.gen("x", check=check)

    assert f.run(awaits, backend=echo).error() is None
    for check in (blocks, reads):
        cause = f.run(check, backend=echo).error().__cause__
        assert isinstance(cause, sgl.BlockingReadError) and "await" in str(cause)


# --- reads that would wait for their reader ----------------------------------------------------------------------


def test_following_a_stream_inside_its_async_body_gives_what_there_is(echo: Any) -> None:
    @sgl.function
    async def f(s: Any) -> Any:
        s += "a" + sgl.gen("x")
        with pytest.raises(sgl.BlockingReadError, match="async for"):
            list(s.text_iter("x"))
        echo.gate.set()
        return "".join([piece async for piece in s.text_async_iter()])

    echo.gate = threading.Event()
    assert f.run(backend=echo).ret_value == "a" + echo.answer("a")


def test_a_blocking_read_in_the_loop_of_the_body_that_is_followed_is_refused(echo: Any) -> None:
    @sgl.function
    async def f(s: Any) -> None:
        s += "a" + sgl.gen("x")

    async def main() -> str:
        state = await f.arun(backend=echo, stream=True)
        for read in (
            lambda: state["x"],
            state.text,
            lambda: list(state.text_iter()),
            lambda: list(state.text_iter("x")),
        ):
            with pytest.raises(sgl.BlockingReadError, match="write `"):
                read()
        return str(await state.get("x"))

    assert asyncio.run(main()) == echo.answer("a")


def test_tasks_and_threads_of_a_streamed_body_read_their_branches(echo: Any) -> None:
    async def work(branch: Any, item: str) -> str:
        branch += item + sgl.gen("x")
        return str(await branch.get_text())

    @sgl.function
    async def tasks(s: Any) -> Any:
        return await s.map(["l"], work)[0]

    @sgl.function
    def threads(s: Any) -> Any:
        group = s.fork(2)
        group += "r" + sgl.gen("x")
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda branch: branch.text(), group))

    for program, expected in ((tasks, "l" + echo.answer("l")), (threads, ["r" + echo.answer("r")] * 2)):
        state = program.run(backend=echo, stream=True)
        state.run.body_over.result(5)
        assert state.ret_value == expected


# --- what may be a body ------------------------------------------------------------------------------------------


def test_bodies_that_would_never_run_are_refused(echo: Any) -> None:
    def generator(s: Any) -> Any:
        yield "a"

    async def async_generator(s: Any) -> Any:
        yield "a"

    def method(self: Any, s: Any) -> None:
        return None

    for body, message in ((generator, "generator"), (async_generator, "generator"), (method, "method|named 's'")):
        for decorate in (sgl.function, sgl.program):
            with pytest.raises(TypeError, match=message):
                decorate(body)

    async def body(s: Any) -> None:
        s += "a"

    with pytest.raises(TypeError, match="nobody awaits"):
        sgl.function(lambda s: body(s)).run(backend=echo)


def test_a_check_whose_call_is_a_coroutine_is_awaited_and_numpys_false_is_false(echo: Any) -> None:
    class Check:
        async def __call__(self, value: str) -> bool:
            return False

    class bool_:  # as numpy names it
        def __bool__(self) -> bool:
            return False

    for check in (Check(), lambda value: bool_()):
        state = sgl.function(lambda s, c=check: s.__iadd__(sgl.gen("x", check=c))).run(backend=echo)
        assert isinstance(state.error().__cause__, ValueError)


def test_arguments_of_every_kind_reach_the_body(echo: Any) -> None:
    @sgl.function
    def f(s: Any, /, first: int, *rest: int, last: int = 0, **more: int) -> Any:
        return first, rest, last, more

    assert f.run(1, 2, 3, last=4, x=5, backend=echo).ret_value == (1, (2, 3), 4, {"x": 5})
    states = f.run_batch([(1, 2), {"first": 1, "y": 2}], backend=echo)
    assert [state.ret_value for state in states] == [(1, (2,), 0, {}), (1, (), 0, {"y": 2})]


# --- exceptions that are no Exceptions ---------------------------------------------------------------------------


def test_an_exit_inside_a_check_fails_its_output_and_kills_no_loop(echo: Any) -> None:
    def exits(value: str) -> bool:
        sys.exit(3)

    async def async_exits(value: str) -> bool:
        sys.exit(3)

    def fails(value: str) -> bool:
        pytest.fail("a BaseException")

    for check in (exits, async_exits, fails):
        state = sgl.function(lambda s, c=check: s.__iadd__("a" + sgl.gen("x", check=c))).run(backend=echo)
        assert not isinstance(state.error().__cause__, Exception)
        with pytest.raises(sgl.VariableError):
            state["x"]
    assert ask.run(backend=echo)["x"] == echo.answer("a")


def test_an_exit_inside_an_async_body_or_its_task_reaches_the_caller(echo: Any) -> None:
    async def exits(branch: Any, item: str) -> None:
        sys.exit(4)

    @sgl.function
    async def body(s: Any) -> None:
        sys.exit(4)

    @sgl.function
    async def task(s: Any) -> None:
        await s.map(["a"], exits)[0]

    with pytest.raises(SystemExit):
        body.run(backend=echo)
    with pytest.raises(sgl.VariableError) as caught:
        task.run(backend=echo)
    assert isinstance(caught.value.__cause__, SystemExit)
    assert later.run_value("a", backend=echo) == echo.answer("a")


# --- tasks of a body ---------------------------------------------------------------------------------------------


async def slow(branch: Any, item: str) -> str:
    await asyncio.sleep(0.03)
    branch += item
    return str(await branch.gen(str))


def test_a_run_waits_for_the_coroutines_of_its_body(echo: Any) -> None:
    @sgl.function
    async def f(s: Any) -> None:
        s += sgl.join(s.map(["a", "b"], slow), ",")

    assert f.run(backend=echo).text() == f"{echo.answer('a')},{echo.answer('b')}"


def test_a_body_that_fails_leaves_no_task_behind(echo: Any) -> None:
    ended: list[str] = []

    async def waits(branch: Any, item: str) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(item)

    @sgl.function
    async def f(s: Any) -> None:
        values = s.map(["a", "b"], waits)
        await asyncio.sleep(0.01)
        values += s.map(["c"], waits)  # has not begun when it is cancelled
        raise LookupError

    async def main() -> int:
        with pytest.raises(LookupError):
            await f.arun(backend=echo)
        await asyncio.sleep(0.01)
        return len(asyncio.all_tasks())

    assert asyncio.run(main()) == 1 and sorted(ended) == ["a", "b"]


def test_a_plain_body_cannot_start_coroutines(echo: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s.map(["a"], slow)[0].value()

    async def main() -> None:  # not even where a loop runs, which it would block
        f.run(backend=echo)

    for call in (lambda: f.run(backend=echo), lambda: asyncio.run(main())):
        with pytest.raises(TypeError, match=r"cannot start slow\(\); use `async def`"):
            call()


# --- values elsewhere --------------------------------------------------------------------------------------------


def test_values_outlive_their_run_and_are_read_in_any_loop(echo: Any) -> None:
    echo.gate = threading.Event()
    value = sgl.function(lambda s: s.__iadd__("a" + sgl.gen("x")).var("x")).run(backend=echo).ret_value
    got: list[str] = []

    async def waits() -> None:
        got.append(await value)

    async def gives_up() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.ensure_future(waits()), 0.05)

    first = threading.Thread(target=lambda: asyncio.run(waits()))
    first.start()
    asyncio.run(gives_up())
    state = sgl.function(lambda s: s.__iadd__("b" + value)).run(backend=echo)  # appended in another run
    echo.gate.set()
    first.join(5)
    asyncio.run(waits())
    assert got == [echo.answer("a")] * 2 and value.value() == echo.answer("a")
    assert state.text() == "b" + echo.answer("a")


def test_a_state_is_not_pickled(echo: Any) -> None:
    with pytest.raises(TypeError, match="a state cannot be pickled"):
        pickle.dumps(ask.run(backend=echo))


def test_a_forked_child_reads_what_was_finished_and_is_told_of_the_rest(echo: Any) -> None:
    done = ask.run(backend=echo)
    done.run.finished.result(5)
    echo.gate = threading.Event()
    open_run = ask.run(backend=echo)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, f"{done.text()}|".encode())
            open_run["x"]
        except RuntimeError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    said, end = b"", time.time() + 10
    while select.select([reader], [], [], max(0.0, end - time.time()))[0] and (part := os.read(reader, 1000)):
        said += part
    os.kill(child, 9)
    os.waitpid(child, 0)
    echo.gate.set()
    assert said.decode().startswith(f"{done.text()}|this run belongs to the process that forked this one")
    assert open_run["x"] == echo.answer("a")


def test_branches_of_branches_join_however_deep(echo: Any) -> None:
    def descend(s: Any, levels: int) -> None:
        if not levels:
            s += "x" + sgl.gen("v")
            return
        group = s.fork(1)
        descend(group[0], levels - 1)
        group.join()

    echo.gate = threading.Event()
    state = sgl.function(lambda s: descend(s, 200)).run(backend=echo)
    states = [state]

    @sgl.function
    def flat(s: Any) -> None:
        chain = [s]
        for _ in range(500):
            chain.append(chain[-1].fork(1)[0])
        chain[-1].__iadd__("x" + sgl.gen("v"))
        for parent, child in zip(chain[-2::-1], chain[::-1], strict=False):
            parent._gather([child])

    states.append(flat.run(backend=echo))
    echo.gate.set()
    for state in states:
        value = state["v"]
        while isinstance(value, list):
            (value,) = value
        assert value == echo.answer("x")
        state.run.finished.result(5)
    assert SESSION.loop.wait(SESSION.loop.spawn(asyncio.sleep(0, 1))) == 1 and echo.opened == echo.closed
