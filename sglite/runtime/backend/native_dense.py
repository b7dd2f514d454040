"""A stack of dense layers as the kernels take it: what is known of the weights and the pool, found out once."""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from sglite.runtime.backend.native_library import TYPES, PackedLayer, PackedWeight
from sglite.runtime.backend.native_mixers import ACTIVATIONS, BLOCK
from sglite.runtime.backend.weights import DenseLayer, DenseStack, Matrix
from sglite.runtime.cache.pool import KVPool

LINE = 32
"""Numbers of a head that attention takes at once."""
STATE = 16384
"""Numbers that a query's heads of one KV head may have; see ``csrc/kernels.hpp``."""
TILE_LANES = 128
"""Heads that a KV head may have."""
LONGEST_HEAD = 1024
"""Numbers of a head that is quantised as it is stored."""


@dataclass(frozen=True)
class PackedStack:
    """Layers with the arrangements of their weights and the pool that they were made from."""

    layers: ctypes.Array[PackedLayer] | None
    """``None``: there is no kernel for one of them."""
    weights: tuple[object, ...]
    pool: weakref.ref[KVPool]


def packed_stack(stack: DenseStack, pool: KVPool, dtype: torch.dtype) -> ctypes.Array[PackedLayer] | None:
    """The layers for activations of ``dtype``, made again when weights or pool have changed; ``None``: see above."""
    weights = tuple(matrix.arrangement for layer in stack.layers for matrix in _matrices(layer))
    known = stack.arrangement
    fresh = isinstance(known, PackedStack) and known.pool() is pool and len(known.weights) == len(weights)
    if not (fresh and isinstance(known, PackedStack) and all(map(_same, known.weights, weights))):
        known = _made(stack, weights, pool, dtype)
        stack.arrangement = known
    return known.layers


def attends(heads: int, keys: Tensor, values: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernel attends to the pool with queries of ``dtype``."""
    same = dtype in TYPES and keys.dtype in (dtype, torch.int8)
    group, dim, v_dim = heads // keys.shape[1], keys.shape[2], values.shape[2]
    fits = dim % LINE == 0 and v_dim % LINE == 0 and group * v_dim <= STATE and group <= TILE_LANES
    return same and fits and values.is_contiguous()


def stores(keys: Tensor, values: Tensor, dtype: torch.dtype) -> bool:
    """Whether the kernel stores heads of ``dtype`` in the pool."""
    same = keys.dtype == dtype or (keys.dtype == torch.int8 and keys.shape[2] <= LONGEST_HEAD)
    return same and dtype in TYPES and keys.shape == values.shape and values.is_contiguous()


def _same(a: object, b: object) -> bool:
    return a is b


def _matrices(layer: DenseLayer) -> tuple[Matrix, ...]:
    return layer.qkv[0], layer.out[0], layer.gate_up[0], layer.down[0]


def _made(stack: DenseStack, weights: tuple[object, ...], pool: KVPool, dtype: torch.dtype) -> PackedStack:
    if not all(_fits(layer, pool, dtype) for layer in stack.layers):
        return PackedStack(None, weights, weakref.ref(pool))
    layers = (PackedLayer * len(stack.layers))()
    for packed, layer in zip(layers, stack.layers, strict=True):
        _fill(packed, layer, pool)
    return PackedStack(layers, weights, weakref.ref(pool))


def _fits(layer: DenseLayer, pool: KVPool, dtype: torch.dtype) -> bool:
    """Whether there are kernels for all parts of the layer."""
    keys, values = pool.k[layer.layer], pool.v[layer.layer]
    norms = layer.attention_norm[0], layer.mlp_norm[0]
    same = (bias for _, bias in (layer.qkv, layer.out, layer.gate_up, layer.down) if bias is not None)
    heads = () if layer.norms is None else (layer.norms.q, layer.norms.k)
    return (
        all(_multiplies(matrix, dtype) for matrix in _matrices(layer))
        and all(tensor.dtype == dtype and tensor.is_contiguous() for tensor in (*same, *heads))
        and (layer.sinks is None or (layer.sinks.dtype == torch.float32 and layer.sinks.is_contiguous()))
        and norms[0].dtype == norms[1].dtype
        and norms[0].dtype in (dtype, torch.float32)
        and len(norms[0]) % BLOCK == 0
        and attends(layer.heads, keys, values, dtype)
        and stores(keys, values, dtype)
        and layer.activation in ACTIVATIONS
        and isinstance(layer.down[0].arrangement, PackedWeight)
        and layer.down[0].arrangement.ins % BLOCK == 0
    )


def _multiplies(matrix: Matrix, dtype: torch.dtype) -> bool:
    return matrix.packed and (matrix.tensor.dtype if matrix.codes is None else matrix.codes.dtype) == dtype


def _fill(packed: PackedLayer, layer: DenseLayer, pool: KVPool) -> None:
    keys, values = pool.k[layer.layer], pool.v[layer.layer]
    for name, (matrix, bias) in (
        ("qkv", layer.qkv), ("out", layer.out), ("gate_up", layer.gate_up), ("down", layer.down),
    ):  # fmt: skip
        assert isinstance(matrix.arrangement, PackedWeight)
        setattr(packed, name, matrix.arrangement)
        setattr(packed, f"{name}_bias", None if bias is None else bias.data_ptr())
    packed.attention_norm, packed.attention_eps = layer.attention_norm[0].data_ptr(), layer.attention_norm[1]
    packed.mlp_norm, packed.mlp_eps = layer.mlp_norm[0].data_ptr(), layer.mlp_norm[1]
    packed.norm_type = TYPES[layer.mlp_norm[0].dtype]
    if layer.norms is not None:
        packed.q_norm, packed.k_norm = layer.norms.q.data_ptr(), layer.norms.k.data_ptr()
        packed.head_eps = layer.norms.eps
    packed.sinks = None if layer.sinks is None else layer.sinks.data_ptr()
    packed.k, packed.v = keys.data_ptr(), values.data_ptr()
    scales = pool.scales_of(layer.layer)
    if scales is not None:
        packed.k_scales, packed.v_scales = (tensor.data_ptr() for tensor in scales)
    packed.heads, packed.kv_heads, packed.dim = layer.heads, keys.shape[1], keys.shape[2]
    packed.window, packed.scale = layer.window or 0, layer.scale
    packed.activation, packed.framed = ACTIVATIONS[layer.activation], pool.framed[layer.layer]
