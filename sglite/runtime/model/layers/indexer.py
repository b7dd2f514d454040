"""The indexer of sparse attention (DeepSeek V3.2, https://arxiv.org/abs/2512.02556): small heads that say, before a
layer attends, which positions are worth it.

    score(query, position) = sum over heads of weight_h(query) * relu(q_h k)      one key a position, for all heads

Its keys are cached in a group of their own, in the pages of the attention's. As the score has no softmax, what scales
it is folded into the weights. Rotated are the first dimensions of a head, in halves, unlike in the attention itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sglite.runtime.backend.base import ForwardContext
from sglite.runtime.model.config import ModelConfig
from sglite.runtime.model.layers.linear import Linear
from sglite.runtime.model.layers.rotary import RotaryAngles
from sglite.runtime.model.layers.weights import WeightTable

KEY_EPS = 1e-6
"""Of the norm of its keys, whatever the config's ``rms_norm_eps``."""


class Indexer:
    """Stores this step's keys and chooses slots for its queries. ``layer``: index into the pool, of the indexer's."""

    def __init__(self, weights: WeightTable, name: str, config: ModelConfig, layer: int) -> None:
        assert config.indexer is not None and config.mla is not None and config.mla.q_lora_rank is not None
        indexer, hidden = config.indexer, config.hidden_size
        self.layer, self.top_k, self.num_heads = layer, indexer.top_k, indexer.num_heads
        self.scale = (indexer.num_heads * indexer.head_dim) ** -0.5
        self.q = Linear(weights, {f"{name}.wq_b": indexer.num_heads * indexer.head_dim}, config.mla.q_lora_rank)
        self.k = Linear(weights, {f"{name}.wk": indexer.head_dim}, hidden)
        self.norm_weight = weights.tensor(f"{name}.k_norm.weight", indexer.head_dim)
        self.norm_bias = weights.tensor(f"{name}.k_norm.bias", indexer.head_dim)
        self.shares = weights.tensor(f"{name}.weights_proj.weight", indexer.num_heads, hidden, dtype=torch.float32)

    def __call__(self, x: Tensor, latent: Tensor, angles: RotaryAngles, context: ForwardContext) -> Tensor | None:
        """x [T, hidden] and the query's latent [T, q_lora_rank] -> chosen slots, see ``Backend.choose_slots``."""
        backend = context.backend
        k = F.layer_norm(self.k(x, backend), self.norm_weight.shape, self.norm_weight, self.norm_bias, KEY_EPS)
        backend.store_kv(context.pool, self.layer, angles.rotate(k[:, None]), None, context.meta)
        q = angles.rotate(self.q(latent, backend).view(len(x), self.num_heads, -1))
        shares = backend.matmul(x.float(), self.shares) * self.scale
        return backend.choose_slots(q, shares, context.pool, self.layer, context.meta, top_k=self.top_k)
