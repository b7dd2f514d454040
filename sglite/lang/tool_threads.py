"""Threads for tools that are plain functions, some of which never come back.

A call has a thread of its own, at most ``limit`` at a time; more wait. A thread in Python cannot be stopped, so a call
that takes too long is *abandoned*: it goes on by itself, nobody waits for it, and its place is free again. All are
daemons: none keeps the interpreter alive.
"""

from __future__ import annotations

import contextvars
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

logger = logging.getLogger(__name__)

MAX_ABANDONED = 64
"""Calls that may go on abandoned; then no more are begun."""


class ThreadedCall:
    """One call. ``started`` resolves when it has a thread, ``done`` with what the function returns or raises."""

    def __init__(self, function: Callable[[], Any], name: str) -> None:
        self.name = name
        self.started: Future[None] = Future()
        self.done: Future[Any] = Future()
        self.abandoned = False
        self._function = function
        self._context = contextvars.copy_context()

    def run(self) -> None:
        """Calls the function, in the context variables of who submitted it."""
        try:
            self.done.set_result(self._context.run(self._function))
        except BaseException as error:
            self.done.set_exception(error)


class ToolThreads:
    """See the module."""

    def __init__(self, limit: int, name: str) -> None:
        self._limit = limit
        self._name = name
        self._lock = threading.Lock()
        self._running = 0
        self._abandoned = 0
        self._waiting: deque[ThreadedCall] = deque()

    @property
    def num_abandoned(self) -> int:
        """How many calls go on that nobody waits for."""
        return self._abandoned

    def submit(self, function: Callable[[], Any], name: str) -> ThreadedCall:
        """Calls ``function`` in a thread. RuntimeError when too many abandoned calls have not come back."""
        call = ThreadedCall(function, name)
        with self._lock:
            if self._abandoned >= MAX_ABANDONED:
                raise RuntimeError(
                    f"{self._abandoned} calls of tools took too long and still go on; give these tools time limits of "
                    "their own, or make them async"
                )
            self._waiting.append(call)
            self._start_next()
        return call

    def abandon(self, call: ThreadedCall) -> None:
        """Nobody waits for ``call`` any more; if it has not begun it never will."""
        with self._lock:
            if call in self._waiting:
                self._waiting.remove(call)
            elif not call.done.done() and not call.abandoned:
                call.abandoned = True
                self._running -= 1
                self._abandoned += 1
                self._start_next()
                logger.warning("the tool %r took too long; its thread goes on without anybody waiting", call.name)

    def _start_next(self) -> None:
        """The lock is held."""
        while self._waiting and self._running < self._limit:
            call = self._waiting.popleft()
            self._running += 1
            threading.Thread(target=self._work, args=(call,), name=self._name, daemon=True).start()

    def _work(self, call: ThreadedCall) -> None:
        call.started.set_result(None)
        call.run()
        with self._lock:
            if call.abandoned:
                self._abandoned -= 1
            else:
                self._running -= 1
                self._start_next()
