"""Steps run one after the other, several may be in flight, and an exception is a result."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from sglite.runtime.executor.base import Masks, ThreadExecutor
from sglite.runtime.protocol import SampleTask, SchedulerOutput, StepOutput

CONSTRAINED = [SampleTask(slot=0, row=0, position=0, num_output=0, constrained=True)]


class Recorder:
    """A worker that writes down what it was given."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.masks: dict[int, Masks | None] = {}
        self.active = 0
        self.gate = threading.Event()
        self.gate.set()

    def execute(self, step: SchedulerOutput, masks: Callable[[], Masks | None]) -> StepOutput:
        self.active += 1
        assert self.active == 1
        self.gate.wait(10)
        self.seen.append(step.step_id)
        self.masks[step.step_id] = masks()
        self.active -= 1
        if step.step_id == 13:
            raise ValueError("unlucky")
        return StepOutput(step_id=step.step_id)


@pytest.fixture
def worker() -> Recorder:
    return Recorder()


@pytest.fixture
def executor(worker: Recorder) -> Iterator[ThreadExecutor]:
    executor = ThreadExecutor(worker)
    yield executor
    executor.shutdown()


def test_steps_run_in_the_order_in_which_they_were_submitted(executor: ThreadExecutor, worker: Recorder) -> None:
    worker.gate.clear()
    start = time.perf_counter()
    for step_id in range(5):
        executor.submit(SchedulerOutput(step_id=step_id))
    assert time.perf_counter() - start < 5 and worker.seen == [], "submitting does not wait"
    worker.gate.set()
    assert [executor.collect(i).step_id for i in range(5)] == worker.seen == [0, 1, 2, 3, 4]


def test_a_step_waits_for_its_own_masks_only(executor: ThreadExecutor, worker: Recorder) -> None:
    executor.submit(SchedulerOutput(step_id=0, samples=CONSTRAINED))
    executor.submit(SchedulerOutput(step_id=1))
    time.sleep(0.05)
    assert worker.masks == {}
    mask = np.array([[5]], dtype=np.int32)
    executor.supply_masks(0, mask)
    executor.collect(0)
    executor.collect(1)
    assert worker.masks[0] is mask and worker.masks[1] is None


def test_an_exception_is_the_error_of_its_step_and_the_next_one_runs(executor: ThreadExecutor) -> None:
    executor.submit(SchedulerOutput(step_id=13))
    executor.submit(SchedulerOutput(step_id=14))
    assert executor.collect(13).error == "ValueError: unlucky"
    assert executor.collect(14).error is None


def test_the_time_of_a_step_is_reported(executor: ThreadExecutor, worker: Recorder) -> None:
    worker.gate.clear()
    executor.submit(SchedulerOutput(step_id=0))
    threading.Timer(0.05, worker.gate.set).start()
    assert executor.collect(0).compute_ms >= 30
