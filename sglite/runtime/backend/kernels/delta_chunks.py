"""The gated delta rule for rows of many tokens, chunk by chunk, in the notation of ``cpu_delta``:

    prepare    of all chunks at once, what does not depend on the memory: (1 + A)^-1, and the shares that queries have
               in what is written, [exp(G_i - G_j) q_i . k_j, j <= i]
    chunks     one after the other: what is written, what is read, the memory after it, a few products each

The inverse is found row by row (substitution), which stays exact where powers of A would not. Products are of float32,
on tensor cores in three parts each, which are nearly as exact.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sglite.runtime.backend.kernels.rounding import rounded

CHUNK = 64
MOST = 16
"""Tokens that are faster one after the other than as a chunk; an estimate, to be measured on a device."""


def in_chunks(inputs: tuple[Tensor, ...], sizes: tuple[int, ...]) -> None:
    """The rows of more than ``MOST`` tokens: what is read to its place, and states; arguments as ``delta`` has them."""
    q, k, v, decay, beta, _, _, query_starts, slots = inputs
    tokens, heads, v_dim = v.shape
    k_dim, rows = k.shape[2], len(slots)
    q_units, k_units = _inverse_lengths(q) * k_dim**-0.5, _inverse_lengths(k)
    inverses, shares = (torch.empty(tokens, heads, CHUNK, dtype=torch.float32, device=v.device) for _ in range(2))
    room = {"CHUNK": CHUNK, "PIECE": min(32, max(16, triton.next_power_of_2(k_dim))), "MOST": MOST}
    pieces = tokens // CHUNK + min(rows, tokens // (MOST + 1))  # as many chunks as there may be
    _prepare[(pieces, heads)](
        *(q, k, decay, beta, q_units, k_units, inverses, shares, query_starts, rows),
        *(n for part in (q, k, decay, beta) for n in part.stride()[:2]),
        *(heads // k.shape[1], k_dim),
        ROWS=triton.next_power_of_2(rows),
        **room,
        num_warps=4,
        num_stages=1,
    )
    block = min(32, max(16, triton.next_power_of_2(v_dim)))
    _chunks[(rows, heads, triton.cdiv(v_dim, block))](
        *(*inputs, q_units, k_units, inverses, shares, *sizes), BLOCK_V=block, **room, num_warps=4, num_stages=1
    )


def _inverse_lengths(x: Tensor) -> Tensor:
    """What scales [T, heads, dim] to length 1: [T, heads] float32."""
    lengths: Tensor = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)
    return lengths.square_().add_(1e-6).rsqrt_()


@triton.jit(do_not_specialize=["num_rows"])
def _prepare(
    q,
    k,
    decay,
    beta,
    q_units,
    k_units,
    inverses,
    shares,
    query_starts,
    num_rows,
    q_row,
    q_head,
    k_row,
    k_head,
    decay_row,
    decay_head,
    beta_row,
    beta_head,
    shared,
    k_dim,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    PIECE: tl.constexpr,
    MOST: tl.constexpr,
):
    """One chunk and head: (1 + A)^-1 and the shares, both [CHUNK, CHUNK], to the places of its tokens."""
    head, heads = tl.program_id(1), tl.num_programs(1)
    rows = tl.arange(0, ROWS)
    begin = tl.load(query_starts + rows, mask=rows < num_rows, other=0)
    end = tl.load(query_starts + rows + 1, mask=rows < num_rows, other=0)
    pieces = tl.where(end - begin > MOST, (end - begin + CHUNK - 1) // CHUNK, 0)
    before = tl.cumsum(pieces, axis=0) - pieces
    mine = (tl.program_id(0) >= before) & (tl.program_id(0) < before + pieces)
    last = tl.sum(tl.where(mine, end, 0), axis=0)
    first = tl.sum(tl.where(mine, begin + (tl.program_id(0) - before) * CHUNK, 0), axis=0)
    if first >= last:
        return
    t, piece = tl.arange(0, CHUNK), tl.arange(0, PIECE)
    there = first + t < last
    token = (first + t).to(tl.int64)
    queries = q + token[:, None] * q_row + (head // shared) * q_head + piece[None, :]
    keys = k + token[:, None] * k_row + (head // shared) * k_head + piece[None, :]
    alike = tl.zeros((CHUNK, CHUNK), dtype=tl.float32)
    asked = tl.zeros((CHUNK, CHUNK), dtype=tl.float32)
    for i in range(0, k_dim, PIECE):
        inside = there[:, None] & (i + piece < k_dim)[None, :]
        key = tl.load(keys + i, mask=inside, other=0.0).to(tl.float32)
        query = tl.load(queries + i, mask=inside, other=0.0).to(tl.float32)
        alike = tl.dot(key, tl.trans(key), alike, input_precision="tf32x3")
        asked = tl.dot(query, tl.trans(key), asked, input_precision="tf32x3")
    q_unit = tl.load(q_units + token * (heads // shared) + head // shared, mask=there, other=0.0)
    k_unit = tl.load(k_units + token * (heads // shared) + head // shared, mask=there, other=0.0)
    forget = tl.load(decay + token * decay_row + head * decay_head, mask=there, other=0.0)
    write = tl.load(beta + token * beta_row + head * beta_head, mask=there, other=0.0)
    summed = tl.cumsum(forget, axis=0)
    place = (token[:, None] * heads + head) * CHUNK + t[None, :]
    seen = t[:, None] >= t[None, :]
    between = tl.exp(tl.where(seen, summed[:, None] - summed[None, :], float("-inf")))
    tl.store(shares + place, asked * between * q_unit[:, None] * k_unit[None, :], mask=there[:, None])
    later = t[:, None] < t[None, :]  # the second token comes after the first: A the other way round
    between = tl.exp(tl.where(later, summed[None, :] - summed[:, None], float("-inf")))
    across = alike * between * k_unit[:, None] * (k_unit * write)[None, :]
    inverse = tl.where(t[:, None] == t[None, :], 1.0, 0.0)
    for n in range(1, tl.minimum(last - first, CHUNK)):
        column = tl.sum(tl.where(t[None, :] == n, across, 0.0), axis=1)
        taken = tl.sum(column[:, None] * inverse, axis=0)
        inverse -= tl.where(t[:, None] == n, taken[None, :], 0.0)
    tl.store(inverses + place, inverse, mask=there[:, None])


@triton.jit
def _chunks(
    q,
    k,
    v,
    decay,
    beta,
    states,
    out,
    query_starts,
    slots,
    q_units,
    k_units,
    inverses,
    shares,
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
    CHUNK: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK_V: tl.constexpr,
    MOST: tl.constexpr,
):
    """One row of more than ``MOST`` tokens, one head, some of its values, chunk after chunk. The memory stays where it
    is, which is a cache by then: kept in registers there would be too many. Threads wait for each other where what one
    wrote is read by another."""
    row, head, heads = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    first = tl.load(query_starts + row)
    last = tl.load(query_starts + row + 1)
    slot = tl.load(slots + row).to(tl.int64)
    if last - first <= MOST:
        return
    t, piece = tl.arange(0, CHUNK), tl.arange(0, PIECE)
    j = tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    at = states + slot * state_slot + head * state_head + piece[:, None] * state_key + j[None, :]
    for start in range(first, last, CHUNK):
        there = start + t < last
        token = (start + t).to(tl.int64)
        queries = q + token[:, None] * q_row + (head // shared) * q_head + piece[None, :]
        keys = k + token[:, None] * k_row + (head // shared) * k_head + piece[None, :]
        known = tl.zeros((CHUNK, BLOCK_V), dtype=tl.float32)
        asked = tl.zeros((CHUNK, BLOCK_V), dtype=tl.float32)
        for i in range(0, k_dim, PIECE):
            inside = there[:, None] & (i + piece < k_dim)[None, :]
            key = tl.load(keys + i, mask=inside, other=0.0).to(tl.float32)
            query = tl.load(queries + i, mask=inside, other=0.0).to(tl.float32)
            mask = (i + piece < k_dim)[:, None] & (j < v_dim)[None, :]
            memory = tl.load(at + i * state_key, mask=mask, other=0.0)
            known = tl.dot(key, memory, known, input_precision="tf32x3")
            asked = tl.dot(query, memory, asked, input_precision="tf32x3")
        tl.debug_barrier()
        q_unit = tl.load(q_units + token * (heads // shared) + head // shared, mask=there, other=0.0)
        k_unit = tl.load(k_units + token * (heads // shared) + head // shared, mask=there, other=0.0)
        forget = tl.load(decay + token * decay_row + head * decay_head, mask=there, other=0.0)
        write = tl.load(beta + token * beta_row + head * beta_head, mask=there, other=0.0)
        summed = tl.cumsum(forget, axis=0)
        total = tl.sum(tl.where(t == CHUNK - 1, summed, 0.0), axis=0)  # the very number, not another sum of the same
        here = there[:, None] & (j < v_dim)[None, :]
        value = tl.load(v + token[:, None] * v_row + head * v_head + j[None, :], mask=here, other=0.0).to(tl.float32)
        wanted = (value - known * (tl.exp(summed) * k_unit)[:, None]) * write[:, None]
        place = (token[:, None] * heads + head) * CHUNK + t[None, :]
        inverse = tl.load(inverses + place, mask=there[:, None], other=0.0)
        written = tl.dot(inverse, wanted, input_precision="tf32x3")
        share = tl.load(shares + place, mask=there[:, None], other=0.0)
        read = tl.dot(share, written, asked * (tl.exp(summed) * q_unit)[:, None], input_precision="tf32x3")
        to = out + (token[:, None] * heads + head) * v_dim + j[None, :]
        tl.store(to, rounded(read, out.dtype.element_ty), mask=here)
        written *= (tl.exp(total - summed) * k_unit)[:, None]
        for i in range(0, k_dim, PIECE):
            inside = there[:, None] & (i + piece < k_dim)[None, :]
            key = tl.load(keys + i, mask=inside, other=0.0).to(tl.float32)
            mask = (i + piece < k_dim)[:, None] & (j < v_dim)[None, :]
            memory = tl.load(at + i * state_key, mask=mask, other=0.0) * tl.exp(total)
            memory = tl.dot(tl.trans(key), written, memory, input_precision="tf32x3")
            tl.store(at + i * state_key, memory, mask=mask)
        tl.debug_barrier()
