"""A call under way: its turns as they are written, or whole. Both come from the same machine, so both say the same."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterable, Sequence

from sglite.runtime.engine.generation import RequestRefused
from sglite.runtime.engine.presenter import Progress
from sglite.runtime.parse.base import CallArguments, CallEnd, CallStart, Content, Event, Reasoning
from sglite.runtime.protocol import FinishReason
from sglite.runtime.serve.chat.blame import blamed
from sglite.runtime.serve.chat.call import CallDelta, CalledTool, ChatCall, ChatDelta, ChatTurn
from sglite.runtime.serve.chat.plan import Plan, plan
from sglite.runtime.serve.generations import Started, start
from sglite.runtime.serve.serving import Serving


async def begin(serving: Serving, call: ChatCall) -> ChatRun:
    """Plans and submits a call; ``end`` the result in any case. ``Refused`` or ``ValueError``: what cannot be run."""
    planned = await plan(serving, call)
    try:
        return ChatRun(call, planned, await start(serving.engine, serving.in_flight, [planned.row]))
    except RequestRefused as error:
        raise blamed(call, error) from None


class ChatRun:
    """The turns of one call."""

    def __init__(self, call: ChatCall, planned: Plan, started: Started) -> None:
        self.started = started
        self.prompt_ids = planned.row.input_ids
        self._call = call
        self._turns = [TurnReader(planned, index) for index in range(planned.row.width)]

    def deltas(self) -> AsyncIterator[ChatDelta]:
        """News as it happens, of every turn; the last of each has ``finish``. Raises what went wrong."""
        return _Deltas(self._call, self.started.news(), self._turns)

    async def turns(self) -> list[ChatTurn]:
        """The whole turns, in order."""
        try:
            outcomes = await self.started.outcomes()
        except RequestRefused as error:
            raise blamed(self._call, error) from None
        return [_folded([reader.read(outcome)], reader) for reader, outcome in zip(self._turns, outcomes, strict=True)]

    def reasoning_tokens(self, index: int) -> int:
        """Tokens of a turn that were thinking, so far."""
        return self._turns[index].reasoning_tokens

    def end(self) -> None:
        """Nobody waits any more."""
        self.started.end()


class _Deltas(AsyncIterator[ChatDelta]):
    """News of a call's outputs, as those of its turns."""

    def __init__(self, call: ChatCall, news: AsyncIterator[tuple[int, Progress]], turns: Sequence[TurnReader]) -> None:
        self._call = call
        self._news = news
        self._turns = turns

    async def __anext__(self) -> ChatDelta:
        try:
            index, progress = await self._news.__anext__()
        except RequestRefused as error:
            raise blamed(self._call, error) from None
        return self._turns[index].read(progress)


class TurnReader:
    """Reads one turn from the engine's progress, whose text is cumulative."""

    def __init__(self, planned: Plan, index: int) -> None:
        self._parser = planned.parser()
        self._index = index
        self._length = 0
        self._called = self._calling = False
        self._tokenizer = planned.tokenizer
        self._reasoning = ""
        self._counted = (0, 0)

    def read(self, progress: Progress) -> ChatDelta:
        """What it adds."""
        text, reason = progress.text, progress.finish_reason
        found = self._parser.feed(text[self._length :])
        self._length = len(text)
        if reason is not None:
            found += self._parser.finish()
        content = reasoning = ""
        of_calls: list[Event] = []
        for one in found:
            if isinstance(one, Content):
                content += one.text
            elif isinstance(one, Reasoning):
                reasoning += one.text
            else:
                of_calls.append(one)
        self._reasoning += reasoning
        return ChatDelta(
            index=self._index,
            content=content,
            reasoning=reasoning,
            calls=tuple(_joined(self._calls(of_calls))) if of_calls else (),
            progress=progress,
            finish=None if reason is None else self._finish(reason),
        )

    @property
    def reasoning_tokens(self) -> int:
        """Tokens of the reasoning so far, as its text is encoded: the same however it came."""
        length, count = self._counted
        if length != len(self._reasoning):
            count = len(self._tokenizer.encode(self._reasoning, parse_special=False))
            self._counted = len(self._reasoning), count
        return count

    def _calls(self, found: list[Event]) -> Iterable[CallDelta]:
        for one in found:
            if isinstance(one, CallStart):
                self._called = self._calling = True
                yield CallDelta(one.index, id=one.id or f"call_{uuid.uuid4().hex[:24]}", name=one.name)
            elif isinstance(one, CallArguments):
                yield CallDelta(one.index, one.text)
            elif isinstance(one, CallEnd):
                self._calling = False

    def _finish(self, reason: FinishReason) -> str:
        """``tool_calls`` where there are calls and all are whole: one that a stop string broke off is none to make."""
        return "tool_calls" if self._called and not self._calling and reason.type == "stop" else reason.type


def _joined(deltas: Iterable[CallDelta]) -> Iterable[CallDelta]:
    """Neighbours that only add arguments to the same call, as one."""
    last: CallDelta | None = None
    for delta in deltas:
        if last is not None and last.index == delta.index and last.id is None and delta.id is None:
            last = CallDelta(last.index, last.arguments + delta.arguments)
            continue
        if last is not None:
            yield last
        last = delta
    if last is not None:
        yield last


def _folded(deltas: Iterable[ChatDelta], reader: TurnReader) -> ChatTurn:
    turn = ChatTurn()
    for delta in deltas:
        turn.content += delta.content
        turn.reasoning += delta.reasoning
        turn.progress, turn.finish = delta.progress, delta.finish or turn.finish
        for call in delta.calls:
            if call.name is not None:
                turn.calls.append(CalledTool(id=call.id or "", name=call.name))
            turn.calls[call.index].arguments += call.arguments
    turn.reasoning_tokens = reader.reasoning_tokens
    return turn
