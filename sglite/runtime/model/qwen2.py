"""Qwen2 and Qwen2.5 (https://arxiv.org/abs/2412.15115): biases on q, k and v, none elsewhere."""

from __future__ import annotations

from sglite.runtime.model.layers.attention import Attention
from sglite.runtime.model.layers.decoder import CausalLM
from sglite.runtime.model.layers.weights import WeightTable


class Qwen2ForCausalLM(CausalLM):
    """The biases belong to the architecture; the config has no switch for them."""

    def attention(self, weights: WeightTable, name: str, layer: int) -> Attention:
        """See CausalLM."""
        window = self.config.window(layer)
        return Attention(weights, name, self.config, self.pool_layers[layer], qkv_bias=True, window=window)
