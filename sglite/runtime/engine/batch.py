"""One ``generate`` call: its prompts, and its generations seen as one: waited for together, or streamed as they go on.

A stream that is dropped, read or not, ends its requests.
"""

from __future__ import annotations

import asyncio
import queue
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

from sglite.runtime.engine.generation import POLL_SECONDS, Generation
from sglite.runtime.sample.params import InvalidParameter
from sglite.runtime.text.tokenizer import Tokenizer


class Batch:
    """Generations in the order of their prompts; ``many``: the caller gave a list."""

    def __init__(self, many: bool) -> None:
        self.many = many
        self.generations: list[Generation] = []

    def result(self) -> Any:
        """All final events; lists of ``n > 1`` are joined."""
        return self._join([generation.result() for generation in self.generations])

    async def wait(self) -> Any:
        """``result`` for an event loop."""
        return self._join([await generation.wait() for generation in self.generations])

    def abort(self) -> None:
        """End all of it."""
        for generation in self.generations:
            generation.abort()

    def _join(self, events: list[Any]) -> Any:
        if not self.many:
            return events[0]
        return [part for event in events for part in (event if isinstance(event, list) else [event])]


class _Events:
    """Turns "generation i has changed" into events, each state once, the last one complete."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._seen = [0] * len(batch.generations)
        self.open = set(range(len(batch.generations)))

    def of(self, index: int) -> list[Any]:
        """Events of a generation that changed: one, none if it is old news, or one an output for ``n > 1``."""
        if index not in self.open:
            return []
        version, over, event = self._batch.generations[index].state()
        if version == self._seen[index]:
            return []
        self._seen[index] = version
        if over:
            self.open.discard(index)
        if not self._batch.many:
            return [event]
        return [{**part, "index": index} for part in (event if isinstance(event, list) else [event])]


class BatchStream(Iterator[Any]):
    """Events of a batch in the order in which they happen, cumulative; ``index`` names the prompt of a batch."""

    def __init__(self, batch: Batch) -> None:
        self._changed: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._events = _Events(batch)
        self._ready: list[Any] = []
        self._end = weakref.finalize(self, batch.abort)
        for index, generation in enumerate(batch.generations):
            generation.subscribe(lambda index=index, changed=self._changed: changed.put(index))  # type: ignore[misc]

    def __next__(self) -> Any:
        while not self._ready:
            if not self._events.open or not self._end.alive:
                self.close()
                raise StopIteration
            try:
                self._ready = self._events.of(self._changed.get(timeout=POLL_SECONDS))
            except queue.Empty:
                continue
            except BaseException:
                self.close()
                raise
        return self._ready.pop(0)

    def close(self) -> None:
        """End the requests that are still running."""
        self._end()


class AsyncBatchStream(AsyncIterator[Any]):
    """``BatchStream`` for the event loop it is made on."""

    def __init__(self, batch: Batch) -> None:
        self._changed: asyncio.Queue[int] = asyncio.Queue()
        self._events = _Events(batch)
        self._ready: list[Any] = []
        self._end = weakref.finalize(self, batch.abort)
        loop = asyncio.get_running_loop()
        for index, generation in enumerate(batch.generations):
            generation.subscribe(_teller(loop, self._changed, index))

    async def __anext__(self) -> Any:
        while not self._ready:
            if not self._events.open or not self._end.alive:
                await self.aclose()
                raise StopAsyncIteration
            try:
                self._ready = self._events.of(await self._changed.get())
            except BaseException:
                await self.aclose()
                raise
        return self._ready.pop(0)

    async def aclose(self) -> None:
        """End the requests that are still running."""
        self._end()


def _teller(loop: asyncio.AbstractEventLoop, changed: asyncio.Queue[int], index: int) -> Any:
    def tell() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(changed.put_nowait, index)

    return tell


def prompt_ids(
    tokenizer: Tokenizer | None, prompt: str | list[str] | None, input_ids: list[int] | list[list[int]] | None
) -> tuple[list[list[int]], bool]:
    """Prompts as ids, and whether they came as a batch. ``InvalidParameter`` names the field."""
    if (prompt is None) == (input_ids is None):
        raise InvalidParameter("prompt", prompt, "give either prompt or input_ids, and not both")
    if input_ids is not None:
        many = bool(input_ids) and isinstance(input_ids[0], (list, tuple))
        rows: list[Any] = input_ids if many else [input_ids]
        for row in rows:
            if not isinstance(row, (list, tuple)) or any(type(token) is not int for token in row):
                message = "input_ids must be a list of token ids, or a list of such lists"
                raise InvalidParameter("input_ids", row, message)
        return [list(row) for row in rows], many
    if tokenizer is None:
        raise InvalidParameter("prompt", prompt, "skip_tokenizer_init=True leaves only input_ids; give those")
    texts = [prompt] if isinstance(prompt, str) else list(prompt or [])
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidParameter("prompt", text, f"prompt[{index}] must be text, got {type(text).__name__}")
        if not text:
            raise InvalidParameter("prompt", text, "prompt is empty: give at least one character")
    return [tokenizer.encode(text, add_bos=True) for text in texts], not isinstance(prompt, str)
