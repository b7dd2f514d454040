"""The executor of a device that works on its own: a step is launched while the one before it runs.

Two threads: one launches steps, in their order, the other waits for their results. A step's samples are launched when
its masks are there, which depend on what the step before it gave; its forward pass is under way by then.

    launching   forward 1  sample 1  forward 2           sample 2  forward 3 ...
    device         [------ 1 ------][s][------ 2 ------][s][---- 3 ...
    waiting                            results 1           results 2
                                           masks 2 (engine)

``submit``, ``supply_masks``, ``collect`` and what concerns the weights are as ``base`` says.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Protocol

from sglite.runtime.executor.base import Job, Masks, ThreadExecutor, WeightStore
from sglite.runtime.executor.stages import Running
from sglite.runtime.protocol import SchedulerOutput, StepOutput


class StagedWorker(Protocol):
    """A worker whose steps have parts, see ``ModelWorker``."""

    def execute(self, step: SchedulerOutput, masks: Callable[[], Masks | None]) -> StepOutput:
        """All parts of a step."""
        ...

    def begin(self, step: SchedulerOutput) -> Running:
        """Launch the forward pass."""
        ...

    def choose(self, running: Running, masks: Callable[[], Masks | None]) -> None:
        """Launch the samples."""
        ...

    def finish(self, running: Running) -> StepOutput:
        """Wait for the results; on another thread than the other two."""
        ...


class PipelinedExecutor(ThreadExecutor):
    """One worker, a thread that launches and a thread that waits."""

    def __init__(self, worker: StagedWorker, weights: WeightStore | None = None) -> None:
        self._staged = worker
        self._launched: queue.SimpleQueue[tuple[Job, Running, float] | None] = queue.SimpleQueue()
        self._last: Job | None = None
        self._waiting = threading.Thread(target=self._wait, name="sglite-results", daemon=True)
        self._waiting.start()
        super().__init__(worker, weights)

    def shutdown(self) -> None:
        """End the threads."""
        super().shutdown()
        self._launched.put(None)
        self._waiting.join()

    def _execute(self, job: Job) -> None:
        """Launch a step; its results are waited for elsewhere."""
        started, past = time.perf_counter(), self._last
        self._last = job
        try:
            running = self._staged.begin(job.step)
            if running.needs_the_past and past is not None:
                past.wait()
            self._staged.choose(running, job.wait_for_masks)
        except Exception as error:
            if past is not None:
                past.wait()  # results come in the order of the steps
            job.end(StepOutput(step_id=job.step.step_id, error=f"{type(error).__name__}: {error}"), started)
        else:
            self._launched.put((job, running, started))

    def _alone(self, call: Callable[[], None]) -> None:
        if self._last is not None:
            self._last.wait()
        call()

    def _wait(self) -> None:
        ended = 0.0
        while (launched := self._launched.get()) is not None:
            job, running, started = launched
            try:
                output = self._staged.finish(running)
            except Exception as error:
                output = StepOutput(step_id=job.step.step_id, error=f"{type(error).__name__}: {error}")
            job.end(output, max(started, ended))
            ended = time.perf_counter()
