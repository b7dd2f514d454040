"""Recurrent layers: ``Backend.causal_conv`` and ``Backend.gated_delta_rule``, states read and written in place.

A program has a row, some channels or a head, and some of its values; it reads the row's state, goes through the row's
tokens and leaves the state. Rows of a token whose slot is below 0 are padding: they read and store no state, their
results are 0. Rows of more than ``MOST`` tokens take the rule in chunks, see ``delta_chunks``.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from sglite.runtime.backend.kernels.delta_chunks import MOST, in_chunks
from sglite.runtime.backend.kernels.rounding import rounded


def causal_conv(
    x: Tensor, weight: Tensor, states: Tensor, query_starts: Tensor, slots: Tensor, max_queries: int
) -> Tensor:
    """See ``Backend.causal_conv``: ``states`` [slots, channels, width - 1], ``query_starts`` [R + 1] and ``slots`` [R]
    int32, no row with more than ``max_queries`` tokens."""
    tokens, channels = x.shape
    out = x.new_empty(tokens, channels)
    width = weight.shape[1]
    many = max_queries > 1
    block = 64 if many else min(256, triton.next_power_of_2(channels))
    _conv[(len(slots), triton.cdiv(channels, block))](
        *(x, weight.contiguous(), states, out, query_starts, slots),
        *(channels, *x.stride(), *states.stride()),
        WIDTH=width,
        KEPT=triton.next_power_of_2(max(1, width - 1)),
        BLOCK_T=16 if many else 1,
        BLOCK_C=block,
        num_warps=4 if many else 2,
        num_stages=1,
    )
    return out


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    beta: Tensor,
    states: Tensor,
    query_starts: Tensor,
    slots: Tensor,
    max_queries: int,
) -> Tensor:
    """See ``Backend.gated_delta_rule``: ``states`` [slots, v_heads, k_dim, v_dim] float32, the rest as
    ``causal_conv``."""
    tokens, heads, v_dim = v.shape
    out = v.new_empty(tokens, heads, v_dim)
    q, k, v = (part if part.stride(2) == 1 else part.contiguous() for part in (q, k, v))
    block, k_dim, rows = min(32, triton.next_power_of_2(v_dim)), k.shape[2], len(slots)
    inputs = (q, k, v, decay, beta, states, out, query_starts, slots)
    strides = [n for part in (q, k, v, decay, beta) for n in part.stride()[:2]]
    sizes = (*strides, *states.stride()[:3], heads // k.shape[1], k_dim, v_dim)
    _tokens[(rows, heads, triton.cdiv(v_dim, block))](
        *(*inputs, *sizes, k_dim**-0.5),
        BLOCK_K=triton.next_power_of_2(k_dim),
        BLOCK_V=block,
        MOST=MOST,
        num_warps=4,
        num_stages=1,
    )
    if max_queries > MOST:
        in_chunks(inputs, sizes)
    return out


@triton.jit
def _conv(
    x,
    weight,
    states,
    out,
    query_starts,
    slots,
    channels,
    x_row,
    x_column,
    state_slot,
    state_channel,
    state_step,
    WIDTH: tl.constexpr,
    KEPT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One row, some channels. What is older than the row is in the state, which is written when all of it was read."""
    row = tl.program_id(0)
    first = tl.load(query_starts + row).to(tl.int64)
    count = (tl.load(query_starts + row + 1) - first).to(tl.int32)
    slot = tl.load(slots + row).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    there = c < tl.where(slot < 0, 0, channels)
    x += first * x_row + c[None, :].to(tl.int64) * x_column
    state = states + slot * state_slot + c * state_channel
    for t in range(0, count, BLOCK_T):
        token = t + tl.arange(0, BLOCK_T)[:, None]
        total = tl.zeros((BLOCK_T, BLOCK_C), dtype=tl.float32)
        for tap in tl.static_range(WIDTH):
            at = token + (tap - WIDTH + 1)  # in the row; below 0: before it
            new = tl.load(x + at.to(tl.int64) * x_row, mask=(at >= 0) & (token < count) & there[None, :], other=0.0)
            kept = (at < 0) & (token < count) & there[None, :]
            old = tl.load(state[None, :] + (at + WIDTH - 1) * state_step, mask=kept, other=0.0).to(tl.float32)
            share = tl.load(weight + c * WIDTH + tap, mask=c < channels, other=0.0).to(tl.float32)
            seen = tl.where(at < 0, rounded(old, x.dtype.element_ty), new)
            total += share[None, :] * seen.to(tl.float32)
        to = out + (first + token) * channels + c[None, :]
        result = total * tl.sigmoid(total)
        tl.store(to, rounded(result, out.dtype.element_ty), mask=(token < count) & (c < channels)[None, :])
    if WIDTH > 1:
        step = tl.arange(0, KEPT)[:, None]
        at = count - (WIDTH - 1) + step
        inside = (step < WIDTH - 1) & there[None, :]
        new = tl.load(x + at.to(tl.int64) * x_row, mask=inside & (at >= 0), other=0.0).to(tl.float32)
        old = tl.load(state[None, :] + (step + count) * state_step, mask=inside & (at < 0), other=0.0)
        tl.debug_barrier()  # another thread may still read what this one writes
        kept = tl.where(at < 0, rounded(old.to(tl.float32), x.dtype.element_ty).to(tl.float32), new)
        tl.store(state[None, :] + step * state_step, rounded(kept, states.dtype.element_ty), mask=inside)


