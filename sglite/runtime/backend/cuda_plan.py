"""A batch as the kernels of a GPU run it, and how it is planned: once a step on the host, sent in one copy.

A captured graph reads its batch at fixed addresses: ``FixedBatch`` has room for a number of rows of one token each, and
``fill`` writes a step's rows there. The rows behind them are padding: they see nothing, store nothing and give zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sglite.runtime.backend import cuda_tiles
from sglite.runtime.backend.base import AttentionMetadata, BackendError, BatchLayout
from sglite.runtime.backend.cuda_buffer import Arrays, Places, Stage
from sglite.runtime.backend.cuda_tiles import FIELDS, HEIGHTS, Rows
from sglite.runtime.backend.sharing import ESTIMATED, Sharing, never
from sglite.runtime.cache.pool import KVPool

PART = 128
"""Slots that a part of a row has at least when it is cut."""
MOST_PARTS = 32
MOST_SHARED_PARTS = 8
"""Of slots that rows share: every part is merged for all of them."""
TALL = 4
"""Programs that attend a tile of the last height for one KV head, about: the heads that share it."""
FIXED_PARTS = {1: 16, 16: 4, 128: 1}
"""Parts of a tile by its height when results must not depend on the batch."""
PROCESSORS = 132
"""Of an H100; taken where there is no device to ask."""

Numbers = npt.NDArray[Any]


@dataclass(frozen=True)
class Tiles:
    """Queries that one launch attends; see ``cuda_tiles``."""

    tiles: Tensor
    """[n, FIELDS] int32"""
    height: int
    """Most queries of a tile."""
    parts: int
    """How many programs share a tile's slots; their results are merged. 1: one writes the result."""

    @property
    def count(self) -> int:
        """n, which may be padding in part: tiles without queries, or with one that sees nothing."""
        return len(self.tiles)


@dataclass(frozen=True)
class SharedTiles:
    """Queries of several rows over the pages that they share; what a row has besides begins behind them."""

    tiles: Tiles
    members: Tensor
    """[m, 2] int32: token, and place among the tiles of single queries."""


@dataclass(frozen=True)
class Trees:
    """Draft trees that are no chains; see ``cuda_tiles.Branches``."""

    drafts: Tensor
    """[R] int32"""
    ancestors: Tensor
    """[T, words] int32"""
    depths: Tensor
    """[T] int32"""


class Attending(Protocol):
    """Kernels of somebody else's that know a batch."""

    def attend(self, q: Tensor, pool: KVPool, layer: int, *, scale: float, window: int | None) -> Tensor:
        """See ``Backend.attention``."""
        ...


@dataclass(frozen=True)
class CUDAMetadata(AttentionMetadata):
    """A batch as the kernels run it: R rows, T tokens. Its integers are, in a graph, the most there can be."""

    num_rows: int
    max_queries: int
    """Most tokens of a row."""
    max_seq_len: int
    page_size: int
    decode: bool
    """Every row computes one token: token r is row r's."""
    query_starts: Tensor
    """[R + 1] int32"""
    starts: Tensor
    """[R] int32"""
    seq_lens: Tensor
    """[R] int32; 0: padding, or a row that computes nothing and has nothing."""
    token_rows: Tensor
    """[T] int32"""
    slot_mapping: Tensor
    """[T] int64 pool rows; -1: not stored."""
    pages: Tensor
    """int32; those of row r are from ``page_starts[r]`` on, one for every ``page_size`` of its slots."""
    page_starts: Tensor
    """[R] int32"""
    tiles: tuple[Tiles, ...]
    """Of all queries, one launch each."""
    state_slots: Mapping[str, Tensor]
    """[R] int32 by group; -1: padding, or a row that computes nothing. Ask ``state_rows`` for them."""
    rows: Rows
    """The same on the host. Of a graph's batch: ``FixedBatch.rows``."""
    shared: SharedTiles | None = None
    trees: Trees | None = None
    framed: CUDAMetadata | None = None
    """The same batch in the groups that are kept in frames."""
    slots_read: int = 0
    """Slots whose keys a layer without a window reads, every tile once, for each of its KV heads. Of a graph's batch:
    ``FixedBatch.slots_read``."""
    other: Attending | None = None
    """What attends in place of sglite's own kernels."""
    _stateless: Mapping[str, str] = field(default_factory=dict)
    """Why a group's recurrent layers cannot compute the batch; under the empty name: why none can."""

    def within(self, frames: bool) -> CUDAMetadata:
        """The batch as a layer sees it that is kept in frames, or in pages."""
        if not frames:
            return self
        if self.framed is None:
            raise BackendError("batch layout: no frame_tables, but the pool keeps layers in frames; give them")
        return self.framed

    def state_rows(self, group: str) -> Tensor:
        """[R] int32 state slots of a group. BackendError: a row has drafts or no slot."""
        _check_state(group, self.state_slots, self._stateless)
        return self.state_slots[group]


