"""Questions to another process that have no answer yet, by number. Used under the lock of whoever asks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import msgspec

from sglite.runtime.engine.generation import EngineError
from sglite.runtime.engine.messages import Answer


class Questions:
    """Of one connection; each gets its answer or, with the connection's end, an error."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._open: dict[int, tuple[Future[Any], Any]] = {}
        """Futures for the answers, and their types."""

    def ask(self, send: Callable[[int], None], kind: Any) -> Future[Any]:
        """A future for the answer, of type ``kind``; ``send`` sends the question of that number, and may raise."""
        number = next(self._numbers)
        send(number)
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()  # it is carried out whoever waits
        self._open[number] = future, kind
        return future

    def answer(self, message: Answer) -> Callable[[], None]:
        """The answer has come; what is returned tells who asked, to be called without the lock."""
        future, kind = self._open.pop(message.number)
        if message.error is not None:
            error = EngineError(message.error)
            return lambda: future.set_exception(error)
        value = msgspec.convert(message.value, kind)
        return lambda: future.set_result(value)

    def fail(self, error: EngineError) -> None:
        """There will be no answers any more."""
        while self._open:
            self._open.popitem()[1][0].set_exception(error)
