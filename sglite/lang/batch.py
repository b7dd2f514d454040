"""Running a program over many rows.

Bodies run on a bounded pool; a row is in flight until its last output exists, which takes no thread. Results come in
the order of the rows. When the caller stops early, what is in flight is stopped too.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from sglite.lang.backends.base import Backend
from sglite.lang.bodies import end_cancelled
from sglite.lang.program import ProgramState
from sglite.lang.session import auto_threads
from sglite.lang.threads import BodyPool

logger = logging.getLogger(__name__)

_IN_FLIGHT = 1024
"""Rows in flight when the caller names no number: enough to keep any back end busy."""
AHEAD = 200
"""How many rows a generator may be ahead of its reader."""
_WORTH_PREFILL = 64
"""Common prefixes up to this many characters are not worth a request of their own."""
_WARMUP_PATIENCE_S = 0.25


def common_start(a: str, b: str) -> str:
    """The longest text with which both begin."""
    end = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[:end]


class PrefixWarmup:
    """Computes what the rows' prompts have in common before the first of them is sent.

    The first two rows that are about to send wait for each other; the common start of their prompts, if it is long,
    is prefilled once, and everybody goes on. Nothing is run twice to find it, and nobody waits long for a second row.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._prompts: list[str] = []
        self._second = asyncio.Event()
        self._opened: asyncio.Future[None] | None = None

    async def arrive(self, prompt: str) -> None:
        """See executor.Warmup; called on the programs' loop."""
        if self._opened is not None and self._opened.done():
            return
        self._prompts.append(prompt)
        if self._opened is None:
            self._opened = asyncio.ensure_future(self._open())
        else:
            self._second.set()
        await asyncio.shield(self._opened)

    async def _open(self) -> None:
        try:
            await asyncio.wait_for(self._second.wait(), _WARMUP_PATIENCE_S)
            prefix = common_start(*self._prompts[:2])
            if len(prefix) > _WORTH_PREFILL:
                await self._backend.prefill(prefix)
        except asyncio.TimeoutError:
            pass  # the row goes on alone
        except Exception as error:
            logger.warning("the common prefix of a batch could not be cached: %s", error)
        self._prompts.clear()


Start = Callable[[Any], tuple[ProgramState, Callable[[], None]]]
"""Makes a state for a row, and the function that runs the body on it."""


class _Row(NamedTuple):
    """A row in flight. ``ran``: its body; ``done``: its last output, too."""

    state: ProgramState
    ran: Future[None]
    done: Future[None]


class Batch:
    """Rows that run together. ``num_threads`` bounds bodies and rows in flight; None: only bodies, generously."""

    def __init__(self, num_threads: int | None, on_row: Callable[[], None]) -> None:
        if num_threads is not None and num_threads < 1:
            raise ValueError(f"run_batch(num_threads={num_threads}): use 'auto' or 1 or more")
        self._alone = num_threads == 1
        self._pool = BodyPool(num_threads or auto_threads(), "sglite-batch")
        self._slots = threading.Semaphore(num_threads or _IN_FLIGHT)
        self._on_row = on_row

    def results(self, rows: Sequence[Any], start: Start, *, ahead: int) -> Iterator[ProgramState]:
        """Each row's state once it is finished, in order; the first exception of a body ends the batch."""
        pending: deque[_Row] = deque()
        try:
            for row in rows:
                while pending and (pending[0].done.done() or len(pending) >= ahead):
                    yield self._taken(pending)
                self._slots.acquire()
                pending.append(self._launch(row, start))
            while pending:
                yield self._taken(pending)
        finally:
            for row in pending:
                row.done.cancel()
                if row.ran.cancel():  # its body has not begun and never will
                    end_cancelled(row.state)
                else:
                    row.state.cancel()

    @staticmethod
    def _taken(pending: deque[_Row]) -> ProgramState:
        pending[0].done.result()
        return pending.popleft().state

    def _launch(self, row: Any, start: Start) -> _Row:
        state, body = start(row)
        done: Future[None] = Future()

        def finished(_: Future[None]) -> None:
            self._slots.release()
            self._on_row()
            if done.set_running_or_notify_cancel():
                done.set_result(None)

        def body_over(ran: Future[None]) -> None:
            if ran.cancelled():
                return
            error = ran.exception()
            if error is None:
                state.run.finished.add_done_callback(finished)
                return
            self._slots.release()
            if done.set_running_or_notify_cancel():
                done.set_exception(error)

        if self._alone:
            ran: Future[None] = Future()
            try:
                body()
                ran.set_result(None)
            except Exception as error:
                ran.set_exception(error)
        else:
            ran = self._pool.submit(body)
        ran.add_done_callback(body_over)
        return _Row(state, ran, done)
