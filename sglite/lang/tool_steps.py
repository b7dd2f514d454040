"""The steps of a tool loop: ask the model, call what it wants called, tell it, until it answers.

    ask   gen   reply                      the assistant's turn: text, calls
                calls run; the stream is parked meanwhile
    tell  tell  ...                        their results, in the order of the calls
    ask   gen   reply                      ... until a turn without calls: the answer

Every turn is a node of the program's graph. Promises: at most ``max_steps`` turns and ``token_limit`` tokens; every
call that is told to have been made has its result in the conversation, however the loop ends but by an error of a
tool; nothing goes on when it has ended, but sync tools that do not come back.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from sglite.lang.cells import Cell, arrival
from sglite.lang.ir import REST_OF_CONTEXT, Ask
from sglite.lang.messages import Message, ToolCall
from sglite.lang.program import ProgramState
from sglite.lang.tool_events import (
    FinalAnswer,
    RetryEvent,
    RetryLimitExceeded,
    StepLimitExceeded,
    TextDelta,
    TokenLimitExceeded,
    ToolCallEvent,
    ToolEvent,
    ToolResultEvent,
)
from sglite.lang.tool_running import ReadyCall, outcomes, ready
from sglite.lang.tool_turns import Reply, Turns, turns_of
from sglite.lang.tools import AnyTool


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """What ``tool_loop`` may be told; see there. ``tool_choice``: a word or a tool's name."""

    max_steps: int = 8
    max_tokens: int | None = None
    token_limit: int | None = None
    parallel: bool = True
    tool_choice: str = "auto"
    context: Any = None
    type: Any = str
    name: str | None = None
    system: str | None = None
    format: Any = None
    max_retries: int = 2
    on_event: Callable[[ToolEvent], Any] | None = None
    sampling: dict[str, Any] = field(default_factory=dict)


