"""The executor of a device that computes while it is called: a step is made ready while the one before it runs, and
results are taken where they are wanted, so that as little as possible lies between two forward passes.

    caller     prepare 2             finish 1  prepare 3         finish 2
    worker     [------ 1 ------][s]-[------ 2 ------][s]-[------ 3 ...

The caller hears of a result when the next forward pass is under way, if there is one to begin: two threads that run
Python at the same time keep each other waiting, and what waits then is the device.

Where tokens are counted, for penalties, a step is sampled from what the steps before it gave: then all of it is done on
the worker's thread, one step after the other. ``submit``, ``supply_masks``, ``collect`` and what concerns the weights
are as ``base`` says.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from sglite.runtime.executor.base import Job, Masks, ThreadExecutor, WeightStore
from sglite.runtime.executor.stages import Prepared, Running
from sglite.runtime.protocol import SchedulerOutput, StepOutput


class PreparingWorker(Protocol):
    """A worker whose steps have parts, see ``ModelWorker``."""

    def execute(self, step: SchedulerOutput, masks: Callable[[], Masks | None]) -> StepOutput:
        """All parts of a step."""
        ...

    def counts(self, step: SchedulerOutput) -> bool:
        """Whether its parts need the results of the steps before it."""
        ...

    def prepare(self, step: SchedulerOutput) -> Prepared:
        """Make a batch of the step."""
        ...

    def launch(self, prepared: Prepared, begun: Callable[[], None] | None = None) -> Running:
        """The forward pass; ``begun`` is called when it takes its time."""
        ...

    def choose(self, running: Running, masks: Callable[[], Masks | None]) -> None:
        """The samples."""
        ...

    def finish(self, running: Running) -> StepOutput:
        """What came of it."""
        ...


class PreparedJob(Job):
    """A step on its way, in parts."""

    def __init__(self, step: SchedulerOutput) -> None:
        super().__init__(step)
        self.prepared: Prepared | None = None
        self.is_behind = False
        """It is prepared when it runs, and has not run yet."""
        self.failed: Exception | None = None
        self.running: Running | None = None
        """What is left to finish."""


class PreparedExecutor(ThreadExecutor):
    """One worker, one thread for the forward passes."""

    def __init__(self, worker: PreparingWorker, weights: WeightStore | None = None) -> None:
        self._parts = worker
        self._last = PreparedJob(SchedulerOutput(step_id=-1))
        self._untold: Callable[[], None] | None = None
        super().__init__(worker, weights)

    def submit(self, step: SchedulerOutput) -> None:
        """Prepare ``step`` and start it after those submitted before."""
        job, before = PreparedJob(step), self._last
        self._jobs[step.step_id] = self._last = job
        job.is_behind = before.is_behind or self._parts.counts(step)
        if not job.is_behind:
            self._prepare(job)
        self._queue.put(job)

    def collect(self, step_id: int) -> StepOutput:
        """The result of a step; waits for it."""
        job = self._jobs[step_id]
        output = super().collect(step_id)
        if not isinstance(job, PreparedJob) or job.running is None:
            return output
        finished = self._finished(job.running)
        finished.compute_ms, finished.mask_wait_ms = output.compute_ms, output.mask_wait_ms
        return finished

    def _run(self) -> None:
        super()._run()
        self._tell()

    def _prepare(self, job: PreparedJob) -> None:
        try:
            job.prepared = self._parts.prepare(job.step)
        except Exception as error:
            job.failed = error

    def _finished(self, running: Running) -> StepOutput:
        try:
            return self._parts.finish(running)
        except Exception as error:
            return _failed(running.step, error)

    def _execute(self, job: Job) -> None:
        assert isinstance(job, PreparedJob)
        started, output = time.perf_counter(), StepOutput(step_id=job.step.step_id)
        try:
            if job.is_behind:
                self._prepare(job)
            if job.failed is not None:
                raise job.failed
            assert job.prepared is not None
            running = self._parts.launch(job.prepared, self._tell)
            self._tell()
            self._parts.choose(running, job.wait_for_masks)
        except Exception as error:
            output = _failed(job.step, error)
        else:
            if running.needs_the_past:
                output = self._finished(running)
            else:
                job.running = running
        self._tell()
        job.prepared, job.is_behind = None, False
        self._untold = partial(job.end, output, started, time.perf_counter())
        if self._queue.empty():
            self._tell()

    def _alone(self, call: Callable[[], None]) -> None:
        self._tell()
        call()

    def _tell(self) -> None:
        """Let the result of the last step be heard of."""
        untold, self._untold = self._untold, None
        if untold is not None:
            untold()


def _failed(step: SchedulerOutput, error: Exception) -> StepOutput:
    return StepOutput(step_id=step.step_id, error=f"{type(error).__name__}: {error}")
