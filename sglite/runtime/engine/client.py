"""How everybody talks to an EngineCore: ``EngineClient``, and the one whose core runs on a thread of this process.

Requests, aborts and calls are carried out between two steps, in the order in which they came. If the step loop
itself fails, every open request gets its terminal output and later ones are refused: nobody waits for ever.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from sglite.constrained.spec import ConstraintSpec
from sglite.runtime.engine.core import EngineCore
from sglite.runtime.engine.generation import EngineError
from sglite.runtime.engine.health import Health, Load
from sglite.runtime.protocol import (
    Accounting,
    FinishReason,
    GenerateRequest,
    PauseMode,
    RequestOutput,
    WeightOrder,
    WeightsResult,
)

logger = logging.getLogger(__name__)
T = TypeVar("T")
TIME_LIMIT_SECONDS = 0.02
"""How often a thread with nothing to compute looks whether a request's time is up."""
NOTE_SECONDS = 0.25
"""How often a thread notes its load."""
SHUT_DOWN = "the engine has been shut down"
Handler = Callable[[RequestOutput], None]


class EngineClient(Protocol):
    """An engine, wherever it runs. All methods may be called from any thread; none waits for the engine but ``close``.

    What is asked for is carried out between two steps, in the order in which it was asked for. Hints (``abort``,
    ``unpin``, ``park``, ``compile_ahead``) to an engine that has ended or died do nothing.
    """

    @property
    def num_open(self) -> int:
        """Requests whose terminal output has not come."""
        ...

    def submit(self, request: GenerateRequest, handler: Handler) -> None:
        """Start a request. ``handler`` gets its outputs, the last, and only that, with a finish reason.

        It is called on a thread of the client's, must be quick, and may use the client. Raises EngineError
        (``code`` ``engine_dead``) where there is no engine to start it and RuntimeError after ``close``.
        """
        ...

    def submit_all(self, requests: Sequence[GenerateRequest], *handlers: Handler) -> None:
        """Start several requests at once, so that the same step can take them; one handler for each, or for all."""
        ...

    def abort(self, request_id: str) -> None:
        """End a request if it is still open."""
        ...

    def abort_all(self, message: str) -> None:
        """End every open request; they are told ``message``."""
        ...

    def compile_ahead(self, spec: ConstraintSpec) -> None:
        """Begin to compile a constraint that a request will bring."""
        ...

    def unpin(self, prefix: str) -> None:
        """Forget the pins whose names start with ``prefix``."""
        ...

    def park(self, pin: str, expected_s: float | None) -> None:
        """What is pinned under names that start with ``pin`` is not needed for about so many seconds."""
        ...

    def flush_cache(self) -> Future[int]:
        """Drop cached prefixes that nothing in flight uses; the pages freed."""
        ...

    def statistics(self) -> Future[dict[str, Any]]:
        """Counters and load, exact."""
        ...

    def program_info(self, program_id: str) -> Future[Accounting | None]:
        """What a program's ended requests have cost; ``None``: unknown."""
        ...

    def pause(self, mode: PauseMode) -> Future[None]:
        """Compute nothing more until ``resume``; done when nothing is being computed. See ``EngineCore.pause``."""
        ...

    def resume(self) -> Future[None]:
        """Go on after ``pause``."""
        ...

    def weights(self, order: WeightOrder) -> Future[WeightsResult]:
        """Read or replace the model's weights; see ``engine.weights`` for when. Of several, one after the other."""
        ...

    def health(self) -> Health:
        """How the engine is, at once."""
        ...

    def load(self) -> Load:
        """What is known of the engine's load, at once."""
        ...

    def close(self) -> None:
        """Give every open request its end and stop the engine; safe to call twice."""
        ...


