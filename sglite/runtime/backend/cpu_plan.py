"""How a batch is attended on the CPU: which rows go together, which slots they read, what they see of them.

A *segment* is one kernel call: rows that compute equally many tokens and see about equally many slots are gathered
and padded; a long prompt chunk is a segment of its own. Layers with a sliding window have segments of their own, made
when the first of them asks, which leave out the slots that no query of a row sees.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sglite.runtime.backend.base import AttentionMetadata, BackendError, BatchLayout

MAX_BATCHED_RUN = 64
"""Rows with more tokens than this are computed one by one in recurrent layers; shorter ones are padded to less than
twice their length."""
MAX_BATCHED_QUERIES = 16
"""Rows with more tokens than this fill the cores on their own; padding them together would only add work."""
PADDING_SLOTS = 32
"""Padding that costs less than one more kernel call does; beyond it at most a quarter of a segment is padding."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Segment:
    """Rows that are attended together: B rows of q tokens each, padded to S slots."""

    rows: int
    tokens: slice | Tensor
    """Which of the T tokens, row by row: [B * q]."""
    slots: slice | Tensor
    """Pool rows to read: [B * S]; a slice where one row lies in consecutive slots, which needs no gather."""
    mask: Tensor | None
    """[B, 1, q, S], true where a query sees a slot; ``None``: it sees all, or ``causal``."""
    causal: bool
    """Query j sees slots 0 .. j."""


@dataclass(frozen=True)
class Row:
    """One row of a layout while it is planned: its tokens, the slots it may see and, for drafts, its tree."""

    first_token: int
    start: int
    """Index of the first token's slot among ``slots``."""
    slots: Ints
    parents: Sequence[int] | None
    states: Mapping[str, int] = field(default_factory=dict)
    """Its state slot in every group."""

    @property
    def num_tokens(self) -> int:
        """Tokens it computes."""
        return len(self.slots) - self.start

    def within(self, window: int) -> Row:
        """Without the slots that are too far back for every query."""
        out = max(0, self.start - window + 1)
        return replace(self, start=self.start - out, slots=self.slots[out:])

    def visible(self, width: int, window: int | None) -> npt.NDArray[np.bool_]:
        """[q, width]: which slots each query sees."""
        slot = np.arange(width)
        seen: npt.NDArray[np.bool_] = slot <= np.arange(self.start, len(self.slots))[:, None]
        at = slot.copy()
        if self.parents:
            first = len(self.slots) - len(self.parents)
            for i, parent in enumerate(self.parents):
                seen[first - self.start + i] = slot < first if parent < 0 else seen[first - self.start + parent]
                seen[first - self.start + i, first + i] = True
                at[first + i] = first if parent < 0 else at[first + parent] + 1
        if window is not None:
            seen &= at > at[self.start : len(self.slots), None] - window
        return seen


@dataclass(frozen=True)
class Run:
    """Rows that recurrent layers compute together: B rows, padded to n tokens by repeating the last."""

    tokens: Tensor
    """[B, n] which of the T tokens."""
    lengths: Tensor
    """[B] tokens that are the row's own."""
    own: Tensor | None
    """[B, n], false where padding is; ``None``: nowhere."""
    slots: Tensor
    """[B] state slots."""


@dataclass(frozen=True)
class CPUMetadata(AttentionMetadata):
    """A batch as the CPU runs it."""

    store_slots: Tensor
    """[stored] pool rows."""
    store_tokens: Tensor | None
    """[stored] which tokens they come from; ``None``: all, in order."""
    rows: tuple[Row, ...]
    framed: CPUMetadata | None = None
    """The same batch in the groups that are kept in frames."""
    _segments: dict[int | None, tuple[Segment, ...]] = field(default_factory=dict)
    _runs: dict[str, tuple[Run, ...]] = field(default_factory=dict)

    def within(self, frames: bool) -> CPUMetadata:
        """The batch as a layer sees it that is kept in frames, or in pages."""
        if not frames:
            return self
        if self.framed is None:
            raise BackendError("batch layout: no frame_tables, but the pool keeps layers in frames; give them")
        return self.framed

    def segments(self, window: int | None = None) -> tuple[Segment, ...]:
        """The kernel calls of layers with that window, or of those without; planned once."""
        if window not in self._segments:
            rows = [row if window is None else row.within(window) for row in self.rows]
            groups = _group_rows(rows)
            self._segments[window] = tuple(_plan_segment(group, window) for group in groups)
        return self._segments[window]

    def runs(self, group: str) -> tuple[Run, ...]:
        """How recurrent layers of a group compute the batch; planned once."""
        if group not in self._runs:
            self._runs[group] = tuple(_plan_run(rows, group) for rows in _rows_of_a_length(self.rows))
        return self._runs[group]


def plan(layout: BatchLayout) -> CPUMetadata:
    """See ``Backend.plan``."""
    framed = None
    if layout.frame_tables is not None and layout.frame_mapping is not None:
        framed = _plan(replace(layout, page_tables=layout.frame_tables, slot_mapping=layout.frame_mapping), None)
    planned = _plan(layout, framed)
    if framed is None:
        planned.segments()
    return planned


def _plan(layout: BatchLayout, framed: CPUMetadata | None) -> CPUMetadata:
    mapping = np.asarray(layout.slot_mapping, dtype=np.int64)
    stored = np.flatnonzero(mapping >= 0)
    everything = len(stored) == len(mapping)
    return CPUMetadata(
        num_tokens=len(mapping),
        store_slots=torch.from_numpy(mapping if everything else mapping[stored]),
        store_tokens=None if everything else torch.from_numpy(stored),
        rows=tuple(_layout_rows(layout)),
        framed=framed,
    )


