"""The specification: every backend call in plain torch on the CPU, in float32 or bfloat16.

Attention works in *segments*: rows that compute equally many tokens and see about equally many slots are gathered,
padded and attended together; a long prompt chunk is a segment of its own. Padding repeats a slot of the same row
behind a mask, so a row never touches another's values and depends on its batch by rounding only. Keys and values
are never repeated for grouped queries: torch's kernel reads each KV head for its whole group (``enable_gqa``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from sglite.runtime.backend.base import AttentionMetadata, BackendError, BatchLayout, Guarantees
from sglite.runtime.backend.mask import CPUMasks
from sglite.runtime.cache.pool import KVPool, make_pool
from sglite.runtime.protocol import CopyPages, GroupSpec

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
class CPUMetadata(AttentionMetadata):
    """A batch as the CPU runs it."""

    store_slots: Tensor
    """[stored] pool rows."""
    store_tokens: Tensor | None
    """[stored] which tokens they come from; ``None``: all, in order."""
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class Row:
    """One row of a layout while it is planned: its tokens, the slots it sees and, for drafts, its tree."""

    first_token: int
    start: int
    slots: Ints
    parents: Sequence[int] | None

    @property
    def num_tokens(self) -> int:
        return len(self.slots) - self.start

    def visible(self, width: int) -> npt.NDArray[np.bool_]:
        """[q, width]: which slots each query sees."""
        slot = np.arange(width)
        seen: npt.NDArray[np.bool_] = slot <= np.arange(self.start, len(self.slots))[:, None]
        if self.parents:
            first = len(self.slots) - len(self.parents)
            for i, parent in enumerate(self.parents):
                seen[first - self.start + i] = slot < first if parent < 0 else seen[first - self.start + parent]
                seen[first - self.start + i, first + i] = True
        return seen


class CPUBackend:
    """``Backend`` in plain torch. ``num_threads`` sets torch's worker threads for the process; ``None`` leaves them."""

    name = "cpu"
    device = torch.device("cpu")
    guarantees = Guarantees(batch_invariant=False, dtypes=(torch.float32, torch.bfloat16))

    def __init__(self, num_threads: int | None = None) -> None:
        if num_threads is not None:
            if num_threads < 1:
                raise BackendError(f"num_threads={num_threads}: give 1 or more, or None for torch's own choice")
            torch.set_num_threads(num_threads)
        self._masks = CPUMasks()

    def available_memory(self) -> int | None:
        """What the kernel says is available, or what the control group leaves when that is less."""
        known = (_meminfo_available(Path("/proc/meminfo")), _cgroup_left(Path("/sys/fs/cgroup")))
        return min((n for n in known if n is not None), default=None)

    def allocate_pool(self, groups: Sequence[GroupSpec], *, num_pages: int, page_size: int) -> KVPool:
        if num_pages < 1 or page_size < 1:
            raise BackendError(f"pool of {num_pages} pages of {page_size} positions: both must be at least 1")
        dtypes = {str(d).removeprefix("torch."): d for d in self.guarantees.dtypes}
        for group in groups:
            if group.kind != "paged" or group.layout != "mha":
                raise BackendError(
                    f"cache group {group.name!r}: {group.kind}/{group.layout} is not served by the cpu backend; "
                    "it serves paged/mha"
                )
            if group.dtype not in dtypes:
                raise BackendError(
                    f"cache group {group.name!r}: dtype {group.dtype!r} is not served by the cpu backend; "
                    f"it serves {', '.join(dtypes)}"
                )
        return make_pool(groups, num_pages, page_size, dtypes, self.device)

    def plan(self, layout: BatchLayout) -> CPUMetadata:
        mapping = np.asarray(layout.slot_mapping, dtype=np.int64)
        stored = np.flatnonzero(mapping >= 0)
        everything = len(stored) == len(mapping)
        segments = [_plan_segment(rows, len(mapping)) for rows in _group_rows(_layout_rows(layout))]
        return CPUMetadata(
            num_tokens=len(mapping),
            store_slots=torch.from_numpy(mapping if everything else mapping[stored]),
            store_tokens=None if everything else torch.from_numpy(stored),
            segments=tuple(segments),
        )

    def store_kv(self, pool: KVPool, layer: int, k: Tensor, v: Tensor, meta: AttentionMetadata) -> None:
        plan = _own(meta)
        if plan.store_tokens is not None:
            k, v = k.index_select(0, plan.store_tokens), v.index_select(0, plan.store_tokens)
        pool.k[layer].index_copy_(0, plan.store_slots, k)
        pool.v[layer].index_copy_(0, plan.store_slots, v)

    def attention(self, q: Tensor, pool: KVPool, layer: int, meta: AttentionMetadata, *, scale: float) -> Tensor:
        plan = _own(meta)
        keys, values = pool.k[layer], pool.v[layer]
        out = q.new_empty((*q.shape[:2], values.shape[2]))
        for segment in plan.segments:
            result = F.scaled_dot_product_attention(
                _heads_first(q[segment.tokens], segment.rows),
                _heads_first(_read(keys, segment.slots), segment.rows),
                _heads_first(_read(values, segment.slots), segment.rows),
                attn_mask=segment.mask,
                is_causal=segment.causal,
                scale=scale,
                enable_gqa=q.shape[1] != keys.shape[1],
            )
            out[segment.tokens] = result.transpose(1, 2).flatten(0, 1)
        return out

    def copy_pages(self, pool: KVPool, copies: Sequence[CopyPages]) -> None:
        for copy in copies:
            inside = min(copy.src, copy.dst) >= 0 and max(copy.src, copy.dst) < pool.num_pages
            if not (inside and 0 <= copy.num_tokens <= pool.page_size):
                raise BackendError(f"{copy}: outside a pool of {pool.num_pages} pages of {pool.page_size} positions")
            src, dst = copy.src * pool.page_size, copy.dst * pool.page_size
            for tensor in (*pool.k, *pool.v):
                tensor[dst : dst + copy.num_tokens] = tensor[src : src + copy.num_tokens]

    def matmul(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, weight, bias)

    def apply_mask(self, logits: Tensor, bitmask: Tensor) -> None:
        self._masks.apply(logits, bitmask)


