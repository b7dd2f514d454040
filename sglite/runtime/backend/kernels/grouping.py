"""Which expert each tile of a grouped product multiplies with, and whose rows lie in it; found on the device.

    pair      p = token * k + choice: T * k of them, expert ids[p]
    tile      ``block`` places for pairs of one expert, in the order of their tokens
    places    [tiles * block] the pair that lies there; T * k: none does
    experts   [tiles] the expert of a tile, expert by expert; -1: nothing lies in it

How many tiles there may be is known without asking the device: every expert that is chosen leaves at most ``block - 1``
places empty. Launches therefore depend on the number of tokens alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Groups(NamedTuple):
    """Pairs by expert."""

    tiles: int
    """Tiles that there may be."""
    block: int
    """Places of a tile."""
    experts: Tensor
    """[tiles]"""
    places: Tensor | None
    """[tiles * block] int32; ``None``: tile i holds pair i alone."""


def group(ids: Tensor, num_experts: int, block: int) -> Groups:
    """The pairs of ``ids`` [T, k] int64 in tiles. One token's experts are distinct: its pairs are tiles as they are."""
    pairs = ids.numel()
    if len(ids) == 1:
        return Groups(pairs, block, ids.view(-1), None)
    tiles = (pairs + min(pairs, num_experts) * (block - 1)) // block
    experts = torch.empty(tiles, dtype=torch.int32, device=ids.device)
    places = torch.empty(tiles * block, dtype=torch.int32, device=ids.device)
    bins = triton.next_power_of_2(num_experts + 1)
    _group[(num_experts,)](
        ids, experts, places, pairs, tiles, num_experts, BLOCK=block, BINS=bins, STRETCH=1024, num_warps=4, num_stages=1
    )
    return Groups(tiles, block, experts, places)


@triton.jit(do_not_specialize=["num_pairs", "num_tiles"])
def _group(
    ids,
    experts,
    places,
    num_pairs,
    num_tiles,
    num_experts,
    BLOCK: tl.constexpr,
    BINS: tl.constexpr,
    STRETCH: tl.constexpr,
):
    """One expert: all count how many pairs each expert has, then it takes the places behind those before it."""
    expert = tl.program_id(0)
    lane = tl.arange(0, STRETCH)
    counts = tl.zeros((BINS,), dtype=tl.int32)
    for first in range(0, num_pairs, STRETCH):
        chosen = tl.load(
            ids + first + lane, mask=first + lane < num_pairs, other=num_experts
        )  # the last bin is nobody's
        counts += tl.histogram(chosen.to(tl.int32), BINS)
    every = tl.arange(0, BINS)
    tiles = tl.where(every < num_experts, (counts + BLOCK - 1) // BLOCK, 0)
    first_tile = tl.sum(tl.where(every < expert, tiles, 0), axis=0)
    last_tile = first_tile + tl.sum(tl.where(every == expert, tiles, 0), axis=0)
    for tile in range(first_tile, last_tile):
        tl.store(experts + tile, expert)
    if expert == num_experts - 1:
        for tile in range(last_tile, num_tiles):
            tl.store(experts + tile, -1)

    place = first_tile * BLOCK
    for first in range(0, num_pairs, STRETCH):
        chosen = tl.load(ids + first + lane, mask=first + lane < num_pairs, other=num_experts)
        own = (chosen == expert).to(tl.int32)
        tl.store(places + place + tl.cumsum(own, axis=0) - own, first + lane, mask=own != 0)
        place += tl.sum(own, axis=0)
    empty = place + tl.arange(0, BLOCK)
    tl.store(places + empty, tl.zeros((BLOCK,), dtype=tl.int32) + num_pairs, mask=empty < last_tile * BLOCK)
