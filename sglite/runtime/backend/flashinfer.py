"""Attention by FlashInfer, a package of CUDA kernels that may be installed: what it is told of a batch, and its calls.

It has kernels for rows of one token and for rows of any number. Both take a *plan* of the batch, made once a step for
all layers of a kind, and then one call a layer:

    plan   on the host, where plans are made: where each row's pages begin, how many slots its last one has
           on the device: the pages, as the batch has them; for layers with a window, those alone that a query sees,
           since FlashInfer counts from a row's end
    run    q [T, heads, head_dim]; keys and values [pages, page_size, kv_heads, head_dim], which are views of the pool

Nothing waits for the device, with one exception: FlashInfer writes all plans of a kind to the same pinned memory, so a
plan waits for the copy out of it that the one before started, which lies a step behind. A graph's rows that are not
there have no pages: nothing is read for them, and they give zeros. FlashInfer shares no pages among rows, and of draft
trees that branch it could make masks only by waiting for the device: those it does not attend.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sglite.runtime.backend.base import AttentionMetadata, BatchLayout
from sglite.runtime.backend.cuda_plan import CUDAMetadata, FixedBatch
from sglite.runtime.backend.cuda_tiles import Rows
from sglite.runtime.backend.workload import Workload
from sglite.runtime.cache.pool import KVPool
from sglite.runtime.protocol import GroupSpec

PACKAGE = "flashinfer"
VERSIONS = (0, 6, 13), (0, 8)
"""The first whose calls are known, and the first whose are not."""
DEVICES = ("cuda",)
HEAD_SIZES = (64, 128, 256)
DTYPES = (torch.bfloat16,)
SMALL_GROUPS = (1, 2, 3)
"""Query heads of a KV head for which rows of one token are computed without tensor cores; those pay from 4 on."""
WORKSPACE = 384 * 2**20
"""Bytes for the parts of rows that are cut: heads times 2 processors' worth of tiles of 128 queries, in float32."""

Numbers = npt.NDArray[Any]


def missing(device: torch.device) -> str | None:
    """Why there is no FlashInfer to be called for a device, as a clause; ``None``: there is."""
    if device.type not in DEVICES:
        return "it runs on a GPU, not in Triton's interpreter"
    if importlib.util.find_spec(PACKAGE) is None:
        return "it is not installed: pip install 'sglite[cuda]'"
    try:
        said = str(importlib.import_module(PACKAGE).__version__)
    except Exception as error:  # other packages of its that do not fit, libraries that are not there
        return f"it cannot be imported: {told(error)}"
    if not VERSIONS[0] <= tuple(map(int, re.findall(r"\d+", said)[:3])) < VERSIONS[1]:
        known = [".".join(map(str, version)) for version in VERSIONS]
        return f"version {said} is installed, and its calls are known from {known[0]} to before {known[1]}"
    return None


def refusal(workload: Workload) -> str | None:
    """Why FlashInfer cannot attend in a model's layers, as a clause; ``None``: it can."""
    if workload.dtype not in DTYPES:
        return f"it computes in {_names(DTYPES)}, the model in {_names([workload.dtype])} (dtype='bfloat16' casts it)"
    if workload.sinks:
        return "the model's softmax has sinks, which it does not know"
    paged = [group for group in workload.groups if group.kind == "paged"]
    return next((reason for group in paged if (reason := _misfit(group, workload)) is not None), None)


def _misfit(group: GroupSpec, workload: Workload) -> str | None:
    if group.layout != "mha":
        return f"the cache group {group.name!r} keeps latents, which it is not asked to attend"
    if group.dtype != _names([workload.dtype]):
        of = _names([workload.dtype])
        return f"the KV cache is in {group.dtype}, the model in {of} (kv_cache_dtype='auto' makes them the same)"
    if group.head_dim not in HEAD_SIZES or group.v_head_dim != group.head_dim:
        sizes = ", ".join(map(str, HEAD_SIZES))
        return f"heads have {group.head_dim} numbers of keys and {group.v_head_dim} of values; it takes {sizes} of both"
    return None


def told(error: Exception) -> str:
    """In one line."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


@dataclass(frozen=True)
class Kind:
    """What layers have in common that share a plan."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    page_size: int
    frames: bool
    scale: float
    window: int | None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """As plans take them."""
        return self.num_heads, self.num_kv_heads, self.head_dim, self.page_size

    @property
    def options(self) -> dict[str, Any]:
        """Of both kinds of plans. FlashInfer's window leaves out the query's own position."""
        return {
            "window_left": -1 if self.window is None else self.window - 1,
            "sm_scale": self.scale,
            "q_data_type": self.dtype,
            "kv_data_type": self.dtype,
            "non_blocking": True,
        }

    @property
    def tensor_cores(self) -> bool:
        """Whether rows of one token are computed by them."""
        return self.num_heads // self.num_kv_heads not in SMALL_GROUPS


