"""Steps in which every row computes one token, launched as one graph that was captured for so many rows.

A step of fewer rows than any graph has takes the next larger one; the rows that are not there see and store nothing.
What a graph reads and writes stays where it was when it was captured: ids, positions, the plan, the hidden states.

    rows 5  ->  graph of 8    ids    [a b c d e 0 0 0]    hidden [a b c d e . . .]  ->  its first 5 rows
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from sglite.runtime.backend.base import Backend, BatchLayout, FixedBatch, ForwardContext
from sglite.runtime.cache.pool import KVPool


class Forward(Protocol):
    """What is captured of a model."""

    def forward(self, input_ids: Tensor, positions: Tensor, context: ForwardContext) -> Tensor:
        """[T] ids and positions to [T, hidden]."""
        ...


@dataclass
class _Graph:
    """One that was captured."""

    batch: FixedBatch
    ids: Tensor
    positions: Tensor
    hidden: Tensor
    runs: list[Callable[[], None]]
    """By what the batch asks for, see ``FixedBatch.metas``."""


class DecodeGraphs:
    """Graphs by number of rows.

    Args:
        model: whose forward pass they hold.
        backend: what captures them.
        pool: keys, values and states.
        sizes: numbers of rows, ascending.
        max_pages: of a row.
    """

    def __init__(self, model: Forward, backend: Backend, pool: KVPool, sizes: Sequence[int], max_pages: int) -> None:
        self._sizes: list[int] = []
        self._graphs: list[_Graph] = []
        for size in reversed(sizes):  # the largest first: the others find room in what it leaves
            batch = backend.fixed_batch(size, pool, max_pages)
            if batch is not None:
                self._sizes.insert(0, size)
                self._graphs.insert(0, _captured(model, backend, pool, size, batch))
        self.replays = 0
        """Steps that a graph ran."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of rows that there are graphs for."""
        return tuple(self._sizes)

    def covers(self, layout: BatchLayout) -> bool:
        """Whether a graph runs this: no row computes more than a token, and there are no more rows than it has."""
        rows = len(layout.starts)
        return rows == len(layout.positions) and bool(self._sizes) and rows <= self._sizes[-1]

    def forward(self, layout: BatchLayout, ids: Tensor, positions: Tensor) -> Tensor:
        """Hidden states [R, hidden] of a layout that is covered, valid until the next call."""
        graph, rows = self._graphs[bisect_left(self._sizes, len(layout.starts))], len(layout.starts)
        kind = graph.batch.fill(layout)
        graph.ids[:rows].copy_(ids)
        graph.positions[:rows].copy_(positions)
        graph.runs[kind]()
        self.replays += 1
        return graph.hidden[:rows]


@torch.inference_mode()
def _captured(model: Forward, backend: Backend, pool: KVPool, size: int, batch: FixedBatch) -> _Graph:
    ids, positions = (torch.zeros(size, dtype=torch.int64, device=backend.device) for _ in range(2))
    contexts = [ForwardContext(backend, meta, pool) for meta in batch.metas]
    hidden = torch.empty_like(model.forward(ids, positions, contexts[0]))

    def run(context: ForwardContext) -> None:
        hidden.copy_(model.forward(ids, positions, context))

    runs = [backend.capture(partial(run, context)) for context in contexts]
    return _Graph(batch, ids, positions, hidden, runs)
