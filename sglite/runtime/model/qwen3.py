"""Qwen3, dense (https://arxiv.org/abs/2505.09388): heads of q and k normalised, explicit head size, no biases."""

from __future__ import annotations

from sglite.runtime.model.layers.attention import Attention
from sglite.runtime.model.layers.decoder import CausalLM
from sglite.runtime.model.layers.norm import RMSNorm
from sglite.runtime.model.layers.weights import WeightTable


class Qwen3ForCausalLM(CausalLM):
    """``attention_bias`` adds biases to all four projections."""

    def attention(self, weights: WeightTable, name: str, layer: int) -> Attention:
        """See CausalLM."""
        bias = self.config.attention_bias
        return Attention(
            weights,
            name,
            self.config,
            self.pool_layers[layer],
            qkv_bias=bias,
            out_bias=bias,
            qk_norm=RMSNorm,
            window=self.config.window(layer),
        )
