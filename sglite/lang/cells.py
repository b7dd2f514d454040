"""Values and text that one thread writes and any thread or event loop reads, without polling.

``Signal`` wakes whoever waits for a change. ``Feed`` is append-only text with readers that follow it. ``Cell`` is one
variable: a value that arrives once, or the failure that kept it from arriving.

A reader takes a waiter first and looks at the data second, so no change falls between the two.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

from sglite.lang.errors import Failure
from sglite.lang.ir import Graph

T = TypeVar("T")

Meta = dict[str, Any]
"""What a back end says about an output; SGLang's ``meta_info``. A list of them for ``n`` > 1."""


async def arrival(future: Future[T]) -> T:
    """``future``'s result, awaited. Unlike with ``wrap_future``, cancelling the one who waits leaves it as it is."""
    if not future.done():
        loop = asyncio.get_running_loop()
        here: asyncio.Future[None] = loop.create_future()

        def tell() -> None:
            if not here.done():
                here.set_result(None)

        def arrived(_: Future[T]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(tell)

        future.add_done_callback(arrived)
        await here
    return future.result()


class Signal:
    """Wakes waiters in any thread or loop; each waiter is woken once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiters: list[Future[None]] = []

    def waiter(self) -> Future[None]:
        """A future that the next ``fire`` resolves."""
        future: Future[None] = Future()
        with self._lock:
            self._waiters.append(future)
        return future

    def fire(self) -> None:
        """Wakes everyone who waits."""
        with self._lock:
            waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if waiter.set_running_or_notify_cancel():
                waiter.set_result(None)


class Feed:
    """Append-only chunks of text with what was known of their request at that time; closed at the end."""

    def __init__(self) -> None:
        self._chunks: list[tuple[str, Meta]] = []
        self._closed = False
        self._changed = Signal()

    def write(self, text: str, meta: Meta | None = None) -> None:
        """Appends a chunk, if there is anything in it."""
        if text and not self._closed:
            self._chunks.append((text, meta or {}))
            self._changed.fire()

    def close(self) -> None:
        """Ends every reader once it has read what is there."""
        self._closed = True
        self._changed.fire()

    def so_far(self) -> list[tuple[str, Meta]]:
        """The chunks written until now."""
        return list(self._chunks)

    @property
    def closed(self) -> bool:
        """Whether all of it is there."""
        return self._closed

    def _news(self, start: int) -> Future[None] | None:
        """What to wait for until there are chunks from ``start`` on; None: nothing, there are or there never will."""
        if self._closed or len(self._chunks) > start:
            return None
        waiter = self._changed.waiter()
        return None if self._closed or len(self._chunks) > start else waiter

    def read(self) -> Iterator[tuple[str, Meta]]:
        """Chunks as they come; blocks between them."""
        done = 0
        while True:
            closed, chunks = self._closed, self._chunks[done:]
            yield from chunks
            done += len(chunks)
            if closed:
                return
            if (news := self._news(done)) is not None:
                news.result()

    async def aread(self) -> AsyncIterator[tuple[str, Meta]]:
        """Chunks as they come."""
        done = 0
        while True:
            closed, chunks = self._closed, self._chunks[done:]
            for chunk in chunks:
                yield chunk
            done += len(chunks)
            if closed:
                return
            if (news := self._news(done)) is not None:
                await arrival(news)


class Cell:
    """One variable. ``node`` is the graph node that produces it (-1: set by the program).

    ``raw``: the text that ``value`` was read from. ``partial``: what can be read of text that is still being written.
    """

    def __init__(self, name: str, node: int = -1) -> None:
        self.name = name
        self.node = node
        self.graph: Graph | None = None
        """The graph that ``node`` is in."""
        self.raw: Any = None
        self.partial: Callable[[str], Any] | None = None
        self.feed = Feed()
        self.done: Future[None] = Future()
        self.failure: Failure | None = None
        self.meta: Any = None
        self.value: Any = None

    @staticmethod
    def of(name: str, value: Any) -> Cell:
        """A cell that has its value already."""
        cell = Cell(name)
        cell.resolve(value, None)
        return cell

    @staticmethod
    def gathered(
        name: str,
        parts: list[Cell],
        node: int,
        soon: Callable[[Callable[[], None]], None] = lambda settle: settle(),
    ) -> Cell:
        """A cell whose value is the list of the values of ``parts``, once they all have one.

        ``soon`` calls what settles it. Where gathered cells are parts of others many levels deep, that must not happen
        on top of the call that settled the part.
        """
        whole = Cell(name, node)
        missing = len(parts)
        lock = threading.Lock()

        def settle() -> None:
            failure = next((p.failure for p in parts if p.failure), None)
            if failure:
                whole.fail(failure)
            else:
                raws = [p.raw for p in parts]
                whole.resolve([p.value for p in parts], [p.meta for p in parts], raws)

        def one_done(_: Future[None]) -> None:
            nonlocal missing
            with lock:
                missing -= 1
                last = missing == 0
            if last:
                soon(settle)

        for part in parts:
            part.done.add_done_callback(one_done)
        return whole

    def resolve(self, value: Any, meta: Any, raw: Any = None) -> None:
        """Gives the cell its value, read from ``raw`` (``value`` itself if None); text that was not streamed into the
        feed yet follows there."""
        if self.done.done():
            return
        self.value, self.meta, self.raw = value, meta, value if raw is None else raw
        if isinstance(self.raw, str):
            seen = sum(len(text) for text, _ in self.feed.so_far())
            self.feed.write(self.raw[seen:], meta)
        self.feed.close()
        self.done.set_result(None)

    def fail(self, failure: Failure) -> None:
        """Says that there will be no value, and why."""
        if self.done.done():
            return
        self.failure = failure
        self.feed.close()
        self.done.set_result(None)

    @contextmanager
    def waited_for(self) -> Iterator[None]:
        """Inside, the program waits for the cell; the graph notes that, if there is anything to wait for."""
        graph, began = self.graph, time.monotonic()
        if graph is None or self.done.done():
            yield
            return
        yield
        graph.reads.append((self.node, len(graph.nodes), time.monotonic() - began))

    def get(self) -> Any:
        """The value of a cell that is done; raises VariableError if it failed."""
        if self.failure is not None:
            raise self.failure.variable_error(self.name)
        return self.value
