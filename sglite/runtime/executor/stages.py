"""What a step is between its parts: a batch that can be launched, and a forward pass whose results are to come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sglite.runtime.backend.base import BatchLayout, ForwardContext
from sglite.runtime.executor.choice import Choice
from sglite.runtime.protocol import SampledToken, SchedulerOutput, ScoredTokens


@dataclass(frozen=True, slots=True)
class Prepared:
    """A step as a batch: what can be known of it before the steps before it have run."""

    step: SchedulerOutput
    layout: BatchLayout
    ids: Tensor
    """[T] on the device; -1 - slot: what that slot samples last before the step, which the device knows."""
    slots: Tensor | None
    """[T] those slots, where it is all of them; ``None``: it is not."""
    unknown: bool
    """Some are of that kind."""
    positions: Tensor
    run: tuple[ForwardContext, Any] | None
    """What the forward pass takes besides, and angles; ``None``: a graph has it, or there is nothing to compute."""
    pooled: Tensor | None
    """Which hidden states are wanted as they are."""
    choice: Choice | None
    """``None``: nothing is sampled or scored."""


@dataclass(slots=True)
class Running:
    """A step whose forward pass has been launched."""

    step: SchedulerOutput
    choice: Choice | None
    hidden: Tensor
    """[T, hidden] after the final norm."""
    pools: Callable[[], list[Tensor]] | None = None
    scores: list[Callable[[], ScoredTokens]] = field(default_factory=list)
    samples: Callable[[], list[SampledToken]] = list

    @property
    def needs_the_past(self) -> bool:
        """Nothing can be sampled before the results of the steps before are known on the host."""
        return self.choice is not None and self.choice.counts
