"""A stand-in for the package ``flashinfer``: the two wrappers that sglite calls, in plain torch and strict.

What they take and what comes of it is read from the package's sources (0.6.13 and 0.7.2). Where those would wait for
the device, read out of bounds or use what an earlier plan left, the stand-in fails.
"""

from __future__ import annotations

import ast
import inspect
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor

VERSION = "0.6.13"
CORES_ALONE = (1, 2, 3, 4, 8)
"""Query heads of a KV head that rows of one token may have without tensor cores."""


@dataclass
class Log:
    """What was called: wrappers made, plans and runs, by the kind of wrapper."""

    made: list[Any] = field(default_factory=list)
    plans: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    calls: list[tuple[str, str, int, tuple[str, ...]]] = field(default_factory=list)
    """Class, method, number of arguments without names, and the names of the others."""


class _Wrapper:
    kind = ""
    dtypes: tuple[torch.dtype, ...] = ()
    log: Log

    def _make(self, workspace: Tensor, layout: str, graph: bool, buffers: dict[str, Tensor | None]) -> None:
        assert workspace.dtype == torch.uint8 and workspace.dim() == 1 and layout == "NHD"
        self.device, self.graph, self.planned = workspace.device, graph, False
        self.buffers: dict[str, Tensor] = {}
        for name, buffer in buffers.items() if graph else ():
            assert buffer is not None and buffer.dtype == torch.int32 and buffer.device == self.device, name
            self.buffers[name] = buffer
        if graph:
            self.rows = len(self.buffers["last"])
            assert len(self.buffers["indptr"]) == self.rows + 1
        self.log.made.append(self)

    def _take(self, indptr: Tensor, indices: Tensor, last: Tensor, page_size: int, non_blocking: bool) -> None:
        """Check a plan's pages and keep them where runs read them."""
        assert non_blocking
        for name, tensor in (("indptr", indptr), ("last", last)):
            assert tensor.device.type == "cpu", f"{name} is on the device: a plan would wait for it"
            assert tensor.dtype == torch.int32 and tensor.dim() == 1 and tensor.is_contiguous(), name
            assert self.device.type == "cpu" or tensor.is_pinned(), f"{name} is not pinned: its copy would wait"
        assert indices.dtype == torch.int32 and indices.device == self.device, "indices of the host: a copy would wait"
        held = indptr.diff()
        assert len(indptr) == len(last) + 1 and indptr[0] == 0 and (held >= 0).all() and len(indices) == indptr[-1]
        assert torch.where(held == 0, last == 0, (last >= 1) & (last <= page_size)).all()
        if self.graph:
            assert len(last) == self.rows, "the number of rows is fixed in a graph"
            assert len(indices) <= len(self.buffers["indices"])
            self.buffers["indptr"].copy_(indptr)
            self.buffers["last"].copy_(last)
            self.buffers["indices"][: len(indices)].copy_(indices)
        else:
            self.buffers = {"indptr": indptr.to(self.device), "last": last.to(self.device), "indices": indices}

    def _keep(self, heads: int, kv_heads: int, size: int, page_size: int, options: dict[str, Any]) -> None:
        q_type, kv_type, window = options["q_data_type"], options["kv_data_type"], options["window_left"]
        assert heads % kv_heads == 0 and size in (64, 128, 256) and window >= -1 and options["sm_scale"] is not None
        assert q_type in self.dtypes and kv_type == q_type, f"{q_type} is not computed in"
        shape = heads, kv_heads, size, page_size, q_type, window
        assert not self.graph or not self.planned or shape == self.shape, "a graph has one shape"
        self.shape, self.scale, self.planned = shape, options["sm_scale"], True
        self.log.plans.append((self.kind, {"rows": len(self.buffers["last"]), "window": window, "graph": self.graph}))

    def _attend(self, q: Tensor, cache: tuple[Tensor, Tensor], out: Tensor | None, starts: list[int]) -> Tensor:
        """``starts``: [R + 1] where each row's queries begin."""
        assert self.planned, "run comes before plan"
        heads, kv_heads, size, page_size, dtype, window = self.shape
        k, v = cache
        assert k.dtype == v.dtype == q.dtype == dtype and q.shape[1:] == (heads, size) and q.stride(2) == 1
        assert k.shape[1:] == v.shape[1:] == (page_size, kv_heads, size) and k.stride() == v.stride()
        assert len(q) == starts[-1], "q is not what was planned"
        out = torch.full_like(q, math.nan) if out is None else out
        assert out.shape == q.shape and out.dtype == dtype and out.is_contiguous() and out.data_ptr() != q.data_ptr()
        indptr, last = self.buffers["indptr"].tolist(), self.buffers["last"].tolist()
        for row, (first, end) in enumerate(pairwise(starts)):
            pages = self.buffers["indices"][indptr[row] : indptr[row + 1]].long()
            assert ((pages >= 0) & (pages < len(k))).all(), "a page out of bounds is read"
            length = max(len(pages) - 1, 0) * page_size + (last[row] if len(pages) else 0)
            keys, values = (cached[pages].flatten(0, 1)[:length].float() for cached in (k, v))
            out[first:end] = _softmax(q[first:end].float(), keys, values, self.scale, window).to(dtype)
        self.log.runs.append(self.kind)
        return out


