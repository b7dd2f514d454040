"""Llama 2 and 3 (https://arxiv.org/abs/2407.21783): no biases unless the config asks for them."""

from __future__ import annotations

from sglite.runtime.model.layers.attention import Attention
from sglite.runtime.model.layers.decoder import CausalLM
from sglite.runtime.model.layers.mlp import FeedForward, GatedMLP
from sglite.runtime.model.layers.weights import WeightTable


class LlamaForCausalLM(CausalLM):
    """``attention_bias`` adds biases to all four projections, ``mlp_bias`` to the three of the feed-forward part."""

    def attention(self, weights: WeightTable, name: str, layer: int) -> Attention:
        """See CausalLM."""
        bias, window = self.config.attention_bias, self.config.window(layer)
        pool_layer = self.pool_layers[layer]
        return Attention(weights, name, self.config, pool_layer, qkv_bias=bias, out_bias=bias, window=window)

    def mlp(self, weights: WeightTable, name: str, layer: int) -> FeedForward:
        """See CausalLM."""
        return GatedMLP(weights, name, self.config, bias=self.config.mlp_bias)
