"""A device that works on its own, in plain torch: results come late, decoding steps are padded to fixed sizes.

What an engine does with such a device (launch a step before the last one's tokens are known, pad, repeat what was
captured) can be tested with it at the speed of the CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest import mock

from torch import Tensor

from sglite.runtime.backend.base import AttentionMetadata, BatchLayout
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.cpu_plan import CPUMetadata
from sglite.runtime.cache.pool import KVPool

LATE_S = 0.001
"""How long results take to reach the host."""


@dataclass(frozen=True)
class PaddedMetadata(AttentionMetadata):
    """Of a fixed batch: whatever was filled in last."""

    batch: PaddedBatch


class PaddedBatch:
    """``FixedBatch`` in plain torch: rows that are not there look at the first slot of the pool, and store nothing."""

    def __init__(self, backend: CPUBackend, rows: int, pool: KVPool) -> None:
        self.backend, self.rows, self.pool = backend, rows, pool
        self.metas = [PaddedMetadata(rows, self)]
        none: list[list[int]] | None = [] if pool.num_frames else None
        self.fill(BatchLayout([0], [], [], [], [], [], pool.page_size, frame_mapping=none, frame_tables=none))

    def fill(self, layout: BatchLayout) -> int:
        more, framed = self.rows - len(layout.starts), layout.frame_tables is not None
        self.planned = self.backend.plan(
            replace(
                layout,
                query_starts=range(self.rows + 1),
                starts=[*layout.starts, *[0] * more],
                seq_lens=[*layout.seq_lens, *[1] * more],
                positions=[*layout.positions, *[0] * more],
                slot_mapping=[*layout.slot_mapping, *[-1] * more],
                page_tables=[*layout.page_tables, *[[0]] * more],
                parents=None,
                frame_mapping=[*(layout.frame_mapping or []), *[-1] * more] if framed else None,
                frame_tables=[*(layout.frame_tables or []), *[[0]] * more] if framed else None,
            )
        )
        return 0


class StagedBackend(CPUBackend):
    """Plain torch as such a device. ``captured``: how many graphs were made."""

    name = "staged"
    guarantees = replace(CPUBackend.guarantees, asynchronous=True)

    def __init__(self) -> None:
        super().__init__(1)
        self.captured = 0

    def peak_memory(self, run: Callable[[], None]) -> int:
        run()
        return 4096

    def fetch(self, *tensors: Tensor) -> Callable[[], list[Tensor]]:
        kept, ready = [tensor.clone() for tensor in tensors], time.perf_counter() + LATE_S

        def wait() -> list[Tensor]:
            time.sleep(max(0.0, ready - time.perf_counter()))
            return kept

        return wait

    def fixed_batch(self, rows: int, pool: KVPool, max_pages: int) -> PaddedBatch | None:
        return None if pool.states else PaddedBatch(self, rows, pool)

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        run()
        self.captured += 1
        return run

    def _planned(self, meta: AttentionMetadata) -> CPUMetadata:
        return super()._planned(meta.batch.planned if isinstance(meta, PaddedMetadata) else meta)


@contextmanager
def staged() -> Iterator[StagedBackend]:
    """Engines that are made meanwhile run on it."""
    backend = StagedBackend()
    with mock.patch("sglite.runtime.executor.build.backend_for", lambda *_, **__: backend):
        yield backend
