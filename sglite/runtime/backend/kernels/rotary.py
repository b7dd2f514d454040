"""What comes before attention: heads normalised, turned and stored, in one kernel; and storing alone.

A program has one token and some of its heads, those of q, k and v in a row as a projection gives them. The kernel
rounds where the specification does (``cpu.py``, and ``cpu_cache.py`` for caches of int8), so that what is stored are
the same bits but for the order in which a norm is summed up.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sglite.runtime.backend.base import BackendError
from sglite.runtime.backend.kernels.rounding import rounded, through
from sglite.runtime.backend.weights import QKVNorms
from sglite.runtime.cache.pool import KVPool

NUMBERS = 2048
"""Numbers of the heads of one program: 16 a thread."""
WARPS = 4


def rotate_and_store(
    qkv: Tensor,
    norms: QKVNorms | None,
    cos: Tensor,
    sin: Tensor,
    pool: KVPool,
    layer: int,
    slots: Tensor,
    *,
    num_heads: int,
) -> Tensor:
    """``Backend.rotate_and_store``; ``slots`` [T] int64 are where tokens are stored in the layer's pages or frames, -1:
    nowhere. ``qkv`` and the angles may have any stride between tokens.

    BackendError: angles of another type than ``qkv``, norms of different types, heads that the pool does not have.
    """
    cache = _Cache.of(pool, layer)
    _, kv_heads, dim = pool.k[layer].shape
    _check(qkv, norms, cos, sin, (num_heads + 2 * kv_heads) * dim, pool.v[layer].shape[2] == dim)
    q = torch.empty((len(qkv), num_heads, dim), dtype=qkv.dtype, device=qkv.device)
    if len(qkv):
        block = triton.next_power_of_2(dim)
        heads = max(1, NUMBERS // block)
        q_norm, k_norm, eps = (qkv, qkv, 0.0) if norms is None else (norms.q, norms.k, norms.eps)
        _rotate_and_store[(len(qkv), triton.cdiv(num_heads + 2 * kv_heads, heads))](
            *(qkv, cos, sin, q_norm, k_norm, q, *cache.tensors, slots),
            *(qkv.stride(0), cos.stride(0), sin.stride(0), *cache.strides, num_heads, kv_heads, eps),
            **{"NORMED": norms is not None, "CODED": cache.coded, "DIM": dim, "TURNED": cos.shape[-1]},
            **{"HEADS": heads, "BLOCK": block, "num_warps": WARPS, "enable_fp_fusion": False},
        )
    return q


def store_kv(pool: KVPool, layer: int, k: Tensor, v: Tensor | None, slots: Tensor) -> None:
    """``Backend.store_kv`` with ``slots`` as ``rotate_and_store`` has them."""
    cache = _Cache.of(pool, layer)
    tokens, heads, dim = k.shape
    values = k if v is None else v
    block = triton.next_power_of_2(max(dim, values.shape[2]))
    together = max(1, min(NUMBERS // block, triton.next_power_of_2(heads)))
    if tokens:
        _store_kv[(tokens, triton.cdiv(heads, together), 1 if v is None else 2)](
            *(k, values, *cache.tensors, slots, *k.stride(), *values.stride(), *cache.strides, heads),
            **{"CODED": cache.coded, "DIM": dim, "V_DIM": values.shape[2], "HEADS": together, "BLOCK": block},
            **{"num_warps": WARPS, "enable_fp_fusion": False},
        )


class _Cache(NamedTuple):
    """Where a layer keeps keys and values."""

    tensors: tuple[Tensor, Tensor, Tensor, Tensor]
    """Keys, values, and the scales of both, which are the keys and values themselves where there are none."""
    strides: tuple[int, int]
    """Between slots."""
    coded: bool
    """There are scales."""

    @classmethod
    def of(cls, pool: KVPool, layer: int) -> _Cache:
        k, v, scales = pool.k[layer], pool.v[layer], pool.scales_of(layer)
        return cls((k, v, *(scales or (k, v))), (k.stride(0), v.stride(0)), scales is not None)


def _check(qkv: Tensor, norms: QKVNorms | None, cos: Tensor, sin: Tensor, width: int, alike: bool) -> None:
    if not alike or qkv.shape[1] != width or qkv.stride(1) != 1:
        raise BackendError(
            f"rotate_and_store of {list(qkv.shape)} with strides {qkv.stride()}; the pool's heads, keys and values of "
            f"one size, need dense rows of {width} numbers"
        )
    if cos.dtype != qkv.dtype or sin.dtype != qkv.dtype or cos.stride(-1) != 1 or sin.stride(-1) != 1:
        raise BackendError(f"angles {cos.dtype} and {sin.dtype} for {qkv.dtype}; give dense ones of its type")
    if norms is not None and norms.q.dtype != norms.k.dtype:
        raise BackendError(f"norms of q in {norms.q.dtype}, of k in {norms.k.dtype}; give both in one type")


@triton.jit
def _rotate_and_store(
    qkv,
    cos,
    sin,
    q_norm,
    k_norm,
    q_out,
    k_cache,
    v_cache,
    k_scales,
    v_scales,
    slots,
    stride,
    cos_stride,
    sin_stride,
    k_stride,
    v_stride,
    heads,
    kv_heads,
    eps,
    NORMED: tl.constexpr,
    CODED: tl.constexpr,
    DIM: tl.constexpr,
    TURNED: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    other = tl.where(column < TURNED, column + TURNED, tl.where(column < 2 * TURNED, column - TURNED, column))
    inside, turned = column < DIM, column < 2 * TURNED
    of_q, of_v = head < heads, head >= heads + kv_heads
    there = inside & (head < heads + 2 * kv_heads)
    kind: tl.constexpr = qkv.dtype.element_ty
    first = qkv + token * stride + head * DIM
    x = tl.load(first + column, mask=there, other=0.0).to(tl.float32)
    y = tl.load(first + other, mask=there & turned, other=0.0).to(tl.float32)
    if NORMED:
        factor = _factor(x, eps, q_norm.dtype.element_ty, DIM)
        normed = _normed(x, factor, q_norm, k_norm, column, of_q, inside, kind)
        y = _normed(y, factor, q_norm, k_norm, other, of_q, inside & turned, kind)
        x = tl.where(of_v, x, normed)
    angle = tl.where(column < TURNED, column, column - TURNED)
    c = tl.load(cos + token * cos_stride + angle, mask=turned, other=0.0).to(tl.float32)
    s = tl.load(sin + token * sin_stride + angle, mask=turned, other=0.0).to(tl.float32)
    across = through(y * s, kind)
    result = through(through(x * c, kind) + tl.where(column < TURNED, -across, across), kind)
    x = tl.where(turned & ~of_v, result, x)
    tl.store(q_out + (token * heads + head) * DIM + column, rounded(x, kind), mask=there & of_q)
    slot = tl.load(slots + token).to(tl.int64)
    kept = tl.where(slot >= 0, kv_heads, 0)
    head -= heads
    _keep(k_cache, k_scales, slot, k_stride, head, kv_heads, column, x, inside & ~of_q & (head < kept), CODED, DIM)
    head -= kv_heads
    _keep(v_cache, v_scales, slot, v_stride, head, kv_heads, column, x, inside & of_v & (head < kept), CODED, DIM)


@triton.jit
def _factor(x, eps, NORM: tl.constexpr, DIM: tl.constexpr):
    """What a head's norm multiplies its numbers ``x`` with."""
    x = through(x, NORM)
    return tl.rsqrt(tl.sum(x * x, 1) / DIM + eps)[:, None]


