"""Runs the nodes of programs, all of them on one event loop.

A program has one ``StreamRunner`` per stream: a queue of jobs that a coroutine works off in order while there are any
(an idle stream costs no task and no thread). Pushing never blocks; results arrive in cells.

    body's thread    s += "a" + gen("x")        fork(2)            s["x"] waits for its cell
                          | push                  | push
    event loop       stream 0:  Lit  Gen(x) ....  Fork  ...
                                                   | adopt: text so far, a fork of the back end's sequence
                     streams 1, 2 (queued until adopted):  Lit  Gen  ...

Promises: jobs of a stream run in order; literals reach the back end merged, just before an output or a fork needs
them; after a failure every later job of the stream, and of branches forked later, fails at once with that cause;
``End`` is the last job of every stream and closes the back end's sequence.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

from sglite.lang.backends.base import Backend, GenCall, Output, Stream, check_finished
from sglite.lang.cells import Cell, Feed
from sglite.lang.choices import decide
from sglite.lang.errors import Failure
from sglite.lang.ir import (
    CaptureBegin,
    CaptureEnd,
    Fork,
    Gen,
    Join,
    Lit,
    Media,
    Node,
    Reasoned,
    RoleBegin,
    RoleEnd,
    Sampling,
    Select,
)
from sglite.lang.messages import Message
from sglite.lang.reasoning import split_reasoning
from sglite.lang.threads import LoopThread
from sglite.lang.transcript import Transcript

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A node to run. ``cell``: where its value goes; ``reasoning``: where the reasoning goes; ``children``: the streams
    of a fork; ``parts``: text a join waits for."""

    node: Node
    cell: Cell | None = None
    reasoning: Cell | None = None
    children: tuple[StreamRunner, ...] = ()
    parts: tuple[Future[Snapshot], ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """A stream as it stood when all jobs before had run. ``new_text``: what it has beyond its parent's at the fork."""

    text: str
    new_text: str
    messages: list[Message]
    failure: Failure | None


@dataclass(frozen=True)
class Mark:
    """Resolves ``future`` when all jobs before have run; never fails."""

    future: Future[Snapshot] = field(default_factory=Future)


@dataclass(frozen=True)
class End:
    """No job follows."""


class Warmup(Protocol):
    """Lets the first requests of a batch wait until their common prefix is cached."""

    async def arrive(self, prompt: str) -> None:
        """Called with the text before a stream's first request; returns when it may be sent."""
        ...


@dataclass(frozen=True)
class RunContext:
    """What all streams of one run share."""

    program_id: str
    backend: Backend
    defaults: Sampling
    stream: bool
    loop: LoopThread
    rng: random.Random
    on_end: Callable[[], None]
    """Called on the loop for every stream that has ended."""
    warmup: Warmup | None = None


class StreamRunner:
    """One stream of one run. ``push`` and ``cancel`` may be called from any thread; the rest is the loop's."""

    def __init__(self, context: RunContext, *, root: bool) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._queue: deque[Job | Mark | End] = deque()
        self._ready = root
        self._running = False
        self._task: asyncio.Task[None] | None = None
        self._transcript = Transcript(context.backend.chat_format())
        self._inherited = 0
        self._stream: Stream | None = None
        self._pending: list[str] = []
        self._requested = False
        self.feed = Feed()
        self.failure: Failure | None = None
        self._over: Failure | None = None

    # --- any thread ---

    def push(self, jobs: list[Job | Mark | End]) -> None:
        """Queues jobs; literals alone do not wake the stream, since nobody can tell, unless it is being streamed."""
        wake = self._context.stream or any(not (isinstance(j, Job) and isinstance(j.node.op, Lit)) for j in jobs)
        with self._lock:
            self._queue.extend(jobs)
            start = wake and self._ready and not self._running
            self._running = self._running or start
        if start:
            self._context.loop.call(self._start)

    def cancel(self, failure: Failure) -> None:
        """Stops what runs and fails what is queued, with ``failure`` as the reason."""
        self._context.loop.call(self._cancel, failure)

    # --- the loop ---

    def _start(self) -> None:
        asyncio.ensure_future(self._work_off()).add_done_callback(_log_crash)

    def _adopt(self, transcript: Transcript | None, stream: Stream | None, failure: Failure | None) -> None:
        """Begins a branch where its parent stands, or fails it with its parent."""
        with self._lock:
            adopted, self._ready = self._ready, True
            if adopted:  # cancelled meanwhile
                if stream is not None:
                    asyncio.ensure_future(stream.aclose()).add_done_callback(_log_crash)
                return
            start = bool(self._queue) and not self._running
            self._running = self._running or start
        if transcript is not None:
            self._transcript, self._inherited = transcript, transcript.num_pieces
            self.feed.write(transcript.text)
        self._stream, self._requested = stream, True
        self.failure = self.failure or failure
        if start:
            self._start()

    def _cancel(self, failure: Failure) -> None:
        self.failure = self.failure or failure
        if self._task is not None:
            self._task.cancel()
        self._adopt(None, None, failure)

    async def _work_off(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._running = False
                    return
                job = self._queue.popleft()
            if isinstance(job, Mark):
                if job.future.set_running_or_notify_cancel():
                    job.future.set_result(self._snapshot())
            elif isinstance(job, End):
                await self._end()
            elif (failure := self.failure or self._over) is not None:
                self._refuse(job, failure)
            else:
                await self._run(job)

    async def _run(self, job: Job) -> None:
        try:
            if not self._apply(job):
                self._task = asyncio.ensure_future(self._request(job))
                await self._task
        except (Exception, asyncio.CancelledError) as error:
            if self.failure is None:
                self.failure = _failure(job, error, self._transcript.text)
                logger.warning("%s", self.failure.error())
            self._refuse(job, self.failure)
        finally:
            self._task = None

    def _refuse(self, job: Job, failure: Failure) -> None:
        for cell in (job.cell, job.reasoning):
            if cell is not None:
                cell.fail(failure)
        for child in job.children:
            child._adopt(self._transcript.copy(), None, failure)

    def _snapshot(self) -> Snapshot:
        script = self._transcript
        return Snapshot(script.text, script.text_from(self._inherited), script.messages, self.failure)

    async def _end(self) -> None:
        self.feed.close()
        self._over = Failure("an append", None, RuntimeError("the run has ended"), "")
        stream, self._stream = self._stream, None
        try:
            if stream is not None:
                await stream.aclose()
        except Exception:
            logger.exception("a back end failed to close a sequence of program %s", self._context.program_id)
        self._context.on_end()

    # --- nodes that need no request ---

    def _apply(self, job: Job) -> bool:
        """Runs a node that only concerns text; False if it needs the back end."""
        op, script = job.node.op, self._transcript
        if isinstance(op, Lit):
            self._write(script.add(op.text))
        elif isinstance(op, RoleBegin):
            self._write(script.begin_turn(op.role))
        elif isinstance(op, RoleEnd):
            self._write(script.end_turn())
        elif isinstance(op, CaptureBegin):
            script.begin_capture(op.name)
        elif isinstance(op, CaptureEnd):
            assert job.cell is not None
            job.cell.resolve(script.end_capture(op.name), None)
        else:
            return False
        return True

    def _write(self, text: str) -> None:
        self._pending.append(text)
        self.feed.write(text)

    # --- nodes that do ---

    async def _request(self, job: Job) -> None:
        op = job.node.op
        stream = await self._flushed()
        if isinstance(op, Gen):
            await self._generate(job, op, stream)
        elif isinstance(op, Reasoned):
            await self._generate_reasoned(job, op, stream)
        elif isinstance(op, Select):
            await self._select(job, op, stream)
        elif isinstance(op, Fork):
            branches = await stream.fork(len(job.children))
            for child, branch in zip(job.children, branches, strict=True):
                child._adopt(self._transcript.copy(), branch, None)
        elif isinstance(op, Join):
            for part in job.parts:
                snapshot = await asyncio.wrap_future(part)
                if snapshot.failure is not None:
                    raise snapshot.failure.error()
                self._write(self._transcript.add(snapshot.new_text))
        elif isinstance(op, Media):
            self.feed.write(self._transcript.add(stream.attach(op)))
        else:
            raise TypeError(f"{op!r} cannot run: it stands for a value that only a trace leaves open")

    async def _flushed(self) -> Stream:
        """The back end's sequence, with every literal so far in it."""
        if self._stream is None:
            self._stream = self._context.backend.open(self._context.program_id)
        if self._pending:
            text = "".join(self._pending)
            self._pending.clear()
            self._stream.append(text)
        if not self._requested:
            self._requested = True
            if self._context.warmup is not None:
                await self._context.warmup.arrive(self._transcript.text)
        return self._stream

    def _call(self, op: Gen) -> GenCall:
        sampling = op.sampling.over(self._context.defaults)
        stop = (*(sampling.stop or ()), *op.extra_stop, *self._context.backend.chat_format().stop)
        stops = Sampling(stop=tuple(dict.fromkeys(stop)))
        return GenCall(name=op.name, sampling=stops.over(sampling), stream=self._context.stream)

    async def _generate(self, job: Job, op: Gen, stream: Stream) -> None:
        call = self._call(op)
        outputs: tuple[Output, ...] = ()
        shown = 0
        async with aclosing(stream.generate(call)) as steps:
            async for outputs in steps:
                delta = outputs[0].text[shown:]
                shown += len(delta)
                self.feed.write(delta, outputs[0].meta)
                if job.cell is not None:
                    job.cell.feed.write(delta, outputs[0].meta)
        check_finished(outputs)
        self._transcript.add(outputs[0].text)
        if job.cell is not None:
            if (call.sampling.n or 1) > 1:
                job.cell.resolve([o.text for o in outputs], [o.meta for o in outputs])
            else:
                job.cell.resolve(outputs[0].text, outputs[0].meta)

    async def _generate_reasoned(self, job: Job, op: Reasoned, stream: Stream) -> None:
        """Generates on a scratch branch, since only the answer becomes part of the sequence."""
        (scratch,) = await stream.fork(1)
        outputs: tuple[Output, ...] = ()
        try:
            async with aclosing(scratch.generate(self._call(op.gen))) as steps:
                async for step in steps:
                    outputs = step
        finally:
            await scratch.aclose()
        check_finished(outputs)
        reasoning, answer = split_reasoning(outputs[0].text, op.tags)
        self._write(self._transcript.add(answer))
        assert job.cell is not None and job.reasoning is not None
        job.cell.resolve(answer, outputs[0].meta)
        job.reasoning.resolve(reasoning, outputs[0].meta)

    async def _select(self, job: Job, op: Select, stream: Stream) -> None:
        unconditional = op.method.requires_unconditional_logprobs
        scores = await stream.score(op.name, op.choices, unconditional=unconditional)
        decision = decide(op.method, op.choices, scores, op.temperature, self._context.rng)
        self._write(self._transcript.add(decision.decision))
        if job.cell is not None:
            job.cell.resolve(decision.decision, {**scores.cost, **(decision.meta_info or {})})


def _failure(job: Job, error: BaseException, text: str) -> Failure:
    op = job.node.op
    variable = job.cell.name if job.cell is not None else None
    return Failure(str(op), variable, error, text)


def _log_crash(task: asyncio.Task[None]) -> None:
    """Errors of programs end in their cells; anything that arrives here is ours."""
    if not task.cancelled() and task.exception() is not None:
        logger.error("a stream's worker ended unexpectedly", exc_info=task.exception())
