"""A step is made ready while the one before it runs, and its result is heard of when the next one is under way; where
tokens are counted nothing of a step begins before the one before it has ended."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import pytest
from recorded_steps import RecordedSteps, running

from sglite.runtime.executor.base import Masks
from sglite.runtime.executor.prepared import PreparedExecutor
from sglite.runtime.executor.stages import Prepared, Running
from sglite.runtime.protocol import SampleTask, SchedulerOutput, StepOutput

CONSTRAINED = [SampleTask(slot=0, row=0, position=0, num_output=0, constrained=True)]
COUNTING = range(20, 25)
BROKEN = {13: "prepare", 14: "launch", 15: "choose", 16: "finish"}


class Recorder(RecordedSteps):
    """A worker that writes down what is done, and whose forward passes wait for leave to begin and to end."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: dict[str, str] = {}
        self.begins = {step: threading.Event() for step in range(30)}
        self.ends = {step: threading.Event() for step in range(30)}

    def note(self, part: str, step: SchedulerOutput) -> None:
        self.seen.append(f"{part} {step.step_id}")
        self.threads[f"{part} {step.step_id}"] = threading.current_thread().name
        if BROKEN.get(step.step_id) == part:
            raise ValueError(f"no {part}")

    def counts(self, step: SchedulerOutput) -> bool:
        return step.step_id in COUNTING

    def prepare(self, step: SchedulerOutput) -> Prepared:
        self.note("prepare", step)
        return cast(Prepared, step)

    def launch(self, prepared: Prepared, begun: Callable[[], None] | None = None) -> Running:
        step = cast(Any, prepared)
        self.note("launch", step)
        assert self.begins[step.step_id].wait(10) and begun is not None
        begun()
        self.note("begun", step)
        assert self.ends[step.step_id].wait(10)
        return running(step, counts=step.step_id in COUNTING)

    def choose(self, running: Running, masks: Callable[[], Masks | None]) -> None:
        masks()
        self.note("choose", running.step)

    def finish(self, running: Running) -> StepOutput:
        self.note("finish", running.step)
        return StepOutput(step_id=running.step.step_id)

    def allow(self, *steps: int) -> None:
        for step in steps:
            self.begins[step].set()
            self.ends[step].set()


@pytest.fixture
def worker() -> Recorder:
    return Recorder()


@pytest.fixture
def executor(worker: Recorder) -> Iterator[PreparedExecutor]:
    executor = PreparedExecutor(worker)
    yield executor
    worker.allow(*worker.begins)
    executor.shutdown()


def test_a_step_is_prepared_by_the_caller_while_the_one_before_it_runs(
    executor: PreparedExecutor, worker: Recorder
) -> None:
    executor.submit(SchedulerOutput(step_id=1))
    worker.begins[1].set()
    assert worker.saw("begun 1")
    executor.submit(SchedulerOutput(step_id=2))
    assert worker.seen == ["prepare 1", "launch 1", "begun 1", "prepare 2"]
    worker.allow(1, 2)
    assert [executor.collect(step).step_id for step in (1, 2)] == [1, 2]
    here, there = threading.current_thread().name, "sglite-worker"
    assert {part.split()[0]: name for part, name in worker.threads.items()} == {
        "prepare": here, "launch": there, "begun": there, "choose": there, "finish": here,
    }  # fmt: skip


def test_a_result_is_heard_of_when_the_next_step_is_under_way(executor: PreparedExecutor, worker: Recorder) -> None:
    for step in (1, 2):
        executor.submit(SchedulerOutput(step_id=step))
    worker.allow(1)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(executor.collect, 1)
        assert worker.saw("launch 2")
        threading.Event().wait(0.05)
        assert not result.done()
        worker.begins[2].set()
        assert result.result(10).step_id == 1
    assert "choose 2" not in worker.seen
    worker.allow(2)
    assert executor.collect(2).step_id == 2, "and at once where no step follows"


def test_where_tokens_are_counted_one_step_follows_the_other(executor: PreparedExecutor, worker: Recorder) -> None:
    steps = [20, 21, 1, 2]
    for step in steps:
        executor.submit(SchedulerOutput(step_id=step))
    assert worker.saw("launch 20") and worker.seen == ["prepare 20", "launch 20"]
    worker.allow(*steps)
    assert [executor.collect(step).step_id for step in steps] == steps
    parts = ("prepare", "launch", "begun", "choose", "finish")
    assert worker.seen[:10] == [f"{part} {step}" for step in (20, 21) for part in parts]
    assert {worker.threads[f"{part} {step}"] for part in parts for step in (20, 21)} == {"sglite-worker"}
    executor.submit(SchedulerOutput(step_id=3))
    assert worker.threads["prepare 3"] == threading.current_thread().name


def test_masks_are_waited_for_after_the_forward_pass(executor: PreparedExecutor, worker: Recorder) -> None:
    executor.submit(SchedulerOutput(step_id=1, samples=CONSTRAINED))
    worker.allow(1)
    assert worker.saw("begun 1")
    threading.Event().wait(0.02)
    assert "choose 1" not in worker.seen
    executor.supply_masks(1, np.ones((1, 2), np.int32))
    assert executor.collect(1).mask_wait_ms > 10


@pytest.mark.parametrize("broken", BROKEN)
def test_an_exception_is_the_error_of_its_step(executor: PreparedExecutor, worker: Recorder, broken: int) -> None:
    worker.allow(1, broken, 3)
    for step in (1, broken, 3):
        executor.submit(SchedulerOutput(step_id=step))
    outputs = [executor.collect(step) for step in (1, broken, 3)]
    assert [output.step_id for output in outputs] == [1, broken, 3]
    assert [output.error for output in outputs] == [None, f"ValueError: no {BROKEN[broken]}", None]


def test_weights_are_touched_while_nothing_runs(executor: PreparedExecutor, worker: Recorder) -> None:
    executor.submit(SchedulerOutput(step_id=1))
    done = executor.check_weights("nowhere")
    worker.begins[1].set()
    assert worker.saw("begun 1") and not done.done()
    worker.allow(1)
    assert "no weights" in str(done.exception(timeout=10))
    assert executor.collect(1).step_id == 1