@triton.jit
def _normed(x, factor, q_norm, k_norm, column, of_q, inside, KIND: tl.constexpr):
    """Numbers ``x`` at ``column`` of their heads, normalised with the weights of q or of k."""
    weight_type: tl.constexpr = q_norm.dtype.element_ty
    of_queries = tl.load(q_norm + column, mask=inside, other=0.0).to(tl.float32)
    of_keys = tl.load(k_norm + column, mask=inside, other=0.0).to(tl.float32)
    scales = tl.where(of_q, of_queries, of_keys)
    return through(through(through(x, weight_type) * factor * scales, weight_type), KIND)


@triton.jit
def _store_kv(
    k,
    v,
    k_cache,
    v_cache,
    k_scales,
    v_scales,
    slots,
    k_token,
    k_head,
    k_dim,
    v_token,
    v_head,
    v_dim,
    k_stride,
    v_stride,
    heads,
    CODED: tl.constexpr,
    DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    there = head < tl.where(slot >= 0, heads, 0)
    if tl.program_id(2) == 0:
        kept = there & (column < DIM)
        x = tl.load(k + token * k_token + head * k_head + column * k_dim, mask=kept, other=0.0).to(tl.float32)
        _keep(k_cache, k_scales, slot, k_stride, head, heads, column, x, kept, CODED, DIM)
    else:
        kept = there & (column < V_DIM)
        x = tl.load(v + token * v_token + head * v_head + column * v_dim, mask=kept, other=0.0).to(tl.float32)
        _keep(v_cache, v_scales, slot, v_stride, head, heads, column, x, kept, CODED, V_DIM)


@triton.jit
def _keep(cache, scales, slot, stride, head, heads, column, x, kept, CODED: tl.constexpr, DIM: tl.constexpr):
    """Store numbers ``x`` [HEADS, BLOCK] of a token's heads in its slot, where ``kept``."""
    place = cache + slot * stride + head * DIM + column
    if CODED:
        x = tl.where(kept, x, 0.0)
        broken = tl.max((x != x).to(tl.int32), 1)[:, None] != 0
        largest = tl.max(tl.where(x == x, tl.abs(x), 0.0), 1)[:, None]
        scale = tl.where(broken, float("nan"), tl.div_rn(largest, 127.0))
        counts = ~broken & (largest > 0.0)
        codes = x * tl.where(counts, tl.div_rn(127.0, tl.where(counts, largest, 1.0)), 0.0)
        # Adding 1.5 * 2**23 leaves no room for a fraction: to the nearest whole number, ties to even.
        codes = tl.where(codes == codes, (codes + 12582912.0) - 12582912.0, 0.0)
        tl.store(place, codes.to(tl.int8), mask=kept)
        tl.store(scales + slot * heads + head, scale, mask=tl.max(kept.to(tl.int32), 1)[:, None] != 0)
    else:
        tl.store(place, rounded(x, cache.dtype.element_ty), mask=kept)
