"""Multi-head latent attention (https://arxiv.org/abs/2405.04434) over a cache of latents.

What a position leaves behind is one latent, from which every head would make its keys and values (``kv_b_proj``), and
a rotated key that the heads share:

    cached    [latent | rotated key]                   kv_lora_rank + rope_dim numbers, for all heads
    query     [q_nope W_k | rotated q]                 W_k moved from the keys to the query: the same product
    result    softmax(scale * query cached) latents    then W_v, moved behind the sum

so that no key or value is ever made: attention is over latents, as if all heads shared one key and value head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sglite.runtime.backend.base import Backend, ForwardContext
from sglite.runtime.backend.experts import Matrices
from sglite.runtime.model.config import MLAConfig, ModelConfig
from sglite.runtime.model.layers.indexer import Indexer
from sglite.runtime.model.layers.linear import Linear
from sglite.runtime.model.layers.norm import RMSNorm
from sglite.runtime.model.layers.rotary import RotaryAngles, temperature
from sglite.runtime.model.layers.weights import Conversion, WeightTable

LATENT_EPS = 1e-6
"""Of the norms of latents, whatever the config's ``rms_norm_eps``: the family's own code leaves it at the default."""


class LatentAttention:
    """Project down and up again, rotate, store this step's latents, attend, project back.

    ``layer``: index into the pool. ``attention_bias`` adds biases to the projections down and out. The query has no
    latent of its own where ``q_lora_rank`` is ``None``. ``indexer``: what chooses the slots that are attended to.
    """

    def __init__(
        self, weights: WeightTable, name: str, config: ModelConfig, layer: int, indexer: Indexer | None = None
    ) -> None:
        assert config.mla is not None
        self.mla = mla = config.mla
        self.layer, self.num_heads, self.indexer = layer, config.num_heads, indexer
        self.scale = (mla.nope_dim + mla.rope_dim) ** -0.5 * scale_of(config) ** 2
        q_size, hidden, bias = self.num_heads * (mla.nope_dim + mla.rope_dim), config.hidden_size, config.attention_bias
        if mla.q_lora_rank is None:
            self.q = Linear(weights, {f"{name}.q_proj": q_size}, hidden)
        else:
            self.q_down = Linear(weights, {f"{name}.q_a_proj": mla.q_lora_rank}, hidden, bias=bias)
            self.q_norm = RMSNorm(weights, f"{name}.q_a_layernorm", mla.q_lora_rank, LATENT_EPS)
            self.q = Linear(weights, {f"{name}.q_b_proj": q_size}, mla.q_lora_rank)
        latent = {f"{name}.kv_a_proj_with_mqa": mla.kv_lora_rank + mla.rope_dim}
        self.kv_down = Linear(weights, latent, hidden, bias=bias)
        self.kv_norm = RMSNorm(weights, f"{name}.kv_a_layernorm", mla.kv_lora_rank, LATENT_EPS)
        self.key_up, self.value_up = _up(weights, f"{name}.kv_b_proj.weight", self.num_heads, mla)
        self.out = Linear(weights, {f"{name}.o_proj": hidden}, self.num_heads * mla.v_dim, bias=bias)

    def __call__(self, x: Tensor, angles: RotaryAngles, context: ForwardContext) -> Tensor:
        """x [T, hidden] -> [T, hidden]."""
        backend, pool, meta, mla = context.backend, context.pool, context.meta, self.mla
        source = x if mla.q_lora_rank is None else self.q_norm(self.q_down(x, backend), backend)
        q = self.q(source, backend).view(len(x), self.num_heads, -1)
        latent, k_rope = torch.split(self.kv_down(x, backend), [mla.kv_lora_rank, mla.rope_dim], dim=-1)
        k_rope = self._rotate(k_rope[:, None], angles)
        backend.store_kv(
            pool, self.layer, torch.cat((self.kv_norm(latent, backend)[:, None], k_rope), dim=-1), None, meta
        )
        chosen = None if self.indexer is None else self.indexer(x, source, angles, context)
        query = self._query(q, angles, backend)
        attended = backend.mla_attention(query, pool, self.layer, meta, scale=self.scale, chosen=chosen)
        return self.out(backend.matmul_each(attended, self.value_up).flatten(1), backend)

    def _query(self, q: Tensor, angles: RotaryAngles, backend: Backend) -> Tensor:
        """[T, heads, nope + rope] -> [T, heads, rank + rope], in the latents' space."""
        nope, rope = torch.split(q, [self.mla.nope_dim, self.mla.rope_dim], dim=-1)
        return torch.cat((backend.matmul_each(nope, self.key_up), self._rotate(rope, angles)), dim=-1)

    def _rotate(self, x: Tensor, angles: RotaryAngles) -> Tensor:
        return angles.rotate_pairs(x) if self.mla.pairs else angles.rotate(x)


def _up(weights: WeightTable, name: str, heads: int, mla: MLAConfig) -> tuple[Matrices, Matrices]:
    """W_k of every head [heads, rank, nope] and W_v [heads, v_dim, rank], which a head has side by side."""
    rank, sizes = mla.kv_lora_rank, [mla.nope_dim, mla.v_dim]
    shape = (heads * sum(sizes), rank)

    def parted(stored: Tensor) -> Tensor:
        keys, values = torch.split(stored.view(heads, -1, rank), sizes, dim=1)
        return torch.cat((keys.transpose(1, 2).flatten(), values.flatten())).view(shape)

    whole = weights.tensor(name, *shape, source=Conversion(shape, parted))
    keys, values = torch.split(whole, [heads * size for size in sizes])
    return weights.matrices(keys.view(heads, rank, -1)), weights.matrices(values.view(heads, -1, rank))


def scale_of(config: ModelConfig) -> float:
    """What yarn's temperature multiplies q and k by in this family, on top of the angles' own share."""
    rope = config.rope
    return temperature(rope, rope.mscale_all_dim) if rope.mscale_all_dim else 1.0