def _softmax(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int) -> Tensor:
    """Queries are the last of the slots; those that see none give zeros."""
    count, slots = len(q), len(k)
    if count == 0 or slots == 0:
        return torch.zeros_like(q)
    k, v = (cached.repeat_interleave(q.shape[1] // cached.shape[1], dim=1) for cached in (k, v))
    own = torch.arange(slots - count, slots, device=q.device)[:, None]
    at = torch.arange(slots, device=q.device)
    seen = (at <= own) & ((window < 0) | (at >= own - window))
    scores = torch.einsum("qhd,shd->hqs", q, k) * scale
    shares = scores.masked_fill(~seen, -math.inf).softmax(2)
    return torch.einsum("hqs,shd->qhd", shares, v)


class BatchDecodeWithPagedKVCacheWrapper(_Wrapper):
    """Rows of one token each."""

    kind = "decode"

    def __init__(
        self,
        float_workspace_buffer: Tensor,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        use_tensor_cores: bool = False,
        paged_kv_indptr_buffer: Tensor | None = None,
        paged_kv_indices_buffer: Tensor | None = None,
        paged_kv_last_page_len_buffer: Tensor | None = None,
        backend: str = "auto",
    ) -> None:
        buffers = {
            "indptr": paged_kv_indptr_buffer,
            "indices": paged_kv_indices_buffer,
            "last": paged_kv_last_page_len_buffer,
        }
        self.tensor_cores = use_tensor_cores
        assert backend in ("auto", "fa2")
        self._make(float_workspace_buffer, kv_layout, use_cuda_graph, buffers)

    def plan(
        self,
        indptr: Tensor,
        indices: Tensor,
        last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        **options: Any,
    ) -> None:
        self.log.calls.append((type(self).__name__, "plan", 7, tuple(options)))
        assert self.tensor_cores or num_qo_heads // num_kv_heads in CORES_ALONE
        self._take(indptr, indices, last_page_len, page_size, options["non_blocking"])
        self._keep(num_qo_heads, num_kv_heads, head_dim, page_size, options)

    def run(self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor], *, out: Tensor | None = None) -> Tensor:
        self.log.calls.append((type(self).__name__, "run", 2, ("out",)))
        return self._attend(q, paged_kv_cache, out, list(range(len(self.buffers["last"]) + 1)))


class BatchPrefillWithPagedKVCacheWrapper(_Wrapper):
    """Rows of any number of tokens, the last of what they see."""

    kind = "ragged"

    def __init__(self, float_workspace_buffer: Tensor, kv_layout: str = "NHD", backend: str = "auto") -> None:
        self._make(float_workspace_buffer, kv_layout, False, {})

    def plan(
        self,
        qo_indptr: Tensor,
        paged_kv_indptr: Tensor,
        paged_kv_indices: Tensor,
        paged_kv_last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        *,
        causal: bool = False,
        max_token_per_sequence: int | None = None,
        **options: Any,
    ) -> None:
        names = ("causal", "max_token_per_sequence", *options)
        self.log.calls.append((type(self).__name__, "plan", 8, names))
        assert qo_indptr.device.type == "cpu" and qo_indptr.dtype == torch.int32 and causal
        counts = qo_indptr.diff()
        assert qo_indptr[0] == 0 and (counts >= 0).all() and len(qo_indptr) == len(paged_kv_indptr)
        assert max_token_per_sequence is None or max_token_per_sequence == counts.max()
        self._take(paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, page_size, options["non_blocking"])
        self._keep(num_qo_heads, num_kv_heads, head_dim_qk, page_size, options)
        self.starts = qo_indptr.tolist()

    def run(self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor], *, out: Tensor | None = None) -> Tensor:
        self.log.calls.append((type(self).__name__, "run", 2, ("out",)))
        return self._attend(q, paged_kv_cache, out, self.starts)


