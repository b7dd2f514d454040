"""What a model asks of attention: what a backend must know to choose its kernels, before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sglite.runtime.protocol import GroupSpec


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model's layers, and the steps that an engine will run."""

    groups: tuple[GroupSpec, ...]
    """What layers keep, in the types of the cache."""
    num_heads: int
    """Of queries, in every layer."""
    dtype: torch.dtype
    """Of queries."""
    page_size: int
    rows: int
    """That decode at a time, at most."""
    tokens: int
    """Of a step, at most."""
    context: int
    """Slots of a row, at most."""
    sinks: bool = False
    """Layers have logits of their own in the softmax, see ``Backend.attention``."""
