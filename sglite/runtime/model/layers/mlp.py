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
    """down(activation(gate(x)) * up(x)), gate and up as one product. ``size``: intermediate, if not the config's."""

    def __init__(
        self, weights: WeightTable, name: str, config: ModelConfig, *, size: int | None = None, bias: bool = False
    ) -> None:
        size = config.intermediate_size if size is None else size
        self.activation = config.activation
        self.gate_up = Linear(
            weights, {f"{name}.gate_proj": size, f"{name}.up_proj": size}, config.hidden_size, bias=bias
        )
        self.down = Linear(weights, {f"{name}.down_proj": config.hidden_size}, size, bias=bias)

    def __call__(self, x: Tensor, backend: Backend) -> Tensor:
        """x [T, hidden] -> [T, hidden]."""
        return self.down(backend.gated(self.gate_up(x, backend), self.activation), backend)
