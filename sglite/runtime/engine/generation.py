"""A handle on requests under way: wait for the end, or follow the events; from threads and from event loops.

Events are cumulative, so a slow reader misses intermediate ones and loses nothing.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from sglite.runtime.engine.presenter import Presenter
from sglite.runtime.protocol import FinishReason, RequestOutput

POLL_SECONDS = 0.2
"""A waiting main thread wakes this often so that Ctrl-C is noticed on every platform."""


class EngineError(RuntimeError):
    """A request that failed inside the engine."""


class RequestRefused(ValueError):
    """A request that cannot be run as asked; the message names the field, the value and what to do."""


def failure(reason: FinishReason | None) -> Exception | None:
    """The exception for a finish reason that is no answer; aborts are answers."""
    if reason is None or reason.type != "error":
        return None
    message = reason.message or "no reason given"
    if reason.code in ("invalid_request", "constraint_refused"):
        return RequestRefused(message)
    return EngineError(message)


class Generation:
    """One or several requests submitted together (n > 1), and their outputs so far.

    Args:
        presenters: one a request; ``many`` makes events lists even for one.
        abort: ends a request by id.
        on_finished: called once, when the last of them has ended; with nothing if one failed or was aborted.
    """

    def __init__(
        self,
        presenters: Sequence[Presenter],
        abort: Callable[[str], None],
        *,
        many: bool = False,
        on_finished: Callable[[Sequence[Presenter]], None] | None = None,
    ) -> None:
        self._presenters = list(presenters)
        self._many = many or len(self._presenters) > 1
        self._abort = abort
        self._on_finished = on_finished
        self._by_id = {presenter.request_id: presenter for presenter in self._presenters}
        self._open = set(self._by_id)
        self._changed = threading.Condition()
        self._version = 0
        self._wakers: list[Callable[[], None]] = []
        self._subscribers: list[Callable[[], None]] = []
        self._error: Exception | None = None

    def push(self, output: RequestOutput) -> None:
        """An output of the engine; called on its thread."""
        with self._changed:
            self._take(output)
            self._version += 1
            if output.finish_reason is not None:
                self._open.discard(output.request_id)
                if not self._open and self._on_finished is not None:
                    whole = self._error is None and all(p.answered for p in self._presenters)
                    self._on_finished(self._presenters if whole else ())
            wakers, self._wakers = self._wakers + self._subscribers, []
            self._changed.notify_all()
        for wake in wakers:
            wake()

    def _take(self, output: RequestOutput) -> None:
        """Hand an output to its presenter; a failure to present it is the request's failure."""
        try:
            self._by_id[output.request_id].add(output)
            error = failure(output.finish_reason)
        except Exception as caught:
            error = EngineError(f"the output could not be presented: {type(caught).__name__}: {caught}")
        self._error = self._error or error

    def subscribe(self, tell: Callable[[], None]) -> None:
        """Call ``tell``, from any thread, after every change from now on, and once now."""
        with self._changed:
            self._subscribers.append(tell)
        tell()

    def state(self) -> tuple[int, bool, Any]:
        """How often it has changed, whether it is over, and the event; raises what went wrong."""
        with self._changed:
            return self._version, not self._open, self._event()

    @property
    def finished(self) -> bool:
        """All requests have ended."""
        return not self._open

    def abort(self) -> None:
        """End what is still running; its partial output is the answer."""
        for request_id in list(self._open):
            self._abort(request_id)

    def result(self, timeout: float | None = None) -> Any:
        """Block until the end: the final event (a list of them for several requests).

        Raises what went wrong, or ``TimeoutError`` after ``timeout`` seconds (the requests go on).
        """
        waited = 0.0
        with self._changed:
            while self._open:
                if timeout is not None and waited >= timeout:
                    raise TimeoutError(f"no result within {timeout} s; the request goes on, abort() ends it")
                step = POLL_SECONDS if timeout is None else min(POLL_SECONDS, timeout - waited)
                if not self._changed.wait(step):
                    waited += step
            return self._event()

    def __iter__(self) -> Iterator[Any]:
        """Events until the end; the last one is complete."""
        seen = 0
        while True:
            with self._changed:
                while self._version == seen and self._open:
                    self._changed.wait(POLL_SECONDS)
                seen, over, event = self._version, not self._open, self._event()
            yield event
            if over:
                return

    async def wait(self) -> Any:
        """``result`` for an event loop."""
        while self._open:
            waiting = self._waiter(self._version)
            if waiting is not None:
                await waiting
        with self._changed:
            return self._event()

    async def __aiter__(self) -> AsyncIterator[Any]:
        seen = 0
        while True:
            waiting = self._waiter(seen)
            if waiting is not None:
                await waiting
            with self._changed:
                seen, over, event = self._version, not self._open, self._event()
            yield event
            if over:
                return

    def _waiter(self, seen: int) -> asyncio.Future[None] | None:
        """A future of the running loop for the next change; ``None``: there is one already."""
        loop = asyncio.get_running_loop()
        with self._changed:
            if self._version != seen or not self._open:
                return None
            future: asyncio.Future[None] = loop.create_future()

            def resolve() -> None:
                if not future.done():
                    future.set_result(None)

            def wake() -> None:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(resolve)

            self._wakers.append(wake)
            return future

    def _event(self) -> Any:
        if not self._open and self._error is not None:
            raise self._error
        events = [presenter.event() for presenter in self._presenters]
        return events if self._many else events[0]
