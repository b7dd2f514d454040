"""The native kernels as Python functions over tensors: addresses, strides and types, nothing else.

Calls release the GIL. Whoever calls has checked that the tensors are what the kernels take: in host memory, of
float32 or bfloat16, their last dimension dense, sizes as ``csrc/kernels.hpp`` says.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sglite.runtime.backend.draws import Draws, Sampled
from sglite.runtime.backend.native_build import load
from sglite.runtime.cache.pool import Scales
from sglite.runtime.quant.codes import Codes

LEVELS: Mapping[str, int] = {"avx2": 1, "avx512": 2, "avx512_vnni": 32, "avx512_bf16": 4, "avx512_amx": 8}
"""Instruction sets in the order of their speed, with their bit in the library's answer."""
TYPES = {torch.float32: 0, torch.bfloat16: 1}
CODES = {8: 2, 4: 3}
"""Kinds of weights in codes of so many bits."""
_POINTER, _INT, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
_SIGNATURES = {
    "sg_new": (_POINTER, [_INT, _INT]),
    "sg_free": (None, [_POINTER]),
    "sg_huge": (None, [_POINTER, _LONG]),
    "sg_bring": (None, [_POINTER, _LONG]),
    "sg_pack": (None, [_POINTER, _POINTER, _LONG, _LONG, _INT, _INT]),
    "sg_product": (None, [_POINTER, _POINTER, _POINTER, _LONG, _POINTER, _POINTER, _LONG, _INT]),
    "sg_greatest": (None, [_POINTER, _POINTER, _POINTER, _LONG, _LONG, _POINTER, _POINTER]),
    "sg_embedding": (None, [_POINTER, _POINTER, _LONG, _POINTER]),
    "sg_plan_new": (_POINTER, [_LONG, *[_POINTER] * 4, _LONG]),
    "sg_plan_free": (None, [_POINTER]),
    "sg_attention": (None, [*[_POINTER] * 3, _LONG, _LONG, *[_POINTER] * 6, *[_LONG] * 5, _FLOAT, _INT]),
    "sg_slots_read": (_LONG, [_POINTER]),
    "sg_norm": (
        None,
        [_POINTER, _POINTER, _LONG, _POINTER, _LONG, _POINTER, _POINTER, _POINTER, _LONG, _LONG, _FLOAT, _INT, _INT],
    ),
    "sg_rotate": (None, [_POINTER, _POINTER, _LONG, *[_POINTER] * 10, *[_LONG] * 5, _FLOAT, _INT, _INT]),
    "sg_dense_layers": (None, [_POINTER, _POINTER, _LONG, *[_POINTER] * 9, *[_LONG] * 4, _INT]),
    "sg_sample": (None, [_POINTER, _POINTER, _LONG, _POINTER, _LONG, *[_POINTER] * 8, _LONG, _LONG]),
    "sg_route": (None, [_POINTER, _POINTER]),
    "sg_experts": (None, [_POINTER, _POINTER, _POINTER]),
    "sg_each": (None, [_POINTER, _POINTER]),
    "sg_latents": (None, [_POINTER, _POINTER, _POINTER]),
    "sg_conv": (None, [_POINTER, _POINTER]),
    "sg_delta": (None, [_POINTER, _POINTER]),
    "sg_gated_norm": (None, [_POINTER, _POINTER]),
    "sg_gated": (None, [_POINTER, _POINTER, _LONG, _POINTER, _LONG, _LONG, _INT, _INT]),
}

Longs = npt.NDArray[np.int64]
Batch = tuple[int, Longs]
"""A plan's handle, and the slots where tokens are stored."""


Numbers = tuple[int, int, int | None, int | None, int]
NUMBERS = (("kind", _INT), ("type", _INT), ("scales", _POINTER), ("zeros", _POINTER), ("group", _LONG))
"""What a packed weight's numbers are: fields of the kernels' structs."""


def numbers_of(tensor: Tensor, codes: Codes | None) -> Numbers:
    """These fields."""
    if codes is None:
        return TYPES[tensor.dtype], TYPES[tensor.dtype], None, None, 0
    zeros = None if codes.zeros is None else codes.zeros.data_ptr()
    group = codes.coding.group or codes.shape[1]
    return CODES[codes.coding.bits], TYPES[codes.dtype], codes.scales.data_ptr(), zeros, group


class PackedWeight(ctypes.Structure):
    """A packed matrix [outs, ins] as the kernels know it, ``Weight`` in ``csrc/kernels.hpp``: valid as long as the
    tensor that it was made of."""

    _fields_ = (("data", _POINTER), ("outs", _LONG), ("ins", _LONG), *NUMBERS)

    def __init__(self, tensor: Tensor, codes: Codes | None = None) -> None:
        shape = tensor.shape if codes is None else codes.shape
        super().__init__(tensor.data_ptr(), *shape, *numbers_of(tensor, codes))
        self.address = ctypes.addressof(self)


