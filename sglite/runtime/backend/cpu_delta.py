"""The gated delta rule and its convolution in plain torch: what recurrent layers ask of the CPU.

One token a row, which is decoding, takes the rule as it stands, all rows at once. More tokens are cut into chunks of
64 and take its WY form (Yang et al., https://arxiv.org/abs/2406.06484): what the tokens of a chunk write depends on
what the earlier ones wrote, a triangular system, solved at once; only the memory goes from chunk to chunk. With G the
decays summed up from the chunk's start and S the memory before it, rows being tokens:

    A = strictly lower part of beta_i exp(G_i - G_j) k_i . k_j
    (1 + A) W = beta (v - exp(G) k S)                     what is written
    out = exp(G) q S + [exp(G_i - G_j) q_i . k_j, j <= i] W
    S  <- exp(G_n) S + (exp(G_n - G) k)^T W

Padding neither forgets (decay 0) nor writes (beta 0). No exponent is above 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sglite.runtime.backend.cpu_plan import Run

CHUNK = 64
_EPSILON = 1e-6
"""Added to the squared length of q and k."""


def causal_conv(x: Tensor, weight: Tensor, states: Tensor, runs: Sequence[Run]) -> Tensor:
    """See ``Backend.causal_conv``; ``states`` [slots, channels, width - 1]."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    kept, taps = states.shape[2], weight.T.float().contiguous()
    for run in runs:
        before = states.index_select(0, run.slots).transpose(1, 2).to(x.dtype)
        inputs, count = torch.cat((before, x[run.tokens]), dim=1), run.tokens.shape[1]
        wide = inputs.float()
        result = wide[:, kept:] * taps[kept]
        for tap in range(kept):  # shifted sums over whole tokens, whose channels lie side by side
            result.addcmul_(wide[:, tap : tap + count], taps[tap])
        _put(out, F.silu(result, inplace=True).to(out.dtype), run)
        last = (run.lengths[:, None] + torch.arange(kept))[..., None].expand(-1, -1, len(weight))
        states.index_copy_(0, run.slots, inputs.gather(1, last).transpose(1, 2).to(states.dtype))
    return out


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, states: Tensor, runs: Sequence[Run]
) -> Tensor:
    """See ``Backend.gated_delta_rule``; ``states`` [slots, v_heads, k_dim, v_dim]."""
    out = torch.empty_like(v, memory_format=torch.contiguous_format)
    shared = v.shape[1] // k.shape[1]
    for run in runs:
        queries, keys = (_unit(part[run.tokens].float()).repeat_interleave(shared, 2) for part in (q, k))
        queries = queries * k.shape[2] ** -0.5
        values, forget, write = v[run.tokens].float(), decay[run.tokens], beta[run.tokens]
        if run.own is not None:
            forget, write = forget * run.own[..., None], write * run.own[..., None]
        state = states.index_select(0, run.slots)
        rule = _one_token if run.tokens.shape[1] == 1 else _many_tokens
        result, state = rule(_Inputs(*(part.transpose(1, 2) for part in (queries, keys, values, forget, write))), state)
        states.index_copy_(0, run.slots, state)
        _put(out, result.transpose(1, 2).to(out.dtype), run)
    return out


def _put(out: Tensor, result: Tensor, run: Run) -> None:
    """Write what a run gave, [B, n, ...], to its tokens."""
    if run.own is None:
        out[run.tokens] = result
    else:
        out[run.tokens[run.own]] = result[run.own]


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + _EPSILON)


class _Inputs(NamedTuple):
    """Rows and heads first: q, k, v [B, heads, n, dim], decay and beta [B, heads, n]."""

    q: Tensor
    k: Tensor
    v: Tensor
    decay: Tensor
    beta: Tensor


def _one_token(x: _Inputs, state: Tensor) -> tuple[Tensor, Tensor]:
    """The rule for n = 1: what is read, and the memory after it, in the place of ``state``."""
    state.mul_(x.decay.exp()[..., None])
    written = (x.v - x.k @ state) * x.beta[..., None]
    state.addcmul_(x.k.transpose(-1, -2), written)
    return x.q @ state, state


def _many_tokens(x: _Inputs, state: Tensor) -> tuple[Tensor, Tensor]:
    """The rule for any n, chunk by chunk."""
    read = []
    for first in range(0, x.q.shape[2], CHUNK):
        result, state = _chunk(_Inputs(*(part[:, :, first : first + CHUNK] for part in x)), state)
        read.append(result)
    return torch.cat(read, dim=2), state


def _chunk(x: _Inputs, state: Tensor) -> tuple[Tensor, Tensor]:
    summed = x.decay.cumsum(-1)
    later = torch.ones(x.q.shape[2], x.q.shape[2], dtype=torch.bool).triu(1)
    between = (summed[..., :, None] - summed[..., None, :]).masked_fill(later, -torch.inf).exp()
    since_start = summed.exp()[..., None]
    across = x.k.transpose(-1, -2)
    system = (x.k @ across) * between * x.beta[..., None]  # the solver takes the diagonal for 1 and reads none above
    wanted = (x.v - since_start * (x.k @ state)) * x.beta[..., None]
    written = torch.linalg.solve_triangular(system, wanted, upper=False, unitriangular=True)
    read = since_start * (x.q @ state) + ((x.q @ across) * between) @ written
    to_end = (summed[..., -1:] - summed).exp()[..., None]
    return read, state * since_start[..., -1:, :] + (x.k * to_end).transpose(-1, -2) @ written