@triton.jit
def _unit(at, there):
    """A query or a key from memory, scaled to length 1."""
    x = tl.load(at, mask=there, other=0.0).to(tl.float32)
    return x * tl.rsqrt(tl.sum(x * x, axis=0) + 1e-6)


@triton.jit
def _tokens(
    q,
    k,
    v,
    decay,
    beta,
    states,
    out,
    query_starts,
    slots,
    q_row,
    q_head,
    k_row,
    k_head,
    v_row,
    v_head,
    decay_row,
    decay_head,
    beta_row,
    beta_head,
    state_slot,
    state_head,
    state_key,
    shared,
    k_dim,
    v_dim,
    scale,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    MOST: tl.constexpr,
):
    """One row of at most ``MOST`` tokens, one head, some of its values: the rule as it stands, memory in registers."""
    row, head = tl.program_id(0), tl.program_id(1)
    first = tl.load(query_starts + row)
    count = tl.load(query_starts + row + 1) - first
    if count > MOST:
        return
    slot = tl.load(slots + row).to(tl.int64)
    i, j = tl.arange(0, BLOCK_K), tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    keys, values = i < tl.where(slot < 0, 0, k_dim), j < tl.where(slot < 0, 0, v_dim)
    at = states + slot * state_slot + head * state_head + i[:, None] * state_key + j[None, :]
    memory = tl.load(at, mask=keys[:, None] & values[None, :], other=0.0)
    for t in range(count):
        token = first.to(tl.int64) + t
        query = _unit(q + token * q_row + (head // shared) * q_head + i, keys) * scale
        key = _unit(k + token * k_row + (head // shared) * k_head + i, keys)
        value = tl.load(v + token * v_row + head * v_head + j, mask=values, other=0.0).to(tl.float32)
        forget = tl.load(decay + token * decay_row + head * decay_head)
        write = tl.load(beta + token * beta_row + head * beta_head)
        memory *= tl.where(slot < 0, 0.0, tl.exp(forget))
        written = (value - tl.sum(memory * key[:, None], axis=0)) * tl.where(slot < 0, 0.0, write)
        memory += key[:, None] * written[None, :]
        read = tl.sum(memory * query[:, None], axis=0)
        to = out + (token * tl.num_programs(1) + head) * v_dim + j
        tl.store(to, rounded(read, out.dtype.element_ty), mask=j < v_dim)
    tl.store(at, memory, mask=keys[:, None] & values[None, :])
