"""Workers whose steps have parts, for tests of executors: what is done is written down."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch

from sglite.runtime.executor.base import Masks
from sglite.runtime.executor.choice import Choice
from sglite.runtime.executor.rows import RowState
from sglite.runtime.executor.stages import Running
from sglite.runtime.protocol import NewRow, SchedulerOutput, StepOutput
from sglite.runtime.sample.params import SamplingParams
from sglite.runtime.sample.penalties import TokenCounts


class RecordedSteps:
    """``seen``: the parts, in their order."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def execute(self, step: SchedulerOutput, masks: Callable[[], Masks | None]) -> StepOutput:
        raise AssertionError("steps have parts here")

    def saw(self, what: str) -> bool:
        """Waits for it."""
        for _ in range(1000):
            if what in self.seen:
                return True
            threading.Event().wait(0.005)
        return False


def running(step: SchedulerOutput, *, counts: bool) -> Running:
    """A step of one row, whose tokens may be counted."""
    new = NewRow(slot=0, request_id="r", sampling=SamplingParams(), seed=0)
    none = torch.empty(0, dtype=torch.int64)
    state = RowState(new, TokenCounts([1], []) if counts else None)
    return Running(step, Choice([state], True, [], None, none, [], None, [], None, []), torch.empty(0))
