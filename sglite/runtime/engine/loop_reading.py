"""A socket that a thread reads, lent to an event loop: its handlers are spared the way from thread to thread."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable

_LOOP_SECONDS = 1.0
"""After so long it is noticed that an event loop that was to read does so no more."""


class LoopReading:
    """Who reads: the thread that calls ``lend``, or the loop that it lends to.

    Args:
        receive: reads what is there without waiting; whether more is to come.
        closing: set when nobody needs to read any more.
    """

    def __init__(self, receive: Callable[[], bool], closing: threading.Event) -> None:
        self._receive = receive
        self._closing = closing
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lent: int | None = None
        """Number of the socket that the loop reads in place of the thread."""
        self._back = threading.Event()

    def read_on(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Have ``loop`` read from soon on; ``None``: the thread again. Called on that loop, which needs to be asked to
        let go before it ends."""
        before, self._loop = self._loop, loop
        if before is not None and self._lent is not None:
            before.remove_reader(self._lent)
            self._take_back()

    def lend(self, fileno: Callable[[], int]) -> None:
        """Have the loop, if there is one, read the socket until it is told to stop or there is nothing more."""
        loop = self._loop
        if loop is None:
            return
        self._back.clear()
        with contextlib.suppress(RuntimeError):  # it has been closed
            loop.call_soon_threadsafe(self._borrow, loop, fileno())
            while not self._back.wait(_LOOP_SECONDS) and not loop.is_closed() and not self._closing.is_set():
                pass

    def _borrow(self, loop: asyncio.AbstractEventLoop, number: int) -> None:
        if self._loop is loop:
            self._lent = number
            loop.add_reader(number, self._read_here, loop, number)
        else:
            self._take_back()

    def _read_here(self, loop: asyncio.AbstractEventLoop, number: int) -> None:
        if not self._receive():
            loop.remove_reader(number)
            self._take_back()

    def _take_back(self) -> None:
        self._lent = None
        self._back.set()
