"""Runs a loaded model the way a worker does: rows with page tables over one pool, several rows a step.

    runner = PagedRunner(loaded, backend, page_size=16)
    logits = runner.step([Extend("a", [5, 6, 7]), Extend("b", [1])])     one [n, vocab] tensor a row

Pages are handed out in a shuffled order, so that no test passes only because pages lie side by side.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sglite.runtime.backend.base import Backend, BatchLayout, ForwardContext
from sglite.runtime.model.loader import LoadedModel

MAX_ROWS = 16
"""Of models with recurrent state: each row has a slot of its own."""


@dataclass
class Extend:
    """Compute ``tokens`` next in ``row``; with ``parents`` the last of them are a draft tree, kept only this step."""

    row: str
    tokens: Sequence[int]
    parents: Sequence[int] | None = None


@dataclass
class Sequences:
    """What a row has computed and where."""

    length: int = 0
    pages: list[int] = field(default_factory=list)


class PagedRunner:
    """A pool, its free pages and the rows that use it."""

    def __init__(
        self, loaded: LoadedModel, backend: Backend, *, page_size: int = 16, num_pages: int = 512, seed: int = 0
    ) -> None:
        self.loaded = loaded
        self.backend = backend
        self.states = [group.name for group in loaded.groups if group.kind == "state"]
        states = MAX_ROWS if self.states else 0
        self.pool = backend.allocate_pool(loaded.groups, num_pages=num_pages, page_size=page_size, num_states=states)
        self.free = list(range(num_pages))
        random.Random(seed).shuffle(self.free)
        self.rows: dict[str, Sequences] = {}

    def step(self, extends: Sequence[Extend]) -> list[Tensor]:
        """Logits of every computed token, a tensor a row, after storing all rows' keys and values."""
        layout = self.layout(extends)
        positions = torch.tensor(layout.positions, device=self.backend.device)
        ids = torch.tensor([token for extend in extends for token in extend.tokens], device=self.backend.device)
        context = ForwardContext(self.backend, self.backend.plan(layout), self.pool)
        logits = self.loaded.model.logits(self.loaded.model.forward(ids, positions, context))
        for extend in extends:
            self.rows[extend.row].length += len(extend.tokens) - len(extend.parents or [])
        return list(torch.split(logits, [len(extend.tokens) for extend in extends]))

    def layout(self, extends: Sequence[Extend]) -> BatchLayout:
        """Take the pages that the rows need and write the step down."""
        size = self.pool.page_size
        starts, tables, positions, slots = [], [], [], []
        ends = [0]
        for extend in extends:
            row = self.rows.setdefault(extend.row, Sequences())
            seq_len = row.length + len(extend.tokens)
            while len(row.pages) * size < seq_len:
                row.pages.append(self.free.pop())
            starts.append(row.length)
            tables.append(list(row.pages))
            positions += token_positions(row.length, len(extend.tokens), extend.parents)
            slots += [row.pages[i // size] * size + i % size for i in range(row.length, seq_len)]
            ends.append(ends[-1] + len(extend.tokens))
        return BatchLayout(
            query_starts=ends,
            starts=starts,
            seq_lens=[start + len(extend.tokens) for start, extend in zip(starts, extends, strict=True)],
            positions=positions,
            slot_mapping=slots,
            page_tables=tables,
            page_size=size,
            parents=[extend.parents for extend in extends],
            state_slots=[dict.fromkeys(self.states, list(self.rows).index(extend.row)) for extend in extends],
        )


def token_positions(start: int, count: int, parents: Sequence[int] | None) -> list[int]:
    """Known tokens count on; a draft stands one behind its parent."""
    known = count - len(parents or [])
    positions = list(range(start, start + known))
    depth: list[int] = []
    for parent in parents or []:
        depth.append(depth[parent] + 1 if parent >= 0 else start + known)
    return positions + depth


def computed_in_chunks(runner: PagedRunner, prompts: dict[str, list[int]], chunk: int) -> dict[str, Tensor]:
    """Logits [len, vocab] of every prompt, all rows advancing together by at most ``chunk`` tokens a step."""
    parts: dict[str, list[Tensor]] = {name: [] for name in prompts}
    for first in range(0, max(map(len, prompts.values())), chunk):
        due = {name: ids[first : first + chunk] for name, ids in prompts.items() if ids[first : first + chunk]}
        logits = runner.step([Extend(name, ids) for name, ids in due.items()])
        for name, part in zip(due, logits, strict=True):
            parts[name].append(part)
    return {name: torch.cat(part) for name, part in parts.items()}
