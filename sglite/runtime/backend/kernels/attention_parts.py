"""What attention kernels are made of: tiles of queries, stretches of slots, the softmax block by block, and the merge.

A program attends a tile's queries, for some heads, over a stretch of their slots. Where it has the stretch for itself
it writes the result; otherwise it writes what its part came to, a normalised sum and the logarithm (base 2) of the
weight behind it, and ``merged`` puts the parts together in their order. A part without a slot has the weight 0.

    sums   [queries, heads, parts, v_head_dim] float32        peaks  [queries, heads, parts] float32
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sglite.runtime.backend.cuda_plan import PART, Tiles
from sglite.runtime.backend.cuda_tiles import FIELDS

ROUND = 64
"""Parts of a row begin at multiples of so many slots behind its first."""


@triton.jit
def tile_of(
    tiles, members, GROUP: tl.constexpr, HEADS: tl.constexpr, QUERIES: tl.constexpr, SUBS: tl.constexpr,
    HEIGHT: tl.constexpr, FIELDS: tl.constexpr, M: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """What this program attends: how many queries there are for it (0: nothing to do), their row, the KV head.

    Of its M rows: the head, the token, the place among the parts, whether it is a query's at all, and its slot. Then
    the slot of the first query, where the slots end that are seen, and what a token's number is beyond its slot's.
    """
    record = tiles + tl.program_id(0) // SUBS * FIELDS
    skipped = tl.program_id(0) % SUBS * QUERIES
    row, first, count, slot = tl.load(record), tl.load(record + 1), tl.load(record + 2), tl.load(record + 3)
    head_parts: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    kv_head = tl.program_id(1) // head_parts
    m = tl.arange(0, M)
    query, of_group = skipped + m // HEADS, tl.program_id(1) % head_parts * HEADS + m % HEADS
    real = (m < QUERIES * HEADS) & (query < count) & (of_group < GROUP)
    if SHARED:
        token = tl.load(members + 2 * (first + query), mask=real, other=0)
        home = tl.load(members + 2 * (first + query) + 1, mask=real, other=0)
        at, high = tl.where(real, slot, -1), slot + 1
    else:
        token, home = first + query, tl.program_id(0) // SUBS * HEIGHT + query
        at, high = tl.where(real, slot + query, -1), slot + tl.minimum(skipped + QUERIES, count)
    left = tl.maximum(count - skipped, 0)
    return left, row, kv_head, kv_head * GROUP + of_group, token, home, real, at, slot + skipped, high, first - slot


@triton.jit
def stretch(low, high, PART: tl.constexpr, ROUND: tl.constexpr):
    """The slots of this program's part of ``low`` .. ``high``: by their number and how many programs share them."""
    programs = tl.num_programs(2)
    each = ((high - low + programs - 1) // programs + ROUND - 1) // ROUND * ROUND
    low += tl.program_id(2) * tl.maximum(each, PART)
    return low, tl.minimum(high, low + tl.maximum(each, PART))


@triton.jit
def rooms_of(pages, table, slots, inside, PAGE: tl.constexpr):
    """Pool rows of a sequence's ``slots``, and which of them there are."""
    page = tl.load(pages + table + slots // PAGE, mask=inside, other=-1)
    return page.to(tl.int64) * PAGE + slots % PAGE, inside & (page >= 0)


@triton.jit
def seen_by(
    slots, inside, at, token, window, known, behind, ancestors, depths, WINDOW: tl.constexpr, WORDS: tl.constexpr
):
    """[M, N]: which of ``slots`` [N] the queries see that sit in slots ``at`` [M], of tokens ``token`` [M].

    Drafts of a tree are in slots from ``known`` on, ``behind`` is what a token's number is beyond its slot's.
    """
    seen = inside[None, :] & (slots[None, :] <= at[:, None])
    if WORDS > 0:
        drafted = inside & (slots >= known)
        draft = tl.maximum(slots - known, 0)
        words = ancestors + token[:, None].to(tl.int64) * WORDS + draft[None, :] // 32
        word = tl.load(words, mask=seen & drafted[None, :], other=-1)
        seen = seen & (((word >> (draft % 32)[None, :]) & 1) != 0)
        if WINDOW:
            place = tl.where(drafted, tl.load(depths + slots + behind, mask=drafted, other=0), slots)
            own = tl.load(depths + token, mask=at >= 0, other=0)
            seen = seen & (place[None, :] > own[:, None] - window)
    elif WINDOW:
        seen = seen & (slots[None, :] > at[:, None] - window)
    return seen


@triton.jit
def weighed(scores, seen, peak, total):
    """One block of scores (base 2) taken into the softmax: its shares, what earlier sums shrink to, the new state."""
    scores = tl.where(seen, scores, float("-inf"))
    higher = tl.maximum(peak, tl.max(scores, 1))
    base = tl.where(higher == float("-inf"), 0.0, higher)
    shares = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(peak - base)
    return shares, shrink, higher, total * shrink + tl.sum(shares, 1)


@triton.jit
def finish(
    acc, peak, total, token, home, head, real, num_heads, sinks, out, sums, peaks, part, parts,
    DV: tl.constexpr, BLOCK_DV: tl.constexpr, MERGED: tl.constexpr,
):  # fmt: skip
    """Write the result of the queries that are ``real``, or their part of it."""
    d = tl.arange(0, BLOCK_DV)
    known = real[:, None] & (d < DV)[None, :]
    if MERGED:
        at = (home.to(tl.int64) * num_heads + head) * parts + part
        weight = tl.where(total == 0, 1.0, total)
        tl.store(peaks + at, tl.where(total == 0, float("-inf"), peak + tl.log2(weight)), mask=real)
        tl.store(sums + at[:, None] * DV + d[None, :], acc / weight[:, None], mask=known)
    else:
        if sinks is not None:
            sink = tl.load(sinks + head, mask=real, other=0.0).to(tl.float32) * 1.4426950408889634
            higher = tl.maximum(peak, sink)
            shrink = tl.exp2(peak - higher)
            total = total * shrink + tl.exp2(sink - higher)
            acc = acc * shrink[:, None]
        at = token.to(tl.int64) * num_heads + head
        result = acc / tl.where(total == 0, 1.0, total)[:, None]
        tl.store(out + at[:, None] * DV + d[None, :], result.to(out.dtype.element_ty), mask=known)


@triton.jit(do_not_specialize=["parts"])
def _merge(
    sums, peaks, sinks, out, tiles, num_heads, parts,
    HEIGHT: tl.constexpr, FIELDS: tl.constexpr, DV: tl.constexpr, BLOCK_DV: tl.constexpr, BLOCK_PARTS: tl.constexpr,
    HEADS: tl.constexpr,
):  # fmt: skip
    home = tl.program_id(0)
    record = tiles + home // HEIGHT * FIELDS
    query = home % HEIGHT
    if query >= tl.load(record + 2):
        return
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    real = head < num_heads
    at = (home.to(tl.int64) * num_heads + head) * parts
    part = tl.arange(0, BLOCK_PARTS)
    given = real[:, None] & (part < parts)[None, :]
    every = tl.load(peaks + at[:, None] + part[None, :], mask=given, other=float("-inf"))
    top = tl.max(every, 1)
    sink = tl.full([HEADS], float("-inf"), tl.float32)
    if sinks is not None:
        sink = tl.load(sinks + head, mask=real, other=0.0).to(tl.float32) * 1.4426950408889634
        top = tl.maximum(top, sink)
    base = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(tl.exp2(every - base[:, None]), 1) + tl.exp2(sink - base)
    d = tl.arange(0, BLOCK_DV)
    known = real[:, None] & (d < DV)[None, :]
    acc = tl.zeros([HEADS, BLOCK_DV], dtype=tl.float32)
    for i in range(0, parts):
        weight = tl.exp2(tl.load(peaks + at + i, mask=real, other=float("-inf")) - base)
        found = tl.load(sums + (at + i)[:, None] * DV + d[None, :], mask=known & (weight > 0)[:, None], other=0.0)
        acc += weight[:, None] * found
    token = tl.load(record + 1) + query
    result = acc / tl.where(total == 0, 1.0, total)[:, None]
    where = (token.to(tl.int64) * num_heads + head)[:, None] * DV + d[None, :]
    tl.store(out + where, result.to(out.dtype.element_ty), mask=known)


class Parts:
    """Room for the parts of what the tiles of one launch, or of two over the same queries, come to."""

    def __init__(self, tiles: Tiles, shared: Tiles | None, out: Tensor) -> None:
        self.count = tiles.parts + (0 if shared is None else shared.parts)
        self.merged = self.count > 1
        """There is something to merge; otherwise the one program writes the result."""
        self._tiles, self._out = tiles, out
        shape = (tiles.count * tiles.height if self.merged else 0, out.shape[1], self.count)
        self.sums = torch.empty((*shape, out.shape[2]), dtype=torch.float32, device=out.device)
        self.peaks = torch.empty(shape, dtype=torch.float32, device=out.device)
        if shared is not None:
            self.peaks.fill_(-torch.inf)  # of queries that share nothing

    def merge(self, sinks: Tensor | None) -> None:
        """Write the results of the tiles' queries, where they are in parts."""
        if not self.merged:
            return
        tiles, out = self._tiles, self._out
        block = power_of_two(out.shape[2])
        heads = max(1, 1024 // block)  # numbers of a program: 8 a thread of 4 warps
        grid = (tiles.count * tiles.height, -(-out.shape[1] // heads))
        _merge[grid](
            self.sums, self.peaks, sinks, out, tiles.tiles, out.shape[1], self.count,
            HEIGHT=tiles.height, FIELDS=FIELDS, DV=out.shape[2], BLOCK_DV=block,
            BLOCK_PARTS=power_of_two(self.count), HEADS=heads, num_warps=4, num_stages=1,
        )  # fmt: skip


def power_of_two(n: int) -> int:
    """The next one from ``n`` on, and at least 16: what tiles of a product take."""
    return max(16, 1 << (n - 1).bit_length())


def grouped(heads: int, height: int, rows: int) -> dict[str, Any]:
    """How the heads that read the same keys and a tile's queries fill ``rows`` rows of a product: a kernel's M, heads
    of a program, its queries, and programs a tile; ``rows`` is at least 16 and a power of two."""
    together = min(heads, rows)
    queries = min(height, max(1, rows // together))
    return {
        "M": power_of_two(together * queries),
        "GROUP": heads,
        "HEADS": together,
        "QUERIES": queries,
        "SUBS": -(-height // queries),
        "HEIGHT": height,
        "FIELDS": FIELDS,
        "PART": PART,
        "ROUND": ROUND,
    }
