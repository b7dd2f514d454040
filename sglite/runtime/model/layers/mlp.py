"""The gated feed-forward layer, SwiGLU (Shazeer, https://arxiv.org/abs/2002.05202)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sglite.runtime.backend.base import Backend
from sglite.runtime.model.config import ModelConfig
from sglite.runtime.model.layers.linear import Linear
from sglite.runtime.model.layers.weights import WeightTable


class GatedMLP:
    """down(silu(gate(x)) * up(x)), gate and up as one product."""

    def __init__(self, weights: WeightTable, name: str, config: ModelConfig, *, bias: bool = False) -> None:
        size = config.intermediate_size
        outputs = {f"{name}.gate_proj": size, f"{name}.up_proj": size}
        self.gate_up = Linear(weights, outputs, config.hidden_size, bias=bias)
        self.down = Linear(weights, {f"{name}.down_proj": config.hidden_size}, size, bias=bias)

    def __call__(self, x: Tensor, backend: Backend) -> Tensor:
        gate, up = self.gate_up(x, backend).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up, backend)
