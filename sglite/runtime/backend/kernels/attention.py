"""Attention over pages on a GPU: every kind of row in launches by the height of its tiles, see ``cuda_tiles``.

The queries of all heads that read a KV head are rows of one product, so keys are read once for them. Slots that rows
share are attended by a launch of their own for all of them together. Numbers are added up in float32; shares of the
softmax are rounded to q's type for the second product, as the keys are for the first. Head sizes are padded to powers
of two, in registers alone. A query that sees nothing gives zeros.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sglite.runtime.backend.base import BackendError
from sglite.runtime.backend.cuda_plan import CUDAMetadata, SharedTiles, Tiles
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

LARGEST_HEAD = 512
"""Numbers of a head: beyond, a tile of keys leaves no room for the next one in shared memory."""
LOG2_E = 1.4426950408889634
"""Scores are powers of two in the kernels."""


@triton.jit
def _numbers(cache, scales, rooms, known, head, d, slot_stride, head_stride, kv_heads, size, dtype: tl.constexpr):
    """[N, D] of the pool as ``dtype``."""
    at = cache + rooms[:, None] * slot_stride + head * head_stride + d[None, :]
    numbers = tl.load(at, mask=known[:, None] & (d < size)[None, :], other=0)
    if scales is not None:
        scale = tl.load(scales + rooms * kv_heads + head, mask=known, other=0.0)
        numbers = numbers.to(tl.float32) * scale[:, None]
    return numbers.to(dtype)


@triton.jit(do_not_specialize=["window", "part_from", "parts"])
def _attend(
    q, k, v, k_scales, v_scales, sinks, out, sums, peaks,
    tiles, members, pages, page_starts, seq_lens, drafts, ancestors, depths,
    scale, window, q_token, q_head, k_slot, k_head, v_slot, v_head, kv_heads, part_from, parts,
    GROUP: tl.constexpr, HEADS: tl.constexpr, QUERIES: tl.constexpr, SUBS: tl.constexpr, HEIGHT: tl.constexpr,
    PART: tl.constexpr, ROUND: tl.constexpr, PAGE: tl.constexpr, FIELDS: tl.constexpr,
    D: tl.constexpr, DV: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    WORDS: tl.constexpr, SHARED: tl.constexpr, BEHIND: tl.constexpr, WINDOW: tl.constexpr, MERGED: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    left, row, kv_head, head, token, home, real, at, lowest, high, behind = tile_of(
        tiles, members, GROUP, HEADS, QUERIES, SUBS, HEIGHT, FIELDS, M, SHARED
    )
    if left == 0:
        return
    low, known = 0, 0
    if WORDS > 0:
        known = tl.load(seq_lens + row) - tl.load(drafts + row)
        lowest = tl.minimum(lowest, known)
    if WINDOW:
        low = tl.maximum(lowest - window + 1, 0)
    if BEHIND:
        low = tl.load(tiles + tl.program_id(0) // SUBS * FIELDS + 4)
    low, high = stretch(low, high, PART, ROUND)

    d, e = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    dtype: tl.constexpr = tl.float32 if UPCAST else q.dtype.element_ty
    of_query = q + token[:, None].to(tl.int64) * q_token + head[:, None] * q_head
    queries = tl.load(of_query + d[None, :], mask=real[:, None] & (d < D)[None, :], other=0.0).to(dtype)
    table = tl.load(page_starts + row)
    peak, total = tl.full([M], float("-inf"), tl.float32), tl.zeros([M], tl.float32)
    acc = tl.zeros([M, BLOCK_DV], tl.float32)
    for begin in range(low, high, N):
        slots = begin + tl.arange(0, N)
        rooms, there = rooms_of(pages, table, slots, slots < high, PAGE)
        keys = _numbers(k, k_scales, rooms, there, kv_head, d, k_slot, k_head, kv_heads, D, dtype)
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
        seen = seen_by(slots, there, at, token, window, known, behind, ancestors, depths, WINDOW, WORDS)
        shares, shrink, peak, total = weighed(scores, seen, peak, total)
        values = _numbers(v, v_scales, rooms, there, kv_head, e, v_slot, v_head, kv_heads, DV, dtype)
        acc = acc * shrink[:, None] + tl.dot(shares.to(dtype), values, input_precision="ieee")
    part = part_from + tl.program_id(2)
    finish(
        acc, peak, total, token, home, head, real, kv_heads * GROUP, sinks, out, sums, peaks, part, parts,
        DV, BLOCK_DV, MERGED,
    )  # fmt: skip


def attend(
    q: Tensor,
    pool: KVPool,
    layer: int,
    meta: CUDAMetadata,
    *,
    scale: float,
    window: int | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """See ``Backend.attention``. BackendError: heads larger than ``LARGEST_HEAD``."""
    v = pool.v[layer]
    if max(q.shape[2], v.shape[2]) > LARGEST_HEAD:
        raise BackendError(
            f"attention with heads of {q.shape[2]} and {v.shape[2]} numbers: the cuda backend takes up to "
            f"{LARGEST_HEAD}; use the latents of an mla group for more"
        )
    meta = meta.within(pool.framed[layer])
    q = q if q.stride(2) == 1 else q.contiguous()
    out = q.new_empty((*q.shape[:2], v.shape[2]))
    attention = _Attention(q, pool, layer, meta, out, scale, window)
    for tiles in meta.tiles:
        shared = meta.shared if tiles.height == 1 and window is None else None
        parts = Parts(tiles, None if shared is None else shared.tiles, out)
        attention.launch(tiles, parts, 0, sinks, behind=shared is not None)
        if shared is not None:
            attention.launch(shared.tiles, parts, tiles.parts, sinks, shared=shared)
        parts.merge(sinks)
    return out


class _Attention:
    """One layer's queries and what they read."""

    def __init__(
        self, q: Tensor, pool: KVPool, layer: int, meta: CUDAMetadata, out: Tensor, scale: float, window: int | None
    ) -> None:
        self._q, self._out, self._meta = q, out, meta
        self._k, self._v = pool.k[layer], pool.v[layer]
        self._scales = pool.scales_of(layer) or (None, None)
        self._scale, self._window, self._page_size = scale, window, pool.page_size

    def launch(
        self,
        tiles: Tiles,
        parts: Parts,
        part_from: int,
        sinks: Tensor | None,
        *,
        behind: bool = False,
        shared: SharedTiles | None = None,
    ) -> None:
        """Attend some tiles; ``behind``: over what lies behind the shared slots; ``shared``: over those."""
        q, k, v, meta = self._q, self._k, self._v, self._meta
        trees = meta.trees if tiles.height > 1 and shared is None else None
        kv_heads = k.shape[1]
        shape = _shape(q.shape[1] // kv_heads, tiles.height, max(k.shape[2], v.shape[2]), q.element_size())
        grid = (tiles.count * shape["SUBS"], kv_heads * -(-shape["GROUP"] // shape["HEADS"]), tiles.parts)
        _attend[grid](
            q, k, v, *self._scales, sinks, self._out, parts.sums, parts.peaks,
            tiles.tiles, None if shared is None else shared.members, meta.pages, meta.page_starts, meta.seq_lens,
            None if trees is None else trees.drafts,
            None if trees is None else trees.ancestors,
            None if trees is None else trees.depths,
            self._scale * LOG2_E, self._window or 0, *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
            kv_heads, part_from, parts.count,
            **shape,
            PAGE=self._page_size,
            D=k.shape[2], DV=v.shape[2], BLOCK_D=power_of_two(k.shape[2]), BLOCK_DV=power_of_two(v.shape[2]),
            WORDS=0 if trees is None else trees.ancestors.shape[1],
            SHARED=shared is not None, BEHIND=behind, WINDOW=self._window is not None and shared is None,
            MERGED=parts.merged, UPCAST=INTERPRETED or q.dtype == torch.float32,
        )  # fmt: skip


def _shape(group: int, height: int, size: int, item: int) -> dict[str, Any]:
    """Sizes of a program's tiles, so that two stages of keys and values and the queries fit in shared memory.

    Single queries: as many rows as the group has heads, and enough slots to have loads under way. Tall tiles: 128 rows
    on 8 warps, unless heads are so large that their sums would not fit in registers. Float32 is multiplied without
    tensor cores, number by number, in tiles that are small enough for it.
    """
    wide, exact = size > 128, item == 4
    rows = {1: min(64, power_of_two(group)), 16: 64}.get(height, 64 if wide else 128)
    rows = 16 if exact else rows
    return {
        **grouped(group, height, rows),
        "N": 16 if exact else 32 if wide else 64,
        "num_warps": 8 if rows == 128 or (wide and rows == 64) else 4,
        "num_stages": 2 if wide or exact else 3,
    }