class EngineThread:
    """Runs a core; all methods may be called from any thread.

    Args:
        make_core: builds the core, given what wakes the thread.
        on_outputs: called on the thread whenever handlers have been given what there was.
        on_death: called on the thread when the step loop has failed and everybody knows, with the reason.
    """

    def __init__(
        self,
        make_core: Callable[[Callable[[], None]], EngineCore],
        on_outputs: Callable[[], None] = lambda: None,
        on_death: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._ready = threading.Condition()
        self._inbox: deque[Callable[[], None]] = deque()
        self._handlers: dict[str, Handler] = {}
        self._closing = False
        self._woken = False
        self._dead: str | None = None
        self._on_outputs = on_outputs
        self._on_death = on_death
        self._resting = False
        self._core = make_core(self.wake)
        self._beat = time.monotonic()
        self._noted: tuple[float, dict[str, Any]] = (self._beat, self._core.statistics())
        self._changed_since = False
        """Whether something has happened since the load was noted."""
        self._thread = threading.Thread(target=self._run, name="sglite-engine", daemon=True)
        self._thread.start()

    @property
    def num_open(self) -> int:
        """See ``EngineClient``."""
        return len(self._handlers)

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
            self._on_outputs()
            return
        self._handlers[request.request_id] = handler
        if self._dead is not None:
            self._end(request.request_id, self._dead)
        else:
            self._core.add(request)

    def abort(self, request_id: str) -> None:
        """End a request if it is still open."""
        self._hint(lambda core: core.abort(request_id))

    def abort_all(self, message: str) -> None:
        """End every open request."""
        self._hint(lambda core: core.abort_all(message))

    def compile_ahead(self, spec: ConstraintSpec) -> None:
        """See ``EngineClient``; the compiler does not wait for the step under way."""
        with contextlib.suppress(RuntimeError):
            self._core.compile_ahead(spec)

    def unpin(self, prefix: str) -> None:
        """See ``EngineClient``."""
        self._hint(lambda core: core.unpin(prefix))

    def park(self, pin: str, expected_s: float | None) -> None:
        """See ``EngineClient``."""
        with contextlib.suppress(RuntimeError):
            self.call(lambda core: core.park(pin, expected_s))

    def flush_cache(self) -> Future[int]:
        """See ``EngineClient``."""
        return self.call(lambda core: core.flush_cache())

    def statistics(self) -> Future[dict[str, Any]]:
        """See ``EngineClient``."""
        return self.call(lambda core: core.statistics())

    def program_info(self, program_id: str) -> Future[Accounting | None]:
        """See ``EngineClient``."""
        return self.call(lambda core: core.programs.get(program_id))

    def pause(self, mode: PauseMode) -> Future[None]:
        """See ``EngineClient``."""
        return self.call(lambda core: core.pause(mode))

    def resume(self) -> Future[None]:
        """See ``EngineClient``."""
        return self.call(lambda core: core.resume())

    def weights(self, order: WeightOrder) -> Future[WeightsResult]:
        """See ``EngineClient``."""
        answer: Future[WeightsResult] = Future()
        answer.set_running_or_notify_cancel()  # it is carried out whoever waits

        def take() -> None:
            if self._dead is None:
                self._core.weights.take(order, answer)
            else:
                answer.set_exception(EngineError(self._dead, "engine_dead"))

        self._post(take)
        return answer

    def health(self) -> Health:
        """See ``EngineClient``."""
        if self._dead is not None or self._closing:
            return Health("dead", self._dead or SHUT_DOWN)
        return Health("running", age_s=0.0 if self._resting else time.monotonic() - self._beat)

    def load(self) -> Load:
        """See ``EngineClient``; noted every ``NOTE_SECONDS`` while something happens."""
        noted, statistics = self._noted
        unchanged = self._resting and not self._changed_since
        return Load(0.0 if unchanged else time.monotonic() - noted, statistics)

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

    def _hint(self, action: Callable[[EngineCore], object]) -> None:
        """Run ``action`` on the core between two steps, if there is still one to run it on."""
        with contextlib.suppress(RuntimeError):  # shut down: there is nothing left that it could be about
            self._post(functools.partial(self._act, action))

    def _act(self, action: Callable[[EngineCore], object]) -> None:
        if self._dead is None:
            action(self._core)

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
                raise RuntimeError(f"{SHUT_DOWN}; make a new one")
            self._inbox.append(item)
            self._ready.notify()

    def _run(self) -> None:
        while self._carry_out():
            if self._dead is None:
                self._guard(self._step)
                self._guard(self._note)
        self._finish()

    def _carry_out(self) -> bool:
        """Wait for something to do and do what the inbox asks for; ``False``: the thread is to end.

        On its own so that a waiting thread holds on to nothing: what it did last may be all that keeps an engine.
        """
        if self._changed_since and self._has_work() and not (self._inbox or self._closing or self._woken):
            self._beat = time.monotonic()
            return True  # what comes meanwhile is seen after the next step
        with self._ready:
            self._resting = True
            while not (self._inbox or self._closing or self._woken or self._has_work()):
                if not self._ready.wait(self._patience()):
                    break
            self._resting, self._woken = False, False
            self._beat = time.monotonic()
            if not self._changed_since:
                self._noted = (self._beat, self._noted[1])
            items, self._inbox = self._inbox, deque()
            closing = self._closing
        self._changed_since |= bool(items)
        while items:
            self._guard(items.popleft())
        return not closing

    def _patience(self) -> float | None:
        """How long to wait for something to do before looking around."""
        if self._core.has_time_limits:
            return TIME_LIMIT_SECONDS
        return NOTE_SECONDS if self._changed_since and self._dead is None else None

    def _note(self) -> None:
        """Note the load where it may have changed, but not all the time."""
        now = time.monotonic()
        if self._changed_since and now - self._noted[0] >= NOTE_SECONDS:
            self._noted, self._changed_since = (now, self._core.statistics()), False

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
            self._core.weights.fail(EngineError(self._dead, "engine_dead"))
            self._on_death(self._dead)

    def _step(self) -> None:
        """One step of the core."""
        before = self._core.num_steps
        outputs = self._core.step()
        self._changed_since |= self._core.num_steps != before or bool(outputs)
        if outputs:
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
                hand(handler, output)
        self._on_outputs()

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
        self._core.weights.fail(EngineError("the engine was shut down", "engine_dead"))
        self._core.close()


def hand(handler: Handler, output: RequestOutput) -> None:
    """Give an output to whoever waits for it; one handler's failure is nobody else's."""
    try:
        handler(output)
    except Exception:
        logger.exception("an output of request %s could not be handed on", output.request_id)
