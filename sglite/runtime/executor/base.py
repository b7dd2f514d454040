"""The executor: takes planned steps, gives back what they computed; several may be in flight.

    submit(step)            starts the step and returns at once
    supply_masks(id, m)     the bitmasks its constrained samples wait for; call it for every step that has any
    collect(id)             waits for the result of the oldest step in flight

Steps run one after the other, in the order in which they were submitted. An exception inside a step becomes
``StepOutput.error``: the engine decides what it means for whom. Whatever concerns the weights is done between steps, in
its turn.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from sglite.runtime.protocol import SchedulerOutput, StepOutput

T = TypeVar("T")
Masks = NDArray[np.int32]
"""[constrained samples, words]: bit ``id % 32`` of word ``id // 32`` is set when the token is allowed."""


class Worker(Protocol):
    """What computes: holds the pools, the model and a little state a row. One per rank."""

    def execute(self, step: SchedulerOutput, masks: Callable[[], Masks | None]) -> StepOutput:
        """Run a step. ``masks`` waits for the bitmasks; call it after the forward pass."""
        ...


class WeightStore(Protocol):
    """The weights of the model that runs. ``source``: see ``UpdateWeights``.

    ``ValueError``, in one line, for what does not fit, which then changed nothing; after any other exception of
    ``load`` some of the weights may be the new ones and some the old.
    """

    def check(self, source: str | bytes) -> None:
        """Whether everything could be loaded, as far as names, shapes and types tell."""
        ...

    def load(self, source: str | bytes) -> None:
        """Check again, then write all of it in place of what there was."""
        ...

    def read(self, name: str, rows: int) -> list[Any]:
        """The first rows of a tensor, by its name in a checkpoint, as nested lists of floats."""
        ...


class Executor(Protocol):
    """Where steps go; see the module."""

    def submit(self, step: SchedulerOutput) -> None:
        """Start ``step``."""
        ...

    def supply_masks(self, step_id: int, masks: Masks) -> None:
        """Bitmasks for the constrained samples of a step, in task order."""
        ...

    def collect(self, step_id: int) -> StepOutput:
        """Wait for the result of ``step_id``, the oldest step in flight."""
        ...

    def check_weights(self, source: str | bytes) -> Future[None]:
        """``WeightStore.check``, after the steps submitted before."""
        ...

    def load_weights(self, source: str | bytes) -> Future[None]:
        """``WeightStore.load``; nothing may be in flight."""
        ...

    def read_weights(self, name: str, rows: int) -> Future[list[Any]]:
        """``WeightStore.read``, after the steps submitted before."""
        ...

    def shutdown(self) -> None:
        """Stop; nothing may be in flight."""
        ...


class _NoWeights:
    """Of what computes without a model."""

    def check(self, source: str | bytes) -> None:
        raise ValueError("what this engine computes with has no weights; serve a model")

    def load(self, source: str | bytes) -> None:
        self.check(source)

    def read(self, name: str, rows: int) -> list[Any]:
        self.check(name)
        return []


class Job:
    """A step on its way."""

    def __init__(self, step: SchedulerOutput) -> None:
        self.step = step
        self.mask_wait_ms = 0.0
        self.output: StepOutput | None = None
        self._masks: Masks | None = None
        self._lacks_masks = _held() if any(task.constrained for task in step.samples) else None
        self._unfinished = _held()

    def supply(self, masks: Masks) -> None:
        """The masks of its samples are there."""
        self._masks = masks
        if self._lacks_masks is not None:
            self._lacks_masks.release()

    def wait_for_masks(self) -> Masks | None:
        """The masks of its samples, once they have been supplied."""
        if self._lacks_masks is not None and self._lacks_masks.locked():
            started = time.perf_counter()
            with self._lacks_masks:
                self.mask_wait_ms = 1000 * (time.perf_counter() - started)
        return self._masks

    def wait(self) -> None:
        """Until its result is there."""
        with self._unfinished:
            pass

    def end(self, output: StepOutput, started: float, ended: float | None = None) -> None:
        """Its result; it computed from ``started`` to ``ended``, or until now."""
        output.compute_ms = 1000 * ((time.perf_counter() if ended is None else ended) - started)
        output.mask_wait_ms = self.mask_wait_ms
        self.output = output
        self._unfinished.release()


def _held() -> threading.Lock:
    """A lock that somebody releases once; who waits for that takes it and gives it back. As an event, at a third of
    the cost."""
    lock = threading.Lock()
    lock.acquire()
    return lock


class ThreadExecutor:
    """One worker on a thread of this process, and the weights it computes with, where it has any."""

    def __init__(self, worker: Worker, weights: WeightStore | None = None) -> None:
        self._worker = worker
        self._weights = weights or _NoWeights()
        self._jobs: dict[int, Job] = {}
        self._queue: queue.SimpleQueue[Job | Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="sglite-worker", daemon=True)
        self._thread.start()

    def submit(self, step: SchedulerOutput) -> None:
        """Start ``step`` after those submitted before."""
        job = self._jobs[step.step_id] = Job(step)
        self._queue.put(job)

    def supply_masks(self, step_id: int, masks: Masks) -> None:
        """Let the samples of a step go ahead."""
        self._jobs[step_id].supply(masks)

    def collect(self, step_id: int) -> StepOutput:
        """The result of a step; waits for it."""
        job = self._jobs.pop(step_id)
        job.wait()
        assert job.output is not None
        return job.output

    def check_weights(self, source: str | bytes) -> Future[None]:
        """See ``Executor``."""
        return self._later(lambda: self._weights.check(source))

    def load_weights(self, source: str | bytes) -> Future[None]:
        """See ``Executor``."""
        return self._later(lambda: self._weights.load(source))

    def read_weights(self, name: str, rows: int) -> Future[list[Any]]:
        """See ``Executor``."""
        return self._later(lambda: self._weights.read(name, rows))

    def _later(self, function: Callable[[], T]) -> Future[T]:
        """Call ``function`` on the thread, in its turn."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                result = function()
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._queue.put(run)
        return future

    def shutdown(self) -> None:
        """End the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            if isinstance(job, Job):
                self._execute(job)
            else:
                self._alone(job)

    def _execute(self, job: Job) -> None:
        """Run a step."""
        started = time.perf_counter()
        try:
            output = self._worker.execute(job.step, job.wait_for_masks)
        except Exception as error:
            output = StepOutput(step_id=job.step.step_id, error=f"{type(error).__name__}: {error}")
        job.end(output, started)

    def _alone(self, call: Callable[[], None]) -> None:
        """Call something while no step runs."""
        call()
