"""The few threads the language uses, however many programs run.

``LoopThread``: one event loop on which all streams of all programs run. ``BodyPool``: a bounded pool for program bodies
that may not run in the caller's thread (streaming, batches). All are daemons: none keeps the interpreter alive, and a
reader that Ctrl-C interrupts leaves nothing to join.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from sglite.lang.errors import BlockingReadError

T = TypeVar("T")
_IDLE_SECONDS = 5.0


class LoopThread:
    """An event loop in a daemon thread of its own, started when first used.

    Independent of any loop the caller runs, so programs work inside a notebook. A callback that raises SystemExit or
    KeyboardInterrupt does not stop it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.renew()

    def renew(self) -> None:
        """Forgets the thread, which a forked child does not have; another one is started when it is needed."""
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ident: int | None = None

    def loop(self) -> asyncio.AbstractEventLoop:
        """The running loop."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                thread = threading.Thread(target=_run, args=(self._loop,), name=self._name, daemon=True)
                thread.start()
                self._ident = thread.ident
            return self._loop

    def call(self, callback: Callable[..., object], *args: Any) -> None:
        """Runs ``callback`` on the loop, soon; from any thread."""
        self.loop().call_soon_threadsafe(callback, *args)

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Runs ``coroutine`` on the loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop())

    @property
    def is_here(self) -> bool:
        """Whether this is the loop's own thread."""
        return threading.get_ident() == self._ident

    def wait(self, future: Future[T]) -> T:
        """Blocks until ``future`` has a result. Refused on the loop's own thread, which it would stop for ever."""
        if self.is_here and not future.done():
            raise BlockingReadError(
                "a blocking read inside the programs' event loop would never end: write `await` (s.get, arun), or read "
                "in another thread"
            )
        return future.result()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    while True:
        try:
            loop.run_forever()
        except (SystemExit, KeyboardInterrupt):
            continue  # somebody's task raised it, and has it; the tasks of others go on


class BodyPool:
    """Runs functions on at most ``limit`` daemon threads, started as needed and ended when idle.

    A function submitted from one of the pool's own threads is never queued behind its submitter: it gets a thread
    even beyond the limit, so a program that runs programs cannot starve itself. So does one submitted as ``nested``,
    for those for which one of the pool's functions waits in a less direct way.
    """

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._name = name
        self._changed = threading.Condition()
        self._jobs: deque[Callable[[], None]] = deque()
        self._idle = 0
        self._idents: set[int] = set()
        self._threads = 0

    def submit(self, function: Callable[[], T], *, nested: bool = False) -> Future[T]:
        """Runs ``function`` in the context variables of the caller."""
        future: Future[T] = Future()
        context = contextvars.copy_context()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(context.run(function))
            except BaseException as error:
                future.set_exception(error)

        with self._changed:
            self._jobs.append(job)
            nested = nested or threading.get_ident() in self._idents
            if len(self._jobs) <= self._idle:
                self._changed.notify()
            elif self._threads < self._limit or nested:
                self._threads += 1
                threading.Thread(target=self._work, name=self._name, daemon=True).start()
        return future

    def _work(self) -> None:
        ident = threading.get_ident()
        with self._changed:
            self._idents.add(ident)
        while (job := self._next()) is not None:
            job()
            del job  # while it waits for the next one, a thread holds on to nothing
        with self._changed:
            self._idents.discard(ident)

    def _next(self) -> Callable[[], None] | None:
        with self._changed:
            if not self._jobs:
                self._idle += 1
                self._changed.wait(_IDLE_SECONDS)
                self._idle -= 1
            if self._jobs:
                return self._jobs.popleft()
            self._threads -= 1
            return None
