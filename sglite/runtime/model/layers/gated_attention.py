"""Attention whose result is gated per head and dimension (Qiu et al., https://arxiv.org/abs/2505.06708)."""

from __future__ import annotations

import torch
from torch import Tensor

from sglite.runtime.backend.base import ForwardContext
from sglite.runtime.model.config import ModelConfig
from sglite.runtime.model.layers.linear import Linear
from sglite.runtime.model.layers.norm import CentredRMSNorm
from sglite.runtime.model.layers.rotary import RotaryAngles
from sglite.runtime.model.layers.weights import WeightTable


class GatedAttention:
    """Grouped-query attention of Qwen3-Next: ``q_proj`` gives every head its query and its gate, side by side.

    ``layer``: index into the pool.
    """

    def __init__(self, weights: WeightTable, name: str, config: ModelConfig, layer: int) -> None:
        self.layer = layer
        self.head_dim = config.head_dim
        self.num_heads = config.num_heads
        self.scale = config.head_dim**-0.5
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.sizes = [2 * q_size, kv_size, kv_size]
        outputs = {f"{name}.q_proj": 2 * q_size, f"{name}.k_proj": kv_size, f"{name}.v_proj": kv_size}
        self.qkv = Linear(weights, outputs, config.hidden_size, bias=config.attention_bias)
        self.out = Linear(weights, {f"{name}.o_proj": config.hidden_size}, q_size, bias=config.attention_bias)
        self.q_norm = CentredRMSNorm(weights, f"{name}.q_norm", config.head_dim, config.rms_norm_eps)
        self.k_norm = CentredRMSNorm(weights, f"{name}.k_norm", config.head_dim, config.rms_norm_eps)

    def __call__(self, x: Tensor, angles: RotaryAngles, context: ForwardContext) -> Tensor:
        """x [T, hidden] -> [T, hidden]."""
        backend = context.backend
        queries, keys, values = torch.split(self.qkv(x, backend), self.sizes, dim=-1)
        q, gate = queries.view(len(x), self.num_heads, 2 * self.head_dim).chunk(2, dim=-1)
        q = angles.rotate(self.q_norm(q, backend))
        k = angles.rotate(self.k_norm(keys.view(len(x), -1, self.head_dim), backend))
        backend.store_kv(context.pool, self.layer, k, values.view(len(x), -1, self.head_dim), context.meta)
        attended = backend.attention(q, context.pool, self.layer, context.meta, scale=self.scale)
        return self.out((attended * torch.sigmoid(gate)).flatten(1), backend)
