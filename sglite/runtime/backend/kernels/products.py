"""Products with weights, plain and coded: what they are is said in ``Backend.matmul`` and ``cpu_quantised``.

Plain weights are torch's own (cuBLAS). Coded ones are read as they lie in memory, a byte or half a byte a number, and
never written out:

    8 bits   the rows of x are coded first, in a launch of their own; int8 tensor cores, whole sums, exact
    4 bits   codes are multiplied as the whole numbers that they are, which every dtype holds, and their sums scaled,
             group by group; a zero takes its part of the sum of x away. Nothing is rounded but float32 sums

Two codes share a byte, those of an even input and of the next: the even inputs of x are multiplied with the low halves,
the odd ones with the high, each a product of its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from sglite.runtime.backend.base import BackendError
from sglite.runtime.backend.cpu_quantised import LEAST
from sglite.runtime.backend.experts import Matrices
from sglite.runtime.backend.kernels.device import INTERPRETED
from sglite.runtime.backend.kernels.rounding import rounded
from sglite.runtime.backend.weights import Matrix
from sglite.runtime.quant.codes import Codes


def matmul(x: Tensor, weight: Tensor | Matrix, bias: Tensor | None = None) -> Tensor:
    """See ``Backend.matmul``."""
    if isinstance(weight, Tensor):
        return F.linear(x, weight, bias)
    whole = _whole(weight)
    return F.linear(x, whole, bias) if weight.codes is None else _product(x, weight.codes, bias, x.dtype)


def logits(hidden: Tensor, head: Matrix) -> Tensor:
    """See ``Backend.logits``."""
    whole = _whole(head)
    if head.codes is None:
        return F.linear(hidden, whole).float()
    return _product(hidden, head.codes, None, torch.float32)


def embedding(ids: Tensor, weight: Matrix) -> Tensor:
    """See ``Backend.embedding``. Coded rows are few, plain torch reads them."""
    whole = _whole(weight)
    if weight.codes is None:
        return F.embedding(ids, whole)
    return weight.codes.at(ids).numbers().to(weight.dtype)


def matmul_each(x: Tensor, weights: Matrices) -> Tensor:
    """See ``Backend.matmul_each``."""
    return torch.bmm(x.transpose(0, 1), _whole(weights).transpose(1, 2)).transpose(0, 1)


def _whole(weight: Matrix | Matrices) -> Tensor:
    if weight.packed:
        raise BackendError("the weight was packed by another backend; unpack it there first")
    return weight.tensor


class _Shape(NamedTuple):
    """Of a program's work."""

    rows: int
    outputs: int
    inputs: int
    """At a time."""
    warps: int
    stages: int


def _shape(rows: int, group: int, floats: bool) -> _Shape:
    """Few rows: as many programs as there can be read the weights as fast as they come, with many loads under way.
    Many: large tiles, in which what is read is used often. A stretch of inputs stays within a group; the least that
    tensor cores take is 32, half of it where two codes share a byte. Products of ``floats``, which are exact, have no
    tensor cores and need room for their numbers."""
    even = group & -group  # the largest power of two that divides it
    inputs = min(128, even if even >= 32 else max(32, triton.next_power_of_2(group)))
    few = max(16, triton.next_power_of_2(min(rows, 32)))
    if floats:
        return _Shape(few, 32, 32, 4, 3)
    if rows <= 32:
        return _Shape(few, 32, inputs, 4, 8)
    return _Shape(64, 64, inputs, 4, 3) if rows <= 256 else _Shape(128, 64, min(64, inputs), 8, 3)


