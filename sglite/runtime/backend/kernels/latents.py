"""Latent attention on a GPU, over all slots that a query sees or over those that were chosen for it.

All heads read the same latents, of which the first numbers are the values: a tile of them is loaded once, multiplied
with the queries of many heads for the scores and with the shares for the sums. What is left of a latent (its rotary
part) is a tile of its own. Choosing slots: a kernel scores them, torch finds the best without the host knowing.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sglite.runtime.backend.base import BackendError
from sglite.runtime.backend.cuda_plan import CUDAMetadata, Tiles
from sglite.runtime.backend.kernels.attention_parts import (
    Parts,
    finish,
    grouped,
    power_of_two,
    rooms_of,
    seen_by,
    stretch,
    tile_of,
    weighed,
)
from sglite.runtime.backend.kernels.device import INTERPRETED
from sglite.runtime.cache.pool import KVPool

LARGEST_LATENT, LARGEST_REST = 512, 128
"""Values of a latent, and what it has besides: more would leave no room for their sums in registers."""
LOG2_E = 1.4426950408889634
"""Scores are powers of two in the kernels."""
SCORED = 2**24
"""Scores that are held at a time while slots are chosen."""


@triton.jit(do_not_specialize=["parts"])
def _attend(
    q, latents, chosen, out, sums, peaks, tiles, pages, page_starts, seq_lens, drafts, ancestors,
    scale, q_token, q_head, slot_stride, parts, top_k,
    GROUP: tl.constexpr, HEADS: tl.constexpr, QUERIES: tl.constexpr, SUBS: tl.constexpr, HEIGHT: tl.constexpr,
    PART: tl.constexpr, ROUND: tl.constexpr, PAGE: tl.constexpr, FIELDS: tl.constexpr,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_REST: tl.constexpr, BLOCK_DV: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, WORDS: tl.constexpr, CHOSEN: tl.constexpr, MERGED: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    left, row, _, head, token, home, real, at, _, high, behind = tile_of(
        tiles, None, GROUP, HEADS, QUERIES, SUBS, HEIGHT, FIELDS, M, False
    )
    if left == 0:
        return
    known = 0
    if WORDS > 0:
        known = tl.load(seq_lens + row) - tl.load(drafts + row)
    if CHOSEN:
        high = top_k
        chosen += tl.min(token, 0).to(tl.int64) * top_k  # of the one query
    low, high = stretch(0, high, PART, ROUND)

    e, rest = tl.arange(0, BLOCK_DV), DV + tl.arange(0, BLOCK_REST)
    dtype: tl.constexpr = tl.float32 if UPCAST else q.dtype.element_ty
    of_query = q + token[:, None].to(tl.int64) * q_token + head[:, None] * q_head
    queries = tl.load(of_query + e[None, :], mask=real[:, None] & (e < DV)[None, :], other=0.0).to(dtype)
    turned = tl.load(of_query + rest[None, :], mask=real[:, None] & (rest < D)[None, :], other=0.0).to(dtype)
    table = tl.load(page_starts + row)
    peak, total = tl.full([M], float("-inf"), tl.float32), tl.zeros([M], tl.float32)
    acc = tl.zeros([M, BLOCK_DV], tl.float32)
    for begin in range(low, high, N):
        slots = begin + tl.arange(0, N)
        if CHOSEN:
            rooms = tl.load(chosen + slots, mask=slots < high, other=-1)
            there = rooms >= 0
            seen = there[None, :] & real[:, None]
        else:
            rooms, there = rooms_of(pages, table, slots, slots < high, PAGE)
            seen = seen_by(slots, there, at, token, 0, known, behind, ancestors, None, False, WORDS)
        of_slot = latents + rooms[:, None] * slot_stride
        keys = tl.load(of_slot + e[None, :], mask=there[:, None] & (e < DV)[None, :], other=0.0).to(dtype)
        more = tl.load(of_slot + rest[None, :], mask=there[:, None] & (rest < D)[None, :], other=0.0).to(dtype)
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee")
        scores = tl.dot(turned, tl.trans(more), acc=scores, input_precision="ieee") * scale
        shares, shrink, peak, total = weighed(scores, seen, peak, total)
        acc = acc * shrink[:, None] + tl.dot(shares.to(dtype), keys, input_precision="ieee")
    part = tl.program_id(2)
    finish(
        acc, peak, total, token, home, head, real, GROUP, None, out, sums, peaks, part, parts, DV, BLOCK_DV, MERGED
    )  # fmt: skip


def mla_attention(
    q: Tensor, pool: KVPool, layer: int, meta: CUDAMetadata, *, scale: float, chosen: Tensor | None = None
) -> Tensor:
    """See ``Backend.mla_attention``. BackendError: latents larger than ``LARGEST_LATENT`` and ``LARGEST_REST``."""
    latents, size = pool.k[layer], pool.v[layer].shape[2]
    if size > LARGEST_LATENT or latents.shape[2] - size > LARGEST_REST:
        raise BackendError(
            f"latents of {latents.shape[2]} numbers, {size} of them values: the cuda backend takes up to "
            f"{LARGEST_LATENT} values and {LARGEST_REST} more"
        )
    q = q if q.stride(2) == 1 else q.contiguous()
    chosen = None if chosen is None else chosen.contiguous()
    out = q.new_empty((*q.shape[:2], size))
    for tiles in meta.tiles:
        parts = Parts(tiles, None, out)
        _launch(q, latents, chosen, out, meta, tiles, parts, scale)
        parts.merge(None)
    return out


def _launch(
    q: Tensor,
    latents: Tensor,
    chosen: Tensor | None,
    out: Tensor,
    meta: CUDAMetadata,
    tiles: Tiles,
    parts: Parts,
    scale: float,
) -> None:
    trees = meta.trees if tiles.height > 1 and chosen is None else None
    size = out.shape[2]
    shape = _shape(q.shape[1], tiles.height, size, q.element_size(), chosen is not None)
    grid = (tiles.count * shape["SUBS"], -(-shape["GROUP"] // shape["HEADS"]), tiles.parts)
    _attend[grid](
        q, latents, chosen, out, parts.sums, parts.peaks,
        tiles.tiles, meta.pages, meta.page_starts, meta.seq_lens,
        None if trees is None else trees.drafts,
        None if trees is None else trees.ancestors,
        scale * LOG2_E, *q.stride()[:2], latents.stride(0), parts.count, 0 if chosen is None else chosen.shape[1],
        **shape,
        PAGE=meta.page_size,
        D=latents.shape[2], DV=size, BLOCK_REST=power_of_two(max(1, latents.shape[2] - size)),
        BLOCK_DV=power_of_two(size),
        WORDS=0 if trees is None else trees.ancestors.shape[1],
        CHOSEN=chosen is not None, MERGED=parts.merged, UPCAST=INTERPRETED or q.dtype == torch.float32,
    )  # fmt: skip


def _shape(heads: int, height: int, size: int, item: int, chosen: bool) -> dict[str, Any]:
    """64 rows with sums of 512 numbers are all that the registers of 8 warps hold, 16 in float32, which is multiplied
    without tensor cores; a chosen slot is one query's own."""
    wide, exact = size > 128, item == 4
    rows = min(16 if exact else 64, power_of_two(heads) if height == 1 or chosen else 64)
    shape = grouped(heads, height, rows)
    if chosen:
        shape |= {"QUERIES": 1, "SUBS": height, "M": power_of_two(shape["HEADS"])}
    return {**shape, "N": 16 if exact else 32 if wide else 64, "num_warps": 8 if wide else 4, "num_stages": 2}


