"""A step is launched while the one before it is still waited for; results come in order, whatever happens to a step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as NotYet

import numpy as np
import pytest
from recorded_steps import RecordedSteps, running

from sglite.runtime.executor.base import Masks
from sglite.runtime.executor.pipeline import PipelinedExecutor
from sglite.runtime.executor.stages import Running
from sglite.runtime.protocol import SampleTask, SchedulerOutput, StepOutput

CONSTRAINED = [SampleTask(slot=0, row=0, position=0, num_output=0, constrained=True)]
PENALISED, BROKEN_BEGIN, BROKEN_CHOICE, BROKEN_RESULT = 20, 13, 14, 15


class Recorder(RecordedSteps):
    """A worker that writes down what is done, and whose results wait for leave to come."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: dict[int, Masks | None] = {}
        self.leave = {step: threading.Event() for step in range(30)}

    def begin(self, step: SchedulerOutput) -> Running:
        self.seen.append(f"begin {step.step_id}")
        if step.step_id == BROKEN_BEGIN:
            raise ValueError("no memory")
        return running(step, counts=step.step_id == PENALISED)

    def choose(self, running: Running, masks: Callable[[], Masks | None]) -> None:
        step = running.step.step_id
        self.masks[step] = masks()
        self.seen.append(f"choose {step}")
        if step == BROKEN_CHOICE:
            raise ValueError("no choice")

    def finish(self, running: Running) -> StepOutput:
        step = running.step.step_id
        assert self.leave[step].wait(10)
        self.seen.append(f"finish {step}")
        if step == BROKEN_RESULT:
            raise ValueError("no result")
        return StepOutput(step_id=step)

    def allow(self, *steps: int) -> None:
        for step in steps:
            self.leave[step].set()


@pytest.fixture
def worker() -> Recorder:
    return Recorder()


@pytest.fixture
def executor(worker: Recorder) -> Iterator[PipelinedExecutor]:
    executor = PipelinedExecutor(worker)
    yield executor
    worker.allow(*worker.leave)
    executor.shutdown()


def test_a_step_is_launched_before_the_one_before_it_has_results(executor: PipelinedExecutor, worker: Recorder) -> None:
    for step in (1, 2, 3):
        executor.submit(SchedulerOutput(step_id=step))
    assert worker.saw("choose 3")
    assert worker.seen == [f"{part} {step}" for step in (1, 2, 3) for part in ("begin", "choose")]
    worker.allow(3, 2)
    assert not worker.leave[1].is_set() and "finish 2" not in worker.seen
    worker.allow(1)
    assert [executor.collect(step).step_id for step in (1, 2, 3)] == [1, 2, 3]
    assert worker.seen[6:] == ["finish 1", "finish 2", "finish 3"]


def test_masks_are_waited_for_after_the_forward_pass(executor: PipelinedExecutor, worker: Recorder) -> None:
    executor.submit(SchedulerOutput(step_id=1, samples=CONSTRAINED))
    assert worker.saw("begin 1") and "choose 1" not in worker.seen
    masks = np.ones((1, 2), np.int32)
    worker.allow(1)
    threading.Event().wait(0.02)
    executor.supply_masks(1, masks)
    assert executor.collect(1).mask_wait_ms > 10
    assert worker.masks[1] is masks


def test_a_row_with_penalties_is_sampled_when_the_past_is_known(executor: PipelinedExecutor, worker: Recorder) -> None:
    executor.submit(SchedulerOutput(step_id=1))
    executor.submit(SchedulerOutput(step_id=PENALISED))
    assert worker.saw(f"begin {PENALISED}") and f"choose {PENALISED}" not in worker.seen
    worker.allow(1, PENALISED)
    executor.collect(1)
    executor.collect(PENALISED)
    assert worker.seen.index("finish 1") < worker.seen.index(f"choose {PENALISED}")


@pytest.mark.parametrize(
    ("broken", "reason"), [(BROKEN_BEGIN, "no memory"), (BROKEN_CHOICE, "no choice"), (BROKEN_RESULT, "no result")]
)
def test_an_exception_is_the_error_of_its_step(
    executor: PipelinedExecutor, worker: Recorder, broken: int, reason: str
) -> None:
    for step in (1, broken, 3):
        executor.submit(SchedulerOutput(step_id=step))
    worker.allow(1, broken, 3)
    outputs = [executor.collect(step) for step in (1, broken, 3)]
    assert [output.step_id for output in outputs] == [1, broken, 3]
    assert [output.error for output in outputs] == [None, f"ValueError: {reason}", None]


def test_weights_are_touched_while_nothing_runs(executor: PipelinedExecutor, worker: Recorder) -> None:
    executor.submit(SchedulerOutput(step_id=1))
    done = executor.check_weights("nowhere")
    with pytest.raises(NotYet):
        done.exception(timeout=0.05)
    worker.allow(1)
    assert "no weights" in str(done.exception(timeout=10))
    assert worker.seen[-1] == "finish 1"