def own(meta: AttentionMetadata) -> CUDAMetadata:
    """``meta`` as this backend planned it."""
    if not isinstance(meta, CUDAMetadata):
        raise BackendError(f"{type(meta).__name__} was planned by another backend; call plan of the cuda backend")
    return meta


class Planner:
    """Makes the metadata of one device's batches.

    ``kv_heads``: the fewest KV heads of a layer, which says how far rows must be cut to fill the device; set it when it
    is known, it is a matter of speed alone. ``sharing``: which steps read once what their rows share; may be set too,
    a graph's batch goes by the rule there was when it was made. ``deterministic``: a row is cut by its own length alone
    and shares nothing, so that its numbers are the same in every batch.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        kv_heads: int = 8,
        processors: int | None = None,
        sharing: Sharing = ESTIMATED,
        deterministic: bool = False,
    ) -> None:
        self.kv_heads = kv_heads
        self.sharing = never("deterministic") if deterministic else sharing
        self._device = device
        self._deterministic = deterministic
        self._stage = Stage(device)
        if processors is None:
            on_gpu = device.type == "cuda"
            processors = torch.cuda.get_device_properties(device).multi_processor_count if on_gpu else PROCESSORS
        self._processors = processors

    def plan(self, layout: BatchLayout) -> CUDAMetadata:
        """See ``Backend.plan``. Does not wait for the device, but for a copy that was started four plans ago."""
        batch = _batch(layout, self.sharing)
        places = Places(batch.arrays)
        room = torch.empty(places.num_bytes, dtype=torch.uint8, device=self._device)
        self._stage.send(batch.arrays, places, room)
        return self._meta(batch, places.views(room, batch.arrays), layout.page_size)

    def fixed(
        self,
        rows: int,
        max_pages: int,
        page_size: int,
        *,
        groups: Sequence[str] = (),
        frames: bool = False,
    ) -> FixedBatch:
        """Room for batches of up to ``rows`` rows of one token and ``max_pages`` pages each, with a state slot in each
        of ``groups``, with frames where the pool has them, and for what rows share where steps of so many ever read it
        once."""
        layout = BatchLayout(
            query_starts=range(rows + 1),
            starts=[max_pages * page_size - 1] * rows,
            seq_lens=[max_pages * page_size] * rows,
            positions=[0] * rows,
            slot_mapping=[-1] * rows,
            page_tables=[[0] * max_pages] * rows,
            page_size=page_size,
            state_slots=[dict.fromkeys(groups, -1)] * rows,
            frame_mapping=[-1] * rows if frames else None,
            frame_tables=[[0] * max_pages] * rows if frames else None,
        )
        batch = _batch(layout, never("room for the most there can be"))
        if rows > 1 and self.sharing.ever(rows):
            batch.share(np.zeros((max(1, rows // 2), FIELDS), np.int32), np.zeros((rows, 2), np.int32))
        places = Places(batch.arrays)
        room = torch.empty(places.num_bytes, dtype=torch.uint8, device=self._device)
        meta = self._meta(batch, places.views(room, batch.arrays), page_size)
        return FixedBatch(meta, self._stage, batch.arrays, places, room, self.sharing)

    def _meta(self, batch: _Batch, sent: Mapping[str, Tensor], page_size: int) -> CUDAMetadata:
        counts, longest = batch.rows.counts, int(batch.rows.seq_lens.max(initial=0))
        planned = CUDAMetadata(
            num_tokens=int(counts.sum()),
            num_rows=len(counts),
            max_queries=int(counts.max(initial=0)),
            max_seq_len=longest,
            page_size=page_size,
            decode=bool((counts == 1).all()),
            query_starts=sent["query_starts"],
            starts=sent["starts"],
            seq_lens=sent["seq_lens"],
            token_rows=sent["token_rows"],
            slot_mapping=sent["slot_mapping"],
            pages=sent["pages"],
            page_starts=sent["page_starts"],
            tiles=tuple(self._tiles(sent[name], h, longest) for h in HEIGHTS if (name := f"tiles {h}") in sent),
            state_slots={group: sent[f"state {group}"] for group in batch.groups},
            rows=batch.rows,
            trees=Trees(sent["drafts"], sent["ancestors"], sent["depths"]) if "drafts" in sent else None,
            slots_read=batch.slots_read,
            _stateless=batch.stateless,
        )
        framed = shared = None
        if batch.framed is not None:
            mapping, starts = sent["frame_mapping"], sent["frame_starts"]
            framed = replace(planned, slot_mapping=mapping, page_starts=starts, rows=batch.framed)
        if "shared" in sent:
            tiles = Tiles(sent["shared"], HEIGHTS[-1], self._shared_parts(len(sent["members"]), longest))
            shared = SharedTiles(tiles, sent["members"])
        return replace(planned, framed=framed, shared=shared)

    def _tiles(self, tiles: Tensor, height: int, slots: int) -> Tiles:
        return Tiles(tiles, height, self._parts(len(tiles), slots, height))

    def _parts(self, tiles: int, slots: int, height: int) -> int:
        """Into how many parts the slots of each tile are cut: about twice as many programs as there are processors, in
        parts that are worth merging."""
        programs = tiles * self.kv_heads * (TALL if height == HEIGHTS[-1] else 1)
        most = FIXED_PARTS[height] if self._deterministic else min(2 * self._processors // programs, MOST_PARTS)
        return max(1, min(most, -(-slots // PART)))

    def _shared_parts(self, members: int, slots: int) -> int:
        """The same of shared tiles, as if all members were of one group: most tiles of a graph are padding."""
        programs = self.kv_heads * -(-members * TALL // HEIGHTS[-1])
        return max(1, min(2 * self._processors // programs, MOST_SHARED_PARTS, -(-slots // PART)))


class FixedBatch:
    """A decode step's integers at fixed addresses; made by ``Planner.fixed``."""

    def __init__(
        self, meta: CUDAMetadata, stage: Stage, arrays: Arrays, places: Places, room: Tensor, sharing: Sharing
    ) -> None:
        self.meta = meta
        """What a captured graph reads; it is all padding until ``fill`` is called."""
        self.slots_read = 0
        """``CUDAMetadata.slots_read`` of the rows that were filled in last."""
        self._stage, self._arrays, self._places, self._room = stage, arrays, places, room
        self._sharing = sharing
        self._rows: tuple[Rows, Rows | None]
        self.fill(_nothing(meta))

    @property
    def metas(self) -> tuple[CUDAMetadata, ...]:
        """For rows that share nothing worth it, and for rows that do, where there is room for what they share."""
        return (self.meta,) if self.meta.shared is None else (replace(self.meta, shared=None), self.meta)

    def rows(self, frames: bool) -> Rows:
        """Those that were filled in last, in pages or in frames."""
        pages, framed = self._rows
        return framed if frames and framed is not None else pages

    def fill(self, layout: BatchLayout) -> int:
        """Write a step's rows in place, in the order of the current stream; returns which of ``metas`` is theirs.
        BackendError: they do not fit."""
        batch = _batch(layout, self._sharing, self.meta.num_rows)
        self._check(layout, batch)
        self.slots_read, self._rows = batch.slots_read, (batch.rows, batch.framed)
        arrays = batch.arrays
        padded = {n: _padded(n, arrays.get(n), room) for n, room in self._arrays.items() if n != "pages"}
        self._stage.send({**padded, "pages": arrays["pages"]}, self._places, self._room)
        return int("shared" in arrays)

    def _check(self, layout: BatchLayout, batch: _Batch) -> None:
        meta, rows = self.meta, batch.rows
        if len(rows.starts) > meta.num_rows or (rows.counts != 1).any() or layout.page_size != meta.page_size:
            raise BackendError(
                f"fixed batch: {len(rows.starts)} rows of up to {rows.counts.max(initial=0)} tokens in pages of "
                f"{layout.page_size}; it takes up to {meta.num_rows} rows of 1 token in pages of {meta.page_size}"
            )
        if (longest := rows.seq_lens.max(initial=0)) > meta.max_seq_len:
            raise BackendError(f"fixed batch: a row of {longest} slots; it takes up to {meta.max_seq_len}")
        if (layout.frame_tables is None) != (meta.framed is None):
            raise BackendError("fixed batch: frames are given, or not, unlike when it was made; make another")
        for group in meta.state_slots if len(rows.starts) else ():
            _check_state(group, batch.groups, batch.stateless)


