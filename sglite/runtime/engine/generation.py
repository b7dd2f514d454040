"""A handle on requests under way: wait for the end, or follow the events; from threads and from event loops.

Events are cumulative, so a slow reader misses intermediate ones and loses nothing. Who waits for the end only is woken
once. A generation that has ended holds on to nobody: neither to the engine nor to the sequence it was part of.
"""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from sglite.runtime.engine.presenter import Presenter, Progress
from sglite.runtime.protocol import FinishReason, RequestOutput

POLL_SECONDS = 0.2
"""A waiting main thread wakes this often so that Ctrl-C is noticed on every platform."""


class EngineError(RuntimeError):
    """A request that failed inside the engine. ``code``: the class of the failure, as in ``FinishReason``."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class RequestRefused(ValueError):
    """A request that cannot be run as asked; the message names the field, the value and what to do. ``code``: as in
    ``FinishReason``."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


def failure(reason: FinishReason | None) -> Exception | None:
    """The exception for a finish reason that is no answer; aborts are answers."""
    if reason is None or reason.type != "error":
        return None
    message = reason.message or "no reason given"
    if reason.code in ("invalid_request", "constraint_refused", "queue_full"):
        return RequestRefused(message, reason.code)
    return EngineError(message, reason.code)


class Generation:
    """One or several requests submitted together (n > 1), and their outputs so far.

    Args:
        presenters: one a request; ``many`` makes events lists even for one.
        abort: ends a request by id.
        on_finished: called once, when the last of them has ended and before anybody hears of it; with nothing if one
            failed or was aborted.
    """

    def __init__(
        self,
        presenters: Sequence[Presenter],
        abort: Callable[[str], None],
        *,
        many: bool = False,
        on_finished: Callable[[Sequence[Presenter]], None] | None = None,
    ) -> None:
        self.num_committed: int | None = None
        """Of a sequence's generation: how long the sequence was when the output had joined it."""
        self._presenters = list(presenters)
        self._many = many or len(self._presenters) > 1
        self._abort: Callable[[str], None] | None = abort
        self._on_finished = on_finished
        self._by_id = {presenter.request_id: presenter for presenter in self._presenters}
        self._open = set(self._by_id)
        self._lock = threading.RLock()
        self._changed: threading.Condition | None = None
        """Of a change, and of the end: made for the first thread that waits. Most are waited for on an event loop."""
        self._ended: threading.Condition | None = None
        self._version = 0
        self._wakers: list[Callable[[], None]] = []
        self._end_wakers: list[Callable[[], None]] = []
        self._subscribers: list[Callable[[], None]] = []
        self._observer: Callable[[RequestOutput], None] | None = None
        self._error: Exception | None = None

    def push(self, output: RequestOutput) -> None:
        """An output of the engine; called on its thread, or by whoever alone knows the request before it starts."""
        with self._lock:
            if self._observer is not None:
                self._observer(output)
            self._take(output)
            self._version += 1
            if output.finish_reason is not None:
                self._open.discard(output.request_id)
            wakers, self._wakers = self._wakers + self._subscribers, []
            if not self._open:
                self._finish()
                wakers, self._end_wakers, self._subscribers = wakers + self._end_wakers, [], []
                if self._ended is not None:
                    self._ended.notify_all()
            if self._changed is not None:
                self._changed.notify_all()
        for wake in wakers:
            wake()

    def end(self, reason: FinishReason) -> None:
        """End what has not: for requests that never reached the engine."""
        for request_id in list(self._open):
            self.push(RequestOutput(request_id=request_id, finish_reason=reason))

    def _finish(self) -> None:
        """Tell who wanted to know first, and let go of everybody."""
        tell, self._on_finished, self._abort, self._observer = self._on_finished, None, None, None
        if tell is None:
            return
        whole = self._error is None and all(p.answered for p in self._presenters)
        said = ""
        try:
            tell(self._presenters if whole else ())
        except Exception as caught:
            said = f"{type(caught).__name__}: {caught}"
        if said:  # made here, where it does not hold what it comes from, and with that these frames
            self._error = EngineError(f"the output could not be taken over: {said}")

    def _take(self, output: RequestOutput) -> None:
        """Hand an output to its presenter; a failure to present it is the request's failure."""
        said = ""
        try:
            self._by_id[output.request_id].add(output)
        except Exception as caught:
            said = f"the output could not be presented: {type(caught).__name__}: {caught}"
        if self._error is None:
            self._error = EngineError(said) if said else failure(output.finish_reason)

    def subscribe(self, tell: Callable[[], None]) -> None:
        """Call ``tell``, from any thread, after every change from now on, and once now."""
        with self._lock:
            if self._open:
                self._subscribers.append(tell)
        tell()

    def observe(self, observer: Callable[[RequestOutput], None]) -> None:
        """Hand every output to ``observer`` before anybody hears of it, from the thread that brings it; what has come
        so far at once, as one output a request. There is one observer; it must be quick and must not raise.
        """
        with self._lock:
            for presenter in self._presenters:
                if presenter.output_ids or presenter.finish_reason is not None:
                    observer(presenter.so_far())
            if self._open:
                self._observer = observer

    @property
    def request_ids(self) -> tuple[str, ...]:
        """Names of its requests in the engine."""
        return tuple(self._by_id)

    def state(self) -> tuple[int, bool, Any]:
        """How often it has changed, whether it is over, and the event; raises what went wrong."""
        with self._lock:
            return self._version, not self._open, self._event()

    def progress(self) -> tuple[int, bool, list[Progress]]:
        """``state``, with what the event could be made of in place of it; one for each request."""
        with self._lock:
            return self._version, not self._open, self._progress()

    @property
    def finished(self) -> bool:
        """All requests have ended."""
        return not self._open

    @property
    def verdict(self) -> str:
        """How it ended, in words, for those who depended on it."""
        if self._error is not None:
            return f"failed: {self._error}"
        reasons = [p.finish_reason for p in self._presenters if p.finish_reason is not None and not p.answered]
        return f"was aborted: {reasons[0].message or 'no reason given'}" if reasons else "has ended"

    def abort(self) -> None:
        """End what is still running; its partial output is the answer."""
        abort = self._abort
        for request_id in list(self._open):
            if abort is not None:
                abort(request_id)

    def result(self, timeout: float | None = None) -> Any:
        """Block until the end: the final event (a list of them for several requests).

        Raises what went wrong, or ``TimeoutError`` after ``timeout`` seconds (the requests go on).
        """
        waited = 0.0
        with self._lock:
            ended = self._ended = self._ended or threading.Condition(self._lock)
            while self._open:
                if timeout is not None and waited >= timeout:
                    raise TimeoutError(f"no result within {timeout} s; the request goes on, abort() ends it")
                step = POLL_SECONDS if timeout is None else min(POLL_SECONDS, timeout - waited)
                if not ended.wait(step):
                    waited += step
            return self._event()

    def __iter__(self) -> Iterator[Any]:
        """Events until the end; the last one is complete."""
        seen = 0
        while True:
            with self._lock:
                changed = self._changed = self._changed or threading.Condition(self._lock)
                while self._version == seen and self._open:
                    changed.wait(POLL_SECONDS)
                seen, over, event = self._version, not self._open, self._event()
            yield event
            if over:
                return

    async def wait(self) -> Any:
        """``result`` for an event loop."""
        await self.ended()
        with self._lock:
            return self._event()

    async def ended(self) -> None:
        """Wait for the end, whatever it is like."""
        waiting = self._waiter(None)
        if waiting is not None:
            await waiting

    async def __aiter__(self) -> AsyncIterator[Any]:
        seen = 0
        while True:
            waiting = self._waiter(seen)
            if waiting is not None:
                await waiting
            with self._lock:
                seen, over, event = self._version, not self._open, self._event()
            yield event
            if over:
                return

    def _waiter(self, seen: int | None) -> asyncio.Future[None] | None:
        """A future of the running loop for the next change after ``seen``, or for the end; ``None``: it has come."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if not self._open or (seen is not None and self._version != seen):
                return None
            future: asyncio.Future[None] = loop.create_future()

            def resolve() -> None:
                if not future.done():
                    future.set_result(None)

            def wake() -> None:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(resolve)

            (self._end_wakers if seen is None else self._wakers).append(wake)
            return future

    def _event(self) -> Any:
        events = [progress.event() for progress in self._progress()]
        return events if self._many else events[0]

    def _progress(self) -> list[Progress]:
        if not self._open and self._error is not None:
            raise copy.copy(self._error)  # what is raised holds who read it, and whoever reads holds this
        return [presenter.progress() for presenter in self._presenters]
