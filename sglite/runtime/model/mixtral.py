"""Mixtral (https://arxiv.org/abs/2401.04088): Mistral with experts in every layer, none of them shared."""

from __future__ import annotations

from functools import partial

from sglite.runtime.model.layers.mlp import FeedForward
from sglite.runtime.model.layers.moe import MoE, bind_experts
from sglite.runtime.model.layers.weights import WeightTable
from sglite.runtime.model.mistral import MistralForCausalLM


class MixtralForCausalLM(MistralForCausalLM):
    """Its checkpoints call the experts' matrices w1 (gate), w3 (up) and w2 (down)."""

    def mlp(self, weights: WeightTable, name: str, layer: int) -> FeedForward:
        """See CausalLM."""
        name = f"{name.removesuffix('mlp')}block_sparse_moe"
        return MoE(weights, name, self.config, bind=partial(bind_experts, parts=("w1", "w3", "w2")))
