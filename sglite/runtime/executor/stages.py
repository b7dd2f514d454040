"""What a step is between its parts: a batch that can be launched, and a forward pass whose results are to come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sglite.runtime.backend.base import BatchLayout, ForwardContext
from sglite.runtime.executor.rows import RowState
from sglite.runtime.protocol import SampledToken, SchedulerOutput, ScoredTokens


@dataclass(frozen=True, slots=True)
class Prepared:
    """A step as a batch: what can be known of it before the steps before it have run."""

    step: SchedulerOutput
    first: list[int]
    """[R + 1] the index of each row's first token in the batch, and their number."""
    states: list[RowState]
    """Of the rows that are sampled, task by task: their slots may be others' when the results come."""
    scored: list[RowState]
    """Of the rows that are scored, likewise."""
    layout: BatchLayout
    ids: Tensor
    """[T] on the device; -1 - slot: what that slot samples last before the step, which the device knows."""
    slots: Tensor | None
    """[T] slots, where that is all of them; ``None``: it is not."""
    unknown: bool
    """Some are of that kind."""
    positions: Tensor
    run: tuple[ForwardContext, Any] | None
    """What the forward pass takes besides, and angles; ``None``: a graph has it, or there is nothing to compute."""


@dataclass(slots=True)
class Running:
    """A step whose forward pass has been launched."""

    step: SchedulerOutput
    first: list[int]
    """[R + 1] the index of each row's first token in the batch, and their number."""
    hidden: Tensor
    """[T, hidden] after the final norm."""
    states: list[RowState]
    """Of the rows that are sampled, task by task: their slots may be others' when the results come."""
    scored: list[RowState] = field(default_factory=list)
    """Of the rows that are scored, likewise."""
    pools: Callable[[], list[Tensor]] | None = None
    scores: list[Callable[[], ScoredTokens]] = field(default_factory=list)
    samples: Callable[[], list[SampledToken]] = list

    @property
    def needs_the_past(self) -> bool:
        """Nothing can be sampled before the results of the steps before are known on the host."""
        return any(state.counts is not None for state in self.states)
