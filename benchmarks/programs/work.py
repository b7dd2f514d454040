"""The requests that a program makes, as work for a client that knows nothing of programs.

``Recorder`` is a back end: it asks an engine and keeps the text of every prompt. It answers in *waves*: when all that
is asked for has been computed and nobody asks for more, the whole wave is answered at once. So the number of a
request's wave is how many requests had to come before it, one after the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from sglite.lang.backends.base import Backend, GenCall, Output, Stream
from sglite.lang.choices import ChoiceScores
from sglite.lang.session import SESSION

_QUIET_S = 0.05
"""For so long nobody asks for anything: the wave is complete."""


@dataclass(frozen=True)
class Request:
    """Bodies of ``POST /generate`` that may be sent together: one for an output, one for each choice of a select."""

    wave: int
    bodies: tuple[dict[str, Any], ...]


class Recorder(Backend):
    """See the module. ``requests``: what was asked so far."""

    closes = True

    def __init__(self, backend: Any) -> None:
        self.inner = SESSION.backend(backend)
        self.requests: list[Request] = []
        self._wave = 0
        self._over: asyncio.Event | None = None
        self._arrivals = 0

    def chat_format(self) -> Any:
        return self.inner.chat_format()

    def render(self, messages: Any, tools: Any) -> str | None:
        return self.inner.render(messages, tools)

    def open(self, program_id: str) -> Stream:
        return _Stream(self, self.inner.open(program_id), "")

    async def prefill(self, text: str) -> None:
        """Nothing that a program asks for."""

    def note(self, *bodies: dict[str, Any]) -> None:
        """One more request, of the wave that is being asked for."""
        self.requests.append(Request(self._wave, bodies))
        self._arrivals += 1

    async def end_of_wave(self) -> None:
        """Returns when everything that can be asked for now has been."""
        if self._over is None:
            self._over = asyncio.Event()
            asyncio.ensure_future(self._watch(self._over)).add_done_callback(lambda task: task.result())
        await self._over.wait()

    async def _watch(self, over: asyncio.Event) -> None:
        seen = -1
        while seen != self._arrivals:
            seen = self._arrivals
            await asyncio.sleep(_QUIET_S)
        self._wave += 1
        self._over = None
        over.set()


class _Stream(Stream):
    def __init__(self, recorder: Recorder, inner: Stream, text: str) -> None:
        self._recorder = recorder
        self._inner = inner
        self._text = text

    def append(self, text: str) -> None:
        self._text += text
        self._inner.append(text)

    async def generate(self, call: GenCall) -> AsyncGenerator[tuple[Output, ...], None]:
        self._recorder.note({"text": self._text, "sampling_params": call.params(), **call.logprob_options()})
        outputs: tuple[Output, ...] = ()
        async with aclosing(self._inner.generate(call)) as steps:
            async for step in steps:
                outputs = step
        await self._recorder.end_of_wave()
        self._text += outputs[0].text
        yield outputs

    async def score(self, name: str | None, choices: Sequence[str], **options: Any) -> ChoiceScores:
        nothing = {"max_new_tokens": 0, "temperature": 0.0}
        start = max(0, self._recorder.inner.token_count(self._text) - 1)  # type: ignore[attr-defined]
        asked = {"sampling_params": nothing, "return_logprob": True, "logprob_start_len": start}
        self._recorder.note(*({"text": self._text + choice, **asked} for choice in choices))
        scores = await self._inner.score(name, choices, **options)
        await self._recorder.end_of_wave()
        return scores

    def mark(self) -> object:
        return self._text, self._inner.mark()

    def rewind(self, mark: object) -> None:
        assert isinstance(mark, tuple)
        self._text = mark[0]
        self._inner.rewind(mark[1])

    async def fork(self, n: int) -> list[Stream]:
        return [_Stream(self._recorder, branch, self._text) for branch in await self._inner.fork(n)]

    async def aclose(self) -> None:
        await self._inner.aclose()
