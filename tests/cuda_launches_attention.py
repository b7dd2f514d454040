"""Attention of the usual shapes, to be compiled by ``compiled_kernels``."""

from __future__ import annotations

import torch

from sglite.runtime.backend.base import BatchLayout
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.cuda_plan import CUDAMetadata, Planner
from sglite.runtime.backend.kernels.attention import attend
from sglite.runtime.backend.kernels.latents import choose_slots, mla_attention
from sglite.runtime.protocol import GroupSpec

DEVICE = torch.device("cpu")
LAYOUT = BatchLayout(
    query_starts=[0, 1, 2, 10, 160],
    starts=[9100, 9200, 300, 0],
    seq_lens=[9101, 9201, 308, 150],
    positions=[0] * 160,
    slot_mapping=[-1] * 160,
    page_tables=[list(range(600))] * 4,
    page_size=16,
    parents=[None, None, [-1, -1, 0], None],
)
CHAINS = BatchLayout(*(getattr(LAYOUT, name) for name in list(LAYOUT.__dataclass_fields__)[:7]))
ALONE = BatchLayout([0, 160], [4096], [4256], [0] * 160, [-1] * 160, [list(range(266))], 16)


def launches() -> None:
    """Heads of 64, 128 and 256 in both types, a cache of int8, trees, windows, sinks, latents of 512 + 64."""
    planner = Planner(DEVICE)
    for layout in (CHAINS, LAYOUT):
        meta = planner.plan(layout)
        for dtype, stored, kv_heads, heads, size, window in (
            (torch.bfloat16, "bfloat16", 8, 32, 128, None),
            (torch.bfloat16, "bfloat16", 8, 64, 64, 128),
            (torch.bfloat16, "int8", 2, 14, 128, None),
            (torch.bfloat16, "bfloat16", 2, 16, 256, None),
            (torch.float32, "float32", 8, 16, 128, None),
        ):
            group = GroupSpec(name="a", num_kv_heads=kv_heads, head_dim=size, v_head_dim=size, dtype=stored)
            pool = CPUBackend().allocate_pool([group], num_pages=2, page_size=16)
            sinks = None if window is None else torch.zeros(heads, dtype=dtype)
            q = torch.zeros(160, heads, size, dtype=dtype)
            attend(q, pool, 0, meta, scale=0.1, window=window, sinks=sinks)
        latents(planner.plan(layout), planner.plan(ALONE))


def latents(meta: CUDAMetadata, alone: CUDAMetadata) -> None:
    """Over all slots and over chosen ones."""
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        groups = [
            GroupSpec(name="a", layout="mla", head_dim=576, v_head_dim=512, dtype=name),
            GroupSpec(name="b", layout="mla", head_dim=128, v_head_dim=128, dtype=name),
        ]
        pool = CPUBackend().allocate_pool(groups, num_pages=300, page_size=16)
        q = torch.zeros(160, 128, 576, dtype=dtype)
        mla_attention(q, pool, 0, meta, scale=0.1)
        mla_attention(q, pool, 0, meta, scale=0.1, chosen=torch.zeros(160, 2048, dtype=torch.int64))
        index = torch.zeros(160, 64, 128, dtype=dtype)
        choose_slots(index, torch.zeros(160, 64), pool, 1, alone, top_k=2048)
