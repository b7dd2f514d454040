"""How a batch is planned for the native kernels: page tables as one array, and pieces of work made from it once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from sglite.runtime.backend import cpu_plan
from sglite.runtime.backend.base import AttentionMetadata, BackendError, BatchLayout
from sglite.runtime.backend.native_library import Library, Longs, Pages
from sglite.runtime.backend.tables import joined


@dataclass(frozen=True)
class LastTokens:
    """The rows of a batch whose last tokens alone are wanted, as a batch of those."""

    tokens: Longs
    """[W] which of the T tokens, ascending."""
    meta: NativeMetadata


@dataclass(frozen=True)
class NativeMetadata(AttentionMetadata):
    """A batch as the kernels run it."""

    library: Library
    pages: Pages
    slots: Longs
    """[T] pool rows, -1: not stored."""
    branches: bool
    """A row has drafts that are no chain: its queries see slots with gaps."""
    parents: tuple[Sequence[int] | None, ...] | None
    state_slots: tuple[Mapping[str, int], ...] | None
    positions: Sequence[int]
    framed: NativeMetadata | None = None
    """The same batch in the groups that are kept in frames."""
    last: LastTokens | None = None
    """Where few tokens are wanted, each the last of its row."""
    _states: dict[str, Longs] = field(default_factory=dict)

    def within(self, framed: bool) -> NativeMetadata:
        """The batch as a layer sees it, which is kept in frames or in pages."""
        if not framed:
            return self
        if self.framed is None:
            raise BackendError("batch layout: no frame_tables, but the pool keeps layers in frames; give them")
        return self.framed

    @cached_property
    def handle(self) -> int:
        """The library's copy of the pages."""
        return self.library.plan(self.pages)

    def state_rows(self, group: str) -> Longs:
        """[R] state slots of the rows in a group. BackendError: a row has drafts or none."""
        if group not in self._states:
            cpu_plan.check_states(self.parents, self.state_slots, group, np.diff(self.pages.query_from).tolist())
            slots = [row.get(group, 0) for row in self.state_slots or ()]
            self._states[group] = np.array(slots, dtype=np.int64)
        return self._states[group]

    @cached_property
    def plain(self) -> cpu_plan.CPUMetadata:
        """The batch as plain torch runs it."""
        return cpu_plan.plan(self._layout())

    def _layout(self) -> BatchLayout:
        pages, framed = self.pages, self.framed
        ends = pages.starts + np.diff(pages.query_from)
        return BatchLayout(
            query_starts=pages.query_from.tolist(),
            starts=pages.starts.tolist(),
            seq_lens=ends.tolist(),
            positions=self.positions,
            slot_mapping=self.slots.tolist(),
            page_tables=_split(pages),
            page_size=pages.page_size,
            parents=self.parents,
            state_slots=self.state_slots,
            frame_mapping=None if framed is None else framed.slots.tolist(),
            frame_tables=None if framed is None else _split(framed.pages),
        )

    def __del__(self) -> None:
        if "handle" in self.__dict__:
            self.library.forget(self.handle)


def plan(layout: BatchLayout, library: Library) -> NativeMetadata:
    """See ``Backend.plan``."""
    if layout.frame_tables is None or layout.frame_mapping is None:
        planned = _plan(layout, library, None)
        return planned if layout.wanted is None else replace(planned, last=_last_tokens(planned, layout.wanted))
    framed = _plan(replace(layout, page_tables=layout.frame_tables, slot_mapping=layout.frame_mapping), library, None)
    return _plan(layout, library, framed)


def _plan(layout: BatchLayout, library: Library, framed: NativeMetadata | None) -> NativeMetadata:
    query_from = np.asarray(layout.query_starts, dtype=np.int64)
    starts, ends = np.asarray(layout.starts, dtype=np.int64), np.asarray(layout.seq_lens, dtype=np.int64)
    needed = -(-ends // layout.page_size)
    held = np.fromiter(map(len, layout.page_tables), dtype=np.int64, count=len(starts))
    if (ends - starts != np.diff(query_from)).any() or (held < needed).any():
        cpu_plan.check_rows(layout)
    table_from = np.zeros(len(starts) + 1, dtype=np.int64)
    np.cumsum(needed, out=table_from[1:])
    tables = joined(layout.page_tables, needed.tolist())
    return NativeMetadata(
        num_tokens=len(layout.slot_mapping),
        library=library,
        pages=Pages(tables, table_from, query_from, starts, layout.page_size),
        slots=np.array(layout.slot_mapping, dtype=np.int64),
        branches=layout.parents is not None and any(map(_branches, layout.parents)),
        parents=None if layout.parents is None else tuple(layout.parents),
        state_slots=None if layout.state_slots is None else tuple(layout.state_slots),
        positions=tuple(layout.positions),
        framed=framed,
    )


def _last_tokens(planned: NativeMetadata, wanted: Sequence[int]) -> LastTokens | None:
    tokens, pages = np.asarray(wanted, dtype=np.int64), planned.pages
    rows = np.searchsorted(pages.query_from, tokens, side="right") - 1
    if planned.branches or (pages.query_from[rows + 1] - 1 != tokens).any():
        return None
    counts = np.diff(pages.table_from)[rows]
    table_from, nothing = np.zeros(len(rows) + 1, dtype=np.int64), np.empty(0, dtype=np.int32)
    np.cumsum(counts, out=table_from[1:])
    tables = [pages.tables[pages.table_from[row] : pages.table_from[row + 1]] for row in rows.tolist()]
    starts = pages.starts[rows] + np.diff(pages.query_from)[rows] - 1
    own = Pages(np.concatenate([nothing, *tables]), table_from, np.arange(len(rows) + 1), starts, pages.page_size)
    meta = NativeMetadata(len(rows), planned.library, own, planned.slots[tokens], False, None, None, ())
    return LastTokens(tokens, meta)


def _branches(parents: Sequence[int] | None) -> bool:
    return bool(parents) and any(parent != i - 1 for i, parent in enumerate(parents or ()))


def _split(pages: Pages) -> list[list[int]]:
    return [part.tolist() for part in np.split(pages.tables, pages.table_from[1:-1])]
