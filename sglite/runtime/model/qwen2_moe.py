"""Qwen1.5-MoE and Qwen2-MoE (https://arxiv.org/abs/2407.10671): Qwen2 with experts and a gated shared one."""

from __future__ import annotations

from sglite.runtime.model.layers.mlp import FeedForward, GatedMLP
from sglite.runtime.model.layers.moe import MoE
from sglite.runtime.model.layers.weights import WeightTable
from sglite.runtime.model.qwen2 import Qwen2ForCausalLM


class Qwen2MoeForCausalLM(Qwen2ForCausalLM):
    """Layers without experts have a dense feed-forward part."""

    def mlp(self, weights: WeightTable, name: str, layer: int) -> FeedForward:
        """See CausalLM."""
        assert self.config.moe is not None
        return (MoE if self.config.moe.layers[layer] else GatedMLP)(weights, name, self.config)
