"""Grouped-query attention over the paged cache (Ainslie et al., https://arxiv.org/abs/2305.13245)."""

from __future__ import annotations

from torch import Tensor

from sglite.runtime.backend.base import ForwardContext
from sglite.runtime.backend.weights import QKVNorms
from sglite.runtime.model.config import ModelConfig
from sglite.runtime.model.layers.linear import Linear
from sglite.runtime.model.layers.norm import Norm
from sglite.runtime.model.layers.rotary import RotaryAngles
from sglite.runtime.model.layers.weights import WeightTable


class Attention:
    """Project, rotate, store this step's keys and values, attend, project back.

    ``layer``: index into the pool. ``qk_norm``: what normalises each head of q and k before rotating (Qwen3).
    ``window``: positions it sees; ``sinks``: a learned logit a head that takes part in the softmax (gpt-oss); see
    ``Backend.attention`` for both. ``parts``: what the checkpoint calls its matrices; q, k and v may be one.
    """

    def __init__(
        self,
        weights: WeightTable,
        name: str,
        config: ModelConfig,
        layer: int,
        *,
        qkv_bias: bool = False,
        out_bias: bool = False,
        qk_norm: type[Norm] | None = None,
        window: int | None = None,
        sinks: bool = False,
        parts: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj"),
    ) -> None:
        self.layer = layer
        self.window = window
        self.head_dim = config.head_dim
        self.heads = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        self.scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        *inputs, output = (f"{name}.{part}" for part in parts)
        sizes = (q_size, kv_size, kv_size) if len(inputs) == 3 else (q_size + 2 * kv_size,)
        self.qkv = Linear(weights, dict(zip(inputs, sizes, strict=True)), config.hidden_size, bias=qkv_bias)
        self.out = Linear(weights, {output: config.hidden_size}, q_size, bias=out_bias)
        self.q_norm = qk_norm(weights, f"{name}.q_norm", self.head_dim, config.rms_norm_eps) if qk_norm else None
        self.k_norm = qk_norm(weights, f"{name}.k_norm", self.head_dim, config.rms_norm_eps) if qk_norm else None
        self.sinks = weights.tensor(f"{name}.sinks", config.num_heads) if sinks else None

    def __call__(self, x: Tensor, angles: RotaryAngles, context: ForwardContext) -> Tensor:
        """x [T, hidden] -> [T, hidden]."""
        backend = context.backend
        qkv = self.qkv(x, backend)
        q = backend.rotate_and_store(
            qkv, self.norms, angles.cos, angles.sin, context.pool, self.layer, context.meta, num_heads=self.heads[0]
        )
        return self._attend(q, context)

    @property
    def norms(self) -> QKVNorms | None:
        """Of the heads of q and k."""
        if self.q_norm is None or self.k_norm is None:
            return None
        return QKVNorms(self.q_norm.weight, self.k_norm.weight, self.q_norm.eps)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, context: ForwardContext) -> Tensor:
        """Store and attend with q, k and v [T, heads, head_dim], rotated, and project back: [T, hidden]."""
        context.backend.store_kv(context.pool, self.layer, k, v, context.meta)
        return self._attend(q, context)

    def _attend(self, q: Tensor, context: ForwardContext) -> Tensor:
        backend = context.backend
        attended = backend.attention(
            q, context.pool, self.layer, context.meta, scale=self.scale, window=self.window, sinks=self.sinks
        )
        return self.out(attended.flatten(1), backend)
