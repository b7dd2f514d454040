"""Norms and gated activations: one pass over every row of numbers.

A kernel computes in float32 and rounds where the specification (``cpu.py``) rounds. How a row is summed up depends on
its size alone, so that a row's bits are the same in every batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sglite.runtime.backend.base import BackendError
from sglite.runtime.backend.kernels.rounding import rounded, through
from sglite.runtime.backend.weights import Activation

WIDEST = 2**15
"""Numbers of a row that fit the registers of one program."""
COLUMNS = 1024
"""Results of an activation a program: 8 a thread."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``Backend.rms_norm``: ``x`` [..., size], any strides; rows of up to ``WIDEST`` numbers, else BackendError."""
    return _normalise(x, None, weight, eps, "plain")[1]


def add_rms_norm(x: Tensor, added: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``Backend.add_rms_norm``: the sum and its norm, in one kernel; limits as ``rms_norm``."""
    return _normalise(x, added, weight, eps, "added")


def gated_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``Backend.gated_norm``; limits as ``rms_norm``."""
    return _normalise(x, gate, weight, eps, "gated")[1]


def gated(x: Tensor, activation: Activation) -> Tensor:
    """``Backend.gated``: ``x`` [..., 2 n], any strides."""
    rows, inner, stride, inner_stride = _rows(x)
    n = x.shape[-1] // 2
    out = torch.empty((*x.shape[:-1], n), dtype=x.dtype, device=x.device)
    count = out.numel() // n if n else 0
    if count:
        grid = (count, triton.cdiv(n, COLUMNS))
        numbers = (rows, out, inner, stride, inner_stride, n)
        _gated[grid](*numbers, KIND=activation, BLOCK=COLUMNS, num_warps=4, enable_fp_fusion=False)
    return out


def _normalise(x: Tensor, other: Tensor | None, weight: Tensor, eps: float, kind: str) -> tuple[Tensor, Tensor]:
    """The sum, when kind is ``added``, and the norm."""
    size = x.shape[-1]
    if size > WIDEST:
        raise BackendError(f"norm of rows of {size} numbers; the cuda backend takes at most {WIDEST}")
    rows, inner, stride, inner_stride = _rows(x)
    others, _, other_stride, other_inner = _rows(x if other is None else other)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = torch.empty_like(out) if kind == "added" else out
    count = x.numel() // size
    if count:
        block = triton.next_power_of_2(size)
        together = max(1, COLUMNS // block)
        numbers = (rows, others, weight, total, out, count, inner)
        strides = (stride, inner_stride, other_stride, other_inner)
        how = {"KIND": kind, "ROWS": together, "BLOCK": block, "num_warps": _warps(block), "enable_fp_fusion": False}
        _norm[(triton.cdiv(count, together),)](*numbers, *strides, size, eps, **how)
    return total, out


def _warps(block: int) -> int:
    """16 numbers a thread, within what a program may have."""
    return min(16, max(2, block // 512))


def _rows(x: Tensor) -> tuple[Tensor, int, int, int]:
    """``x`` [..., size] with dense rows, how many of them follow each other with the inner stride, the stride from one
    such group to the next, and the inner one."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    if x.dim() == 3:
        return x, x.shape[1], x.stride(0), x.stride(1)
    if x.dim() != 2:
        x = x.reshape(-1, x.shape[-1])
    return x, 1, x.stride(0), 0


@triton.jit(do_not_specialize=["count"])
def _norm(
    x,
    other,
    weight,
    total,
    out,
    count,
    inner,
    x_stride,
    x_inner,
    other_stride,
    other_inner,
    size,
    eps,
    KIND: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    there = (row < count) & (column < size)
    place = row * size + column
    weight_type: tl.constexpr = weight.dtype.element_ty
    numbers = tl.load(x + (row // inner) * x_stride + (row % inner) * x_inner + column, mask=there, other=0.0)
    numbers = numbers.to(tl.float32)
    if KIND != "plain":
        others = tl.load(other + (row // inner) * other_stride + (row % inner) * other_inner + column, mask=there)
        others = tl.where(there, others.to(tl.float32), 0.0)
    if KIND == "added":
        numbers = through(numbers + others, out.dtype.element_ty)
        tl.store(total + place, rounded(numbers, out.dtype.element_ty), mask=there)
    numbers = through(numbers, weight_type)
    factor = tl.rsqrt(tl.sum(numbers * numbers, 1) / size + eps)[:, None]
    scales = tl.load(weight + column, mask=column < size, other=0.0).to(tl.float32)
    normed = through(numbers * factor * scales, weight_type)
    if KIND == "gated":
        gate = through(others, weight_type)
        normed = through(normed * through(gate * tl.sigmoid(gate), weight_type), weight_type)
    tl.store(out + place, rounded(normed, out.dtype.element_ty), mask=there)


@triton.jit
def _gated(x, out, inner, stride, inner_stride, n, KIND: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = column < n
    first = x + (row // inner) * stride + (row % inner) * inner_stride
    gate = tl.load(first + column, mask=there, other=0.0).to(tl.float32)
    up = tl.load(first + n + column, mask=there, other=0.0).to(tl.float32)
    result = activated(gate, up, out.dtype.element_ty, KIND)
    tl.store(out + row * n + column, rounded(result, out.dtype.element_ty), mask=there)


@triton.jit
def activated(gate, up, dtype: tl.constexpr, KIND: tl.constexpr):
    """activation(gate) * up in float32, of numbers of ``dtype``, rounded to it before the last product."""
    if KIND == "silu":
        gate = gate * tl.sigmoid(gate)
    elif KIND == "gelu":
        gate = gate * (0.5 * (1.0 + tl.math.erf(gate * 0.7071067811865476)))
    elif KIND == "gelu_tanh":  # half of 1 + tanh(a) is the sigmoid of 2 a
        gate = gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    else:
        tl.static_assert(KIND == "swiglu_oai")
        gate = tl.minimum(gate, 7.0, propagate_nan=tl.PropagateNan.ALL)
        up = tl.minimum(up, 7.0, propagate_nan=tl.PropagateNan.ALL)
        up = through(tl.maximum(up, -7.0, propagate_nan=tl.PropagateNan.ALL) + 1.0, dtype)
        gate = gate * through(tl.sigmoid(through(1.702 * gate, dtype)), dtype)
    return through(gate, dtype) * up
