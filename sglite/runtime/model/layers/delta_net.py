"""The gated delta-net (Yang et al., https://arxiv.org/abs/2412.06464): attention with a memory of fixed size.

    q k v  = silu(causal convolution of the projected input)      over the last few positions
    S_t    = exp(g_t) S_t-1 + k_t (beta_t (v_t - exp(g_t) S_t-1^T k_t))^T     per value head, [k_dim, v_dim]
    out    = norm(S_t^T q_t) * silu(z_t), projected back

``g`` is how much is forgotten, from a rate per head and the input; ``beta`` how much is written. The convolution's last
inputs and S are all that a sequence keeps, whatever its length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sglite.runtime.backend.base import ForwardContext
from sglite.runtime.backend.weights import Matrix
from sglite.runtime.model.config import ModelConfig
from sglite.runtime.model.layers.cache_layout import STATE_GROUP
from sglite.runtime.model.layers.linear import Linear
from sglite.runtime.model.layers.rotary import RotaryAngles
from sglite.runtime.model.layers.weights import Conversion, WeightTable


class DeltaNet:
    """One recurrent layer.

    ``layer``: index among the recurrent ones. ``grouped``: the checkpoint has ``in_proj_qkvz`` and ``in_proj_ba``, in
    which what belongs to one key head stands together (Qwen3-Next), not a projection each (Qwen3.5).
    """

    def __init__(self, weights: WeightTable, name: str, config: ModelConfig, layer: int, *, grouped: bool) -> None:
        assert config.delta is not None
        delta = self.delta = config.delta
        self.layer = layer
        self.eps = config.rms_norm_eps
        keys, values = delta.num_k_heads * delta.k_dim, delta.num_v_heads * delta.v_dim
        self.sizes = [keys, keys, values]
        heads, hidden = delta.num_v_heads, config.hidden_size
        if grouped:
            order = {f"{name}.in_proj_qkvz.weight": [keys, keys, values, values]}
            self.qkvz = _ungrouped(weights, order, delta.num_k_heads, hidden)
            self.ba = _ungrouped(weights, {f"{name}.in_proj_ba.weight": [heads, heads]}, delta.num_k_heads, hidden)
        else:
            rows = {f"{name}.in_proj_qkv.weight": 2 * keys + values, f"{name}.in_proj_z.weight": values}
            self.qkvz = weights.matrix(rows, hidden)
            self.ba = weights.matrix({f"{name}.in_proj_{part}.weight": heads for part in "ba"}, hidden)
        shape = (2 * keys + values, delta.conv_width)
        flat = Conversion((shape[0], 1, shape[1]), lambda stored: stored.squeeze(1))
        self.conv = weights.tensor(f"{name}.conv1d.weight", *shape, source=flat)
        self.log_rate = weights.tensor(f"{name}.A_log", delta.num_v_heads, dtype=torch.float32)
        self.rate_bias = weights.tensor(f"{name}.dt_bias", delta.num_v_heads, dtype=torch.float32)
        self.norm = weights.tensor(f"{name}.norm.weight", delta.v_dim, dtype=torch.float32)
        self.out = Linear(weights, {f"{name}.out_proj": config.hidden_size}, values)

    def __call__(self, x: Tensor, angles: RotaryAngles, context: ForwardContext) -> Tensor:
        """x [T, hidden] -> [T, hidden]. It has no use for ``angles``: the order of positions is in the state."""
        backend, delta = context.backend, self.delta
        mixed, z = torch.split(backend.matmul(x, self.qkvz), [sum(self.sizes), self.sizes[2]], dim=-1)
        write, forget = backend.matmul(x, self.ba).float().chunk(2, dim=-1)
        mixed = backend.causal_conv(mixed, self.conv, context.pool, STATE_GROUP, self.layer, context.meta)
        q, k, v = torch.split(mixed, self.sizes, dim=-1)
        q, k = (part.view(len(x), delta.num_k_heads, delta.k_dim) for part in (q, k))
        v = v.view(len(x), delta.num_v_heads, delta.v_dim)
        decay = -self.log_rate.exp() * F.softplus(forget + self.rate_bias)
        state = (context.pool, STATE_GROUP, self.layer)
        read = backend.gated_delta_rule(q, k, v, decay, write.sigmoid(), *state, context.meta)
        gated = backend.gated_norm(read, z.view(read.shape), self.norm, self.eps)
        return self.out(gated.flatten(1), backend)


def _ungrouped(weights: WeightTable, source: Mapping[str, Sequence[int]], heads: int, hidden: int) -> Matrix:
    """[sum of parts, hidden], part under part; in the checkpoint every head's share of each part stands together."""
    ((name, parts),) = source.items()
    size = sum(parts)
    shares = torch.split(torch.arange(size).view(heads, -1), [part // heads for part in parts], dim=1)
    order = torch.cat([share.flatten() for share in shares])
    return weights.converted_matrix(name, size, hidden, source=Conversion((size, hidden), lambda stored: stored[order]))