WRAPPERS = (BatchDecodeWithPagedKVCacheWrapper, BatchPrefillWithPagedKVCacheWrapper)


@contextmanager
def stand_in(version: str = VERSION, dtypes: tuple[torch.dtype, ...] = (torch.bfloat16,)) -> Iterator[Log]:
    """``import flashinfer`` gives the stand-in; yields what is called of it."""
    log = Log()
    module = ModuleType("flashinfer")
    module.__spec__ = ModuleSpec("flashinfer", None)
    module.__dict__["__version__"] = version
    for wrapper in WRAPPERS:
        module.__dict__[wrapper.__name__] = type(wrapper.__name__, (wrapper,), {"log": log, "dtypes": dtypes})
    before = sys.modules.get("flashinfer")
    sys.modules["flashinfer"] = module
    try:
        with mock.patch.multiple("sglite.runtime.backend.flashinfer", WORKSPACE=2**16, DEVICES=("cuda", "cpu")):
            yield log
    finally:
        sys.modules.pop("flashinfer")
        if before is not None:
            sys.modules["flashinfer"] = before


def refused_calls(folder: Path, log: Log) -> list[str]:
    """Of the calls in ``log``, and of arguments that the stand-in's constructors have, those that the sources of the
    package in ``folder`` do not know."""
    found = []
    for wrapper, file in zip(WRAPPERS, ("decode.py", "prefill.py"), strict=True):
        methods = _methods(folder / file, wrapper.__name__)
        given = tuple(inspect.signature(wrapper.__init__).parameters)[1:]
        calls = {("__init__", 0, given)} | {call[1:] for call in log.calls if call[0] == wrapper.__name__}
        for name, count, names in sorted(calls):
            places, known = methods[name]
            unknown = [given for given in names if given not in known[count:]]
            if unknown or count > len(places):
                found.append(f"{wrapper.__name__}.{name} takes no {unknown}, or not {count} without names")
        placed = tuple(inspect.signature(wrapper.plan).parameters)[1:8]
        if placed != methods["plan"][0][:7]:
            found.append(f"{wrapper.__name__}.plan has {methods['plan'][0]} in other places")
    return found


def _methods(file: Path, name: str) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Arguments that may be given by place, and all in that order, of a class's methods."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    owner = next(node for node in body if isinstance(node, ast.ClassDef) and node.name == name)
    found = {}
    for node in owner.body:
        if isinstance(node, ast.FunctionDef):
            placed = tuple(argument.arg for argument in node.args.args[1:])
            found[node.name] = placed, (*placed, *(argument.arg for argument in node.args.kwonlyargs))
    if "_plan_impl" in found:  # what a newer version hands its named arguments on to
        found["plan"] = found["plan"][0], found["_plan_impl"][1]
    return found
