"""The EngineCore on a thread of its own, and the inbox through which everybody else talks to it.

Requests, aborts and calls are carried out between two steps, in the order in which they came. If the step loop
itself fails, every open request gets its terminal output and later ones are refused: nobody waits for ever.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from sglite.runtime.engine.core import EngineCore
from sglite.runtime.protocol import FinishReason, GenerateRequest, RequestOutput

T = TypeVar("T")
TIME_LIMIT_SECONDS = 0.02
"""How often a thread with nothing to compute looks whether a request's time is up."""
Handler = Callable[[RequestOutput], None]


class EngineThread:
    """Runs a core; all methods may be called from any thread.

    Args:
        make_core: builds the core, given what wakes the thread.
    """

    def __init__(self, make_core: Callable[[Callable[[], None]], EngineCore]) -> None:
        self._ready = threading.Condition()
        self._inbox: deque[Callable[[], None]] = deque()
        self._handlers: dict[str, Handler] = {}
        self._closing = False
        self._woken = False
        self._dead: str | None = None
        self._core = make_core(self.wake)
        self._thread = threading.Thread(target=self._run, name="sglite-engine", daemon=True)
        self._thread.start()

    def submit(self, request: GenerateRequest, handler: Handler) -> None:
        """Start a request; ``handler`` gets its outputs on the engine's thread, the last with a finish reason.

        From a handler, that is on the engine's own thread, it starts before the next step is planned.
        """
        self.submit_all([request], handler)

    def submit_all(self, requests: Sequence[GenerateRequest], *handlers: Handler) -> None:
        """Start several requests at once, so that the same step can take them; one handler for each, or for all."""
        each = handlers * len(requests) if len(handlers) == 1 else handlers

        def start() -> None:
            for request, handler in zip(requests, each, strict=True):
                self._start(request, handler)

        self._post(start)

    def _start(self, request: GenerateRequest, handler: Handler) -> None:
        if request.request_id in self._handlers:
            message = f"rid {request.request_id!r} belongs to a request that is still open; give another one"
            reason = FinishReason(type="error", code="invalid_request", message=message)
            handler(RequestOutput(request_id=request.request_id, finish_reason=reason))
            return
        self._handlers[request.request_id] = handler
        if self._dead is not None:
            self._end(request.request_id, self._dead)
        else:
            self._core.add(request)

    def abort(self, request_id: str) -> None:
        """End a request if it is still open."""

        def abort() -> None:
            self._core.abort(request_id)

        self._post(abort)

    def call(self, function: Callable[[EngineCore], T]) -> Future[T]:
        """Run ``function`` on the core between two steps."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function(self._core))
            except Exception as error:
                future.set_exception(error)

        self._post(run)
        return future

    def wake(self) -> None:
        """Look for work again."""
        with self._ready:
            self._woken = True
            self._ready.notify()

    def close(self) -> None:
        """Abort what is open and end the thread; safe to call twice."""
        with self._ready:
            self._closing = True
            self._ready.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _post(self, item: Callable[[], None]) -> None:
        with self._ready:
            if self._closing:
                raise RuntimeError("the engine has been shut down; make a new one")
            self._inbox.append(item)
            self._ready.notify()

    def _run(self) -> None:
        while self._carry_out():
            if self._dead is None:
                self._guard(self._step)
        self._finish()

    def _carry_out(self) -> bool:
        """Wait for something to do and do what the inbox asks for; ``False``: the thread is to end.

        On its own so that a waiting thread holds on to nothing: what it did last may be all that keeps an engine.
        """
        with self._ready:
            while not (self._inbox or self._closing or self._woken or self._has_work()):
                if not self._ready.wait(TIME_LIMIT_SECONDS if self._core.has_time_limits else None):
                    break
            self._woken = False
            items, self._inbox = self._inbox, deque()
            closing = self._closing
        while items:
            self._guard(items.popleft())
        return not closing

    def _has_work(self) -> bool:
        return self._dead is None and not self._core.is_idle

    def _guard(self, action: Callable[[], object]) -> None:
        """A failure of the loop itself ends everything that is open; nobody is left waiting."""
        try:
            action()
        except Exception as error:
            self._dead = f"the engine's step loop failed: {type(error).__name__}: {error}"
            for request_id in list(self._handlers):
                self._end(request_id, self._dead)

    def _step(self) -> None:
        """One step of the core."""
        before = self._core.num_steps
        outputs = self._core.step()
        self._dispatch(outputs)
        if not outputs and self._core.num_steps == before and not self._core.has_steps_in_flight:
            with self._ready:
                if not (self._inbox or self._closing or self._woken):
                    self._ready.wait(0.001)

    def _dispatch(self, outputs: list[RequestOutput]) -> None:
        for output in outputs:
            over = output.finish_reason is not None
            handler = self._handlers.pop(output.request_id, None) if over else self._handlers.get(output.request_id)
            if handler is not None:
                handler(output)

    def _end(self, request_id: str, message: str) -> None:
        reason = FinishReason(type="error", code="engine_dead", message=message)
        self._dispatch([RequestOutput(request_id=request_id, finish_reason=reason)])

    def _finish(self) -> None:
        """Give every open request its end and stop what the core uses."""
        if self._dead is None:
            self._core.abort_all("the engine was shut down")
            self._dispatch(self._core.drain())
        for request_id in list(self._handlers):
            self._end(request_id, "the engine was shut down")
        self._core.close()
