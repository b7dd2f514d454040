"""Qwen3-MoE (https://arxiv.org/abs/2505.09388): Qwen3 with experts, none of them shared."""

from __future__ import annotations

from sglite.runtime.model.layers.mlp import FeedForward, GatedMLP
from sglite.runtime.model.layers.moe import MoE
from sglite.runtime.model.layers.weights import WeightTable
from sglite.runtime.model.qwen3 import Qwen3ForCausalLM


class Qwen3MoeForCausalLM(Qwen3ForCausalLM):
    """Layers without experts have a dense feed-forward part."""

    def mlp(self, weights: WeightTable, name: str, layer: int) -> FeedForward:
        """See CausalLM."""
        assert self.config.moe is not None
        return (MoE if self.config.moe.layers[layer] else GatedMLP)(weights, name, self.config)