def _own(meta: AttentionMetadata) -> CPUMetadata:
    if not isinstance(meta, CPUMetadata):
        raise BackendError(f"{type(meta).__name__} was planned by another backend; call plan of the cpu backend")
    return meta


def _read(cache: Tensor, slots: slice | Tensor) -> Tensor:
    return cache[slots] if isinstance(slots, slice) else cache.index_select(0, slots)


def _heads_first(x: Tensor, rows: int) -> Tensor:
    """[B * n, heads, dim] -> [B, heads, n, dim], a view."""
    return x.view(rows, -1, *x.shape[1:]).transpose(1, 2)


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
        yield Row(first, start, slots, layout.parents[r] if layout.parents is not None else None)


def _group_rows(rows: Iterator[Row]) -> Iterator[list[Row]]:
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


def _plan_segment(rows: list[Row], num_tokens: int) -> Segment:
    q, width = rows[0].num_tokens, len(rows[-1].slots)
    firsts = np.asarray([row.first_token for row in rows], dtype=np.int64)
    tokens: slice | Tensor
    if (np.diff(firsts) == q).all():
        tokens = slice(int(firsts[0]), int(firsts[0]) + len(rows) * q)
    else:
        tokens = torch.from_numpy((firsts[:, None] + np.arange(q)).reshape(-1))
    sees_all = q == 1 and len(rows[0].slots) == width
    causal = not sees_all and len(rows) == 1 and rows[0].start == 0 and not rows[0].parents
    mask = None
    if not (sees_all or causal):
        mask = torch.from_numpy(np.stack([row.visible(width) for row in rows])[:, None])
    return Segment(len(rows), tokens, _plan_slots(rows, width), mask, causal)


def _plan_slots(rows: list[Row], width: int) -> slice | Tensor:
    if len(rows) == 1 and (np.diff(rows[0].slots) == 1).all():
        return slice(int(rows[0].slots[0]), int(rows[0].slots[0]) + width)
    slots = np.empty((len(rows), width), dtype=np.int64)
    for i, row in enumerate(rows):
        slots[i, : len(row.slots)] = row.slots
        slots[i, len(row.slots) :] = row.slots[-1]
    return torch.from_numpy(slots.reshape(-1))


def _meminfo_available(path: Path) -> int | None:
    if not path.exists():
        return None
    fields = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None


def _cgroup_left(root: Path) -> int | None:
    limit, used, stat = root / "memory.max", root / "memory.current", root / "memory.stat"
    if not (limit.exists() and used.exists() and stat.exists()) or limit.read_text().strip() == "max":
        return None
    fields = dict(line.split() for line in stat.read_text().splitlines())
    cached = int(fields.get("active_file", 0)) + int(fields.get("inactive_file", 0))  # given back under pressure
    return max(0, int(limit.read_text()) - int(used.read_text()) + cached)