@dataclass
class _Batch:
    """A layout as arrays by name, the pages of all rows last."""

    rows: Rows
    arrays: dict[str, Numbers]
    groups: tuple[str, ...]
    stateless: dict[str, str]
    framed: Rows | None = None
    slots_read: int = 0

    def share(self, tiles: Numbers, members: Numbers) -> None:
        """Add tiles over shared pages."""
        self.arrays = {"shared": tiles, "members": members, **self.arrays}


def _batch(layout: BatchLayout, sharing: Sharing, size: int | None = None) -> _Batch:
    """``size``: rows of the graph that runs it, padding included."""
    rows = cuda_tiles.rows_of(layout)
    cut = cuda_tiles.cut(rows)
    counts = rows.counts
    slots, stateless = _state_slots(layout, counts)
    pages, starts = [rows.pages], rows.page_starts[:-1]
    framed: Rows | None = None
    arrays: dict[str, Numbers] = {"slot_mapping": np.asarray(layout.slot_mapping, np.int64)}
    if layout.frame_tables is not None:
        framed = cuda_tiles.rows_of(replace(layout, page_tables=layout.frame_tables))
        pages.append(framed.pages)
        arrays["frame_mapping"] = np.asarray(layout.frame_mapping, np.int64)
        arrays["frame_starts"] = (framed.page_starts[:-1] + len(rows.pages)).astype(np.int32)
    named = {"query_starts": rows.query_starts, "starts": rows.starts, "seq_lens": rows.seq_lens, "page_starts": starts}
    arrays |= {name: array.astype(np.int32) for name, array in named.items()}
    arrays["token_rows"] = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    arrays |= {f"state {group}": of for group, of in slots.items()}
    if trees := cuda_tiles.branches(rows, layout.parents):
        arrays |= {"drafts": trees.drafts, "ancestors": trees.ancestors, "depths": trees.depths}
    batch = _Batch(rows, arrays, tuple(slots), stateless, framed)
    singles = size or len(cut.get(1, ()))
    if (
        1 in cut
        and sharing.ever(singles)
        and (shared := cuda_tiles.share(rows, cut[1], partial(sharing.pays, singles)))
    ):
        batch.share(shared.tiles, shared.members)
        batch.slots_read = int((shared.tiles[:, 3].astype(np.int64) + 1).sum())
    batch.slots_read += sum(map(cuda_tiles.slots_read, cut.values()))
    batch.arrays |= {f"tiles {height}": tiles for height, tiles in cut.items()}
    batch.arrays["pages"] = np.concatenate(pages)
    return batch


