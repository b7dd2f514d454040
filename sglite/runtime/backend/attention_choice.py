"""Who attends on a GPU: sglite's own kernels or FlashInfer's, as the caller says or as a measurement does.

``auto`` times both on the model's own shapes where FlashInfer is installed and takes the model: a step of single tokens
and a chunk of a prompt, every group of layers by its number. The quicker one is taken for steps of that kind; rows that
share pages worth it and draft trees stay with sglite's kernels, which read what is shared once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import torch

from sglite.runtime.backend import flashinfer
from sglite.runtime.backend.base import Backend, BackendError, BatchLayout
from sglite.runtime.backend.base import FixedBatch as AnyFixedBatch
from sglite.runtime.backend.cuda_plan import CUDAMetadata, FixedBatch
from sglite.runtime.backend.flashinfer import FlashInfer
from sglite.runtime.backend.timing import Run, Timed, attention_run, decoding_layout, least_times
from sglite.runtime.backend.workload import Workload
from sglite.runtime.cache.pool import KVPool

logger = logging.getLogger(__name__)
ROWS, CONTEXT = 64, 1024
"""Of the step that is timed, at most: a quarter of a gigabyte of keys and values for 8 KV heads of 128."""
CHUNK = 4096
"""Tokens of the prompt's chunk, at most; it has as many before it."""

Kind = Literal["decoding", "prompts"]


@dataclass(frozen=True)
class Part:
    """The attention of one layer, which ``layers`` of the model have."""

    layers: int
    run: Run


Steps = Mapping[Kind, Sequence[Part]]


@dataclass(frozen=True)
class Verdict:
    """Seconds of the attention of a step."""

    triton: float
    flashinfer: float

    @property
    def winner(self) -> str:
        """The quicker one."""
        return "flashinfer" if self.flashinfer < self.triton else "triton"

    def __str__(self) -> str:
        other = "triton" if self.winner == "flashinfer" else "flashinfer"
        times = {"triton": 1000 * self.triton, "flashinfer": 1000 * self.flashinfer}
        return f"{self.winner} ({times[self.winner]:.2f} ms a step, {other} {times[other]:.2f})"


@dataclass(frozen=True)
class Served:
    """Steps that FlashInfer attends."""

    decoding: bool = True
    prompts: bool = True
    alone: bool = True
    """Nobody else does: what it cannot do is refused."""

    def takes(self, meta: CUDAMetadata) -> bool:
        """Whether it attends a batch. BackendError: it is to, and cannot."""
        if self.alone and meta.trees is not None:
            raise BackendError(
                "attention_backend='flashinfer': draft trees that branch are not served; send chains, or use triton"
            )
        if not self.alone and (meta.trees is not None or meta.shared is not None):
            return False
        return self.decoding if meta.decode else self.prompts


class AttentionChoice:
    """Who attends on a device. ``asked``: ``triton``, ``flashinfer`` or ``auto``; until ``settle`` has been called,
    Triton.

    BackendError: FlashInfer is asked for and not there, or attention is to be ``deterministic``.
    """

    def __init__(self, asked: str, device: torch.device, *, deterministic: bool = False) -> None:
        self._asked, self._device, self._deterministic = asked, device, deterministic
        self._flash: FlashInfer | None = None
        if asked == "flashinfer" and (reason := self._missing()) is not None:
            raise _refused(reason)
        self._served = Served()
        self.said = asked
        """The choice, for people."""

    def step(self, meta: CUDAMetadata) -> CUDAMetadata:
        """A planned batch, with who attends it."""
        flash = self._flash
        return meta if flash is None or not self._served.takes(meta) else flash.step(meta)

    def fixed(self, batch: FixedBatch) -> AnyFixedBatch:
        """A graph's batch, with who attends it."""
        return batch if self._flash is None or not self._served.decoding else self._flash.fixed(batch)

    @torch.inference_mode()
    def settle(self, backend: Backend, workload: Workload, timed: Timed) -> None:
        """See ``Backend.settle``; ``backend`` asks this choice who attends."""
        if self._asked == "triton":
            return
        reason = self._missing() or flashinfer.refusal(workload)
        if reason is None:
            try:
                self._start(backend, workload, timed)
            except Exception as error:  # its kernels are compiled here: nvcc, ninja, files, whatever may fail
                self._flash = None
                reason = f"it did not start: {flashinfer.told(error)}"
                logger.warning("attention_backend=%r: flashinfer: %s", self._asked, reason)
                logger.debug("flashinfer did not start", exc_info=True)
        if reason is None:
            logger.info("attention: %s", self.said)
        elif self._asked == "flashinfer":
            raise _refused(reason)
        else:
            self.said = f"triton; not flashinfer, since {reason}"

    def _missing(self) -> str | None:
        if self._deterministic:
            return "its sums depend on the batch (enable_deterministic_inference=True)"
        return flashinfer.missing(self._device)

    def _start(self, backend: Backend, workload: Workload, timed: Timed) -> None:
        logger.info("attention: flashinfer compiles its kernels when it is started for the first time, for minutes")
        self._flash = flash = FlashInfer(self._device)
        pools = _pools(backend, workload)
        theirs = _steps(backend, workload, pools)
        if self._asked == "flashinfer":
            self.said = f"flashinfer {flash.version}"
            return
        self._flash = None
        verdicts = compare(_steps(backend, workload, pools), theirs, timed)
        won = {kind: verdict.winner == "flashinfer" for kind, verdict in verdicts.items()}
        self._served = Served(won["decoding"], won["prompts"], alone=False)
        self._flash = flash if any(won.values()) else None
        self.said = ", ".join(f"{kind} {verdict}" for kind, verdict in verdicts.items())


