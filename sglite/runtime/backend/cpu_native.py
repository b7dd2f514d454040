"""The native CPU backend: what a step spends its time on in kernels, the rest in plain torch.

Every call gives what ``cpu.py`` gives but for rounding; whatever a kernel does not take (a type, a size, a draft tree)
goes there. Weights are rearranged in place once they are loaded (``pack``), so that there is one copy of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sglite.runtime.backend import native_mixers
from sglite.runtime.backend.base import AttentionMetadata, BackendError, BatchLayout
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.cpu_plan import CPUMetadata
from sglite.runtime.backend.cpu_sample import MAX_VOCAB
from sglite.runtime.backend.draws import Draws, Sampled
from sglite.runtime.backend.experts import ExpertWeights, Matrices, Routing
from sglite.runtime.backend.native_build import NativeUnavailable
from sglite.runtime.backend.native_dense import attends, packed_stack, stores
from sglite.runtime.backend.native_library import LEVELS, TYPES, Library, PackedWeight, supported
from sglite.runtime.backend.native_memory import bring_first_pages
from sglite.runtime.backend.native_mixers import ACTIVATIONS, BLOCK, PackedMatrices
from sglite.runtime.backend.native_plan import NativeMetadata, plan
from sglite.runtime.backend.weights import Activation, DenseStack, Matrix, QKVNorms
from sglite.runtime.cache.pool import KVPool
from sglite.runtime.protocol import GroupSpec
from sglite.runtime.quant.codes import Codes

logger = logging.getLogger(__name__)


def cpu_backend(num_threads: int | None = None, kernels: str = "auto") -> CPUBackend:
    """The backend for this processor: native where there are kernels, plain torch otherwise, which is logged.

    ``kernels``: ``auto``, ``torch``, or an instruction set by name, BackendError where it cannot be had.
    """
    if kernels == "torch":
        return CPUBackend(num_threads)
    try:
        found = supported()
    except NativeUnavailable as error:
        if kernels != "auto":
            raise BackendError(f"cpu_kernels={kernels!r}: {error}") from None
        logger.warning("computing in plain torch, which is several times slower: %s", error)
        return CPUBackend(num_threads)
    if kernels not in ("auto", *found):
        served = ", ".join(["auto", "torch", *found])
        raise BackendError(f"cpu_kernels={kernels!r} is not for this processor; use {served}")
    if not found:
        logger.warning("computing in plain torch, which is several times slower: this processor has no AVX2")
        return CPUBackend(num_threads)
    if kernels == "auto":
        kernels = found[-1]
    return NativeBackend(num_threads, kernels)


class NativeBackend(CPUBackend):
    """``Backend`` with kernels of one instruction set and threads of their own.

    ``num_threads``: as ``CPUBackend``; ``None``: as many as torch has.
    """

    guarantees = replace(CPUBackend.guarantees, codings=(8, 4))

    def __init__(self, num_threads: int | None = None, level: str = "avx2") -> None:
        super().__init__(num_threads)
        self.level = level
        self.num_threads = torch.get_num_threads()
        self._library = Library(level, self.num_threads)

    def describe(self) -> str:
        levels = list(LEVELS)
        narrow = levels.index(self.level) < levels.index("avx512_bf16")
        slower = ", slower than with AVX512 for bfloat16" if narrow else ""
        return f"{self.level} kernels, {self.num_threads} threads{slower}"

    @property
    def slots_read(self) -> int:
        """Slots whose keys attention has read so far, of all KV heads of a layer: those that rows share once a step."""
        return self._library.slots_read

    def place(self, weight: Matrix | Matrices) -> None:
        self._library.huge(weight.tensor)

    def pack(self, weight: Matrix | Matrices) -> None:
        tensor = weight.tensor
        if weight.codes is not None:
            self._pack_codes(weight, weight.codes, back=False)
            return
        outs, ins = tensor.shape[-2:]
        fits = tensor.dtype in TYPES and outs % BLOCK == 0 and ins % 2 == 0 and tensor.is_contiguous()
        if fits and not weight.packed and tensor.numel():
            self._library.pack(tensor.view(-1, ins), back=False)
            weight.arrangement = PackedWeight(tensor) if isinstance(weight, Matrix) else PackedMatrices(tensor)

    def unpack(self, weight: Matrix | Matrices) -> None:
        if weight.packed and weight.codes is not None:
            self._pack_codes(weight, weight.codes, back=True)
        elif weight.packed:
            self._library.pack(weight.tensor.view(-1, weight.tensor.shape[-1]), back=True)
            weight.arrangement = None

    def _pack_codes(self, weight: Matrix | Matrices, codes: Codes, *, back: bool) -> None:
        known = codes.coding.fits(*weight.shape[-2:]) and codes.dtype in TYPES and codes.values.is_contiguous()
        if known and weight.packed == back:
            self._library.pack(codes.values, back=back, bits=codes.coding.bits)
            for table in (codes.scales, codes.zeros):
                if table is not None:
                    self._library.pack(table, back=back)
            if back:
                weight.arrangement = None
            elif isinstance(weight, Matrix):
                weight.arrangement = PackedWeight(codes.values, codes)
            else:
                weight.arrangement = PackedMatrices(weight.tensor, codes)

    def allocate_pool(
        self,
        groups: Sequence[GroupSpec],
        *,
        num_pages: int,
        page_size: int,
        num_states: int = 0,
        num_frames: int = 0,
    ) -> KVPool:
        pool = super().allocate_pool(
            groups, num_pages=num_pages, page_size=page_size, num_states=num_states, num_frames=num_frames
        )
        for tensor in (*pool.paged(False), *pool.paged(True)):
            self._library.huge(tensor)
        bring_first_pages(self._library, pool)
        return pool

    def plan(self, layout: BatchLayout) -> NativeMetadata:
        return plan(layout, self._library)

    def matmul(self, x: Tensor, weight: Tensor | Matrix, bias: Tensor | None = None) -> Tensor:
        if isinstance(weight, Tensor) or not weight.packed:
            return super().matmul(x, weight, bias)
        return self._product(x, weight, bias, x.dtype)

    def logits(self, hidden: Tensor, head: Matrix) -> Tensor:
        if not head.packed:
            return super().logits(hidden, head)
        return self._product(hidden, head, None, torch.float32)

    def greedy(self, hidden: Tensor, head: Matrix) -> tuple[Tensor, Tensor]:
        if not head.packed or head.codes is not None:
            return super().greedy(hidden, head)
        _check_product(hidden, head, None)
        ids, tops = torch.empty(len(hidden), dtype=torch.int64), torch.empty(len(hidden))
        self._library.greatest(_dense(hidden), _arranged(head), ids, tops)
        return ids, tops

    def sample(self, logits: Tensor, draws: Draws, bitmask: Tensor | None = None) -> Sampled:
        rows, width = logits.shape
        if logits.dtype != torch.float32 or not 0 < width <= MAX_VOCAB:
            return super().sample(logits, draws, bitmask)
        found = Sampled(torch.empty(rows, dtype=torch.int64), torch.empty(rows), torch.empty(rows))
        self._library.sample(_dense(logits), draws, None if bitmask is None else bitmask.contiguous(), found)
        return found

    def embedding(self, ids: Tensor, weight: Matrix) -> Tensor:
        if not weight.packed:
            return super().embedding(ids, weight)
        out = torch.empty((len(ids), weight.shape[1]), dtype=weight.dtype)
        self._library.embedding(ids.contiguous(), _arranged(weight), out)
        return out

    def _product(self, x: Tensor, weight: Matrix, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        _check_product(x, weight, bias)
        outs, ins = weight.shape
        rows = _dense(x.reshape(-1, ins))
        out = torch.empty((len(rows), outs), dtype=dtype)
        self._library.product(rows, _arranged(weight), bias, out)
        return out.view(*x.shape[:-1], outs)

    def attention(
        self,
        q: Tensor,
        pool: KVPool,
        layer: int,
        meta: AttentionMetadata,
        *,
        scale: float,
        window: int | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        keys, values, planned = pool.k[layer], pool.v[layer], _own(meta).within(pool.framed[layer])
        if planned.branches or not attends(q.shape[1], keys, values, q.dtype):
            return super().attention(q, pool, layer, meta, scale=scale, window=window, sinks=sinks)
        q = _dense(q)
        out = q.new_empty((*q.shape[:2], values.shape[2]))
        sinks = None if sinks is None else sinks.float().contiguous()
        scales = pool.scales_of(layer)
        self._library.attention(planned.handle, q, keys, values, scales, out, sinks, window or 0, scale)
        return out

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if not _normed(x, weight):
            return super().rms_norm(x, weight, eps)
        rows = _dense(x.reshape(-1, x.shape[-1]))
        out = torch.empty(rows.shape, dtype=x.dtype)
        self._library.norm(rows, None, None, out, weight, eps)
        return out.view(x.shape)

    def add_rms_norm(self, x: Tensor, added: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        if x.dim() != 2 or x.dtype != added.dtype or not _normed(x, weight):
            return super().add_rms_norm(x, added, weight, eps)
        total, out = torch.empty(x.shape, dtype=x.dtype), torch.empty(x.shape, dtype=x.dtype)
        self._library.norm(_dense(x), _dense(added), total, out, weight, eps)
        return total, out

    def rotate_and_store(
        self,
        qkv: Tensor,
        norms: QKVNorms | None,
        cos: Tensor,
        sin: Tensor,
        pool: KVPool,
        layer: int,
        meta: AttentionMetadata,
        *,
        num_heads: int,
    ) -> Tensor:
        keys, values, planned = pool.k[layer], pool.v[layer], _own(meta).within(pool.framed[layer])
        if not _turns(qkv, keys, values, cos, norms):
            return super().rotate_and_store(qkv, norms, cos, sin, pool, layer, meta, num_heads=num_heads)
        q = qkv.new_empty((len(qkv), num_heads, keys.shape[2]))
        weights, eps = (None, 0.0) if norms is None else ((norms.q, norms.k), norms.eps)
        scales = pool.scales_of(layer)
        self._library.rotate(_dense(qkv), weights, eps, cos, sin, q, keys, values, scales, planned.slots)
        return q

    def dense_layers(
        self,
        x: Tensor,
        stack: DenseStack,
        cos: Tensor,
        sin: Tensor,
        pool: KVPool,
        meta: AttentionMetadata,
        begun: Callable[[], None] | None = None,
    ) -> Tensor:
        planned, layers = _own(meta), packed_stack(stack, pool, x.dtype)
        if layers is None or planned.branches or cos.dtype != x.dtype or cos.shape[-1] % BLOCK:
            return super().dense_layers(x, stack, cos, sin, pool, meta, begun)
        out = x.clone(memory_format=torch.contiguous_format)
        framed = planned.framed
        batches = (planned.handle, planned.slots), None if framed is None else (framed.handle, framed.slots)
        last = None if planned.last is None or not stack.is_last else (planned.last.meta.handle, planned.last.tokens)
        self._library.dense_layers(layers, out, cos, sin, batches, last, begun)
        return out

    def gated(self, x: Tensor, activation: Activation) -> Tensor:
        size = x.shape[-1] // 2
        if activation not in ACTIVATIONS or x.dtype not in TYPES or size % BLOCK:
            return super().gated(x, activation)
        rows = _dense(x.reshape(-1, 2 * size))
        out = torch.empty((len(rows), size), dtype=x.dtype)
        self._library.gated(rows, out, ACTIVATIONS[activation])
        return out.view(*x.shape[:-1], size)

    def route(self, logits: Tensor, bias: Tensor | None, routing: Routing) -> tuple[Tensor, Tensor]:
        found = native_mixers.route(self._library, logits, bias, routing)
        return super().route(logits, bias, routing) if found is None else found

    def moe(self, x: Tensor, experts: ExpertWeights, ids: Tensor, weights: Tensor, activation: Activation) -> Tensor:
        out = native_mixers.moe(self._library, x, experts, ids, weights, activation)
        return super().moe(x, experts, ids, weights, activation) if out is None else out

    def _multiply(self, x: Tensor, weights: Matrices, index: int, bias: Tensor | None) -> Tensor:
        if not weights.packed:
            return super()._multiply(x, weights, index, bias)
        native_mixers.packed(weights)
        tensor, codes = weights.tensor[index], weights.codes_of(index)
        return self._product(x, Matrix(tensor, PackedWeight(tensor, codes), codes), bias, x.dtype)

    def matmul_each(self, x: Tensor, weights: Matrices) -> Tensor:
        out = native_mixers.matmul_each(self._library, x, weights)
        return super().matmul_each(x, weights) if out is None else out

    def mla_attention(
        self,
        q: Tensor,
        pool: KVPool,
        layer: int,
        meta: AttentionMetadata,
        *,
        scale: float,
        chosen: Tensor | None = None,
    ) -> Tensor:
        latents, v_dim, out = pool.k[layer], pool.v[layer].shape[2], None
        if chosen is None:
            planned = _own(meta).within(pool.framed[layer])
            out = native_mixers.mla_attention(self._library, q, latents, v_dim, planned, scale)
        return super().mla_attention(q, pool, layer, meta, scale=scale, chosen=chosen) if out is None else out

    def causal_conv(
        self, x: Tensor, weight: Tensor, pool: KVPool, group: str, layer: int, meta: AttentionMetadata
    ) -> Tensor:
        out = native_mixers.causal_conv(self._library, x, weight, pool.states[group][layer][0], _own(meta), group)
        return super().causal_conv(x, weight, pool, group, layer, meta) if out is None else out

    def gated_delta_rule(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        decay: Tensor,
        beta: Tensor,
        pool: KVPool,
        group: str,
        layer: int,
        meta: AttentionMetadata,
    ) -> Tensor:
        states, parts = pool.states[group][layer][1], (q, k, v)
        out = native_mixers.gated_delta_rule(self._library, parts, decay, beta, states, _own(meta), group)
        return super().gated_delta_rule(*parts, decay, beta, pool, group, layer, meta) if out is None else out

    def gated_norm(self, x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
        out = native_mixers.gated_norm(self._library, x, gate, weight, eps)
        return super().gated_norm(x, gate, weight, eps) if out is None else out

    def _planned(self, meta: AttentionMetadata) -> CPUMetadata:
        return _own(meta).plain


def _own(meta: AttentionMetadata) -> NativeMetadata:
    if not isinstance(meta, NativeMetadata):
        raise BackendError(f"{type(meta).__name__} was planned by another backend; call plan of the native backend")
    return meta


def _arranged(weight: Matrix) -> PackedWeight:
    if not isinstance(weight.arrangement, PackedWeight):
        raise BackendError("the weight was packed by another backend; unpack it there first")
    return weight.arrangement


def _check_product(x: Tensor, weight: Matrix, bias: Tensor | None) -> None:
    kind = weight.dtype
    if x.dtype != kind or x.shape[-1] != weight.shape[1] or (bias is not None and bias.dtype != kind):
        raise BackendError(f"matmul of {x.dtype} {list(x.shape)} with {kind} {list(weight.shape)}: give equals")


def _dense(x: Tensor) -> Tensor:
    """``x`` with its last dimension in one piece."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _normed(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernel normalises ``x`` with ``weight``."""
    known = x.dtype in TYPES and weight.dtype in (x.dtype, torch.float32)
    return known and x.shape[-1] % BLOCK == 0


def _turns(qkv: Tensor, keys: Tensor, values: Tensor, cos: Tensor, norms: QKVNorms | None) -> bool:
    """Whether the kernel rotates and stores."""
    same = qkv.dtype == cos.dtype and stores(keys, values, qkv.dtype)
    normed = norms is None or norms.q.dtype == norms.k.dtype in (qkv.dtype, torch.float32)
    return same and normed and keys.shape[2] % BLOCK == 0 and cos.shape[-1] % BLOCK == 0