def own(meta: AttentionMetadata) -> CPUMetadata:
    """``meta`` as this backend planned it."""
    if not isinstance(meta, CPUMetadata):
        raise BackendError(f"{type(meta).__name__} was planned by another backend; call plan of the cpu backend")
    return meta


def check_rows(layout: BatchLayout) -> None:
    """BackendError for a row whose numbers contradict each other or which lacks pages."""
    for _ in _layout_rows(layout):
        pass


def check_states(
    parents: Sequence[Sequence[int] | None] | None,
    slots: Sequence[Mapping[str, int]] | None,
    group: str,
    tokens: Sequence[int],
) -> None:
    """BackendError for rows that recurrent layers of ``group`` cannot compute; ``tokens``: that each row has."""
    for row, count in enumerate(tokens):
        if count:
            _check_state(parents[row] if parents is not None else None, slots[row] if slots is not None else {}, group)


def read_slots(cache: Tensor, slots: slice | Tensor) -> Tensor:
    """The pool rows that a segment reads."""
    return cache[slots] if isinstance(slots, slice) else cache.index_select(0, slots)


def _layout_rows(layout: BatchLayout) -> Iterator[Row]:
    size = layout.page_size
    for r, (start, seq_len) in enumerate(zip(layout.starts, layout.seq_lens, strict=True)):
        first, last = layout.query_starts[r], layout.query_starts[r + 1]
        if seq_len - start != last - first:
            raise BackendError(f"batch layout: row {r} computes {last - first} tokens from {start} to {seq_len}")
        if first == last:
            continue
        pages = np.asarray(layout.page_tables[r][: -(-seq_len // size)], dtype=np.int64)
        if len(pages) * size < seq_len:
            raise BackendError(
                f"batch layout: row {r} has {len(pages)} pages of {size} for {seq_len} positions; allocate first"
            )
        slots = (pages[:, None] * size + np.arange(size)).reshape(-1)[:seq_len]
        parents = layout.parents[r] if layout.parents is not None else None
        yield Row(first, start, slots, parents, layout.state_slots[r] if layout.state_slots is not None else {})


def _group_rows(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Rows that are worth padding together: few tokens, equally many, and about as many slots."""
    group: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.num_tokens, len(row.slots))):
        if group:
            shortest = group[0]
            padding = len(row.slots) - len(shortest.slots)
            batched = row.num_tokens == shortest.num_tokens <= MAX_BATCHED_QUERIES
            if not batched or padding > max(PADDING_SLOTS, len(row.slots) // 4):
                yield group
                group = []
        group.append(row)
    if group:
        yield group


def _plan_segment(rows: list[Row], window: int | None) -> Segment:
    q, width = rows[0].num_tokens, len(rows[-1].slots)
    firsts = np.asarray([row.first_token for row in rows], dtype=np.int64)
    tokens: slice | Tensor
    if (np.diff(firsts) == q).all():
        tokens = slice(int(firsts[0]), int(firsts[0]) + len(rows) * q)
    else:
        tokens = torch.from_numpy((firsts[:, None] + np.arange(q)).reshape(-1))
    sees_all = q == 1 and len(rows[0].slots) == width
    causal = not sees_all and len(rows) == 1 and rows[0].start == 0 and not rows[0].parents
    causal = causal and (window is None or width <= window)
    mask = None
    if not (sees_all or causal):
        mask = torch.from_numpy(np.stack([row.visible(width, window) for row in rows])[:, None])
    return Segment(len(rows), tokens, _plan_slots(rows, width), mask, causal)


def _plan_slots(rows: list[Row], width: int) -> slice | Tensor:
    if len(rows) == 1 and (np.diff(rows[0].slots) == 1).all():
        return slice(int(rows[0].slots[0]), int(rows[0].slots[0]) + width)
    slots = np.empty((len(rows), width), dtype=np.int64)
    for i, row in enumerate(rows):
        slots[i, : len(row.slots)] = row.slots
        slots[i, len(row.slots) :] = row.slots[-1]
    return torch.from_numpy(slots.reshape(-1))


def _rows_of_a_length(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that are worth padding together in recurrent layers."""
    groups: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        alone = row.first_token if row.num_tokens > MAX_BATCHED_RUN else -1
        groups.setdefault(((row.num_tokens - 1).bit_length(), alone), []).append(row)
    return list(groups.values())


def _check_state(parents: Sequence[int] | None, states: Mapping[str, int], group: str) -> None:
    if parents:
        raise BackendError(f"recurrent state cannot follow the branches of {len(parents)} drafts; send none")
    if group not in states:
        raise BackendError(f"batch layout: a row has no state slot of group {group!r}, only {sorted(states)}")


def _plan_run(rows: Sequence[Row], group: str) -> Run:
    for row in rows:
        _check_state(row.parents, row.states, group)
    lengths = np.asarray([row.num_tokens for row in rows], dtype=np.int64)
    firsts = np.asarray([row.first_token for row in rows], dtype=np.int64)
    steps = np.arange(lengths.max())
    return Run(
        tokens=torch.from_numpy(firsts[:, None] + np.minimum(steps, lengths[:, None] - 1)),
        lengths=torch.from_numpy(lengths),
        own=None if (lengths == lengths[0]).all() else torch.from_numpy(steps < lengths[:, None]),
        slots=torch.tensor([row.states[group] for row in rows]),
    )
