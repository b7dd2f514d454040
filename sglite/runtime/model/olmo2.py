"""OLMo 2 (https://arxiv.org/abs/2501.00656): norms behind attention and feed-forward, q and k normalised whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sglite.runtime.backend.base import ForwardContext
from sglite.runtime.model.config import ModelConfig
from sglite.runtime.model.layers.attention import Attention
from sglite.runtime.model.layers.decoder import CausalLM, DecoderLayer
from sglite.runtime.model.layers.norm import RMSNorm
from sglite.runtime.model.layers.rotary import RotaryAngles
from sglite.runtime.model.layers.weights import WeightTable


class Olmo2Attention(Attention):
    """As ``Attention``; the norms of q and k go over all heads together."""

    def __init__(self, weights: WeightTable, name: str, config: ModelConfig, layer: int) -> None:
        bias = config.attention_bias
        super().__init__(weights, name, config, layer, qkv_bias=bias, out_bias=bias)
        self.sizes = [heads * config.head_dim for heads in self.heads]
        self.whole_q_norm = RMSNorm(weights, f"{name}.q_norm", self.sizes[0], config.rms_norm_eps)
        self.whole_k_norm = RMSNorm(weights, f"{name}.k_norm", self.sizes[1], config.rms_norm_eps)

    def __call__(self, x: Tensor, angles: RotaryAngles, context: ForwardContext) -> Tensor:
        """x [T, hidden] -> [T, hidden]."""
        q, k, v = torch.split(self.qkv(x, context.backend), self.sizes, dim=1)
        parts = (self.whole_q_norm(q, context.backend), self.whole_k_norm(k, context.backend), v)
        heads = [part.view(len(x), -1, self.head_dim) for part in parts]
        return self.attend(angles.rotate(heads[0]), angles.rotate(heads[1]), heads[2], context)


class Olmo2Layer(DecoderLayer):
    """x + norm(attention(x)), then x + norm(mlp(x))."""

    def __call__(self, x: Tensor, angles: Sequence[RotaryAngles], context: ForwardContext) -> Tensor:
        """x [T, hidden] -> [T, hidden]."""
        backend = context.backend
        x = x + self.attention_norm(self.attention(x, angles[0], context), backend)
        return x + self.mlp_norm(self.mlp(x, backend), backend)


class Olmo2ForCausalLM(CausalLM):
    """What differs from the decoder that all families share."""

    def attention(self, weights: WeightTable, name: str, layer: int) -> Olmo2Attention:
        """See CausalLM."""
        return Olmo2Attention(weights, name, self.config, self.pool_layers[layer])

    def layer(self, weights: WeightTable, name: str, layer: int) -> Olmo2Layer:
        """See CausalLM."""
        return Olmo2Layer(
            self.norm_of(weights, f"{name}.post_attention_layernorm"),
            self.attention(weights, f"{name}.self_attn", layer),
            self.norm_of(weights, f"{name}.post_feedforward_layernorm"),
            self.mlp(weights, f"{name}.mlp", layer),
        )
