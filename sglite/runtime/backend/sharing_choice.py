"""From which saving on a device reads shared pages once: steps of several sizes are timed both ways, as graphs.

All rows of a step that is timed begin with the same pages and have few of their own. Sharing is attended by sglite's
kernels, the other way by whoever attends decoding steps. Before every layer the device reads something else, as it
does in a model, so that pages come from memory and not from its cache.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import torch

from sglite.runtime.backend.base import Backend, BatchLayout, FixedBatch
from sglite.runtime.backend.cuda_plan import Planner
from sglite.runtime.backend.sharing import ESTIMATED, Point, Sharing, least_saving, never
from sglite.runtime.backend.timing import Run, Timed, attention_run, decoding_layout, least_times
from sglite.runtime.backend.workload import Workload
from sglite.runtime.cache.pool import KVPool
from sglite.runtime.protocol import GroupSpec

logger = logging.getLogger(__name__)
DEVICES = ("cuda",)
"""That are measured: in Triton's interpreter times say nothing."""
ROWS = (2, 8, 32, 128)
"""Of the steps that are timed."""
SAVED = tuple(2**20 << i for i in range(8))
"""Bytes of a layer's keys and values that sharing saves each of them. The last takes tens of microseconds to read, the
launch and the merge a few."""
OWN = 64
"""Slots that a row has behind the shared ones."""

APART, ONCE = never("timed"), Sharing(((1, 0),), "timed")


@torch.inference_mode()
def measured(backend: Backend, planner: Planner, workload: Workload, timed: Timed) -> Sharing:
    """The rule for a model; ``planner`` is that of ``backend``. Without memory for the steps that are timed, the
    estimate."""
    groups = tuple(group for group in workload.groups if _shares(group))
    if not groups:
        return never("no layer can read them once")
    steps = _steps(groups, workload)
    if not steps:
        return never("rows are too few or too short")
    pages = _pages(max(tokens for step in steps for tokens in step.tokens), steps[-1].rows, workload.page_size)
    before = planner.sharing
    one_layer = [msgspec.structs.replace(group, num_layers=1) for group in groups]
    try:
        pool = backend.allocate_pool(one_layer, num_pages=pages, page_size=workload.page_size)
        found = tuple(
            (step.rows, least_saving(_points(backend, planner, workload, pool, groups, step, timed))) for step in steps
        )
    except torch.OutOfMemoryError:
        return Sharing(ESTIMATED.least, "an estimate: there is no memory to measure")
    finally:
        planner.sharing = before
    return Sharing(found, "measured")


def _shares(group: GroupSpec) -> bool:
    """Whether there is a kernel that reads shared pages of its layers once."""
    return group.kind == "paged" and group.layout == "mha" and group.window is None


@dataclass(frozen=True)
class _Step:
    rows: int
    tokens: tuple[int, ...]
    """Lengths of what the rows share, in whole pages, ascending."""


def _steps(groups: Sequence[GroupSpec], workload: Workload) -> list[_Step]:
    """What is timed: sizes that the model's steps may have, and savings that its rows are long enough for."""
    layers = sum(group.num_layers for group in groups)
    slot = sum(group.num_layers * _slot_bytes(group) for group in groups) / layers
    size, found = workload.page_size, []
    for rows in sorted({min(rows, workload.rows) for rows in ROWS} - {1}):
        pages = {max(1, round(saved / slot / (rows - 1) / size)) for saved in SAVED}
        tokens = tuple(size * count for count in sorted(pages) if size * count + OWN <= workload.context)
        if tokens:
            found.append(_Step(rows, tokens))
    return found


def _slot_bytes(group: GroupSpec) -> int:
    dtype: torch.dtype = getattr(torch, group.dtype)
    return group.num_kv_heads * (group.head_dim + group.v_head_dim) * dtype.itemsize


def _pages(shared: int, rows: int, page_size: int) -> int:
    """Of a pool for rows that share so many slots at most."""
    return shared // page_size + rows * -(-OWN // page_size)


def _points(
    backend: Backend,
    planner: Planner,
    workload: Workload,
    pool: KVPool,
    groups: Sequence[GroupSpec],
    step: _Step,
    timed: Timed,
) -> list[Point]:
    ways = [_captured(backend, planner, workload, pool, step, sharing) for sharing in (APART, ONCE)]
    found = []
    for tokens in step.tokens:
        layout = _layout(step.rows, tokens, workload.page_size)
        sums = [0.0, 0.0]
        for batch, _ in ways:
            batch.fill(layout)
        for group, *pair in zip(groups, *(runs for _, runs in ways), strict=True):
            times = least_times(pair, timed)
            sums = [total + group.num_layers * took for total, took in zip(sums, times, strict=True)]
        found.append(Point((step.rows - 1) * tokens, *sums))
        logger.debug("%d rows that share %d slots: %.1f us, once %.1f", step.rows, tokens, *(1e6 * t for t in sums))
    return found


def _captured(
    backend: Backend, planner: Planner, workload: Workload, pool: KVPool, step: _Step, sharing: Sharing
) -> tuple[FixedBatch, list[Run]]:
    """A graph's batch by a rule, and attention of each layer as a graph over it."""
    planner.sharing = sharing
    batch = backend.fixed_batch(step.rows, pool, -(-workload.context // workload.page_size))
    assert batch is not None
    meta = batch.metas[batch.fill(_layout(step.rows, step.tokens[-1], workload.page_size))]
    other = _something_else(backend.device)
    total = torch.empty(len(other), device=backend.device)
    runs = []
    for layer in range(len(pool.groups)):
        attend = attention_run(backend, workload, pool, layer, meta, step.rows)

        def run(attend: Run = attend) -> None:
            torch.sum(other, 1, out=total)
            attend()

        run()
        runs.append(backend.capture(run))
    return batch, runs


def _something_else(device: torch.device) -> torch.Tensor:
    """[n, m] float32, twice what the device's cache holds."""
    held = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    return torch.zeros(1024, 2 * held // 4 // 1024 + 1, device=device)


def _layout(rows: int, shared: int, page_size: int) -> BatchLayout:
    """Rows of one token each that begin with the same pages."""
    common, own = shared // page_size, -(-OWN // page_size)
    tables = [[*range(common), *range(common + own * r, common + own * (r + 1))] for r in range(rows)]
    return decoding_layout(shared + OWN, tables, page_size)
