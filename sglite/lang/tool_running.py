"""Calling tools: time limits, threads for functions that block, and what the model is told of it all."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from sglite.lang.cells import arrival
from sglite.lang.errors import Failure
from sglite.lang.messages import ToolCall
from sglite.lang.session import SESSION
from sglite.lang.tool_events import ToolError
from sglite.lang.tools import AnyTool

logger = logging.getLogger(__name__)

_GRACE_S = 1.0
"""How long a cancelled tool may take to end before it is left behind."""


@dataclass(frozen=True)
class ReadyCall:
    """A call that can be made: its arguments were read."""

    call: ToolCall
    tool: AnyTool
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What came of a call. ``content``: for the model."""

    content: str
    value: Any = None
    error: BaseException | None = None
    seconds: float = 0.0


class TimedOut(TimeoutError):
    """A tool took longer than it may."""


def ready(tools: dict[str, AnyTool], call: ToolCall) -> ReadyCall:
    """The call with its arguments. ValueError, for the model to read: no such tool, or arguments that do not fit."""
    tool = tools.get(call.name)
    if tool is None:
        raise ValueError(f"there is no tool {call.name!r}; the tools are {', '.join(tools)}")
    return ReadyCall(call, tool, tool.arguments(call.arguments))


async def outcomes(
    calls: Sequence[ReadyCall], context: Any, parallel: bool, stopped: Future[Failure]
) -> AsyncGenerator[tuple[int, Outcome], None]:
    """What came of each call, as they come back: the call's place among ``calls``, and its outcome.

    At once if ``parallel``, else one after the other. Raises ToolError when a tool fails whose errors are the
    program's, and the run's error when that is stopped; the other calls are cancelled then, as they are when the
    reader goes away.
    """
    waves = [range(len(calls))] if parallel else [range(i, i + 1) for i in range(len(calls))]
    stop = asyncio.ensure_future(arrival(stopped))
    tasks: dict[asyncio.Future[Any], int] = {}
    try:
        for wave in waves:
            tasks = {asyncio.ensure_future(_outcome(calls[index], context)): index for index in wave}
            while tasks:
                done, _ = await asyncio.wait([stop, *tasks], return_when=asyncio.FIRST_COMPLETED)
                if stop in done:
                    raise stop.result().error()
                for task in sorted(done, key=tasks.__getitem__):
                    index = tasks.pop(task)
                    yield index, task.result()
    finally:
        stop.cancel()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=2 * _GRACE_S)
        for task in tasks:
            if task.done() and not task.cancelled():
                task.exception()  # what other calls raised meanwhile is not reported: one error ends the loop


async def _outcome(ready: ReadyCall, context: Any) -> Outcome:
    started = time.monotonic()
    tool = ready.tool
    try:
        given = ready.arguments if tool.context is None else {**ready.arguments, tool.context: context}
        value = await _called(tool, given)
        return Outcome(_content(tool, value), value, seconds=time.monotonic() - started)
    except Exception as error:
        if tool.on_error == "raise":
            raise ToolError(f"the tool {tool.name!r} failed: {_said(error)}", ready.call) from error
        logger.info("the tool %r failed: %s", tool.name, _said(error))
        return Outcome(f"Error: {_said(error)}", error=error, seconds=time.monotonic() - started)


async def _called(tool: AnyTool, arguments: dict[str, Any]) -> Any:
    if not tool.in_thread:
        return await _awaited(tool, tool.invoke(arguments), tool.timeout)
    call = SESSION.tools.submit(lambda: tool.invoke(arguments), tool.name)
    try:
        await arrival(call.started)
        began = time.monotonic()
        done, _ = await asyncio.wait([asyncio.ensure_future(arrival(call.done))], timeout=tool.timeout)
        if not done:
            raise _too_long(tool)
        value = done.pop().result()
    finally:
        SESSION.tools.abandon(call)
    if inspect.isawaitable(value):
        left = None if tool.timeout is None else max(0.0, tool.timeout - (time.monotonic() - began))
        return await _awaited(tool, value, left)
    return value


async def _awaited(tool: AnyTool, awaitable: Any, timeout: float | None) -> Any:
    """Like ``wait_for``, but a tool that will not be cancelled is left behind."""
    task = asyncio.ensure_future(awaitable)
    try:
        done, _ = await asyncio.wait([task], timeout=timeout)
        if not done:
            raise _too_long(tool)
        if task.cancelled():
            raise RuntimeError("it was cancelled")
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=_GRACE_S)
            if not task.done():
                logger.warning("the tool %r does not end although it was cancelled; it is left behind", tool.name)
            elif not task.cancelled():
                task.exception()


def _too_long(tool: AnyTool) -> TimedOut:
    return TimedOut(f"it took longer than {tool.timeout:g} s")


def _content(tool: AnyTool, value: Any) -> str:
    """A result as the model is told of it: text as it is, else JSON."""
    if isinstance(value, str):
        return value
    import pydantic_core

    try:
        return pydantic_core.to_json(value, by_alias=True).decode()
    except pydantic_core.PydanticSerializationError as error:
        raise TypeError(f"it returned a {type(value).__name__}, which cannot be written as JSON: {error}") from error


def _said(error: BaseException) -> str:
    if isinstance(error, TimedOut):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
