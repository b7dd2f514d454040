"""Norms, activations, rotation, masks, sampling and copies in the shapes of real models, to be compiled for a GPU."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from sglite.runtime.backend.draws import Draws
from sglite.runtime.backend.kernels.copies import Copies
from sglite.runtime.backend.kernels.greedy import greedy
from sglite.runtime.backend.kernels.masks import apply_mask
from sglite.runtime.backend.kernels.rotary import rotate_and_store, store_kv
from sglite.runtime.backend.kernels.rowwise import add_rms_norm, gated, gated_norm, rms_norm
from sglite.runtime.backend.kernels.sampling import sample
from sglite.runtime.backend.weights import Activation, QKVNorms
from sglite.runtime.cache.pool import KVPool, make_pool
from sglite.runtime.protocol import CopyPages, CopyState, GroupSpec, StateTensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
ROWS, HEADS, KV_HEADS, DIM, VOCAB = 32, 32, 8, 128, 151_936


def launches() -> None:
    """Each kernel as it is launched for a batch of 32 tokens, in 16 bits and in float32."""
    for dtype in (torch.bfloat16, torch.float32):
        rows_of_numbers(dtype)
        for stored in ("bfloat16" if dtype == torch.bfloat16 else "float32", "int8"):
            heads(dtype, stored)
    logits, mask = empty(ROWS, VOCAB), torch.empty(ROWS, VOCAB // 32, dtype=torch.int32)
    tokens(logits, mask)
    apply_mask(logits.bfloat16(), mask)
    greedy(logits.bfloat16())


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def pool_of(dtype: str) -> KVPool:
    state = GroupSpec(name="s", kind="state", layout="recurrent", state_tensors=(StateTensor((32, 128, 128)),))
    keys = GroupSpec(name="a", num_kv_heads=KV_HEADS, head_dim=DIM, v_head_dim=DIM, dtype=dtype)
    return make_pool([keys, state], 4, 16, DTYPES, torch.device("cpu"), num_states=2)


def rows_of_numbers(dtype: torch.dtype) -> None:
    for hidden in (4096, 8192):
        x, weight = empty(ROWS, hidden, dtype=dtype), empty(hidden, dtype=dtype)
        rms_norm(x, weight, 1e-6)
        add_rms_norm(x, x, weight, 1e-6)
    several = empty(ROWS, HEADS, DIM, dtype=dtype)
    rms_norm(several, empty(DIM, dtype=dtype), 1e-6)
    gated_norm(several, several, empty(DIM), 1e-6)
    for activation in get_args(Activation):
        gated(empty(ROWS, 2 * 12288, dtype=dtype), activation)


def heads(dtype: torch.dtype, stored: str) -> None:
    pool, slots = pool_of(stored), torch.zeros(ROWS, dtype=torch.int64)
    cos, weight = empty(ROWS, 1, DIM // 2, dtype=dtype), empty(DIM, dtype=dtype)
    for norms in (None, QKVNorms(weight, weight, 1e-6)):
        qkv = empty(ROWS, (HEADS + 2 * KV_HEADS) * DIM, dtype=dtype)
        rotate_and_store(qkv, norms, cos, cos, pool, 0, slots, num_heads=HEADS)
    k = empty(ROWS, KV_HEADS, DIM, dtype=dtype)
    store_kv(pool, 0, k, k, slots)
    copies = Copies(pool)
    copies.pages([CopyPages(0, 1, 16)])
    copies.states([CopyState("s", 0, 1)])


def tokens(logits: Tensor, mask: Tensor) -> None:
    numbers = empty(len(logits))
    draws = Draws(numbers, numbers.int(), numbers, numbers, numbers.double())
    apply_mask(logits, mask)
    greedy(logits)
    sample(logits, draws, mask)
    for known in ({}, {"drawing": False}, {"searching": False}):
        sample(logits, draws, **known)
