"""The client of an engine in a process of its own: every operation is a message, every open request gets its end.

    submit, abort ...  --> socket --> engine process
    handlers, futures  <-- reader thread, or an event loop <-- socket

Promises. A request that was accepted here gets exactly one terminal output: the engine's, or ``engine_dead`` as soon as
the connection ends, however it does. Nothing but ``close`` waits for the process; how it is, is known from its
answers to a question every ``HEARTBEAT_SECONDS``, which it takes up between two steps. A process that dies is started
again where that was asked for, a bounded number of times, with a cache of the same size; sequences keep their ids here.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import msgspec

from sglite.constrained.spec import ConstraintSpec
from sglite.runtime.engine.child import EngineProcess, Spawn
from sglite.runtime.engine.client import SHUT_DOWN, Handler, hand
from sglite.runtime.engine.gather import gathered
from sglite.runtime.engine.generation import EngineError, RequestRefused
from sglite.runtime.engine.health import Health, Load
from sglite.runtime.engine.loop_reading import LoopReading
from sglite.runtime.engine.messages import (
    Abort,
    AbortAll,
    Answer,
    Ask,
    AskWeights,
    CompileAhead,
    Dying,
    LoadModel,
    Outputs,
    Park,
    Question,
    Submit,
    Unpin,
)
from sglite.runtime.engine.questions import Questions
from sglite.runtime.engine.wire import WireError
from sglite.runtime.protocol import (
    Accounting,
    FinishReason,
    GenerateRequest,
    PauseMode,
    RequestOutput,
    UpdateWeights,
    WeightOrder,
    WeightsResult,
)

logger = logging.getLogger(__name__)
HEARTBEAT_SECONDS = 0.5
RESTARTS = 3
"""Deaths within ``RESTART_SECONDS`` after which a process is started again; after one more it is not."""
RESTART_SECONDS = 60.0
_SHUTDOWN_SECONDS = 10.0
"""How long a process that was asked to end may take."""


class RemoteClient:
    """Talks to a process whose model is loaded; see ``EngineClient`` for the operations.

    Args:
        process: the one to begin with.
        statistics: what it said of itself when its model was loaded.
        again: starts another when it dies, and what that is to load; ``None``: it is not started again.
    """

    def __init__(
        self,
        process: EngineProcess,
        statistics: dict[str, Any],
        again: tuple[Spawn, LoadModel] | None = None,
    ) -> None:
        self._process = process
        self._again = again
        self._owner = os.getpid()
        self._lock = threading.RLock()
        """Of what follows; a finalizer may come inside of it. Handlers are never called under it."""
        self._handlers: dict[str, Handler] = {}
        self._questions = Questions()
        self._running = True
        self._reason = ""
        self._starting = False
        self._deaths: deque[float] = deque(maxlen=RESTARTS + 1)
        self._restarts = 0
        self._paused: PauseMode | None = None
        self._heard = time.monotonic()
        self._statistics = statistics
        self._closing = threading.Event()
        self._said = ""
        self._reading = threading.Lock()
        self._on_loop = LoopReading(functools.partial(self._receive, wait=False), self._closing)
        self._reader = threading.Thread(target=self._run, name="sglite-remote", daemon=True)
        self._reader.start()
        threading.Thread(target=self._beat, name="sglite-heartbeat", daemon=True).start()

    @property
    def pid(self) -> int:
        """Of the engine's process."""
        return self._process.pid

    @property
    def num_open(self) -> int:
        """See ``EngineClient``."""
        return len(self._handlers)

    # --- requests ---------------------------------------------------------------------------------------------

    def submit(self, request: GenerateRequest, handler: Handler) -> None:
        """See ``EngineClient``; the handler is called on the reader's thread."""
        self.submit_all([request], handler)

    def submit_all(self, requests: Sequence[GenerateRequest], *handlers: Handler) -> None:
        """See ``EngineClient``. Raises ``WireError``, a ValueError, for what cannot be sent to another process."""
        each = handlers * len(requests) if len(handlers) == 1 else handlers
        named = {request.request_id: handler for request, handler in zip(requests, each, strict=True)}
        with self._lock:
            self._check_running()
            for name in named:
                if name in self._handlers:
                    raise RequestRefused(f"rid {name!r} belongs to a request that is still open; give another one")
            self._handlers.update(named)
            try:
                self._process.send(Submit(list(requests)))
            except BaseException:
                for name in named:
                    del self._handlers[name]
                raise

    def abort(self, request_id: str) -> None:
        """See ``EngineClient``."""
        self._hint(Abort(request_id))

    def abort_all(self, message: str) -> None:
        """See ``EngineClient``."""
        self._hint(AbortAll(message))

    def compile_ahead(self, spec: ConstraintSpec) -> None:
        """See ``EngineClient``."""
        self._hint(CompileAhead(spec))

    def unpin(self, prefix: str) -> None:
        """See ``EngineClient``."""
        self._hint(Unpin(prefix))

    def park(self, pin: str, expected_s: float | None) -> None:
        """See ``EngineClient``."""
        self._hint(Park(pin, expected_s))

    def _hint(self, message: Any) -> None:
        """Tell an engine that runs; to one that does not, nothing that it could be about is known any more."""
        if self._running:
            with contextlib.suppress(WireError):  # a name that cannot be sent never was
                self._process.send(message)

    def _check_running(self) -> None:
        if self._closing.is_set():
            raise RuntimeError(f"{SHUT_DOWN}; make a new one")
        if not self._running:
            raise _dead(self._reason)

    # --- questions --------------------------------------------------------------------------------------------

    def flush_cache(self) -> Future[int]:
        """See ``EngineClient``."""
        return self._ask("flush_cache")

    def statistics(self) -> Future[dict[str, Any]]:
        """See ``EngineClient``."""
        return self._ask("statistics")

    def program_info(self, program_id: str) -> Future[Accounting | None]:
        """See ``EngineClient``."""
        return self._ask("program_info", program_id, Accounting | None)

    def pause(self, mode: PauseMode) -> Future[None]:
        """See ``EngineClient``; a process that is started again is paused too."""
        self._paused = mode
        return self._ask("pause", mode)

    def resume(self) -> Future[None]:
        """See ``EngineClient``."""
        self._paused = None
        return self._ask("resume")

    def weights(self, order: WeightOrder) -> Future[WeightsResult]:
        """See ``EngineClient``. A process that is started again reads what is in the folder of the last update then;
        there is none after an update with tensors, which are nowhere else."""
        future = self._put(functools.partial(AskWeights, order=order), WeightsResult)
        if isinstance(order, UpdateWeights):
            future.add_done_callback(functools.partial(self._note_update, order.source))
        return future

    def _note_update(self, source: str | bytes, done: Future[WeightsResult]) -> None:
        with self._lock:
            if self._again is None or done.exception() is not None or not done.result().success:
                return
            spawn, order = self._again
            again = msgspec.structs.replace(order, weights=source) if isinstance(source, str) else None
            self._again = None if again is None else (spawn, again)
        if again is None:
            logger.warning("the engine is not started again if it dies: its weights came as tensors")

    def _ask(self, question: Question, argument: str = "", kind: Any = Any) -> Future[Any]:
        return self._put(functools.partial(Ask, question=question, argument=argument), kind)

    def _put(self, message: Callable[[int], Any], kind: Any) -> Future[Any]:
        """A future for the answer to a numbered message, of type ``kind``; it fails when the process does."""
        with self._lock:
            self._check_running()
            return self._questions.ask(lambda number: self._process.send(message(number)), kind)

    # --- how it is --------------------------------------------------------------------------------------------

    def health(self) -> Health:
        """See ``EngineClient``."""
        age = time.monotonic() - self._heard
        if self._running:
            return Health("running", age_s=age, restarts=self._restarts)
        return Health("starting" if self._starting else "dead", self._reason, age, self._restarts)

    def load(self) -> Load:
        """See ``EngineClient``."""
        return Load(time.monotonic() - self._heard, self._statistics)

    def _beat(self) -> None:
        """Ask how it is, again and again, but not before the last answer."""
        while True:
            with contextlib.suppress(EngineError, RuntimeError):
                statistics = self.statistics().result()
                self._heard, self._statistics = time.monotonic(), statistics
            if self._closing.wait(HEARTBEAT_SECONDS):
                return

    # --- the reader's thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        """Read until the process ends; start it again as long as that makes sense."""
        while True:
            said = self._read()
            if not self._lose(said) or not self._restart():
                return

    def _read(self) -> str:
        """Hand on what the process says until it says nothing more; what it said of its end."""
        self._said = ""
        while self._receive(wait=True):
            self._on_loop.lend(self._process.fileno)
        return self._said

    def _receive(self, wait: bool) -> bool:
        """Hand on what the process has said; whether it is to say more."""
        with self._reading:
            found = self._process.receive(wait)
            outputs: list[RequestOutput] = []
            for message in found or ():
                if type(message) is Outputs:
                    outputs += message.outputs
                    continue
                self._dispatch(gathered(outputs))
                outputs = []
                if type(message) is Answer:
                    self._answer(message)
                elif type(message) is Dying:
                    self._said = message.message
            if outputs:
                self._dispatch(gathered(outputs) if len(outputs) > 1 else outputs)
            return found is not None

    def read_on(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Hand on what comes on ``loop`` from soon on; see ``LoopReading``."""
        self._on_loop.read_on(loop)

    def _dispatch(self, outputs: Sequence[RequestOutput]) -> None:
        for output in outputs:
            name, over = output.request_id, output.finish_reason is not None
            handler = self._handlers.pop(name, None) if over else self._handlers.get(name)
            if handler is not None:
                hand(handler, output)

    def _answer(self, message: Answer) -> None:
        with self._lock:
            tell = self._questions.answer(message)
        tell()

    def _lose(self, said: str) -> bool:
        """The connection has ended: everybody who waits hears of it. Whether another process is wanted."""
        with self._lock:
            closing = self._closing.is_set()
            self._reason = SHUT_DOWN if closing else said or "the engine's process has ended"
            self._starting = not closing and self._again is not None
            self._running = False
        how = self._process.end()
        if not closing:
            self._reason = f"{how}: {said}" if said else how
            logger.error("%s; %d requests were open", self._reason, self.num_open)
        with self._lock:
            handlers, self._handlers = self._handlers, {}
            questions, self._questions = self._questions, Questions()
        for name, handler in handlers.items():
            reason = FinishReason(type="error", code="engine_dead", message=f"{self._reason}; send the request again")
            hand(handler, RequestOutput(request_id=name, finish_reason=reason))
        questions.fail(_dead(self._reason))
        return self._starting

    def _restart(self) -> bool:
        """Another process in place of the one that died, after as many tries as there may be; whether there is one."""
        assert self._again is not None
        spawn, order = self._again
        why = self._reason
        while not self._closing.is_set():
            self._deaths.append(time.monotonic())
            recent = sum(time.monotonic() - death < RESTART_SECONDS for death in self._deaths)
            if recent > RESTARTS:
                self._reason = f"the engine died {recent} times within {RESTART_SECONDS:g} s and stays down; {why}"
                logger.error("%s", self._reason)
                break
            self._reason = f"the engine is being started again, because {why}"
            if self._closing.wait(recent - 1):
                break
            process = spawn()
            with self._lock:
                self._process = process
                if self._closing.is_set():
                    process.kill()
            try:
                process.load(order)
                statistics = process.loaded().statistics
            except (ValueError, EngineError) as error:
                process.end()
                why = str(error)
                continue
            self._begin_again(statistics)
            return True
        self._starting = False
        return False

    def _begin_again(self, statistics: dict[str, Any]) -> None:
        with self._lock:
            self._restarts += 1
            self._heard, self._statistics = time.monotonic(), statistics
            self._running, self._starting, self._reason = True, False, ""
            if self._paused is not None:
                self._ask("pause", self._paused)
        logger.warning("the engine runs again, in process %d", self.pid)

    # --- the end ----------------------------------------------------------------------------------------------

    def close(self) -> None:
        """See ``EngineClient``: the process is gone afterwards. A forked child of this process leaves it alone."""
        if os.getpid() != self._owner:
            return
        with self._lock:
            first, process = not self._closing.is_set(), self._process
            self._closing.set()
        if first:
            process.shut_down()
            if not process.wait(_SHUTDOWN_SECONDS):
                process.kill()
        if threading.current_thread() is not self._reader:
            self._reader.join()

    def kill(self) -> None:
        """End the process at once; open requests are told."""
        self._closing.set()
        self._process.kill()


def _dead(reason: str) -> EngineError:
    return EngineError(reason, "engine_dead")
