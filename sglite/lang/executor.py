"""Runs the nodes of programs, all of them on one event loop.

A program has one ``StreamRunner`` per stream: a queue of jobs that a coroutine works off in order while there are any
(an idle stream costs no task and no thread). Pushing never blocks; results arrive in cells.

    body's thread    s += "a" + gen("x")        fork(2)            s["x"] waits for its cell
                          | push                  | push
    event loop       stream 0:  Lit  Gen(x) ....  Fork  ...
                                                   | adopt: text so far, a fork of the back end's sequence
                     streams 1, 2 (queued until adopted):  Lit  Gen  ...

Promises: jobs of a stream run in order; literals reach the back end merged, just before an output or a fork needs
them; what is queued behind a gen under way is shown to the back end, which may begin it at once; after a failure every
later job of the stream, and of branches forked later, fails at once with that cause; ``End`` is the last job of every
stream and closes the back end's sequence.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from sglite.lang.backends.base import Stream
from sglite.lang.cells import Feed
from sglite.lang.context import End, Job, Mark, RunContext
from sglite.lang.errors import Failure
from sglite.lang.ir import Gen, Lit, NodeRecord, Symbol
from sglite.lang.perform import Performer
from sglite.lang.transcript import Transcript

logger = logging.getLogger(__name__)

_LOOK_AHEAD = 64
"""Jobs behind the one under way that the back end is told of."""
_CLOSE_S = 10.0
"""How long a back end may take to give a sequence back: a server that does not answer must not keep a run open."""


class StreamRunner:
    """One stream of one run. ``push`` and ``cancel`` may be called from any thread; the rest is the loop's.

    ``group``: the fork it is a branch of, and the number of branches.
    """

    def __init__(self, context: RunContext, *, root: bool, group: tuple[str, int] = ("", 1)) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._queue: deque[Job | Mark | End] = deque()
        self._ready = root
        self._running = False
        self._task: asyncio.Task[None] | None = None
        self._job: Job | None = None
        self._performer = Performer(context, group, self._ahead)
        self.failure: Failure | None = None
        self._over: Failure | None = None
        self._told = False
        """The loop will look at the queue anyway."""

    @property
    def feed(self) -> Feed:
        """The stream's text as it comes."""
        return self._performer.feed

    # --- any thread ---

    def push(self, jobs: list[Job | Mark | End]) -> None:
        """Queues jobs; literals alone do not wake the stream, since nobody can tell, unless it is being streamed."""
        if self._over is not None:
            jobs = self._answered(jobs)
        wake = self._context.stream or any(not (isinstance(j, Job) and isinstance(j.node.op, Lit)) for j in jobs)
        with self._lock:
            self._queue.extend(jobs)
            start = wake and self._ready and not self._running
            follows = self._running and not self._told and self._performer.prepares and _has_gen(jobs)
            self._told = self._told or follows
            self._running = self._running or start
        if start:
            self._context.loop.call(self._start)
        elif follows:
            self._context.loop.call(self._prepare_more)

    def park(self, expected_s: float | None) -> None:
        """Tells the back end that the program waits for something else, for about so long."""
        self._context.loop.call(self._performer.park, expected_s)

    def cancel(self, failure: Failure) -> None:
        """Stops what runs and fails what is queued, with ``failure`` as the reason."""
        self._context.loop.call(self.cancel_here, failure)

    # --- the loop ---

    def _start(self) -> None:
        asyncio.ensure_future(self._work_off()).add_done_callback(_log_crash)

    def adopt(self, transcript: Transcript | None, stream: Stream | None, failure: Failure | None) -> None:
        """Begins a branch where its parent stands, or fails it with its parent."""
        with self._lock:
            adopted, self._ready = self._ready, True
            if adopted:  # cancelled meanwhile
                if stream is not None:
                    asyncio.ensure_future(stream.aclose()).add_done_callback(_log_crash)
                return
            start = bool(self._queue) and not self._running
            self._running = self._running or start
        self._performer.adopt(transcript, stream)
        self.failure = self.failure or failure
        if start:
            self._start()

    def cancel_here(self, failure: Failure) -> None:
        """``cancel`` for whoever is on the loop."""
        if self._over is not None:
            return
        if self._job is not None and failure.variable is None:
            during = f"{failure.request}, during {_named(self._job)}"
            name = None if self._job.cell is None else self._job.cell.name
            failure = replace(failure, request=during, variable=name, text=self._performer.text)
        self.failure = self.failure or failure
        self.feed.close()
        if self._task is not None:
            self._task.cancel()
        self.adopt(None, None, failure)

    async def _work_off(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._running = False
                    return
                job = self._queue.popleft()
            if isinstance(job, Mark):
                self._answered([job])
            elif isinstance(job, End):
                await self._end()
            elif (failure := self.failure or self._over) is not None:
                self._refuse(job, failure)
            else:
                try:
                    await self._run(job)
                except Exception as error:  # a fault of ours: nobody may wait for ever because of it
                    logger.exception("a stream's worker failed")
                    self.failure = self.failure or Failure("the executor", None, error, "")
                    self._refuse(job, self.failure)

    async def _run(self, job: Job) -> None:
        record: NodeRecord | None = None
        try:
            if not self._performer.apply(job):
                record = self._record(job)
                self._job = job
                self._task = asyncio.ensure_future(self._performer.request(job, record))
                await self._task
        except BaseException as error:  # whatever a check raised, and the loop's own cancelling
            if self.failure is None:
                self.failure = _failure(job, error, self._performer.text)
                self.feed.close()
                logger.warning("%s", self.failure.error())
            if record is not None:
                record.error = str(self.failure.cause) or type(self.failure.cause).__name__
            self._refuse(job, self.failure)
        finally:
            self._task = self._job = None
            if record is not None:
                record.ended = self._context.now()

    def _record(self, job: Job) -> NodeRecord:
        record = NodeRecord(self._context.now(), prompt_chars=self._performer.num_chars)
        self._context.graph.records[job.node.id] = record
        return record

    def _refuse(self, job: Job, failure: Failure) -> None:
        for cell in (job.cell, job.reasoning):
            if cell is not None:
                cell.fail(failure)
        for child in job.children:
            child.adopt(self._performer.transcript.copy(), None, failure)

    def _answered(self, jobs: Sequence[Job | Mark | End]) -> list[Job | Mark | End]:
        """Tells marks how the stream stands; what is left of ``jobs``."""
        for job in jobs:
            if isinstance(job, Mark) and job.future.set_running_or_notify_cancel():
                job.future.set_result(self._performer.snapshot(self.failure))
        return [job for job in jobs if not isinstance(job, Mark)]

    async def _end(self) -> None:
        self._over = Failure("an append", None, RuntimeError("the run has ended"), "")
        with self._lock:  # from here on the text is as it is: who asks for it need not wait for the back end
            waiting, self._queue = list(self._queue), deque()
        left = self._answered(waiting)
        with self._lock:
            self._queue.extendleft(reversed(left))
        worker = asyncio.current_task()
        assert worker is not None
        timer = worker.get_loop().call_later(_CLOSE_S, worker.cancel)  # wait_for would make a task of each close
        try:
            await self._performer.aclose()
        except asyncio.CancelledError:
            logger.warning("a back end did not take a sequence back within %s s; it is left to it", _CLOSE_S)
        except Exception:
            logger.exception("a back end failed to close a sequence of program %s", self._context.graph.program_id)
        finally:
            timer.cancel()
            self._context.on_end()

    # --- looking ahead ---

    def _ahead(self) -> list[Job | Mark | End]:
        """The jobs behind the one under way."""
        with self._lock:
            return list(islice(self._queue, _LOOK_AHEAD))

    def _prepare_more(self) -> None:
        self._told = False
        if self._task is not None and self.failure is None:
            self._performer.prepare_more()


def _has_gen(jobs: list[Job | Mark | End]) -> bool:
    return any(isinstance(job, Job) and isinstance(job.node.op, Gen) for job in jobs)


def _failure(job: Job, error: BaseException, text: str) -> Failure:
    variable = job.cell.name if job.cell is not None else None
    return Failure(_named(job), variable, error, text)


def _named(job: Job) -> str:
    """What a job does, as its author wrote it."""
    op = job.node.op
    return repr(op) if isinstance(op, Symbol) else str(op)


def _log_crash(task: asyncio.Task[None]) -> None:
    """Errors of programs end in their cells; anything that arrives here is ours."""
    if not task.cancelled() and task.exception() is not None:
        logger.error("a stream's worker ended unexpectedly", exc_info=task.exception())
