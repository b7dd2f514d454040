"""The rows of a worker: what it keeps of each slot between steps, and a step's batch in plain integers.

A row mostly computes one token; that case is written out, for it is what a step's time outside the model goes into.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from sglite.runtime.backend.base import BatchLayout
from sglite.runtime.backend.tables import TYPECODE
from sglite.runtime.protocol import UNKNOWN_TOKEN, NewRow, RowStep, SchedulerOutput
from sglite.runtime.sample.penalties import TokenCounts
from sglite.runtime.spec.base import draft_depths


@dataclass(slots=True)
class RowState:
    """What a slot stands for while its request runs."""

    new: NewRow
    counts: TokenCounts | None
    pages: array[int] = field(default_factory=lambda: array(TYPECODE))
    last_token: int = UNKNOWN_TOKEN
    """What it sampled last; ``-1 - slot``: the device has it."""

    @property
    def is_plain(self) -> bool:
        """Its next token is the most likely one, whatever else may be forbidden by a mask or a least length."""
        params = self.new.sampling
        changed = params.logit_bias or params.allowed_token_ids or self.counts is not None
        return params.is_greedy and not changed and self.new.logprobs is None

    def bans(self, num_output: int) -> bool:
        """Whether ids are still banned after so many output tokens."""
        return num_output < self.new.sampling.min_new_tokens and bool(self.new.banned_until_min)


class Batch(NamedTuple):
    """A step's rows side by side."""

    layout: BatchLayout
    token_ids: list[int]
    first: list[int]
    """[R + 1] the index of each row's first token, and their number."""


class Rows:
    """States by slot.

    Args:
        page_size: positions of a page.
        num_pages: pages that have a frame, 0: there are no frames.
        stateful: rows have recurrent state.
        on_device: the device keeps what rows sampled last.
    """

    def __init__(self, page_size: int, num_pages: int = 0, stateful: bool = False, *, on_device: bool = False) -> None:
        self._size = page_size
        self._on_device = on_device
        self._stateful = stateful
        self._states: dict[int, RowState] = {}
        self._frames = np.full(num_pages, -1, dtype=np.int64)
        """The frame of every page, in the groups that are kept in frames."""

    def __getitem__(self, slot: int) -> RowState:
        """The state of a slot that is taken."""
        return self._states[slot]

    @property
    def counting(self) -> bool:
        """Some row counts its tokens."""
        return any(state.counts is not None for state in self._states.values())

    def update(self, step: SchedulerOutput) -> None:
        """Take in what has changed since the last step."""
        for slot in step.released:
            self._states.pop(slot, None)
        for new in step.new_rows:
            counts = TokenCounts(new.prompt_ids, new.output_ids) if new.sampling.has_penalties else None
            last = -1 - new.slot if self._on_device else UNKNOWN_TOKEN
            self._states[new.slot] = RowState(new, counts, last_token=last)
        for row in step.rows:
            pages = self._states[row.slot].pages
            if row.pages or row.pages_from < len(pages):
                pages[row.pages_from :] = array(TYPECODE, row.pages)
        for slot, tokens in step.appended.items():
            counts = self._states[slot].counts
            if counts is not None:
                counts.add(tokens)
        if step.frames:
            self._frames[list(step.frames)] = list(step.frames.values())

    def batch(self, rows: Sequence[RowStep]) -> Batch:
        """The batch of a step whose ``update`` has been done."""
        size, states = self._size, self._states
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        first = [0]
        for row in rows:
            state, start = states[row.slot], row.start
            if len(row.token_ids) == 1 and row.parents is None:
                token = row.token_ids[0]
                token_ids.append(state.last_token if token == UNKNOWN_TOKEN else token)
                positions.append(start)
                slots.append(state.pages[start // size] * size + start % size if row.store_from <= start else -1)
            else:
                self._add_tokens(row, state, token_ids, positions)
                slots += [-1] * (row.store_from - start)
                slots += slots_of(state.pages, size, row.store_from, start + len(row.token_ids))
            first.append(len(token_ids))
        return Batch(self._layout(rows, first, positions, slots), token_ids, first)

    def _add_tokens(self, row: RowStep, state: RowState, token_ids: list[int], positions: list[int]) -> None:
        """A row of several tokens, or with drafts."""
        token_ids += row.token_ids
        if token_ids[-1] == UNKNOWN_TOKEN:
            token_ids[-1] = state.last_token
        parents = row.parents or []
        known = row.start + len(row.token_ids) - len(parents)
        positions += range(row.start, known)
        positions += [known - 1 + depth for depth in draft_depths(parents)]

    def _layout(self, rows: Sequence[RowStep], first: list[int], positions: list[int], slots: list[int]) -> BatchLayout:
        tables = [self._states[row.slot].pages for row in rows]
        framed = len(self._frames) > 0
        return BatchLayout(
            query_starts=first,
            starts=[row.start for row in rows],
            seq_lens=[row.start + len(row.token_ids) for row in rows],
            positions=positions,
            slot_mapping=slots,
            page_tables=tables,
            page_size=self._size,
            parents=[row.parents for row in rows],
            state_slots=[row.state_slots for row in rows] if self._stateful else None,
            frame_mapping=[slot for row in rows for slot in self._frame_slots(row)] if framed else None,
            frame_tables=[self._frames[table].tolist() for table in tables] if framed else None,
        )

    def _frame_slots(self, row: RowStep) -> Iterator[int]:
        """Where the tokens of a row are stored in frames: new ones, and those that layers with a window had lost."""
        size, pages = self._size, self._states[row.slot].pages
        for position in range(row.start, row.start + len(row.token_ids)):
            stored = position >= row.store_from or row.refill[0] <= position < row.refill[1]
            frame = int(self._frames[pages[position // size]]) if stored else -1
            yield frame * size + position % size if stored else -1


def slots_of(pages: Sequence[int], size: int, start: int, end: int) -> list[int]:
    """Where positions ``[start, end)`` of a row with that page table are stored, page by page."""
    slots: list[int] = []
    while start < end:
        index = start // size
        upto = min(end, (index + 1) * size)
        shift = (pages[index] - index) * size
        slots.extend(range(start + shift, upto + shift))
        start = upto
    return slots