def _state_slots(layout: BatchLayout, counts: Numbers) -> tuple[dict[str, Numbers], dict[str, str]]:
    """State slots [R] of the groups in which all rows that compute have one, and why others cannot be computed."""
    given = layout.state_slots or [{}] * len(counts)
    computing = counts.tolist()
    names = dict.fromkeys(name for slots in given for name in slots)
    found, reasons = {}, {}
    for name in names:
        slots = [slots.get(name) if count else -1 for slots, count in zip(given, computing, strict=True)]
        if None in slots:
            reasons[name] = (
                f"batch layout: a row has no state slot of group {name!r}, only {sorted(given[slots.index(None)])}"
            )
        else:
            found[name] = np.array(slots, dtype=np.int32)
    drafts = next(
        (len(tree) for tree, count in zip(layout.parents or (), computing, strict=False) if tree and count), 0
    )
    if drafts:
        reasons[""] = f"recurrent state cannot follow the branches of {drafts} drafts; send none"
    return found, reasons


def _check_state(group: str, known: Iterable[str], stateless: Mapping[str, str]) -> None:
    """BackendError where recurrent layers of ``group`` cannot compute a batch that has slots in ``known`` groups."""
    reason = stateless.get("") or stateless.get(group)
    if reason is None and group not in known:
        reason = f"batch layout: a row has no state slot of group {group!r}, only {sorted(known)}"
    if reason is not None:
        raise BackendError(reason)


def _padded(name: str, array: Numbers | None, room: Numbers) -> Numbers:
    """``array``, with rows of padding behind its own up to the size of ``room``."""
    full = np.zeros_like(room)
    if name in ("slot_mapping", "frame_mapping") or name.startswith("state "):
        full[:] = -1
    elif name in ("query_starts", "token_rows"):
        full[:] = np.arange(len(room))
    elif name == "tiles 1":
        full[:] = np.stack((every := np.arange(len(room)), every, every * 0 + 1, every * 0 - 1, every * 0), axis=1)
    if array is not None:
        full[: len(array)] = array
    return full


def _nothing(meta: CUDAMetadata) -> BatchLayout:
    """A step of no rows for a fixed batch."""
    frames: list[Any] | None = None if meta.framed is None else []
    return BatchLayout([0], [], [], [], [], [], meta.page_size, frame_mapping=frames, frame_tables=frames)
