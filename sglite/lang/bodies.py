"""Running the bodies of programs: each on a fresh state, whose run ends with it, however it ends."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from sglite.lang.cells import arrival
from sglite.lang.errors import Failure
from sglite.lang.program import ProgramState
from sglite.lang.session import SESSION

Excused = tuple[type[Exception], ...]
"""Exceptions that spoil the run of the body alone and are not raised on; ``error()`` of the state has them."""


def check_body(func: Callable[..., Any], name: str, first_name: str | None) -> inspect.Signature:
    """The signature of a function that may be a body. TypeError: it may not."""
    if inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
        raise TypeError(
            f"program {name!r}: a generator cannot be a program; append what is to be followed, run the program with "
            "stream=True and read text_iter() or text_async_iter()"
        )
    signature = inspect.signature(func)
    first = next(iter(signature.parameters), None)
    if first is None or (first_name is not None and first != first_name):
        raise TypeError(f"program {name!r}: the first parameter must be named 's', not {first!r}")
    if first in ("self", "cls"):
        raise TypeError(
            f"program {name!r}: a method cannot be a program; write a function whose first parameter is the state, and "
            "give it the object as an argument"
        )
    return signature


def run_body(
    func: Callable[..., Any], state: ProgramState, arguments: inspect.BoundArguments, excused: Excused = ()
) -> None:
    """Runs a plain body."""
    with state.run.body():
        try:
            state.ret_value = func(state, *arguments.args[1:], **arguments.kwargs)
            _check_result(state)
        except BaseException as error:
            _failed(state, error, excused)
        else:
            state.run.end()


def _check_result(state: ProgramState) -> None:
    """TypeError for a coroutine that nobody would ever run."""
    result = state.ret_value
    if inspect.iscoroutine(result):
        result.close()
        raise TypeError(
            f"the body of {state.run.graph.name!r} returned {result.__name__}(), a coroutine that nobody awaits: "
            "decorate the `async def` itself"
        )


async def arun_body(
    func: Callable[..., Any], state: ProgramState, arguments: inspect.BoundArguments, excused: Excused = ()
) -> None:
    """Runs an ``async def`` body in the running loop; waits for the coroutines that it started, or cancels them."""
    with state.run.body():
        try:
            state.ret_value = await func(state, *arguments.args[1:], **arguments.kwargs)
            await state.run.tasks.over()
        except BaseException as error:
            state.run.tasks.cancel()
            _failed(state, error, excused)
        else:
            state.run.end()


async def body_in_thread(
    func: Callable[..., Any], state: ProgramState, arguments: inspect.BoundArguments, excused: Excused = ()
) -> None:
    """Runs a plain body in a thread of its own. When the caller is cancelled the run ends; the thread notices when it
    next appends or reads."""
    try:
        await arrival(in_thread(func, state, arguments, excused))
    except asyncio.CancelledError:
        end_cancelled(state)
        raise


def in_thread(
    func: Callable[..., Any], state: ProgramState, arguments: inspect.BoundArguments, excused: Excused = ()
) -> Future[None]:
    """``run_body`` in a thread."""
    nested = state.run.context.nested
    return SESSION.bodies.submit(lambda: run_body(func, state, arguments, excused), nested=nested)


def end_cancelled(state: ProgramState) -> None:
    """Ends a run whose caller was cancelled."""
    failure = Failure("cancel()", None, RuntimeError("the run was cancelled"), "")
    state.run.end(failure)
    state.run.stop(failure)


def _failed(state: ProgramState, error: BaseException, excused: Excused) -> None:
    """Ends the run of a body that raised; raises on, unless that is excused."""
    cause = state.run.cause(error)
    state.run.end(Failure(f"the body of {state.run.graph.name!r}", None, cause, ""))
    if not isinstance(cause, excused):
        raise cause
