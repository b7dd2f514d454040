"""``Backend.moe``: two products with the weights of each chosen expert, and one sum a token.

    pairs (token, choice)   tiles of one expert each, see ``grouping``
    gate_up                 rows of x by token, times gates and ups side by side; activation(gate) * up: [pairs, inner]
    down                    times the expert's second matrix: [pairs, hidden]
    sum                     of a token's pairs by their weights, in the order of its choices: [T, hidden]

Weights are read once for the tokens of a tile; one token reads those of its experts once each. Sums are float32, their
order depends on the shapes alone: the same inputs give the same bits.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from sglite.runtime.backend.base import BackendError
from sglite.runtime.backend.experts import ExpertWeights, Matrices
from sglite.runtime.backend.kernels.device import INTERPRETED
from sglite.runtime.backend.kernels.grouping import Groups, group
from sglite.runtime.backend.kernels.rounding import rounded
from sglite.runtime.backend.weights import Activation


def moe(x: Tensor, experts: ExpertWeights, ids: Tensor, weights: Tensor, activation: Activation) -> Tensor:
    """See ``Backend.moe``; BackendError for weights of another dtype than x's, or in a backend's own order."""
    gate_up, down = _dense(experts.gate_up, x), _dense(experts.down, x)
    (tokens, top_k), inner, size = ids.shape, down.shape[2], down.shape[1]
    out = x.new_empty(tokens, size)
    if not tokens:
        return out
    x = x if x.stride(1) == 1 else x.contiguous()
    shape = _shape(ids.numel(), len(down), x.element_size())
    groups = group(ids.contiguous(), len(down), shape.rows)
    hidden, results = x.new_empty(ids.numel(), inner), x.new_empty(ids.numel(), size)
    _gate_up[(groups.tiles * triton.cdiv(inner, shape.outputs),)](
        *_operands(x, gate_up, experts.gate_up_bias, hidden, groups),
        inner,
        gate_up.shape[2],
        ids.numel(),
        top_k,
        ACTIVATION=activation,
        **_options(shape, groups, experts.gate_up_bias),
    )
    _down[(groups.tiles * triton.cdiv(size, shape.outputs),)](
        *_operands(hidden, down, experts.down_bias, results, groups),
        size,
        inner,
        ids.numel(),
        **_options(shape, groups, experts.down_bias),
    )
    block = min(1024, triton.next_power_of_2(size))
    _add_up[(tokens, triton.cdiv(size, block))](
        results, weights.contiguous(), out, size, top_k, BLOCK=block, num_warps=4
    )
    return out


class _Shape(NamedTuple):
    """Of a program's work."""

    rows: int
    outputs: int
    inputs: int
    """At a time."""
    warps: int
    stages: int


