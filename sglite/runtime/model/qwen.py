"""Qwen, the first (https://arxiv.org/abs/2309.16609): q, k and v in one matrix with a bias, rotated by halves."""

from __future__ import annotations

from typing import ClassVar

from sglite.runtime.model.layers.attention import Attention
from sglite.runtime.model.layers.decoder import CausalLM, DecoderLayer, Layer
from sglite.runtime.model.layers.mlp import GatedMLP
from sglite.runtime.model.layers.weights import WeightTable
from sglite.runtime.model.names import NameTable


class QWenLMHeadModel(CausalLM):
    """Of the two matrices of its feed-forward part ``w2`` is the gate. ``no_bias=false`` adds biases to the others."""

    names: ClassVar[NameTable] = NameTable(
        prefixes={
            "transformer.wte.": "model.embed_tokens.",
            "transformer.h.": "model.layers.",
            "transformer.ln_f.": "model.norm.",
        },
        unused=("transformer.visual.*", "transformer.audio.*"),
    )

    def attention(self, weights: WeightTable, name: str, layer: int) -> Attention:
        """See CausalLM."""
        return Attention(
            weights,
            name,
            self.config,
            self.pool_layers[layer],
            qkv_bias=True,
            out_bias=self.config.mlp_bias,
            parts=("c_attn", "c_proj"),
        )

    def mlp(self, weights: WeightTable, name: str, layer: int) -> GatedMLP:
        """See CausalLM."""
        return GatedMLP(weights, name, self.config, bias=self.config.mlp_bias, parts=("w2", "w1", "c_proj"))

    def layer(self, weights: WeightTable, name: str, layer: int) -> Layer:
        """See CausalLM."""
        return DecoderLayer(
            self.norm_of(weights, f"{name}.ln_1"),
            self.attention(weights, f"{name}.attn", layer),
            self.norm_of(weights, f"{name}.ln_2"),
            self.mlp(weights, f"{name}.mlp", layer),
        )