class PackedLayer(ctypes.Structure):
    """A layer as the kernels know it, ``DenseLayer`` in ``csrc/step.hpp``."""

    _fields_ = (
        ("attention_norm", _POINTER), ("mlp_norm", _POINTER),
        ("qkv", PackedWeight), ("out", PackedWeight), ("gate_up", PackedWeight), ("down", PackedWeight),
        ("qkv_bias", _POINTER), ("out_bias", _POINTER), ("gate_up_bias", _POINTER), ("down_bias", _POINTER),
        ("q_norm", _POINTER), ("k_norm", _POINTER), ("sinks", _POINTER), ("k", _POINTER), ("v", _POINTER),
        ("k_scales", _POINTER), ("v_scales", _POINTER),
        ("heads", _LONG), ("kv_heads", _LONG), ("dim", _LONG), ("window", _LONG),
        ("scale", _FLOAT), ("attention_eps", _FLOAT), ("mlp_eps", _FLOAT), ("head_eps", _FLOAT),
        ("activation", _INT), ("norm_type", _INT), ("framed", _INT),
    )  # fmt: skip


def supported() -> list[str]:
    """The instruction sets that this processor has kernels for, the fastest last. Raises NativeUnavailable."""
    levels = load().sg_levels()
    return [name for name, bit in LEVELS.items() if levels & bit]