def _shape(pairs: int, num_experts: int, item: int) -> _Shape:
    """Few rows an expert: weights come from memory as fast as they can, many programs with deep stretches of inputs.
    Many: a program's tile is as large as its accumulators allow, so that what is read is used often."""
    rows = min(128, max(16, triton.next_power_of_2(triton.cdiv(pairs, num_experts))))
    if rows <= 32:
        return _Shape(rows, 32, 256 // item, 4, 4)
    return _Shape(rows, 64, 128 // item, 4 if rows == 64 else 8, 3)


def _dense(weights: Matrices, x: Tensor) -> Tensor:
    """The weights as they are multiplied."""
    if weights.packed:
        raise BackendError("the experts' weights were packed by another backend; unpack them there first")
    if weights.tensor.dtype != x.dtype:
        raise BackendError(f"moe of {x.dtype} with {weights.tensor.dtype} experts; both must be of one type")
    return weights.tensor if weights.tensor.stride(2) == 1 else weights.tensor.contiguous()


def _operands(x: Tensor, weights: Tensor, bias: Tensor | None, out: Tensor, groups: Groups) -> tuple[object, ...]:
    """What both products read and write; tensors that are not there are stood in for by ones that are not read."""
    table = (weights if bias is None else bias.contiguous(), out, groups.experts)
    places = groups.experts if groups.places is None else groups.places
    return x, weights, *table, places, x.stride(0), weights.stride(0), weights.stride(1)


def _options(shape: _Shape, groups: Groups, bias: Tensor | None) -> dict[str, object]:
    return {
        "BIASED": bias is not None,
        "PLACED": groups.places is not None,
        "BLOCK_M": shape.rows,
        "BLOCK_N": shape.outputs,
        "BLOCK_K": shape.inputs,
        "UPCAST": INTERPRETED,
        "num_warps": shape.warps,
        "num_stages": shape.stages,
    }


@triton.jit
def _pairs_of(tile, places, num_pairs, PLACED: tl.constexpr, BLOCK_M: tl.constexpr):
    """The pairs that lie in a tile, ``num_pairs`` where none does."""
    lane = tl.arange(0, BLOCK_M)
    return tl.load(places + tile * BLOCK_M + lane) if PLACED else tl.where(lane == 0, tile, num_pairs)


@triton.jit(do_not_specialize=["num_pairs"])
def _gate_up(
    x,
    weights,
    bias,
    out,
    experts,
    places,
    x_stride,
    expert_stride,
    weight_stride,
    num_outputs,
    num_inputs,
    num_pairs,
    top_k,
    ACTIVATION: tl.constexpr,
    BIASED: tl.constexpr,
    PLACED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One tile and some outputs: their gates and their ups. Programs of a tile follow each other, so that the weights
    of an expert with several tiles are still in the cache."""
    parts = tl.cdiv(num_outputs, BLOCK_N)
    tile = tl.program_id(0) // parts
    expert = tl.load(experts + tile).to(tl.int64)
    if expert < 0:
        return
    n = (tl.program_id(0) % parts) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    pairs = _pairs_of(tile, places, num_pairs, PLACED, BLOCK_M)
    rows = x + (pairs // top_k).to(tl.int64)[:, None] * x_stride + k[None, :]
    gates = weights + expert * expert_stride + n.to(tl.int64)[None, :] * weight_stride + k[:, None]
    ups = weights + expert * expert_stride + (n + num_outputs).to(tl.int64)[None, :] * weight_stride + k[:, None]
    gate = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    up = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for first in range(0, num_inputs, BLOCK_K):
        left = num_inputs - first
        inside = (n < num_outputs)[None, :] & (k < left)[:, None]
        a = tl.load(rows + first, mask=(pairs < num_pairs)[:, None] & (k < left)[None, :], other=0.0)
        b = tl.load(gates + first, mask=inside, other=0.0)
        c = tl.load(ups + first, mask=inside, other=0.0)
        if UPCAST:  # the interpreter's dot takes bfloat16 for whole numbers
            a, b, c = a.to(tl.float32), b.to(tl.float32), c.to(tl.float32)
        gate = tl.dot(a, b, gate, input_precision="ieee")
        up = tl.dot(a, c, up, input_precision="ieee")
    if BIASED:
        at = bias + expert * 2 * num_outputs + n
        gate += tl.load(at, mask=n < num_outputs, other=0.0).to(tl.float32)[None, :]
        up += tl.load(at + num_outputs, mask=n < num_outputs, other=0.0).to(tl.float32)[None, :]
    result = rounded(_activated(gate, up, ACTIVATION), out.dtype.element_ty)
    to = out + pairs.to(tl.int64)[:, None] * num_outputs + n[None, :]
    tl.store(to, result, mask=(pairs < num_pairs)[:, None] & (n < num_outputs)[None, :])


@triton.jit
def _activated(gate, up, ACTIVATION: tl.constexpr):
    """See ``Backend.gated``; comparisons keep NaN where a minimum would not."""
    if ACTIVATION == "silu":
        result = gate * tl.sigmoid(gate) * up
    elif ACTIVATION == "swiglu_oai":
        gate = tl.where(gate > 7.0, 7.0, gate)
        up = tl.where(up > 7.0, 7.0, tl.where(up < -7.0, -7.0, up))
        result = gate * tl.sigmoid(1.702 * gate) * (up + 1.0)
    elif ACTIVATION == "gelu_tanh":  # (1 + tanh(y)) / 2 is sigmoid(2 y)
        result = gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)) * up
    else:
        tl.static_assert(ACTIVATION == "gelu")
        result = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476)) * up
    return result


@triton.jit(do_not_specialize=["num_pairs"])
def _down(
    x,
    weights,
    bias,
    out,
    experts,
    places,
    x_stride,
    expert_stride,
    weight_stride,
    num_outputs,
    num_inputs,
    num_pairs,
    BIASED: tl.constexpr,
    PLACED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One tile and some outputs; the rows of x are pairs."""
    parts = tl.cdiv(num_outputs, BLOCK_N)
    tile = tl.program_id(0) // parts
    expert = tl.load(experts + tile).to(tl.int64)
    if expert < 0:
        return
    n = (tl.program_id(0) % parts) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    pairs = _pairs_of(tile, places, num_pairs, PLACED, BLOCK_M)
    rows = x + pairs.to(tl.int64)[:, None] * x_stride + k[None, :]
    columns = weights + expert * expert_stride + n.to(tl.int64)[None, :] * weight_stride + k[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for first in range(0, num_inputs, BLOCK_K):
        left = num_inputs - first
        a = tl.load(rows + first, mask=(pairs < num_pairs)[:, None] & (k < left)[None, :], other=0.0)
        b = tl.load(columns + first, mask=(n < num_outputs)[None, :] & (k < left)[:, None], other=0.0)
        if UPCAST:  # the interpreter's dot takes bfloat16 for whole numbers
            a, b = a.to(tl.float32), b.to(tl.float32)
        total = tl.dot(a, b, total, input_precision="ieee")
    if BIASED:
        total += tl.load(bias + expert * num_outputs + n, mask=n < num_outputs, other=0.0).to(tl.float32)[None, :]
    to = out + pairs.to(tl.int64)[:, None] * num_outputs + n[None, :]
    inside = (pairs < num_pairs)[:, None] & (n < num_outputs)[None, :]
    tl.store(to, rounded(total, out.dtype.element_ty), mask=inside)


@triton.jit
def _add_up(results, weights, out, size, top_k, BLOCK: tl.constexpr):
    """One token, some of its numbers: its pairs one after the other."""
    token = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for choice in range(top_k):
        pair = token * top_k + choice
        share = tl.load(weights + pair)
        total += share * tl.load(results + pair * size + n, mask=n < size, other=0.0).to(tl.float32)
    tl.store(out + token * size + n, rounded(total, out.dtype.element_ty), mask=n < size)
