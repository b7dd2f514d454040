"""``Replay``: a back end that answers from a recording.

Promises: a program that asks what it asked when it was recorded is told what it was told then, whatever the order in
which its branches run; a program that asks anything else is told the first difference.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import AsyncGenerator, Sequence
from types import TracebackType
from typing import Any

from sglite.lang.backends.base import Backend, Conversation, GenCall, Hints, Output, Stream
from sglite.lang.choices import ChoiceScores
from sglite.lang.errors import BackendError
from sglite.lang.formats import ChatFormat
from sglite.lang.ir import Media
from sglite.lang.messages import Message, ToolSpec
from sglite.lang.testing.differences import difference
from sglite.lang.testing.open_streams import OpenStreams
from sglite.lang.testing.pieces import growing
from sglite.lang.testing.recording import (
    Place,
    Record,
    RecordedTurn,
    Rendering,
    media_digest,
    plain,
    read_recording,
    tools_as_data,
)

_EXPLAINED = 20
"""Differences that are explained; programs that go on after so many are only counted."""


class ReplayError(BackendError):
    """The program asks for something that the recording has no answer to; the message says what is different."""


class Replay(Backend):
    """Answers from a recording: what ``Recorder.dump`` returned, or a file that ``Recorder.save`` wrote.

    A request gets the answer of an equal one: of its kind and name, with the same prompt (or messages), images and
    parameters. Of several equal ones it gets the one at the same place in the program, or else the earliest that is
    left. Seeds may differ. ``strict``: places and seeds must be equal too.

    ``difference``: what the program first asked for that was not recorded; None if there was nothing.
    """

    def __init__(self, recording: dict[str, Any] | str | os.PathLike[str], *, strict: bool = False) -> None:
        self._recording = read_recording(recording)
        self._records = self._recording.requests
        self.calls_tools = self._recording.calls_tools
        self.by_messages = self._recording.by_messages
        self.difference: str | None = None
        self._differences = 0
        self._strict = strict
        self._lock = threading.Lock()
        self._open = OpenStreams()
        self._used: set[int] = set()
        self._by_key: dict[str, list[int]] = {}
        for index, record in enumerate(self._records):
            self._by_key.setdefault(record.key(strict=strict), []).append(index)
        self._renderings = {_rendering_key(r.messages, r.tools): r for r in self._recording.renderings}

    def done(self, timeout_s: float = 10.0) -> None:
        """AssertionError if the program asked for less than was recorded, or for something else.

        Waits ``timeout_s`` at most for runs that still go on. ``with Replay(...) as replay:`` calls it at its end.
        """
        self._open.settle(timeout_s)
        problems = [] if self.difference is None else [f"first difference: {self.difference}"]
        left = [i for i, record in enumerate(self._records) if i not in self._used and not record.unfinished]
        if left:
            shown = ", ".join(f"request {i}, {self._records[i]}" for i in left[:5])
            more = f" and {len(left) - 5} more" if len(left) > 5 else ""
            problems.append(f"recorded, but not asked for: {shown}{more}")
        if problems:
            raise AssertionError("; ".join(problems))

    def __enter__(self) -> Replay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.done()

    def _answer(self, asked: Record) -> Record:
        """The record that answers a request; ReplayError if there is none."""
        with self._lock:
            left = [i for i in self._by_key.get(asked.key(strict=self._strict), ()) if i not in self._used]
            if left:
                chosen = next((i for i in left if self._records[i].node == asked.node), left[0])
                self._used.add(chosen)
                return self._records[chosen]
            return self._refuse(asked)

    def _refuse(self, asked: Record) -> Record:
        self._differences += 1
        if self._differences > _EXPLAINED:
            raise ReplayError(f"{asked} was not recorded; the first difference was: {self.difference}")
        found = difference(asked, self._records, self._used, strict=self._strict)
        self.difference = self.difference or found
        raise ReplayError(found)

    # --- the back end ---

    def chat_format(self) -> ChatFormat:
        """See Backend: the recorded one."""
        return _RecordedFormat(self._recording.default_system, tuple(self._recording.stop), self._recording.turns)

    def render(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> str | None:
        """See Backend. ReplayError for a conversation that was not recorded."""
        given = Rendering(messages=plain(list(messages)), tools=tools_as_data(tools))
        known = self._renderings.get(_rendering_key(given.messages, given.tools))
        if known is not None:
            if known.error is not None:
                raise ValueError(known.error)
            return known.text
        if all(rendering.text is None for rendering in self._renderings.values()):
            return None
        with self._lock:
            recorded = [_as_record(rendering) for rendering in self._recording.renderings]
            found = "the template's text for a conversation: " + difference(
                _as_record(given), recorded, set(), strict=False
            )
            self.difference = self.difference or found
        raise ReplayError(found)

    def open(self, program_id: str) -> Stream:
        """See Backend."""
        self._open.add(1)
        return _ReplayStream(self, Place())

    async def prefill(self, text: str) -> None:
        """Nothing to compute."""


def _rendering_key(messages: list[Message], tools: list[dict[str, Any]]) -> str:
    return json.dumps([messages, tools], sort_keys=True)


def _as_record(rendering: Rendering) -> Record:
    """A conversation as the request that would follow it."""
    return Record(kind="gen", messages=rendering.messages, params={"tools": rendering.tools})


class _RecordedFormat:
    """The turns of a recording."""

    def __init__(self, default_system: str | None, stop: tuple[str, ...], turns: list[RecordedTurn]) -> None:
        self.default_system = default_system
        self.stop = stop
        self._turns = {(turn.role, turn.first): turn for turn in turns}

    def turn(self, role: str, *, first: bool) -> tuple[str, str]:
        """See ChatFormat."""
        turn = self._turns.get((role, first))
        if turn is None or turn.error is not None:
            raise ValueError(f"the recording has no spelling of a turn of {role!r}" if turn is None else turn.error)
        return turn.prefix, turn.suffix


class _ReplayStream(Stream):
    def __init__(self, replay: Replay, place: Place) -> None:
        self._replay = replay
        self._place = place
        self._closed = False

    def append(self, text: str) -> None:
        self._place.text += text

    async def generate(self, call: GenCall) -> AsyncGenerator[tuple[Output, ...], None]:
        record = self._replay._answer(self._place.gen(call, by_messages=self._replay.by_messages))
        if call.stream:
            for step in record.chunks:
                yield tuple(one.output() for one in step)
            if not record.chunks:
                for texts in growing([one.text for one in record.outputs]):
                    yield tuple(Output(text) for text in texts)
        _check(record)
        yield tuple(one.output() for one in record.outputs)
        self._place.text += record.outputs[0].text

    async def score(
        self,
        name: str | None,
        choices: Sequence[str],
        *,
        unconditional: bool,
        conversation: Conversation | None = None,
        hints: Hints = Hints(),  # noqa: B008  (frozen)
    ) -> ChoiceScores:
        by_messages = self._replay.by_messages
        record = self._replay._answer(
            self._place.select(name, choices, unconditional, conversation, hints.node, by_messages=by_messages)
        )
        _check(record)
        assert record.scores is not None
        return record.scores.scores()

    def mark(self) -> object:
        return self._place.copy()

    def rewind(self, mark: object) -> None:
        assert isinstance(mark, Place)
        self._place = mark.copy()

    async def fork(self, n: int) -> list[Stream]:
        self._replay._open.add(n)
        return [_ReplayStream(self._replay, self._place.copy()) for _ in range(n)]

    def attach(self, media: Media) -> str:
        digest = media_digest(media)
        text = self._replay._recording.media.get(digest)
        if text is None:
            raise ReplayError(f"{media} is none of the images and videos in the recording; record the program again")
        self._place.text += text
        self._place.media += (digest,)
        return text

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._replay._open.add(-1)


def _check(record: Record) -> None:
    """Fails as the recorded request failed."""
    if record.error is not None:
        raise record.error.exception()
    if record.unfinished or not (record.outputs or record.scores):
        raise ReplayError(f"{record} was given up before it had an answer when it was recorded")