def _refused(reason: str) -> BackendError:
    return BackendError(f"attention_backend='flashinfer': {reason}; use triton, or leave it out")


def compare(triton: Steps, flashinfer: Steps, timed: Timed) -> dict[Kind, Verdict]:
    """The attention of a step of each kind, by both."""
    return {kind: _verdict(triton[kind], flashinfer[kind], timed) for kind in triton}


def _verdict(ours: Sequence[Part], theirs: Sequence[Part], timed: Timed) -> Verdict:
    sums = [0.0, 0.0]
    for pair in zip(ours, theirs, strict=True):
        times = least_times([part.run for part in pair], timed)
        sums = [total + part.layers * took for total, part, took in zip(sums, pair, times, strict=True)]
    return Verdict(*sums)


def _pools(backend: Backend, workload: Workload) -> list[KVPool]:
    """One layer of every group that is kept in pages."""
    steps = _decoding(workload), _chunk(workload)
    pages = max(1 + max(page for table in layout.page_tables for page in table) for layout in steps)
    return [
        backend.allocate_pool(
            [msgspec.structs.replace(group, num_layers=1)], num_pages=pages, page_size=workload.page_size
        )
        for group in workload.groups
        if group.kind == "paged"
    ]


def _steps(backend: Backend, workload: Workload, pools: Sequence[KVPool]) -> Steps:
    """What the backend does for attention, as it is set now: every part has run once and runs again when called."""
    layers = [group.num_layers for group in workload.groups if group.kind == "paged"]
    runs: dict[Kind, Callable[[Backend, Workload, KVPool], Run]] = {"decoding": _decoding_run, "prompts": _chunk_run}
    return {
        kind: [Part(count, run(backend, workload, pool)) for count, pool in zip(layers, pools, strict=True)]
        for kind, run in runs.items()
    }


def _decoding_run(backend: Backend, workload: Workload, pool: KVPool) -> Run:
    """As a graph, since that is how such steps are run."""
    layout = _decoding(workload)
    batch = backend.fixed_batch(len(layout.starts), pool, len(layout.page_tables[0]))
    assert batch is not None
    meta = batch.metas[batch.fill(layout)]
    run = attention_run(backend, workload, pool, 0, meta, len(layout.starts))
    run()
    return backend.capture(run)


def _chunk_run(backend: Backend, workload: Workload, pool: KVPool) -> Run:
    layout = _chunk(workload)
    run = attention_run(backend, workload, pool, 0, backend.plan(layout), len(layout.positions))
    run()
    return run


def _decoding(workload: Workload) -> BatchLayout:
    """Rows of one token each, with pages of their own."""
    rows, end = min(ROWS, workload.rows), min(CONTEXT, workload.context)
    pages = -(-end // workload.page_size)
    tables = [range(row * pages, (row + 1) * pages) for row in range(rows)]
    return decoding_layout(end, tables, workload.page_size)


def _chunk(workload: Workload) -> BatchLayout:
    """A chunk of one prompt, with as many tokens before it where a row may be so long."""
    tokens = max(1, min(CHUNK, workload.tokens, workload.context // 2))
    return BatchLayout(
        query_starts=[0, tokens],
        starts=[tokens],
        seq_lens=[2 * tokens],
        positions=range(tokens, 2 * tokens),
        slot_mapping=[-1] * tokens,
        page_tables=[range(-(-2 * tokens // workload.page_size))],
        page_size=workload.page_size,
    )
