"""The draw on the device: what ``sample/draw.py`` defines, without sorting a row.

    find_peaks     best logits of tiles, before masks and after; masks are written into the logits
    weigh          weights of tiles; of rows with top-k or top-p also the weight and number of tokens of every piece
    choose         peaks, the token of greedy rows, and of those with neither: a search in the order of ids, tiles first
    plan_list      of the others: how far down the pieces the draw can reach, and where each begins in a list of ids
    make_list      the ids of those pieces, piece by piece, in any order within one
    choose_listed  their token: a search in the order of likelihood, pieces first

A piece is a range of the distance from the best logit over the temperature, so that pieces follow each other as
likelihood has it; of a language model's row it holds some hundred tokens at most. Within a piece the token with which a
sum is reached is found by its place in the order of likelihood (logit, then id), a whole number, of which every step of
the search finds four bits. A piece may be the whole row, of equal tokens say; it is searched all the same.

Weights are whole numbers of 64 bits and their sums are exact: neither the order in which programs run nor how they
share the work changes a result. They come of additions, products and quotients alone, each rounded (launch with
``enable_fp_fusion=False``), so that a row has the same weights on every device, a last place of float32 from those of
the host's ``exp`` at most. Where the best logit is not finite no token has a weight, and the best is taken.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sglite.runtime.backend.kernels.greedy import best_standing, id_of, logit_of, of_order, order_of, standing
from sglite.runtime.backend.kernels.masks import allowed


@triton.jit
def find_peaks(
    logits, stride, width, tiles, mask, words, mask_stride, best, tops, lows, MASKED: tl.constexpr, TILE: tl.constexpr
):
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    ids = tile * TILE + tl.arange(0, TILE)
    there = ids < width
    x = tl.load(logits + row * stride + ids, mask=there, other=float("-inf"))
    place = row * tiles + tile
    tl.store(tops + place, tl.max(tl.where(there, order_of(x), -0x7FFFFFFF), 0))
    if MASKED:
        left = allowed(mask + row * mask_stride, ids, words)
        x = tl.where(left, x, float("-inf"))
        tl.store(logits + row * stride + ids, x, mask=there & ~left)
    tl.store(best + place, tl.max(standing(x, ids, there), 0))
    finite = (x > float("-inf")) & (x < float("inf"))
    tl.store(lows + place, tl.min(tl.where(finite, order_of(x), 0x7FFFFFFF), 0))


@triton.jit
def weight_of(distance):
    """exp(-distance) in units of 2**-40, a whole number; 0 where nothing is left, or where distance is NaN."""
    near = distance < 28.0
    distance = tl.where(near, distance, 0.0)
    halvings = tl.floor(distance * 1.4426950408889634 + 0.5)
    # ln 2 in two parts, the first of so few bits that its multiples are exact.
    rest = (halvings * 0.693359375 - distance) - halvings * 2.1219444005469057e-4
    power = 1.0 / 720.0 + rest * (1.0 / 5040.0)
    power = 1.0 / 120.0 + rest * power
    power = 1.0 / 24.0 + rest * power
    power = 1.0 / 6.0 + rest * power
    power = 0.5 + rest * power
    power = 1.0 + rest * (1.0 + rest * power)
    unit = ((167 - halvings.to(tl.int32)) << 23).to(tl.float32, bitcast=True)  # 2**(40 - halvings)
    return tl.where(near, (power * unit).to(tl.int64), 0)


@triton.jit
def _weighed(x, top, temperature):
    """How far logits are below the best over the temperature, and their weights."""
    distance = tl.div_rn(top - x, temperature)
    return distance, weight_of(distance)


@triton.jit
def _piece_of(distance, weights, top, lows, tiles, temperature, TILES: tl.constexpr, PIECES: tl.constexpr):
    """The piece of every token with a weight, 0 for others: as many a unit of distance as the row has room for."""
    tile = tl.arange(0, TILES)
    low = of_order(tl.min(tl.load(lows + tile, mask=tile < tiles, other=0x7FFFFFFF), 0))
    span = tl.div_rn(top - low, temperature)
    span = tl.where(span < 28.0, tl.where(span > 1e-6, span, 1e-6), 28.0)
    piece = tl.where(weights > 0, distance * tl.div_rn(tl.full([], PIECES, tl.float32), span), 0.0)
    return tl.where(piece < PIECES, piece, PIECES - 1.0).to(tl.int32)


@triton.jit
def _least(min_p):
    """The weight that min-p keeps."""
    return tl.ceil(tl.load(min_p).to(tl.float64) * 1099511627776.0).to(tl.int64)


@triton.jit
def _reach(held, top_p):
    """The weight that the nucleus must reach, of what is held."""
    share = top_p.to(tl.float64)
    return tl.where(share < 1.0, tl.minimum(tl.ceil(held.to(tl.float64) * share).to(tl.int64), held), held)


@triton.jit
def _number(uniform, held):
    """A whole number below what is held. That rounds as a double, so that the product may reach it."""
    return tl.minimum(tl.floor(uniform * held.to(tl.float64)).to(tl.int64), held - 1)


@triton.jit
def weigh(
    logits,
    stride,
    width,
    tiles,
    temperatures,
    top_k,
    top_p,
    min_p,
    best,
    lows,
    weights,
    sums,
    counts,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
    PIECES: tl.constexpr,
    SEARCHING: tl.constexpr,
):
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    temperature = tl.load(temperatures + row)
    if temperature > 0.0:
        ids = tile * TILE + tl.arange(0, TILE)
        x = tl.load(logits + row * stride + ids, mask=ids < width, other=float("-inf"))
        top = logit_of(best_standing(best + row * tiles, tiles, TILES))
        distance, own = _weighed(x, top, temperature)
        tl.store(weights + row * tiles + tile, tl.sum(tl.where(own >= _least(min_p + row), own, 0), 0))
        if SEARCHING:  # noqa: SIM102 - the kernel is compiled with or without
            if (tl.load(top_k + row) > 0) | (tl.load(top_p + row) < 1.0):
                piece = _piece_of(distance, own, top, lows + row * tiles, tiles, temperature, TILES, PIECES)
                place = row * PIECES + piece
                tl.atomic_add(sums + place, own, mask=own > 0, sem="relaxed")
                tl.atomic_add(counts + place, (own > 0).to(tl.int32), mask=own > 0, sem="relaxed")


@triton.jit
def plan_list(top_k, top_p, sums, counts, ends, last, PIECES: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = row * PIECES + tl.arange(0, PIECES)
    sizes = tl.load(counts + place)
    upto = tl.cumsum(sizes, 0)
    tl.store(ends + place, upto - sizes)
    weights = tl.load(sums + place)
    k = tl.load(top_k + row)
    cut = tl.minimum(tl.sum((upto < k).to(tl.int32), 0), PIECES - 1)
    reach = _reach(tl.sum(weights, 0), tl.load(top_p + row))
    reached = tl.minimum(tl.sum((tl.cumsum(weights, 0) < reach).to(tl.int32), 0), PIECES - 1)
    # What top-k cuts has to be known first; the nucleus lies within it.
    tl.store(last + row, tl.where((k > 0) & (k < tl.sum(sizes, 0)), cut, reached))


@triton.jit
def make_list(
    logits,
    stride,
    width,
    tiles,
    temperatures,
    top_k,
    top_p,
    best,
    lows,
    ends,
    last,
    listed,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
    PIECES: tl.constexpr,
):
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    temperature = tl.load(temperatures + row)
    if (temperature > 0.0) & ((tl.load(top_k + row) > 0) | (tl.load(top_p + row) < 1.0)):
        ids = tile * TILE + tl.arange(0, TILE)
        x = tl.load(logits + row * stride + ids, mask=ids < width, other=float("-inf"))
        top = logit_of(best_standing(best + row * tiles, tiles, TILES))
        distance, own = _weighed(x, top, temperature)
        piece = _piece_of(distance, own, top, lows + row * tiles, tiles, temperature, TILES, PIECES)
        wanted = (own > 0) & (piece <= tl.load(last + row))
        place = tl.atomic_add(ends + row * PIECES + piece, 1, mask=wanted, sem="relaxed")
        tl.store(listed + row * width + place, ids, mask=wanted)


@triton.jit
def choose(
    logits,
    stride,
    width,
    tiles,
    temperatures,
    top_k,
    top_p,
    min_p,
    uniforms,
    best,
    tops,
    weights,
    chosen,
    peaks,
    left,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
    DRAWING: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    tile = tl.arange(0, TILES)
    found = best_standing(best + row * tiles, tiles, TILES)
    highest = tl.max(tl.load(tops + row * tiles + tile, mask=tile < tiles, other=-0x7FFFFFFF), 0)
    tl.store(peaks + row, of_order(highest))
    tl.store(left + row, logit_of(found))
    tl.store(chosen + row, id_of(found))
    if DRAWING:
        temperature = tl.load(temperatures + row)
        if (temperature > 0.0) & (tl.load(top_k + row) <= 0) & (tl.load(top_p + row) >= 1.0):
            kept = tl.load(weights + row * tiles + tile, mask=tile < tiles, other=0)
            total = tl.sum(kept, 0)
            if total > 0:
                number, least = _number(tl.load(uniforms + row), total), _least(min_p + row)
                logits += row * stride
                token = _by_id(logits, width, tiles, kept, number, least, logit_of(found), temperature, TILE, TILES)
                tl.store(chosen + row, token)


@triton.jit
def choose_listed(
    logits,
    stride,
    width,
    tiles,
    temperatures,
    top_k,
    top_p,
    uniforms,
    best,
    weights,
    sums,
    counts,
    listed,
    chosen,
    TILES: tl.constexpr,
    PIECES: tl.constexpr,
    LISTED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    tile, pieces = tl.arange(0, TILES), row * PIECES + tl.arange(0, PIECES)
    temperature = tl.load(temperatures + row)
    k, share = tl.load(top_k + row), tl.load(top_p + row)
    if (temperature > 0.0) & ((k > 0) | (share < 1.0)):
        kept = tl.sum(tl.load(weights + row * tiles + tile, mask=tile < tiles, other=0), 0)
        if kept > 0:
            top = logit_of(best_standing(best + row * tiles, tiles, TILES))
            own, sizes = tl.load(sums + pieces), tl.load(counts + pieces)
            logits += row * stride
            listed += row * width
            held = tl.minimum(kept, _held(logits, listed, own, sizes, k, share, top, temperature, LISTED, PIECES))
            target = _number(tl.load(uniforms + row), held) + 1
            place, _ = _reached(logits, listed, own, sizes, target, top, temperature, False, LISTED, PIECES)
            tl.store(chosen + row, place & 0x3FFFFF)


@triton.jit
def _by_id(logits, width, tiles, kept, number, least, top, temperature, TILE: tl.constexpr, TILES: tl.constexpr):
    """The token, in the order of ids, with which the sum of the weights that min-p keeps passes the number."""
    tile = tl.arange(0, TILES)
    there = tl.minimum(tl.sum((tl.cumsum(kept, 0) <= number).to(tl.int32), 0), tiles - 1)
    before = tl.sum(tl.where(tile < there, kept, 0), 0)
    ids = there * TILE + tl.arange(0, TILE)
    x = tl.load(logits + ids, mask=ids < width, other=float("-inf"))
    _, own = _weighed(x, top, temperature)
    passed = before + tl.cumsum(tl.where(own >= least, own, 0), 0) <= number
    return (there * TILE + tl.sum(passed.to(tl.int32), 0)).to(tl.int64)


@triton.jit
def _held(logits, listed, weights, sizes, k, share, top, temperature, LISTED: tl.constexpr, PIECES: tl.constexpr):
    """The weight that top-k and then top-p keep."""
    held = tl.sum(weights, 0)
    if (k > 0) & (k < tl.sum(sizes, 0)):
        _, held = _reached(logits, listed, weights, sizes, k, top, temperature, True, LISTED, PIECES)
    if share < 1.0:
        reach = _reach(held, share)
        _, held = _reached(logits, listed, weights, sizes, reach, top, temperature, False, LISTED, PIECES)
    return held


@triton.jit
def _reached(
    logits,
    listed,
    weights,
    sizes,
    target,
    top,
    temperature,
    BY_COUNT: tl.constexpr,
    LISTED: tl.constexpr,
    PIECES: tl.constexpr,
):
    """The place of the first token, by likelihood, with which the weights reach the ``target``, or the number of tokens
    does; and the weight there."""
    index = tl.arange(0, PIECES)
    upto = tl.cumsum(sizes if BY_COUNT else weights, 0)
    piece = tl.minimum(tl.sum((upto < target).to(tl.int32), 0), PIECES - 1)
    before = tl.sum(tl.where(index < piece, weights, 0), 0)
    first = tl.sum(tl.where(index < piece, sizes, 0), 0)
    size = tl.sum(tl.where(index == piece, sizes, 0), 0)
    missing = target - (first if BY_COUNT else before)
    listed += first
    low, high = _ends(logits, listed, size, LISTED)
    part = tl.arange(0, 16)
    while low < high:
        pivots = low + (((high - low) * (part + 1)) >> 4)
        held = _upto(logits, listed, size, pivots, top, temperature, BY_COUNT, LISTED)
        short = held < missing
        low = tl.max(tl.where(short, pivots + 1, low), 0)
        high = tl.min(tl.where(short, high, pivots), 0)
    held = _upto(logits, listed, size, low + tl.zeros([16], tl.int64), top, temperature, False, LISTED)
    return low, before + tl.max(held, 0)


@triton.jit
def _places(logits, listed, size, first, LISTED: tl.constexpr):
    """Some of the list: the places of its tokens in the order of likelihood, which end in their ids; their logits, and
    which of them there are."""
    index = first + tl.arange(0, LISTED)
    there = index < size
    ids = tl.load(listed + index, mask=there, other=0)
    x = tl.load(logits + ids, mask=there, other=float("-inf"))
    return ((0x7FFFFFFF - order_of(x).to(tl.int64)) << 22) | ids.to(tl.int64), x, there


@triton.jit
def _ends(logits, listed, size, LISTED: tl.constexpr):
    """The first and the last place of the list."""
    low, high = tl.full([], 1 << 62, tl.int64), tl.full([], 0, tl.int64)
    for first in range(0, size, LISTED):
        place, _, there = _places(logits, listed, size, first, LISTED)
        low = tl.minimum(low, tl.min(tl.where(there, place, 1 << 62), 0))
        high = tl.maximum(high, tl.max(tl.where(there, place, 0), 0))
    return low, high


@triton.jit
def _upto(logits, listed, size, last, top, temperature, BY_COUNT: tl.constexpr, LISTED: tl.constexpr):
    """The weight of the list's tokens up to each of the places ``last``, or their number."""
    held = last * 0
    for first in range(0, size, LISTED):
        place, x, there = _places(logits, listed, size, first, LISTED)
        if BY_COUNT:
            own = there.to(tl.int64)
        else:
            _, own = _weighed(x, top, temperature)
        held += tl.sum(tl.where(place[:, None] <= last[None, :], own[:, None], 0), 0)
    return held