def _product(x: Tensor, codes: Codes, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``x`` [..., in] times a coded matrix transposed, plus ``bias``: [..., out] in ``dtype``."""
    outputs, inputs = codes.shape
    if x.shape[-1] != inputs:
        raise BackendError(f"product of {list(x.shape)} with a coded matrix [{outputs}, {inputs}]; inputs must agree")
    rows = x.reshape(-1, inputs)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    out = torch.empty(len(rows), outputs, dtype=dtype, device=x.device)
    if not len(rows):
        return out.view(*x.shape[:-1], outputs)
    groups = codes.scales.shape[1]
    shape = _shape(len(rows), inputs // groups, codes.coding.bits == 4 and x.dtype == torch.float32)
    sizes = (len(rows), outputs, inputs // groups, groups, codes.scales if bias is None else bias.contiguous())
    kernel, numbers, options = (_whole_operands if codes.coding.bits == 8 else _float_operands)(rows, codes)
    kernel[triton.cdiv(len(rows), shape.rows), triton.cdiv(outputs, shape.outputs)](
        *(*numbers, out, *sizes),
        BIASED=bias is not None,
        BLOCK_M=shape.rows,
        BLOCK_N=shape.outputs,
        BLOCK_K=shape.inputs,
        num_warps=shape.warps,
        num_stages=shape.stages,
        **options,
    )
    return out.view(*x.shape[:-1], outputs)


def _whole_operands(x: Tensor, codes: Codes) -> tuple[Any, tuple[object, ...], dict[str, bool]]:
    """The kernel of eight bits, what it multiplies, and what is special about it."""
    groups = codes.scales.shape[1]
    return _whole_product, (*coded_rows(x, groups), codes.values, codes.scales), {"GROUPED": groups > 1}


def _float_operands(x: Tensor, codes: Codes) -> tuple[Any, tuple[object, ...], dict[str, bool]]:
    """As ``_whole_operands``, of four bits; zeros that are not there are stood in for by what is not read."""
    zeros = codes.scales if codes.zeros is None else codes.zeros
    options = {"ZEROS": codes.zeros is not None, "UPCAST": INTERPRETED}
    return _float_product, (x, x.stride(0), codes.values, codes.scales, zeros), options


def coded_rows(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """``x`` [rows, in], rows dense, as int8 codes and float32 scales [rows, groups]; see ``cpu_quantised``."""
    rows, inputs = x.shape
    whole = torch.empty(rows, inputs, dtype=torch.int8, device=x.device)
    scales = torch.empty(rows, groups, dtype=torch.float32, device=x.device)
    block = min(2048, triton.next_power_of_2(inputs // groups))
    parts = min(2048 // block, triton.next_power_of_2(groups))
    _code[(rows, triton.cdiv(groups, parts))](
        *(x, whole, scales, x.stride(0), inputs, inputs // groups, groups, LEAST),
        PARTS=parts,
        BLOCK=block,
        num_warps=4 if block * parts > 256 else 1,
        num_stages=1,
        enable_fp_fusion=False,  # the product is rounded before it is rounded to a whole number
    )
    return whole, scales


@triton.jit
def _code(x, whole, scales, row_stride, inputs, group, groups, least, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """Some groups of a row: their largest magnitudes, then their codes."""
    row = tl.program_id(0).to(tl.int64)
    part, lane = tl.program_id(1) * PARTS + tl.arange(0, PARTS), tl.arange(0, BLOCK)
    at = part[:, None] * group + lane[None, :]
    largest, unknown = tl.zeros((PARTS, BLOCK), dtype=tl.float32), tl.zeros((PARTS, BLOCK), dtype=tl.int32)
    for first in range(0, group, BLOCK):
        there = (part < groups)[:, None] & (first + lane < group)[None, :]
        size = tl.abs(tl.load(x + row * row_stride + at + first, mask=there, other=0.0).to(tl.float32))
        unknown = tl.where(size != size, 1, unknown)  # a maximum may pass over NaN
        largest = tl.maximum(largest, size)
    most = tl.max(largest, axis=1)
    finite = (tl.max(unknown, axis=1) == 0) & (most < float("inf"))
    counts = finite & (most >= least)
    factor = tl.div_rn(tl.full((PARTS,), 127.0, tl.float32), tl.where(counts, most, 1.0))
    scale = tl.where(counts, tl.div_rn(most, tl.full((PARTS,), 127.0, tl.float32)), tl.where(finite, 0.0, float("nan")))
    tl.store(scales + row * groups + part, scale, mask=part < groups)
    for first in range(0, group, BLOCK):
        there = (part < groups)[:, None] & (first + lane < group)[None, :]
        number = tl.load(x + row * row_stride + at + first, mask=there, other=0.0).to(tl.float32)
        number = tl.where(counts[:, None], number * factor[:, None], 0.0)
        number = (number + 12582912.0) - 12582912.0  # 1.5 * 2**23 leaves no room for fractions: nearest, ties to even
        tl.store(whole + row * inputs + at + first, number.to(tl.int8), mask=there)


@triton.jit(do_not_specialize=["num_rows"])
def _whole_product(
    x,
    x_scales,
    values,
    scales,
    out,
    num_rows,
    num_outputs,
    group,
    num_groups,
    bias,
    BIASED: tl.constexpr,
    GROUPED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Some rows and some outputs; whole sums of stretches, each within a group, or of all inputs, then their scales."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    stretches = tl.cdiv(group, BLOCK_K)
    rows = x + m.to(tl.int64)[:, None] * (num_groups * group) + k[None, :]
    columns = values + n.to(tl.int64)[None, :] * (num_groups * group) + k[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    part = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for stretch in range(num_groups * stretches):
        g, first = stretch // stretches, stretch % stretches * BLOCK_K
        left = group - first
        a = tl.load(rows + g * group + first, mask=(m < num_rows)[:, None] & (k < left)[None, :], other=0)
        b = tl.load(columns + g * group + first, mask=(n < num_outputs)[None, :] & (k < left)[:, None], other=0)
        if GROUPED:
            part = tl.dot(a, b, out_dtype=tl.int32)
            scale = tl.load(scales + n * num_groups + g, mask=n < num_outputs, other=0.0)
            x_scale = tl.load(x_scales + m * num_groups + g, mask=m < num_rows, other=0.0)
            total += part.to(tl.float32) * scale[None, :] * x_scale[:, None]
        else:
            part = tl.dot(a, b, part)
    if not GROUPED:
        scale = tl.load(scales + n, mask=n < num_outputs, other=0.0)
        total = part.to(tl.float32) * scale[None, :] * tl.load(x_scales + m, mask=m < num_rows, other=0.0)[:, None]
    _put(total, out, bias, m, n, num_rows, num_outputs, BIASED)


@triton.jit(do_not_specialize=["num_rows"])
def _float_product(
    x,
    row_stride,
    values,
    scales,
    zeros,
    out,
    num_rows,
    num_outputs,
    group,
    num_groups,
    bias,
    BIASED: tl.constexpr,
    ZEROS: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Some rows and some outputs, stretch by stretch, each within a group: the sums of its codes, less its zero for all
    of x, times its scale."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k, pair = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_K // 2)
    stretches = tl.cdiv(group, BLOCK_K)
    rows = x + m.to(tl.int64)[:, None] * row_stride + k[None, :]
    columns = values + n.to(tl.int64)[None, :] * (num_groups * group // 2) + pair[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for stretch in range(num_groups * stretches):
        g, first = stretch // stretches, stretch % stretches * BLOCK_K
        left, at = group - first, g * group + first
        a = tl.load(rows + at, mask=(m < num_rows)[:, None] & (k < left)[None, :], other=0.0)
        inside = (n < num_outputs)[None, :] & (2 * pair < left)[:, None]
        both = tl.load(columns + at // 2, mask=inside, other=0)
        scale = tl.load(scales + n * num_groups + g, mask=n < num_outputs, other=0.0)
        low, high = (both & 15).to(tl.int8) - 8, (both >> 4).to(tl.int8) - 8
        if UPCAST:  # the interpreter's dot takes bfloat16 for whole numbers
            a = a.to(tl.float32)
        even, odd = tl.split(tl.reshape(a, (BLOCK_M, BLOCK_K // 2, 2)))
        part = tl.dot(even, low.to(a.dtype), input_precision="ieee")
        part = tl.dot(odd, high.to(a.dtype), part, input_precision="ieee")
        if ZEROS:
            zero = tl.load(zeros + n * num_groups + g, mask=n < num_outputs, other=0.0)
            part -= tl.sum(a.to(tl.float32), axis=1)[:, None] * zero[None, :]
        total += part * scale[None, :]
    _put(total, out, bias, m, n, num_rows, num_outputs, BIASED)


@triton.jit
def _put(total, out, bias, m, n, num_rows, num_outputs, BIASED: tl.constexpr):
    """The bias, and the result to its place."""
    if BIASED:
        total += tl.load(bias + n, mask=n < num_outputs, other=0.0).to(tl.float32)[None, :]
    to = out + m.to(tl.int64)[:, None] * num_outputs + n[None, :]
    inside = (m < num_rows)[:, None] & (n < num_outputs)[None, :]
    tl.store(to, rounded(total, out.dtype.element_ty), mask=inside)