@triton.jit(do_not_specialize=["first"])
def _score(
    q, weights, keys, scores, token_rows, query_starts, starts, pages, page_starts, seq_lens, drafts, ancestors,
    first, width, q_token, q_head, w_token, w_head, slot_stride,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, M: tl.constexpr, N: tl.constexpr, PAGE: tl.constexpr,
    WORDS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    token = first + tl.program_id(0)
    slots = tl.program_id(1) * N + tl.arange(0, N)
    row = tl.load(token_rows + token)
    at = tl.load(starts + row) + token - tl.load(query_starts + row)
    high = tl.minimum(at + 1, tl.load(seq_lens + row))  # 0 in a row of padding
    known = 0
    if WORDS > 0:
        known = tl.load(seq_lens + row) - tl.load(drafts + row)
    rooms, there = rooms_of(pages, tl.load(page_starts + row), slots, slots < high, PAGE)
    every = tl.zeros([1], tl.int32)
    seen = seen_by(slots, there, every + at, every + token, 0, known, 0, ancestors, None, False, WORDS)
    head, d = tl.arange(0, M), tl.arange(0, BLOCK_D)
    dtype: tl.constexpr = tl.float32 if UPCAST else q.dtype.element_ty
    queries = tl.load(
        q + token.to(tl.int64) * q_token + head[:, None] * q_head + d[None, :],
        mask=(head < HEADS)[:, None] & (d < D)[None, :],
        other=0.0,
    ).to(dtype)
    weight = tl.load(weights + token.to(tl.int64) * w_token + head * w_head, mask=head < HEADS, other=0.0)
    known_keys = tl.load(
        keys + rooms[:, None] * slot_stride + d[None, :], mask=there[:, None] & (d < D)[None, :], other=0.0
    ).to(dtype)
    product = tl.maximum(tl.dot(queries, tl.trans(known_keys), input_precision="ieee"), 0.0)
    total = tl.sum(product * weight[:, None], 0)
    result = tl.where(tl.max(seen.to(tl.int32), 0) > 0, total, float("-inf"))
    tl.store(scores + tl.program_id(0).to(tl.int64) * width + slots, result, mask=slots < width)


def choose_slots(
    q: Tensor, weights: Tensor, pool: KVPool, layer: int, meta: CUDAMetadata, *, top_k: int
) -> Tensor | None:
    """See ``Backend.choose_slots``. In a captured graph there is something to choose if there may ever be."""
    if meta.max_seq_len <= top_k:
        return None
    q = q if q.stride(2) == 1 else q.contiguous()
    chosen = torch.empty((len(q), top_k), dtype=torch.int64, device=q.device)
    step = max(1, SCORED // meta.max_seq_len)
    for first in range(0, len(q), step):
        scores = _scores(q, weights, pool.k[layer], meta, first, min(step, len(q) - first))
        chosen[first : first + step] = _rooms(_best(scores, top_k), meta, first)
    return chosen


def _scores(q: Tensor, weights: Tensor, keys: Tensor, meta: CUDAMetadata, first: int, count: int) -> Tensor:
    """[count, slots] float32 of the tokens from ``first`` on; -inf where they do not see a slot."""
    scores = torch.empty((count, meta.max_seq_len), dtype=torch.float32, device=q.device)
    trees, exact = meta.trees, q.dtype != keys.dtype or q.dtype == torch.float32
    block = 16 if exact and not INTERPRETED else 64  # float32 is multiplied without tensor cores
    _score[(count, -(-meta.max_seq_len // block))](
        q, weights, keys, scores, meta.token_rows, meta.query_starts, meta.starts, meta.pages, meta.page_starts,
        meta.seq_lens, None if trees is None else trees.drafts, None if trees is None else trees.ancestors,
        first, meta.max_seq_len, *q.stride()[:2], *weights.stride(), keys.stride(0),
        HEADS=q.shape[1], D=q.shape[2], BLOCK_D=power_of_two(q.shape[2]), M=power_of_two(q.shape[1]), N=block,
        PAGE=meta.page_size, WORDS=0 if trees is None else trees.ancestors.shape[1], UPCAST=INTERPRETED or exact,
        num_warps=4, num_stages=1,
    )  # fmt: skip
    return scores


def _best(scores: Tensor, top_k: int) -> Tensor:
    """[n, top_k] numbers of the best slots in their order, -1 behind them; of equals the first."""
    least = scores.topk(top_k, dim=1, sorted=False).values.amin(1, keepdim=True)
    seen = scores > -torch.inf
    better, equal = scores > least, (scores == least) & seen
    room = top_k - better.sum(1, keepdim=True)
    taken = better | (equal & (equal.cumsum(1, dtype=torch.int32) <= room))
    places = torch.where(taken, taken.cumsum(1, dtype=torch.int32) - 1, top_k).long()  # the last column is nobody's
    best = torch.full((len(scores), top_k + 1), -1, dtype=torch.int64, device=scores.device)
    slots = torch.arange(scores.shape[1], device=scores.device)
    return best.scatter_(1, places, slots.expand_as(places))[:, :top_k]


def _rooms(slots: Tensor, meta: CUDAMetadata, first: int) -> Tensor:
    """Pool rows of the slots that were chosen for tokens from ``first`` on."""
    rows = meta.token_rows[first : first + len(slots)]
    of_page = meta.page_starts[rows][:, None] + slots.clamp(min=0) // meta.page_size
    rooms = meta.pages[of_page].long() * meta.page_size + slots.clamp(min=0) % meta.page_size
    return torch.where(slots < 0, -1, rooms)
