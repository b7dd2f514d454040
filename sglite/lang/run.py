"""One execution of a program: its graph, its streams, when it is over, and what it may cost."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sglite.lang.backends.base import Backend
from sglite.lang.budget import TokenBudget
from sglite.lang.cells import Signal
from sglite.lang.context import End, History, RunContext, Warmup
from sglite.lang.errors import BlockingReadError, DeadlineExceeded, Failure
from sglite.lang.executor import StreamRunner
from sglite.lang.ir import Graph, Sampling
from sglite.lang.order import BlockOrder
from sglite.lang.session import SESSION
from sglite.lang.tasks import Tasks
from sglite.lang.usage import Usage
from sglite.lang.values import Marks

logger = logging.getLogger(__name__)

_GRACE_S = 1.0
"""How long an async body may go on when its run was stopped, before it is cancelled."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What ``run`` may be told beside the program's arguments.

    ``seed``: makes sampling repeatable, each request having a seed of its own. ``deadline``: seconds until the run is
    stopped. ``token_budget``: tokens that its outputs together may have. ``history``: what happens where the chat
    template writes earlier turns anew, see ``history``.
    """

    defaults: Sampling = field(default_factory=Sampling)
    stream: bool = False
    inline: bool = False
    seed: int | None = None
    deadline: float | None = None
    token_budget: int | None = None
    history: History = "append"
    speculate: int | None = None

    def __post_init__(self) -> None:
        if self.deadline is not None and not self.deadline > 0:
            raise ValueError(f"deadline={self.deadline!r}: give a positive number of seconds")
        if self.token_budget is not None and (type(self.token_budget) is not int or self.token_budget < 1):
            raise ValueError(f"token_budget={self.token_budget!r}: give a positive number of tokens")
        if self.history not in ("append", "template"):
            raise ValueError(f"history={self.history!r}: use 'append' or 'template'")
        if self.seed is not None and type(self.seed) is not int:
            raise ValueError(f"seed={self.seed!r}: give an integer")


class Run:
    """See the module. ``inline``: every append waits until it was executed. ``finished`` resolves when the last
    stream has ended. ``loop``: where the body runs, if it is a coroutine; nothing may block there."""

    def __init__(
        self,
        backend: Backend,
        options: RunOptions,
        *,
        name: str = "program",
        loop: asyncio.AbstractEventLoop | None = None,
        warmup: Warmup | None = None,
        order: BlockOrder | None = None,
    ) -> None:
        self._order = order or BlockOrder()
        self.graph = Graph(name, uuid.uuid4().hex)
        self.backend = backend
        self.inline = options.inline
        self.is_async = loop is not None
        self._loop = loop
        self.marks = Marks(SESSION.marks)
        self.finished: Future[None] = Future()
        self.body_over: Future[None] = Future()
        self.stopped: Future[Failure] = Future()
        """Why the run was stopped, once it was: for a body that waits for something else than outputs."""
        self.settled: Future[None] = Future()
        """Resolves when nothing more will be appended: the body is over, or the run was stopped."""
        self.declared = Signal()
        self.tasks = Tasks()
        """The coroutines that an async body started."""
        self.streaming = options.stream
        self._lock = threading.Lock()
        self._runners: list[StreamRunner] = []
        self._to_end = 0
        self._ended = False
        self._process = os.getpid()
        self._body_task: asyncio.Task[Any] | None = None
        self._gave_up = False
        self._checkpoints = 0
        self._deadline: asyncio.TimerHandle | None = None
        self.context = RunContext(
            graph=self.graph,
            backend=backend,
            defaults=options.defaults,
            stream=options.stream,
            loop=SESSION.loop,
            on_end=self._one_ended,
            rng=random.Random(),
            warmup=warmup,
            seed=options.seed,
            budget=None if options.token_budget is None else TokenBudget(options.token_budget),
            nested=bool(SESSION.inside.get()),
            history=options.history,
            speculate=options.speculate,
        )
        if options.deadline is not None:
            SESSION.loop.call(self._set_deadline, options.deadline)

    @property
    def usage(self) -> Usage:
        """What the run has cost so far."""
        return self.context.usage

    def new_runner(self, *, root: bool = False, group: tuple[str, int] = ("", 1)) -> StreamRunner:
        """A runner for one more stream; RuntimeError once the run has ended."""
        with self._lock:
            self.check_open()
            runner = StreamRunner(self.context, root=root, group=group)
            self._runners.append(runner)
            return runner

    def ordered(self, texts: list[str]) -> list[str]:
        """Texts that may come in any order, in the one that shares most with other runs of the program."""
        return self._order.ordered(texts)

    def next_checkpoint(self) -> int:
        """A number for one more checkpoint."""
        with self._lock:
            self._checkpoints += 1
            return self._checkpoints

    def check_open(self) -> None:
        """RuntimeError once the run has ended."""
        if self._ended:
            raise RuntimeError("this run of the program has ended; append inside the program's body")

    @contextmanager
    def body(self) -> Iterator[None]:
        """Around the body, in its thread and for a coroutine in its task: programs called inside use its back end."""
        self._body_task = _task() if self.is_async else None
        inside = SESSION.inside.set(SESSION.inside.get() | {self.graph.program_id})
        current = SESSION.current.set(self.backend)
        try:
            yield
        finally:
            SESSION.current.reset(current)
            SESSION.inside.reset(inside)

    def end(self, failure: Failure | None = None) -> None:
        """The body is over: streams finish their jobs, or with ``failure`` stop at once, and close."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            runners = list(self._runners)
            self._to_end = len(runners)
        if failure is not None and self.streaming:
            logger.warning("%s", failure.error())
        for runner in runners:
            if failure is not None:
                runner.cancel(failure)
            runner.push([End()])
        self.body_over.set_result(None)
        self._settle()

    def stop(self, failure: Failure) -> None:
        """Stops every stream; what has no value yet fails. The body, if it runs, learns of it when it reads; one that
        waits for something else is cancelled, if it is a coroutine and did not ask for this itself."""
        if self.finished.done():
            return
        with self._lock:
            runners = list(self._runners)
            first = not self.stopped.done()
            if first:
                self.stopped.set_result(failure)
        SESSION.loop.call(_cancel_all, runners, failure)
        self._settle()
        if first and self.is_async and self.graph.program_id not in SESSION.inside.get():
            SESSION.loop.call(self._give_up_later)

    def _settle(self) -> None:
        with self._lock:
            if not self.settled.done():
                self.settled.set_result(None)
        self.declared.fire()

    def _give_up_later(self) -> None:
        asyncio.get_running_loop().call_later(_GRACE_S, self._give_up)

    def _give_up(self) -> None:
        task = self._body_task
        if task is not None and not self.body_over.done() and not task.get_loop().is_closed():
            task.get_loop().call_soon_threadsafe(self._cancel_body, task)

    def _cancel_body(self, task: asyncio.Task[Any]) -> None:
        if not self.body_over.done():
            self._gave_up = True
            task.cancel()

    def cause(self, error: BaseException) -> BaseException:
        """What ended the body: ``error``, or where that only says that the body was cancelled for it, what stopped
        the run."""
        if isinstance(error, asyncio.CancelledError) and self._gave_up:
            return self.stopped.result().error()
        return error

    def _set_deadline(self, seconds: float) -> None:
        error = DeadlineExceeded(f"the program did not finish within deadline={seconds} s")
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(seconds, self.stop, Failure("the deadline", None, error, ""))

    def _one_ended(self) -> None:
        self._to_end -= 1
        if self._to_end == 0:
            if self._deadline is not None:
                self._deadline.cancel()
            self.finished.set_result(None)

    # --- reading ---

    def outside(self) -> bool:
        """Whether whoever asks follows a streamed run whose body, in another thread or task, still appends."""
        followed = self.streaming and not self.settled.done()
        return followed and self.graph.program_id not in SESSION.inside.get()

    def may_block(self) -> bool:
        """Whether a read may wait in this thread: not in the event loop of the body that waits for it."""
        if SESSION.loop.is_here:
            return False
        if self._loop is None or self.body_over.done():
            return True
        try:
            return asyncio.get_running_loop() is not self._loop
        except RuntimeError:
            return True

    def wait(self, future: Future[Any], instead: Callable[[], str]) -> Any:
        """Blocks for ``future``; BlockingReadError, with the line to write ``instead``, in an async body."""
        if not future.done():
            self.check_process()
            self.check_blocking(instead)
        return SESSION.loop.wait(future)

    def check_blocking(self, instead: Callable[[], str]) -> None:
        """BlockingReadError, with the line to write ``instead``, where a read may not wait."""
        if not self.may_block():
            raise BlockingReadError(f"an async program must not block: write `{instead()}`")

    def check_process(self) -> None:
        """RuntimeError in a forked child: outputs of its parent's runs arrive there only."""
        if os.getpid() != self._process and not self.finished.done():
            raise RuntimeError("this run belongs to the process that forked this one; its outputs arrive there only")


def _cancel_all(runners: list[StreamRunner], failure: Failure) -> None:
    """At once: what one stream gives up is not for the others to take."""
    for runner in runners:
        runner.cancel_here(failure)


def _task() -> asyncio.Task[Any] | None:
    """The task that runs here; None outside event loops."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