class ToolLoop:
    """One tool loop on one stream of a program. ``events`` runs it, once."""

    def __init__(self, state: ProgramState, tools: dict[str, AnyTool], options: LoopOptions) -> None:
        self._state = state
        self._tools = tools
        self._options = options
        self._specs = tuple(tool.spec for tool in tools.values())
        self._messages: list[Message] = []
        self._tokens = 0
        self._retries = 0

    async def answer(self) -> Any:
        """Runs the loop; the final answer."""
        async with aclosing(self.events()) as events:
            async for event in events:
                if isinstance(event, FinalAnswer):
                    return event.value
        raise AssertionError("a loop ends with an answer or an error")

    async def events(self) -> AsyncGenerator[ToolEvent, None]:
        """Runs the loop; what happens, the final answer last."""
        async with aclosing(self._steps()) as events:
            async for event in events:
                if self._options.on_event is not None:
                    told = self._options.on_event(event)
                    if inspect.isawaitable(told):
                        await told
                yield event

    async def _steps(self) -> AsyncGenerator[ToolEvent, None]:
        options, state = self._options, self._state
        turns = await turns_of(state.run.backend, options.format, options.type, self._specs)
        if options.system is not None:
            self._tell({"role": "system", "content": options.system})
        if turns.preface:
            self._tell({"role": "user", "content": turns.preface})
        for step in range(1, options.max_steps + 1):
            choice = options.tool_choice if step == 1 or options.tool_choice == "none" else "auto"
            cell = self._request(turns, choice)
            async with aclosing(_deltas(cell, turns, step)) as deltas:
                async for delta in deltas:
                    yield delta
            reply = self._reply(cell, turns)
            if not reply.calls:
                answer = self._answer(cell, reply, turns, step)
                yield answer
                if isinstance(answer, FinalAnswer):
                    return
                continue
            if step == options.max_steps:
                self._give_up(reply, turns)
            async with aclosing(self._calls(reply, turns, choice, step)) as events:
                async for event in events:
                    yield event
        raise StepLimitExceeded(f"no answer after max_steps={options.max_steps} turns", self._messages)

    # --- the model's turns ---

    def _request(self, turns: Turns, choice: str) -> Cell:
        """Opens a turn and asks for its text."""
        options, state = self._options, self._state
        limit = REST_OF_CONTEXT if options.max_tokens is None else options.max_tokens
        if options.token_limit is not None:
            left = options.token_limit - self._tokens
            if left <= 0:
                raise self._out_of_tokens()
            limit = left if limit == REST_OF_CONTEXT else min(limit, left)
        state += Ask(turns.told, choice, turns.note)
        rules = turns.rules(choice, options.parallel, options.max_retries)
        return state.gen(name=options.name, max_tokens=limit, **rules, **options.sampling).cell

    def _reply(self, cell: Cell, turns: Turns) -> Reply:
        """Reads the turn that has ended, and closes it."""
        value = cell.get()
        reply = turns.read(value, cell.raw, cell.meta or {}, f"call_{cell.node}")
        self._tokens += reply.tokens
        self._messages.append(reply.message)
        self._state.reply(reply.message)
        limit = self._options.token_limit
        if reply.cut and limit is not None and self._tokens >= limit:
            for call in reply.calls:
                self._tell(turns.result(call, "Not called: there are no tokens left."))
            raise self._out_of_tokens()
        return reply

    def _out_of_tokens(self) -> TokenLimitExceeded:
        return TokenLimitExceeded(
            f"the model wrote {self._tokens} tokens without coming to an answer; allow more than "
            f"token_limit={self._options.token_limit}",
            self._messages,
        )

    def _answer(self, cell: Cell, reply: Reply, turns: Turns, step: int) -> FinalAnswer | RetryEvent:
        try:
            value = turns.value(reply)
        except ValueError as error:
            cut = "it was cut off: " if reply.cut else ""
            self._tell({"role": "user", "content": f"This is no valid answer: {cut}{error}. Answer again."})
            self._count_retry(f"the answer: {error}")
            return RetryEvent(str(error), step)
        name = self._options.name
        if name is not None and value is not cell.value:
            self._state.set_var(name, value)
        return FinalAnswer(value, reply.content, step, reply.reasoning)

    def _count_retry(self, reason: str) -> None:
        self._retries += 1
        if self._retries > self._options.max_retries:
            raise RetryLimitExceeded(
                f"the model wrote what cannot be used {self._retries} times, with max_retries="
                f"{self._options.max_retries}; the last was {reason}",
                self._messages,
            )

    def _give_up(self, reply: Reply, turns: Turns) -> None:
        for call in reply.calls:
            self._tell(turns.result(call, "Not called: this was the last turn."))
        names = ", ".join(call.name for call in reply.calls)
        raise StepLimitExceeded(
            f"the model still calls {names} in the last of max_steps={self._options.max_steps} turns", self._messages
        )

    def _tell(self, message: Message) -> None:
        self._messages.append(message)
        self._state.tell(message)

    # --- calls ---

    async def _calls(self, reply: Reply, turns: Turns, choice: str, step: int) -> AsyncGenerator[ToolEvent, None]:
        """Makes the calls of a turn and tells the model of their results, in the order of the calls."""
        contents, usable, refused = self._sorted(reply.calls, choice)
        for index, reason in refused:
            yield RetryEvent(reason, step, reply.calls[index])
        for _, made in usable:
            yield ToolCallEvent(made.call, made.arguments, step)
        if usable:
            self._state.park()
            calls = [made for _, made in usable]
            results = outcomes(calls, self._options.context, self._options.parallel, self._state.run.stopped)
            async with aclosing(results) as done:
                async for number, outcome in done:
                    contents[usable[number][0]] = outcome.content
                    call = calls[number].call
                    yield ToolResultEvent(call, outcome.content, step, outcome.value, outcome.error, outcome.seconds)
        for index, call in enumerate(reply.calls):
            self._tell(turns.result(call, contents[index] + reply.remark))
        if refused:
            self._count_retry(refused[-1][1])

    def _sorted(
        self, calls: Sequence[ToolCall], choice: str
    ) -> tuple[dict[int, str], list[tuple[int, ReadyCall]], list[tuple[int, str]]]:
        """What the model is told at once, the calls that can be made, and why the others cannot; by their places."""
        usable: list[tuple[int, ReadyCall]] = []
        refused: list[tuple[int, str]] = []
        for index, call in enumerate(calls):
            try:
                if choice == "none":
                    raise ValueError("no tool may be called now; answer")
                usable.append((index, ready(self._tools, call)))
            except ValueError as error:
                refused.append((index, str(error)))
        return {index: f"Error: {reason}" for index, reason in refused}, usable, refused


async def _deltas(cell: Cell, turns: Turns, step: int) -> AsyncGenerator[TextDelta, None]:
    """The content of a turn as it comes; returns when the turn has ended, however it did."""
    text, shown = "", ""
    async for piece, _ in cell.feed.aread():
        text += piece
        now = turns.shown(text)
        if now.startswith(shown) and now != shown:
            yield TextDelta(now[len(shown) :], step)
            shown = now
    await arrival(cell.done)
    if cell.failure is None:
        rest = turns.content(text)
        if rest.startswith(shown) and rest != shown:
            yield TextDelta(rest[len(shown) :], step)