@dataclass(frozen=True)
class Pages:
    """The pages of all rows that queries see."""

    starts: Numbers
    """[R + 1] where those of each row begin, and their number."""
    last: Numbers
    """[R] slots of the row's last page; 0: it has no pages."""
    chosen: Numbers | None
    """[starts[-1]] the pages; ``None``: all, as the batch has them."""

    @classmethod
    def of(cls, rows: Rows, window: int | None) -> Pages:
        """Of rows whose queries see the last ``window`` positions."""
        held = np.diff(rows.page_starts)
        first = np.zeros_like(held)
        if window is not None:
            first = np.minimum(np.maximum(rows.starts - window + 1, 0) // rows.page_size, held)
        last = np.where(held > first, (rows.seq_lens - 1) % rows.page_size + 1, 0)
        if not first.any():
            return cls(rows.page_starts, last, None if window is None else rows.pages)
        starts = np.concatenate(([0], np.cumsum(held - first)))
        skipped = rows.page_starts[:-1] + first - starts[:-1]
        return cls(starts, last, rows.pages[np.repeat(skipped, held - first) + np.arange(starts[-1])])


class Wrapper:
    """One of FlashInfer's, and whose plan it has."""

    def __init__(self, made: Any, device: torch.device) -> None:
        self._made, self._device = made, device
        self._copied: torch.cuda.Event | None = None
        self.planned_for: object = None
        """The batch."""

    def plan(self, batch: object, *arrays: Tensor, kind: Kind, **options: Any) -> None:
        """Plan ``arrays`` for ``batch``, in the order of the current stream."""
        if self._copied is not None:
            self._copied.synchronize()
        self.planned_for = None
        self._made.plan(*arrays, *kind.shape, **kind.options, **options)
        if self._device.type == "cuda":
            self._copied = self._copied or torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(self._device))
        self.planned_for = batch

    def run(self, q: Tensor, pool: KVPool, layer: int) -> Tensor:
        """Attend as planned."""
        k, v = (cache.view(-1, pool.page_size, *cache.shape[1:]) for cache in (pool.k[layer], pool.v[layer]))
        q = q.contiguous()
        attended: Tensor = self._made.run(q, (k, v), out=torch.empty_like(q))
        return attended


class FlashInfer:
    """The package on one device, and what it needs there. Ask ``missing`` and ``refusal`` first."""

    def __init__(self, device: torch.device) -> None:
        self._package = importlib.import_module(PACKAGE)
        self._device = device
        self._workspace = torch.zeros(WORKSPACE, dtype=torch.uint8, device=device)
        self._decoding: dict[Kind, Wrapper] = {}
        self._ragged: dict[Kind, Wrapper] = {}

    @property
    def version(self) -> str:
        """Of the package."""
        return str(self._package.__version__)

    def step(self, meta: CUDAMetadata) -> CUDAMetadata:
        """A planned batch that is attended by FlashInfer."""
        return replace(meta, other=_Step(self, meta))

    def fixed(self, batch: FixedBatch) -> FlashInferBatch:
        """A graph's batch that is attended by FlashInfer."""
        return FlashInferBatch(self, batch)

    def wrapper(self, kind: Kind, decode: bool) -> Wrapper:
        """What attends rows of one token, or of any number, in layers of a kind, outside of graphs."""
        known = self._decoding if decode else self._ragged
        if kind not in known:
            known[kind] = self._decoder(kind) if decode else self._made("BatchPrefillWithPagedKVCacheWrapper")
        return known[kind]

    def fixed_wrapper(self, kind: Kind, rows: int, pages: Tensor) -> Wrapper:
        """What attends ``rows`` rows of one token in a graph, whose pages are in ``pages``."""
        return self._decoder(
            kind,
            use_cuda_graph=True,
            paged_kv_indptr_buffer=torch.zeros(rows + 1, dtype=torch.int32, device=self._device),
            paged_kv_indices_buffer=pages,
            paged_kv_last_page_len_buffer=torch.zeros(rows, dtype=torch.int32, device=self._device),
        )

    def host(self, numbers: Numbers) -> Tensor:
        """Integers on the host, from where they can be copied without waiting."""
        tensor = torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.int32))
        return tensor.pin_memory() if self._device.type == "cuda" else tensor

    def sent(self, numbers: Numbers) -> Tensor:
        """Integers on the device."""
        return self.host(numbers).to(self._device, non_blocking=True)

    def _decoder(self, kind: Kind, **buffers: Any) -> Wrapper:
        return self._made(
            "BatchDecodeWithPagedKVCacheWrapper", use_tensor_cores=kind.tensor_cores, backend="fa2", **buffers
        )

    def _made(self, name: str, **options: Any) -> Wrapper:
        return Wrapper(getattr(self._package, name)(self._workspace, "NHD", **options), self._device)