class Library:
    """Kernels of one instruction set with threads of their own."""

    def __init__(self, level: str, threads: int) -> None:
        self._lib = load()
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self._lib, name)
            function.restype, function.argtypes = result, arguments
        self._handle = self._lib.sg_new(LEVELS[level], threads)

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            self._lib.sg_free(self._handle)

    def huge(self, tensor: Tensor) -> None:
        """Ask for huge pages behind a tensor that has not been written to."""
        self._lib.sg_huge(tensor.data_ptr(), tensor.nbytes)

    def bring(self, tensor: Tensor) -> None:
        """Have the system put memory behind a tensor before it is written to; its numbers stay."""
        self._lib.sg_bring(tensor.data_ptr(), tensor.nbytes)

    def pack(self, weight: Tensor, *, back: bool, bits: int | None = None) -> None:
        """Rearrange a matrix [outs, ins] in place, or undo that. ``bits``: it holds codes."""
        outs, width = weight.shape
        ins, kind = (width, TYPES[weight.dtype]) if bits is None else (width * 8 // bits, CODES[bits])
        self._lib.sg_pack(self._handle, weight.data_ptr(), outs, ins, kind, back)

    def product(self, x: Tensor, weight: PackedWeight, bias: Tensor | None, out: Tensor) -> None:
        """``out`` [rows, outs] = ``x`` [rows, ins] times a packed weight; ``bias`` in the weight's type."""
        self._lib.sg_product(
            self._handle, weight.address, x.data_ptr(), x.stride(0), None if bias is None else bias.data_ptr(),
            out.data_ptr(), len(x), TYPES[out.dtype],
        )  # fmt: skip

    def greatest(self, x: Tensor, weight: PackedWeight, ids: Tensor, tops: Tensor) -> None:
        """``Backend.greedy`` of ``x`` [rows, ins]: ``ids`` int64, ``tops`` float32."""
        self._lib.sg_greatest(
            self._handle, weight.address, x.data_ptr(), x.stride(0), len(x), ids.data_ptr(), tops.data_ptr()
        )

    def embedding(self, ids: Tensor, weight: PackedWeight, out: Tensor) -> None:
        """Rows of a packed weight."""
        self._lib.sg_embedding(weight.address, ids.data_ptr(), len(ids), out.data_ptr())

    def plan(self, plan: Pages) -> int:
        """A handle on what attention of a batch needs; the library has copied it."""
        handle: int = self._lib.sg_plan_new(
            len(plan.starts), plan.tables.ctypes.data, plan.table_from.ctypes.data, plan.query_from.ctypes.data,
            plan.starts.ctypes.data, plan.page_size,
        )  # fmt: skip
        return handle

    def forget(self, plan: int) -> None:
        """Free a plan."""
        self._lib.sg_plan_free(plan)

    def attention(
        self, plan: int, q: Tensor, k: Tensor, v: Tensor, scales: Scales | None, out: Tensor, sinks: Tensor | None,
        window: int, scale: float,
    ) -> None:  # fmt: skip
        """``Backend.attention``; ``scales`` of keys and values in int8, ``sinks`` float32, ``window`` 0: none."""
        self._lib.sg_attention(
            self._handle, plan, q.data_ptr(), q.stride(0), q.stride(1), k.data_ptr(), v.data_ptr(),
            *_addresses(scales), out.data_ptr(), None if sinks is None else sinks.data_ptr(), q.shape[1],
            *k.shape[1:], v.shape[2], window, scale, TYPES[q.dtype],
        )  # fmt: skip

    @property
    def slots_read(self) -> int:
        """Slots whose keys attention has read since the start, of all KV heads; once where rows share them."""
        return int(self._lib.sg_slots_read(self._handle))

    def norm(
        self, x: Tensor, added: Tensor | None, total: Tensor | None, out: Tensor, weight: Tensor, eps: float
    ) -> None:
        """``out`` = norm of ``x`` [rows, size], or of ``total`` = ``x`` + ``added``."""
        self._lib.sg_norm(
            self._handle, x.data_ptr(), x.stride(0), None if added is None else added.data_ptr(),
            0 if added is None else added.stride(0), None if total is None else total.data_ptr(), out.data_ptr(),
            weight.data_ptr(), *x.shape, eps, TYPES[x.dtype], TYPES[weight.dtype],
        )  # fmt: skip

    def rotate(
        self, qkv: Tensor, norms: tuple[Tensor, Tensor] | None, eps: float, cos: Tensor, sin: Tensor, q: Tensor,
        k: Tensor, v: Tensor, scales: Scales | None, slots: Longs,
    ) -> None:  # fmt: skip
        """Heads of ``qkv`` [tokens, heads * dim] normalised and turned: to ``q`` and to ``slots`` of the pool."""
        self._lib.sg_rotate(
            self._handle, qkv.data_ptr(), qkv.stride(0), *_addresses(norms), cos.data_ptr(), sin.data_ptr(),
            q.data_ptr(), k.data_ptr(), v.data_ptr(), *_addresses(scales), slots.ctypes.data, len(qkv), q.shape[1],
            *k.shape[1:], 2 * cos.shape[-1], eps, TYPES[qkv.dtype], norms is not None and norms[0].dtype != qkv.dtype,
        )  # fmt: skip

    def gated(self, x: Tensor, out: Tensor, activation: int) -> None:
        """``Backend.gated`` of ``x`` [rows, 2 * size]."""
        self._lib.sg_gated(
            self._handle, x.data_ptr(), x.stride(0), out.data_ptr(), *out.shape, activation, TYPES[x.dtype]
        )

    def sample(self, logits: Tensor, draws: Draws, bitmask: Tensor | None, found: Sampled) -> None:
        """``Backend.sample`` of ``logits`` [rows, width] float32 into ``found``; ``bitmask`` in one piece."""
        self._lib.sg_sample(
            self._handle, logits.data_ptr(), logits.stride(0), None if bitmask is None else bitmask.data_ptr(),
            0 if bitmask is None else bitmask.shape[1], draws.temperatures.data_ptr(), draws.top_k.data_ptr(),
            draws.top_p.data_ptr(), draws.min_p.data_ptr(), draws.uniforms.data_ptr(), found.ids.data_ptr(),
            found.peaks.data_ptr(), found.left.data_ptr(), *logits.shape,
        )  # fmt: skip

    def dense_layers(
        self,
        layers: ctypes.Array[PackedLayer],
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        batches: Sequence[Batch | None],
        last: Batch | None = None,
        begun: Callable[[], None] | None = None,
    ) -> None:
        """``Backend.dense_layers``: ``x`` becomes the result. ``batches``: as layers in pages see it, and in frames.

        ``last``: the plan and the tokens, ascending, of which alone the result is wanted. ``begun`` is called last of
        all that needs the interpreter: whom it wakes does not keep the kernels waiting.
        """
        (tokens, hidden), kind, count = x.shape, TYPES[x.dtype], len(layers)
        plans = [None if batch is None else batch[0] for batch in batches]
        slots = [None if batch is None else batch[1].ctypes.data for batch in batches]
        given = (
            self._handle, layers, count, x.data_ptr(), cos.data_ptr(), sin.data_ptr(), *plans, *slots,
            *((None, None, 0) if last is None else (last[0], last[1].ctypes.data, len(last[1]))), tokens, hidden,
            2 * cos.shape[-1], kind,
        )  # fmt: skip
        if begun is not None:
            begun()
        self._lib.sg_dense_layers(*given)

    def route(self, job: int) -> None:
        """``Backend.route``; ``job``, here and below: the address of one of ``native_mixers``' structs."""
        self._lib.sg_route(self._handle, job)

    def experts(self, job: int, ids: Tensor) -> None:
        """``Backend.moe``."""
        self._lib.sg_experts(self._handle, job, ids.data_ptr())

    def each(self, job: int) -> None:
        """``Backend.matmul_each``."""
        self._lib.sg_each(self._handle, job)

    def latents(self, plan: int, job: int) -> None:
        """``Backend.mla_attention``."""
        self._lib.sg_latents(self._handle, plan, job)

    def conv(self, job: int) -> None:
        """``Backend.causal_conv``."""
        self._lib.sg_conv(self._handle, job)

    def delta(self, job: int) -> None:
        """``Backend.gated_delta_rule``."""
        self._lib.sg_delta(self._handle, job)

    def gated_norm(self, job: int) -> None:
        """``Backend.gated_norm``."""
        self._lib.sg_gated_norm(self._handle, job)


def _addresses(pair: tuple[Tensor, Tensor] | None) -> tuple[int | None, int | None]:
    return (None, None) if pair is None else (pair[0].data_ptr(), pair[1].data_ptr())


class Pages:
    """Where the rows of a batch lie in the pages, as arrays: what ``BatchLayout`` says, copied."""

    def __init__(
        self, tables: npt.NDArray[np.int32], table_from: Longs, query_from: Longs, starts: Longs, page_size: int
    ) -> None:
        self.tables, self.table_from, self.query_from, self.starts = tables, table_from, query_from, starts
        self.page_size = page_size
