"""``tool_loop``: a model that calls tools until it has an answer; ``tool_events``: the same, told step by step.

    @sgl.program
    async def travel(s: sgl.State, question: str) -> str:
        s.user(question)
        return await sgl.tool_loop(s, [weather, trains], max_steps=6)

Back ends that call tools themselves (OpenAI, Anthropic, Mock) are asked to. Elsewhere the prompt is exactly what the
model's chat template makes of the conversation and the tools, and the model is kept to its own way of writing calls.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from typing import Any

from sglite.lang.errors import BlockingReadError
from sglite.lang.ir import Ask
from sglite.lang.program import ProgramState
from sglite.lang.session import SESSION
from sglite.lang.spelling import TypedSpelling
from sglite.lang.tool_events import FinalAnswer, ToolEvent
from sglite.lang.tool_steps import LoopOptions, ToolLoop
from sglite.lang.tools import CHOICES, AnyTool, as_tools

_NOT_HERE = ("n", "stream", "choices", "dtype", "regex", "json_schema", "ebnf", "structural_tag", "check", "retries")


def tool_loop(
    s: TypedSpelling,
    tools: Sequence[Any],
    *,
    max_steps: int = 8,
    max_tokens: int | None = None,
    token_limit: int | None = None,
    parallel: bool = True,
    tool_choice: str | dict[str, str] = "auto",
    context: Any = None,
    type: Any = str,
    name: str | None = None,
    system: str | None = None,
    format: Any = None,
    max_retries: int = 2,
    on_event: Callable[[ToolEvent], Any] | None = None,
    **sampling: Any,
) -> Any:
    """Lets the model call ``tools`` (functions, ``@sgl.tool``s, MCP tools) until it answers. The answer as text, or as
    a value of ``type``; in an async program an awaitable of it. The turns stay in the conversation.

    ``max_steps``: turns that the model has, the answer included. ``max_tokens``: of a turn (what is left of the
    context); ``token_limit``: of all turns together. ``parallel``: the calls of a turn run at once; without, models
    that write calls as text call one tool a turn, and several calls run one after the other. ``tool_choice``: "auto",
    "none", and of the first turn "required" or ``{"name": "add"}``. ``context``: what tools get as their context
    argument. ``name``: a variable for the answer. ``system``: a system turn before the first. ``format``: how the model
    writes calls, "hermes", "llama3" or "generic", where it is not to be found out. ``max_retries``: turns that may
    hold something that cannot be used (an unknown tool, arguments that do not fit); the model is told what was wrong.
    ``on_event``: called with every event, see ``tool_events``; it may be async. ``sampling``: arguments of ``gen``.

    Raises StepLimitExceeded, TokenLimitExceeded or RetryLimitExceeded where there is no answer; the conversation stays.
    ToolError, from the tool's exception, for a tool with ``on_error="raise"``. Errors of requests are those of ``s``.
    """
    options = LoopOptions(
        max_steps=max_steps, max_tokens=max_tokens, token_limit=token_limit, parallel=parallel, tool_choice="auto",
        context=context, type=type, name=name, system=system, format=format, max_retries=max_retries,
        on_event=on_event, sampling=sampling,
    )  # fmt: skip
    known = as_tools(tools)
    options = _checked(options, known, tool_choice)
    if not isinstance(s, ProgramState):
        return _previewed(s, known, options)
    loop = ToolLoop(s, known, options)
    return loop.answer() if s.run.is_async else _waited(loop.answer())


def tool_events(s: ProgramState, tools: Sequence[Any], **options: Any) -> ToolEvents:
    """``tool_loop`` as an iterator of what happens: TextDelta, ToolCallEvent, ToolResultEvent, RetryEvent, and at the
    end FinalAnswer. ``async for`` in an async program, ``for`` in a plain one. Leaving it early cancels the tools that
    run. Text comes piece by piece in runs with ``stream=True``, otherwise turn by turn."""
    tool_choice = options.pop("tool_choice", "auto")
    sampling = {key: value for key, value in options.items() if key not in LoopOptions.__dataclass_fields__}
    given = {key: value for key, value in options.items() if key not in sampling}
    known = as_tools(tools)
    return ToolEvents(s, ToolLoop(s, known, _checked(LoopOptions(**given, sampling=sampling), known, tool_choice)))


class ToolEvents:
    """The events of one loop; to be iterated once."""

    def __init__(self, state: ProgramState, loop: ToolLoop) -> None:
        self._state = state
        self._loop = loop

    def __aiter__(self) -> AsyncIterator[ToolEvent]:
        return self._loop.events()

    def __iter__(self) -> Iterator[ToolEvent]:
        if self._state.run.is_async:
            raise BlockingReadError("an async program must not block: write `async for event in tool_events(...)`")
        events = self._loop.events()
        try:
            while True:
                try:
                    yield _waited(_next(events))
                except StopAsyncIteration:
                    return
        finally:
            _waited(events.aclose())


async def _next(events: AsyncIterator[ToolEvent]) -> ToolEvent:
    return await events.__anext__()


def _waited(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Runs it beside this thread and waits; whoever stops waiting, with Ctrl-C say, cancels it."""
    future = SESSION.body_loop.spawn(coroutine)
    try:
        return SESSION.body_loop.wait(future)
    finally:
        future.cancel()


def _checked(options: LoopOptions, tools: dict[str, AnyTool], choice: str | dict[str, str]) -> LoopOptions:
    for name in ("max_steps", "max_tokens", "token_limit", "max_retries"):
        value, least = getattr(options, name), 0 if name == "max_retries" else 1
        optional = name in ("max_tokens", "token_limit")
        if not (value is None and optional) and (type(value) is not int or value < least):
            raise ValueError(f"{name}={value!r}: give a number, {least} or more")
    for name in _NOT_HERE:
        if name in options.sampling:
            raise ValueError(
                f"tool_loop({name}=...): the loop itself says what a turn may be; use type=... for answers"
            )
    wanted = choice.get("name") if isinstance(choice, dict) else choice
    if wanted not in CHOICES and not (isinstance(choice, dict) and wanted in tools):
        named = ", ".join(tools)
        raise ValueError(f"tool_choice={choice!r}: use 'auto', 'none', 'required' or {{'name': ...}} of {named}")
    lacking = next((tool for tool in tools.values() if tool.context is not None), None)
    if lacking is not None and options.context is None:
        raise ValueError(
            f"the tool {lacking.name!r} takes a context as {lacking.context!r}: give tool_loop(context=...)"
        )
    return replace(options, tool_choice=str(wanted))


def _previewed(s: Any, tools: dict[str, AnyTool], options: LoopOptions) -> Any:
    """In a trace: one turn, as nobody knows how many there will be."""
    s += Ask(tuple(tool.spec for tool in tools.values()), options.tool_choice)
    value = s.gen(name=options.name)
    s.reply({"role": "assistant", "content": ""})
    return value


__all__ = ["FinalAnswer", "ToolEvents", "tool_events", "tool_loop"]
