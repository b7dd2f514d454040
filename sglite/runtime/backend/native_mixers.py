"""Experts, latent attention and recurrent layers with native kernels: the jobs of ``csrc/mixers.hpp``, laid out here.

Every function does what the ``Backend`` call of its name does, or returns ``None`` for what its kernel does not take
and has written nothing then.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import torch
from torch import Tensor

from sglite.runtime.backend.base import BackendError
from sglite.runtime.backend.experts import ExpertWeights, Matrices, Routing
from sglite.runtime.backend.native_library import NUMBERS, TYPES, Library, numbers_of
from sglite.runtime.backend.native_plan import NativeMetadata
from sglite.runtime.backend.weights import Activation
from sglite.runtime.quant.codes import Codes

BLOCK = 16
"""Outputs that a packed weight has side by side; see ``csrc/product.hpp``."""
LINE = 32
"""Numbers of a latent that are taken at once."""
TAPS = (2, 3, 4)
"""Widths of convolutions."""
EXPERTS = 1024
"""That a token may choose among."""
KEYS = 256
"""Numbers that a key of the delta rule may have."""
ACTIVATIONS: Mapping[Activation, int] = {"silu": 0, "gelu_tanh": 1, "swiglu_oai": 2}
_POINTER, _INT, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float


class PackedMatrices(ctypes.Structure):
    """Packed matrices [n, outs, ins] as the kernels know them: valid as long as the tensor that they were made of."""

    _fields_ = (("data", _POINTER), ("count", _LONG), ("outs", _LONG), ("ins", _LONG), *NUMBERS)

    def __init__(self, tensor: Tensor, codes: Codes | None = None) -> None:
        count, outs, width = tensor.shape
        ins = width if codes is None else codes.shape[1]
        super().__init__(tensor.data_ptr(), count, outs, ins, *numbers_of(tensor, codes))


class _States(ctypes.Structure):
    _fields_ = (("query_from", _POINTER), ("slots", _POINTER), ("rows", _LONG))


class _Each(ctypes.Structure):
    _fields_ = (
        ("x", _POINTER), ("x_row", _LONG), ("x_item", _LONG), ("weights", PackedMatrices),
        ("out", _POINTER), ("rows", _LONG), ("row_step", _LONG), ("block_step", _LONG),
    )  # fmt: skip


class _Experts(ctypes.Structure):
    _fields_ = (
        ("x", _POINTER), ("x_stride", _LONG), ("gate_up", PackedMatrices), ("down", PackedMatrices),
        *((name, _POINTER) for name in ("gate_up_bias", "down_bias", "shares", "out")),
        ("tokens", _LONG), ("chosen", _LONG), ("activation", _INT), ("type", _INT),
        *((name, _POINTER) for name in ("order", "places", "pieces")), ("num_pieces", _LONG),
        *((name, _POINTER) for name in ("hidden", "results", "scratch")),
        *((name, _LONG) for name in ("scratch_size", "columns", "block_step", "row_step")),
    )  # fmt: skip


class _Route(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("logits", "bias", "ids", "weights")),
        *((name, _LONG) for name in ("tokens", "experts", "top_k", "groups", "top_groups")), ("scaling", _FLOAT),
        *((name, _INT) for name in ("sigmoid", "pairs", "renormalize")), ("row_step", _LONG),
    )  # fmt: skip


class _Latents(ctypes.Structure):
    _fields_ = (
        ("q", _POINTER), ("q_token", _LONG), ("q_head", _LONG), ("latents", _POINTER), ("out", _POINTER),
        *((name, _POINTER) for name in ("tables", "table_from", "query_from", "starts")),
        *((name, _LONG) for name in ("heads", "dim", "v_dim", "page_size")), ("scale", _FLOAT), ("type", _INT),
        ("pieces", _POINTER), ("scratch", _POINTER), ("scratch_size", _LONG),
    )  # fmt: skip


class _Conv(ctypes.Structure):
    _fields_ = (
        ("x", _POINTER), ("x_stride", _LONG), ("weight", _POINTER), ("states", _POINTER), ("out", _POINTER),
        ("batch", _States), ("channels", _LONG), ("taps", _LONG), ("type", _INT),
    )  # fmt: skip


class _Delta(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in "qkv"), *((f"{name}_token", _LONG) for name in "qkv"),
        *((name, _POINTER) for name in ("decay", "beta", "states", "out")), ("batch", _States),
        *((name, _LONG) for name in ("k_heads", "v_heads", "k_dim", "v_dim")), ("type", _INT),
    )  # fmt: skip


class _GatedNorm(ctypes.Structure):
    _fields_ = (
        ("x", _POINTER), ("x_token", _LONG), ("gate", _POINTER), ("gate_token", _LONG), ("weight", _POINTER),
        ("out", _POINTER), ("tokens", _LONG), ("heads", _LONG), ("size", _LONG), ("eps", _FLOAT), ("type", _INT),
        ("row_step", _LONG),
    )  # fmt: skip


def route(library: Library, logits: Tensor, bias: Tensor | None, routing: Routing) -> tuple[Tensor, Tensor] | None:
    """See ``Backend.route``."""
    tokens, experts = logits.shape
    known = logits.dtype == torch.float32 and (bias is None or bias.dtype == torch.float32)
    if not known or experts > EXPERTS:
        return None
    logits = logits.contiguous()
    ids, weights = torch.empty((tokens, routing.top_k), dtype=torch.int64), logits.new_empty((tokens, routing.top_k))
    job = _Route(
        logits.data_ptr(), None if bias is None else bias.data_ptr(), ids.data_ptr(), weights.data_ptr(), tokens,
        experts, routing.top_k, routing.num_groups, routing.top_groups, routing.scaling, routing.scoring == "sigmoid",
        routing.group_score == "top2", routing.renormalize,
    )  # fmt: skip
    library.route(ctypes.addressof(job))
    return ids, weights


def moe(
    library: Library, x: Tensor, experts: ExpertWeights, ids: Tensor, weights: Tensor, activation: Activation
) -> Tensor | None:
    """See ``Backend.moe``."""
    if not (experts.gate_up.packed and experts.down.packed) or activation not in ACTIVATIONS:
        return None
    gate_up, down = packed(experts.gate_up), packed(experts.down)
    biases = (experts.gate_up_bias, experts.down_bias)
    if down.ins % BLOCK or any(bias is not None and bias.dtype != x.dtype for bias in biases):
        return None
    if gate_up.type != TYPES.get(x.dtype) or x.shape[1] != gate_up.ins:
        raise BackendError(f"moe of {x.dtype} {list(x.shape)} with {experts.gate_up.dtype}: give equals")
    x, ids, weights = _dense(x), ids.contiguous(), weights.float().contiguous()
    out = x.new_empty((len(x), down.outs))
    job = _Experts(
        x=x.data_ptr(), x_stride=x.stride(0), gate_up=gate_up, down=down, gate_up_bias=_address(biases[0]),
        down_bias=_address(biases[1]), shares=weights.data_ptr(), out=out.data_ptr(), tokens=len(x),
        chosen=ids.shape[1], activation=ACTIVATIONS[activation], type=gate_up.type,
    )  # fmt: skip
    library.experts(ctypes.addressof(job), ids)
    return out


def matmul_each(library: Library, x: Tensor, weights: Matrices) -> Tensor | None:
    """See ``Backend.matmul_each``."""
    if not weights.packed:
        return None
    known = packed(weights)
    if known.kind != TYPES.get(x.dtype) or x.shape[1:] != (known.count, known.ins):
        raise BackendError(f"matmul_each of {x.dtype} {list(x.shape)} with {list(weights.tensor.shape)}: give equals")
    x = _dense(x)
    out = x.new_empty((len(x), known.count, known.outs))
    job = _Each(x=x.data_ptr(), x_row=x.stride(0), x_item=x.stride(1), weights=known, out=out.data_ptr(), rows=len(x))
    library.each(ctypes.addressof(job))
    return out


def mla_attention(
    library: Library, q: Tensor, latents: Tensor, v_dim: int, planned: NativeMetadata, scale: float
) -> Tensor | None:
    """See ``Backend.mla_attention``; ``latents`` [slots, 1, dim]."""
    dim = latents.shape[2]
    if planned.branches or q.dtype not in TYPES or q.dtype != latents.dtype or dim % LINE or v_dim % LINE:
        return None
    q = _dense(q)
    out = q.new_empty((*q.shape[:2], v_dim))
    job = _Latents(
        q=q.data_ptr(), q_token=q.stride(0), q_head=q.stride(1), latents=latents.data_ptr(), out=out.data_ptr(),
        heads=q.shape[1], dim=dim, v_dim=v_dim, scale=scale, type=TYPES[q.dtype],
    )  # fmt: skip
    library.latents(planned.handle, ctypes.addressof(job))
    return out


def causal_conv(
    library: Library, x: Tensor, weight: Tensor, states: Tensor, planned: NativeMetadata, group: str
) -> Tensor | None:
    """See ``Backend.causal_conv``; ``states`` [slots, channels, width - 1]."""
    channels, taps = weight.shape
    same = x.dtype == weight.dtype == states.dtype and x.dtype in TYPES
    if not same or channels % BLOCK or taps not in TAPS or not (weight.is_contiguous() and states.is_contiguous()):
        return None
    slots = planned.state_rows(group)
    x = _dense(x)
    out = x.new_empty((len(x), channels))
    job = _Conv(
        x=x.data_ptr(), x_stride=x.stride(0), weight=weight.data_ptr(), states=states.data_ptr(), out=out.data_ptr(),
        batch=_States(planned.pages.query_from.ctypes.data, slots.ctypes.data, len(slots)), channels=channels,
        taps=taps, type=TYPES[x.dtype],
    )  # fmt: skip
    library.conv(ctypes.addressof(job))
    return out


def gated_delta_rule(
    library: Library,
    parts: tuple[Tensor, Tensor, Tensor],
    decay: Tensor,
    beta: Tensor,
    states: Tensor,
    planned: NativeMetadata,
    group: str,
) -> Tensor | None:
    """See ``Backend.gated_delta_rule``; ``parts``: q, k and v, ``states`` [slots, v_heads, k_dim, v_dim]."""
    q, k, v = parts = _heads(parts[0]), _heads(parts[1]), _heads(parts[2])
    k_dim, v_dim = states.shape[2:]
    same = q.dtype == k.dtype == v.dtype and v.dtype in TYPES and states.dtype == torch.float32
    if not same or k_dim % BLOCK or v_dim % BLOCK or k_dim > KEYS or not states.is_contiguous():
        return None
    slots = planned.state_rows(group)
    decay, beta = decay.float().contiguous(), beta.float().contiguous()
    out = torch.empty_like(v, memory_format=torch.contiguous_format)
    strides = (part.stride(0) for part in parts)
    job = _Delta(
        *(part.data_ptr() for part in parts), *strides, decay.data_ptr(), beta.data_ptr(), states.data_ptr(),
        out.data_ptr(), _States(planned.pages.query_from.ctypes.data, slots.ctypes.data, len(slots)), k.shape[1],
        v.shape[1], k_dim, v_dim, TYPES[v.dtype],
    )  # fmt: skip
    library.delta(ctypes.addressof(job))
    return out


def gated_norm(library: Library, x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor | None:
    """See ``Backend.gated_norm``."""
    size = x.shape[2]
    if x.dtype not in TYPES or x.dtype != gate.dtype or weight.dtype != torch.float32 or size % BLOCK:
        return None
    x, gate = _heads(x), _heads(gate)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    job = _GatedNorm(
        x.data_ptr(), x.stride(0), gate.data_ptr(), gate.stride(0), weight.data_ptr(), out.data_ptr(), *x.shape, eps,
        TYPES[x.dtype],
    )  # fmt: skip
    library.gated_norm(ctypes.addressof(job))
    return out


def packed(weights: Matrices) -> PackedMatrices:
    """What the kernels know about packed matrices."""
    if not isinstance(weights.arrangement, PackedMatrices):
        raise BackendError("the weights were packed by another backend; unpack them there first")
    return weights.arrangement


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.contiguous().data_ptr()


def _dense(x: Tensor) -> Tensor:
    """``x`` with its last dimension in one piece."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _heads(x: Tensor) -> Tensor:
    """``x`` [T, heads, dim] with the heads of a token side by side."""
    return x if x.stride(2) == 1 and x.stride(1) == x.shape[2] else x.contiguous()