class _Step:
    """A batch that is computed once; layers of a kind share a plan, which the first of them has made."""

    def __init__(self, flash: FlashInfer, meta: CUDAMetadata) -> None:
        self._flash, self._meta = flash, meta

    def attend(self, q: Tensor, pool: KVPool, layer: int, *, scale: float, window: int | None) -> Tensor:
        """See ``Attending``."""
        kind = _kind(q, pool, layer, scale, window)
        wrapper = self._flash.wrapper(kind, self._meta.decode)
        if wrapper.planned_for is not self:
            self._plan(wrapper, kind)
        return wrapper.run(q, pool, layer)

    def _plan(self, wrapper: Wrapper, kind: Kind) -> None:
        flash, meta = self._flash, self._meta
        rows = meta.within(kind.frames).rows
        pages = Pages.of(rows, kind.window)
        chosen = meta.pages[: pages.starts[-1]] if pages.chosen is None else flash.sent(pages.chosen)
        arrays = flash.host(pages.starts), chosen, flash.host(pages.last)
        if meta.decode:
            wrapper.plan(self, *arrays, kind=kind)
        else:
            first, most = flash.host(rows.query_starts), meta.max_queries
            wrapper.plan(self, first, *arrays, kind=kind, causal=True, max_token_per_sequence=most)


class FlashInferBatch:
    """See ``base.FixedBatch``. Plans are made in ``fill``, but for those of a kind of layer that is met for the first
    time: layers must have been run once before they are captured."""

    def __init__(self, flash: FlashInfer, batch: FixedBatch) -> None:
        self._flash, self._batch, self._meta = flash, batch, batch.metas[0]
        self._wrappers: dict[Kind, tuple[Wrapper, Tensor]] = {}

    @property
    def metas(self) -> Sequence[AttentionMetadata]:
        """Those of the batch; FlashInfer attends rows that share nothing."""
        first, *others = self._batch.metas
        return [replace(first, other=self), *others]

    def fill(self, layout: BatchLayout) -> int:
        """See ``base.FixedBatch``."""
        which = self._batch.fill(layout)
        if which == 0:
            for kind in self._wrappers:
                self._plan(kind)
        return which

    def attend(self, q: Tensor, pool: KVPool, layer: int, *, scale: float, window: int | None) -> Tensor:
        """See ``Attending``."""
        kind = _kind(q, pool, layer, scale, window)
        if kind not in self._wrappers:
            room = self._meta.pages if window is None else self._window_pages(window)
            self._wrappers[kind] = self._flash.fixed_wrapper(kind, self._meta.num_rows, room), room
            self._plan(kind)
        return self._wrappers[kind][0].run(q, pool, layer)

    def _window_pages(self, window: int) -> Tensor:
        """Room for the pages that all rows see of a window: of each the first may begin before it."""
        size = self._meta.page_size
        each = min(-(-self._meta.max_seq_len // size), (window + size - 2) // size + 1)
        return torch.zeros(self._meta.num_rows * each, dtype=torch.int32, device=self._meta.pages.device)

    def _plan(self, kind: Kind) -> None:
        (wrapper, room), flash = self._wrappers[kind], self._flash
        pages = Pages.of(self._batch.rows(kind.frames), kind.window)
        count, missing = int(pages.starts[-1]), self._meta.num_rows - len(pages.last)
        chosen = room[:count]
        if pages.chosen is not None:
            chosen.copy_(flash.host(pages.chosen), non_blocking=True)
        starts = flash.host(np.pad(pages.starts, (0, missing), constant_values=count))
        wrapper.plan(self, starts, chosen, flash.host(np.pad(pages.last, (0, missing))), kind=kind)


def _kind(q: Tensor, pool: KVPool, layer: int, scale: float, window: int | None) -> Kind:
    kv_heads, size = pool.k[layer].shape[1:]
    return Kind(q.shape[1], kv_heads, size, q.dtype, pool.page_size, pool.framed[layer], scale, window)
