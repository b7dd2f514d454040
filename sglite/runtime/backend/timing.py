"""How long kernels take on a device: what is timed, by which clock, and attention of one layer as something to time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from sglite.runtime.backend.base import AttentionMetadata, Backend, BatchLayout
from sglite.runtime.backend.workload import Workload
from sglite.runtime.cache.pool import KVPool

WARM, ROUNDS, REPEATS = 3, 5, 10
"""Runs that are not timed; times that each is timed, in turns; runs of which one is timed together."""

Run = Callable[[], None]
Timed = Callable[[Run], float]
"""Seconds that a run takes."""


def elapsed_on(device: torch.device) -> Timed:
    """A clock for runs on a device."""

    def timed(run: Run) -> float:
        if device.type != "cuda":
            started = time.perf_counter()
            run()
            return time.perf_counter() - started
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        began.record(torch.cuda.current_stream(device))
        for _ in range(REPEATS):
            run()
        ended.record(torch.cuda.current_stream(device))
        ended.synchronize()
        return float(began.elapsed_time(ended)) / 1000 / REPEATS

    return timed


def least_times(runs: Sequence[Run], timed: Timed) -> list[float]:
    """Seconds of each, the least of several rounds in which they take turns."""
    for run in runs:
        for _ in range(WARM):
            run()
    rounds = [[timed(run) for run in runs] for _ in range(ROUNDS)]
    return [min(times) for times in zip(*rounds, strict=True)]


def decoding_layout(end: int, page_tables: Sequence[Sequence[int]], page_size: int) -> BatchLayout:
    """A row of one token behind ``end - 1`` others for each table; nothing is stored."""
    rows = len(page_tables)
    return BatchLayout(
        query_starts=range(rows + 1),
        starts=[end - 1] * rows,
        seq_lens=[end] * rows,
        positions=[end - 1] * rows,
        slot_mapping=[-1] * rows,
        page_tables=page_tables,
        page_size=page_size,
    )


def attention_run(
    backend: Backend, workload: Workload, pool: KVPool, layer: int, meta: AttentionMetadata, tokens: int
) -> Run:
    """Attention of a layer of ``pool``, whose groups have one layer each, over a planned batch."""
    group = pool.groups[layer]
    q = torch.randn(tokens, workload.num_heads, group.head_dim, device=backend.device, dtype=workload.dtype)

    def run() -> None:
        backend.attention(q, pool, layer, meta, scale=group.head_dim**-0.5, window=group.window)

    return run
