"""How a batch's queries are cut into tiles, and which rows' shared pages are read once. Integers of the host alone.

A *tile* is up to ``height`` queries of one row, which one launch attends together; a row's height is chosen by how many
tokens it computes and by nothing else, so that a row is computed alike in every batch. What rows share is attended by
tiles of another kind: queries of several rows over the pages that they begin with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from sglite.runtime.backend.base import BatchLayout
from sglite.runtime.backend.cpu_plan import check_rows
from sglite.runtime.backend.tables import joined

Ints = npt.NDArray[np.int64]

HEIGHTS = (1, 16, 128)
"""Queries of a tile. A row has tiles of the first height that holds all its queries, or of the last."""
FIELDS = 5
"""Numbers of a tile: row, first query, queries, the slot of the first query, the first slot that is read.

The queries of a shared tile are those of ``members`` from the first one on, each with its token and its place among the
single queries; the slot is the last shared one, which all of them see.
"""


@dataclass(frozen=True)
class Rows:
    """The rows of a layout as arrays; ``pages`` of row r are from ``page_starts[r]`` on."""

    query_starts: Ints
    starts: Ints
    seq_lens: Ints
    pages: npt.NDArray[np.int32]
    page_starts: Ints
    page_size: int

    @cached_property
    def counts(self) -> Ints:
        """[R] tokens that a row computes."""
        return np.diff(self.query_starts)


@dataclass(frozen=True)
class Shared:
    """Pages that rows have in common: tiles over them, and who takes part."""

    tiles: npt.NDArray[np.int32]
    """[n, FIELDS]"""
    members: npt.NDArray[np.int32]
    """[m, 2] token and place among the tiles of single queries."""


@dataclass(frozen=True)
class Branches:
    """Draft trees that are no chains."""

    drafts: npt.NDArray[np.int32]
    """[R] drafts of a row; 0: a chain or none, whose queries see what lies before them."""
    ancestors: npt.NDArray[np.int32]
    """[T, words] bit ``i % 32`` of word ``i // 32``: the row's draft i is seen from this one. 0 for other tokens."""
    depths: npt.NDArray[np.int32]
    """[T] position in the row's slots that a token stands for: its slot, or a draft's depth behind the known ones."""


