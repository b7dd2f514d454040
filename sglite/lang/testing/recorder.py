"""``Recorder``: a back end that asks another one and keeps what it was asked and told.

Promises: a program sees no difference; requests are kept in the order in which they were made; a recording that would
lack some is refused, never written.
"""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import msgspec

from sglite.lang.backends.base import Backend, Conversation, GenCall, Hints, Output, Stream
from sglite.lang.choices import ChoiceScores
from sglite.lang.formats import ChatFormat
from sglite.lang.ir import Media
from sglite.lang.messages import Message, ToolSpec
from sglite.lang.session import SESSION
from sglite.lang.testing.open_streams import OpenStreams
from sglite.lang.testing.recording import (
    FORMAT,
    VERSION,
    Place,
    Record,
    RecordedError,
    RecordedOutput,
    RecordedScores,
    RecordedTurn,
    Recording,
    Rendering,
    media_digest,
    plain,
    tools_as_data,
)

_ROLES = ("system", "user", "assistant", "tool")


class Recorder(Backend):
    """Records what ``backend`` (an Engine too; None: the default one) is asked and answers.

    ``chunks``: also how streamed outputs grew, with the meta info of each step. ``max_requests``, ``max_chars`` (of the
    recording as JSON): bounds; what is beyond them is answered but makes ``dump`` fail.
    """

    def __init__(
        self, backend: Any = None, *, chunks: bool = True, max_requests: int = 10_000, max_chars: int = 100_000_000
    ) -> None:
        self._inner = SESSION.backend(backend)
        self.calls_tools = self._inner.calls_tools
        self.by_messages = self._inner.by_messages
        self._chunks = chunks
        self._max_requests = max_requests
        self._max_chars = max_chars
        self._lock = threading.Lock()
        self._open = OpenStreams()
        self._records: list[Record] = []
        self._renderings: dict[str, Rendering] = {}
        self._media: dict[str, str] = {}
        self._size = 0
        self._left_out = 0

    # --- the recording ---

    def dump(self, timeout_s: float = 10.0) -> dict[str, Any]:
        """The recording as JSON-able data. Waits ``timeout_s`` at most for runs that still go on; a request that is
        under way is recorded as one that was given up. ValueError when it would be incomplete, see ``max_requests``."""
        self._open.settle(timeout_s)
        if self._left_out:
            limits = f"max_requests={self._max_requests}, max_chars={self._max_chars}"
            raise ValueError(f"{self._left_out} requests were not recorded: {limits}; raise these, or record less")
        form = self._inner.chat_format()
        with self._lock:
            recording = Recording(
                format=FORMAT,
                version=VERSION,
                calls_tools=self.calls_tools,
                by_messages=self.by_messages,
                default_system=form.default_system,
                stop=list(form.stop),
                turns=_turns(form),
                renderings=list(self._renderings.values()),
                media=dict(self._media),
                requests=self._records,
            )
            data: dict[str, Any] = plain(msgspec.to_builtins(recording))
        return data

    def save(self, path: str | os.PathLike[str], timeout_s: float = 10.0) -> None:
        """Writes ``dump()`` to a file, as JSON."""
        Path(path).write_text(json.dumps(self.dump(timeout_s), ensure_ascii=False, indent=1), encoding="utf-8")

    def _begin(self, record: Record) -> Record:
        record.unfinished = True
        with self._lock:
            if len(self._records) >= self._max_requests or self._size > self._max_chars:
                self._left_out += 1
            else:
                self._records.append(record)
        return record

    def _finish(self, record: Record) -> None:
        record.unfinished = False
        size = len(msgspec.json.encode(record))
        with self._lock:
            self._size += size

    # --- the back end ---

    def chat_format(self) -> ChatFormat:
        """See Backend."""
        return self._inner.chat_format()

    def render(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> str | None:
        """See Backend."""
        rendering = Rendering(messages=plain(list(messages)), tools=tools_as_data(tools))
        key = json.dumps([rendering.messages, rendering.tools], sort_keys=True)
        try:
            rendering.text = self._inner.render(messages, tools)
        except ValueError as error:
            rendering.error = str(error)
            raise
        finally:
            self._keep(key, rendering)
        return rendering.text

    def _keep(self, key: str, rendering: Rendering) -> None:
        with self._lock:
            if key in self._renderings:
                return
            self._size += len(key) + len(rendering.text or "")
            if self._size > self._max_chars:
                self._left_out += 1
            else:
                self._renderings[key] = rendering

    def open(self, program_id: str) -> Stream:
        """See Backend."""
        stream = self._inner.open(program_id)
        self._open.add(1)
        return _RecordingStream(self, stream, Place())

    async def prefill(self, text: str) -> None:
        """See Backend; not recorded, since it has no answer."""
        await self._inner.prefill(text)

    def flush_cache(self) -> bool:
        """See Backend."""
        return self._inner.flush_cache()

    def get_server_info(self) -> dict[str, Any] | None:
        """See Backend; not recorded."""
        return self._inner.get_server_info()


def _turns(form: ChatFormat) -> list[RecordedTurn]:
    """The usual turns, as ``form`` spells them."""
    turns = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a program that uses a turn was warned when it did
        for role in _ROLES:
            for first in (True, False):
                turn = RecordedTurn(role=role, first=first)
                try:
                    turn.prefix, turn.suffix = form.turn(role, first=first)
                except ValueError as error:
                    turn.error = str(error)
                turns.append(turn)
    return turns


class _RecordingStream(Stream):
    def __init__(self, recorder: Recorder, inner: Stream, place: Place) -> None:
        self._recorder = recorder
        self._inner = inner
        self._place = place
        self._closed = False

    def append(self, text: str) -> None:
        self._place.text += text
        self._inner.append(text)

    async def generate(self, call: GenCall) -> AsyncGenerator[tuple[Output, ...], None]:
        recorder = self._recorder
        record = recorder._begin(self._place.gen(call, by_messages=recorder.by_messages))
        outputs: tuple[Output, ...] = ()
        try:
            async with aclosing(self._inner.generate(call)) as steps:
                async for step in steps:
                    if outputs and call.stream and recorder._chunks:
                        record.chunks.append([RecordedOutput.of(output) for output in outputs])
                    outputs = step
                    yield outputs
        except Exception as error:
            if outputs:
                record.chunks.append([RecordedOutput.of(output) for output in outputs])
            record.error = RecordedError.of(error)
            recorder._finish(record)
            raise
        record.outputs = [RecordedOutput.of(output) for output in outputs]
        recorder._finish(record)
        self._place.text += outputs[0].text

    async def score(
        self,
        name: str | None,
        choices: Sequence[str],
        *,
        unconditional: bool,
        conversation: Conversation | None = None,
        hints: Hints = Hints(),  # noqa: B008  (frozen)
    ) -> ChoiceScores:
        recorder = self._recorder
        record = self._place.select(
            name, choices, unconditional, conversation, hints.node, by_messages=recorder.by_messages
        )
        recorder._begin(record)
        try:
            scores = await self._inner.score(
                name, choices, unconditional=unconditional, conversation=conversation, hints=hints
            )
        except Exception as error:
            record.error = RecordedError.of(error)
            recorder._finish(record)
            raise
        record.scores = RecordedScores.of(scores)
        recorder._finish(record)
        return scores

    def mark(self) -> object:
        return self._inner.mark(), self._place.copy()

    def rewind(self, mark: object) -> None:
        assert isinstance(mark, tuple)
        self._inner.rewind(mark[0])
        self._place = mark[1].copy()

    def prepare(self, text: str, call: GenCall) -> None:
        self._inner.prepare(text, call)

    def park(self, expected_s: float | None = None) -> None:
        self._inner.park(expected_s)

    def speculate(self, num_tokens: int) -> None:
        self._inner.speculate(num_tokens)

    async def fork(self, n: int) -> list[Stream]:
        branches = await self._inner.fork(n)
        self._recorder._open.add(n)
        return [_RecordingStream(self._recorder, branch, self._place.copy()) for branch in branches]

    def attach(self, media: Media) -> str:
        text = self._inner.attach(media)
        self._place.text += text
        digest = media_digest(media)
        self._place.media += (digest,)
        self._recorder._media[digest] = text
        return text

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._recorder._open.add(-1)
        await self._inner.aclose()
