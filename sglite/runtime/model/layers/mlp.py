"""The gated feed-forward layer (Shazeer, https://arxiv.org/abs/2002.05202)."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from sglite.runtime.backend.base import Backend
from sglite.runtime.model.config import ModelConfig
from sglite.runtime.model.layers.linear import Linear
from sglite.runtime.model.layers.weights import WeightTable


class FeedForward(Protocol):
    """What follows attention in a layer, dense or a mixture of experts."""

    def __call__(self, x: Tensor, backend: Backend) -> Tensor:
        """x [T, hidden] -> [T, hidden]."""
        ...


class GatedMLP:
    """down(activation(gate(x)) * up(x)), gate and up as one product.

    ``size``: intermediate, if not the config's. ``parts``: what the checkpoint calls gate, up and down.
    """

    def __init__(
        self,
        weights: WeightTable,
        name: str,
        config: ModelConfig,
        *,
        size: int | None = None,
        bias: bool = False,
        parts: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    ) -> None:
        size = config.intermediate_size if size is None else size
        self.activation = config.activation
        gate, up, down = (f"{name}.{part}" for part in parts)
        self.gate_up = Linear(weights, {gate: size, up: size}, config.hidden_size, bias=bias)
        self.down = Linear(weights, {down: config.hidden_size}, size, bias=bias)

    def __call__(self, x: Tensor, backend: Backend) -> Tensor:
        """x [T, hidden] -> [T, hidden]."""
        return self.down(backend.gated(self.gate_up(x, backend), self.activation), backend)