def rows_of(layout: BatchLayout) -> Rows:
    """The rows with the pages that they need. BackendError: their numbers contradict each other or pages lack."""
    query_starts = np.asarray(layout.query_starts, dtype=np.int64)
    starts, ends = np.asarray(layout.starts, dtype=np.int64), np.asarray(layout.seq_lens, dtype=np.int64)
    needed = -(-ends // layout.page_size)
    tables = layout.page_tables
    held = np.fromiter(map(len, tables), dtype=np.int64, count=len(starts))
    if (ends - starts != np.diff(query_starts)).any() or (held < needed).any():
        check_rows(layout)
        needed = np.minimum(needed, held)  # rows that compute nothing may lack pages
    page_starts = np.zeros(len(starts) + 1, dtype=np.int64)
    np.cumsum(needed, out=page_starts[1:])
    return Rows(query_starts, starts, ends, joined(tables, needed.tolist()), page_starts, layout.page_size)


def cut(rows: Rows) -> dict[int, npt.NDArray[np.int32]]:
    """Tiles [n, FIELDS] of all queries by height; heights without tiles are left out."""
    found = {}
    least = 0
    for height in HEIGHTS:
        most = height if height != HEIGHTS[-1] else np.iinfo(np.int64).max
        chosen = np.flatnonzero((rows.counts > least) & (rows.counts <= most))
        least = height
        if len(chosen):
            found[height] = _tiles(rows, chosen, height)
    return found


def _tiles(rows: Rows, chosen: Ints, height: int) -> npt.NDArray[np.int32]:
    counts = rows.counts[chosen]
    each = -(-counts // height)
    behind = np.cumsum(each)
    first = (np.arange(behind[-1]) - np.repeat(behind - each, each)) * height
    row = np.repeat(chosen, each)
    tiles = np.zeros((len(row), FIELDS), dtype=np.int32)
    tiles[:, 0] = row
    tiles[:, 1] = rows.query_starts[row] + first
    tiles[:, 2] = np.minimum(np.repeat(counts, each) - first, height)
    tiles[:, 3] = rows.starts[row] + first
    return tiles


def slots_read(tiles: npt.NDArray[np.int32]) -> int:
    """Slots whose keys a layer without a window reads for tiles of a row's queries, every tile once."""
    return int((tiles[:, 3] + tiles[:, 2] - tiles[:, 4]).sum(dtype=np.int64))


def share(rows: Rows, single: npt.NDArray[np.int32], pays: Callable[[int], bool]) -> Shared | None:
    """Tiles over what rows of ``single`` queries begin with in common, where saving so many slots in all ``pays``; the
    first slot that each of ``single`` reads by itself is written into it."""
    groups = _prefixes(rows, single)
    saved = sum((len(group) - 1) * pages for group, pages in groups) * rows.page_size
    if not groups or not pays(saved):
        return None
    tiles: list[tuple[int, ...]] = []
    members: list[Ints] = []
    behind = 0
    for group, pages in groups:
        slots = pages * rows.page_size
        single[group, 4] = slots
        for first in range(0, len(group), HEIGHTS[-1]):
            tiles.append((int(single[group[0], 0]), behind + first, min(len(group) - first, HEIGHTS[-1]), slots - 1, 0))
        members.append(np.stack((single[group, 1], group), axis=1))
        behind += len(group)
    return Shared(np.array(tiles, dtype=np.int32), np.concatenate(members).astype(np.int32))


def _prefixes(rows: Rows, single: npt.NDArray[np.int32]) -> list[tuple[Ints, int]]:
    """Groups of at least two of ``single`` and how many whole pages they share, so that most slots are saved."""
    whole = (single[:, 3].astype(np.int64) + 1) // rows.page_size  # pages all of whose slots the query sees
    first = rows.page_starts[single[:, 0]]
    return _best(np.flatnonzero(whole > 0), 0, whole, first, rows.pages)[1]


def _best(
    group: Ints, known: int, whole: Ints, first: Ints, pages: npt.NDArray[np.int32]
) -> tuple[int, list[tuple[Ints, int]]]:
    """Pages that are saved, and how: ``group`` shares ``known`` pages and perhaps more, parts of it still more."""
    saved, parts = 0, []
    common = known
    if known:
        common = _common(group, known, int(whole[group].min()), first, pages)
        saved, parts = (len(group) - 1) * common, [(group, common)]
    longer = group[whole[group] > common]
    _, kinds, sizes = np.unique(pages[first[longer] + common], return_inverse=True, return_counts=True)
    deeper = [_best(longer[kinds == kind], common + 1, whole, first, pages) for kind in np.flatnonzero(sizes > 1)]
    below = sum(part[0] for part in deeper)
    return (below, [found for part in deeper for found in part[1]]) if below > saved else (saved, parts)


def _common(group: Ints, known: int, most: int, first: Ints, pages: npt.NDArray[np.int32]) -> int:
    """Pages that all rows of ``group`` begin with, of which ``known`` are known and there are at most ``most``."""
    step = 64
    while known < most:
        columns = np.arange(known, min(known + step, most))
        table = pages[first[group][:, None] + columns]
        differs = (table != table[0]).any(axis=0)
        if differs.any():
            return known + int(differs.argmax())
        known += len(columns)
    return known


def branches(rows: Rows, parents: Sequence[Sequence[int] | None] | None) -> Branches | None:
    """Who sees whom among drafts; ``None``: all are chains, whose drafts see what lies before them."""
    trees = [r for r, tree in enumerate(parents or ()) if tree and any(p != i - 1 for i, p in enumerate(tree))]
    if parents is None or not trees:
        return None
    sizes = np.array([len(parents[r] or ()) for r in trees])
    above = np.full((len(trees), int(sizes.max())), -1, dtype=np.int64)
    for i, r in enumerate(trees):
        above[i, : sizes[i]] = parents[r] or ()
    drafts = np.zeros(len(rows.starts), dtype=np.int32)
    drafts[trees] = sizes
    seen, depth = _seen(above)
    own = np.arange(above.shape[1]) < sizes[:, None]
    at = (rows.query_starts[np.array(trees) + 1] - sizes)[:, None] + np.arange(above.shape[1])
    total = int(rows.query_starts[-1])
    words = np.zeros((total, seen.shape[2] // 32), dtype=np.int32)
    words[at[own]] = np.packbits(seen, axis=2, bitorder="little").view(np.int32)[own]
    counts = rows.counts
    depths = np.repeat(rows.starts - rows.query_starts[:-1], counts) + np.arange(total)
    known = (rows.seq_lens[trees] - sizes)[:, None] + depth
    depths[at[own]] = known[own]
    return Branches(drafts, words, depths.astype(np.int32))


def _seen(above: Ints) -> tuple[npt.NDArray[np.bool_], Ints]:
    """Of trees given by every draft's parent [n, D]: whom each sees [n, D, D rounded up to 32], and depths [n, D]."""
    trees, size = above.shape
    every = np.arange(trees)
    seen = np.zeros((trees, size, -(-size // 32) * 32), dtype=np.bool_)
    depth = np.zeros((trees, size), dtype=np.int64)
    for i in range(size):
        parent = above[:, i]
        rooted = parent < 0
        seen[:, i] = np.where(rooted[:, None], False, seen[every, parent])
        seen[:, i, i] = True
        depth[:, i] = np.where(rooted, 0, depth[every, parent] + 1)
    return seen, depth
