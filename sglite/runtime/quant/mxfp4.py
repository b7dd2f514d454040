"""MXFP4 as gpt-oss has it: experts in four-bit floats, 32 of them to a power of two (OCP Microscaling Formats 1.0).

experts.gate_up_proj_blocks [E, N, K / 32, 16] U8    two numbers a byte, the low one first
experts.gate_up_proj_scales [E, N, K / 32] U8        exponent plus 127
experts.gate_up_proj        [E, K, N] bfloat16       as the unquantised model has it; nothing is rounded
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sglite.runtime.model.checkpoint import TensorSource
from sglite.runtime.model.fields import Fields
from sglite.runtime.quant.arithmetic import from_e8m0, from_fp4
from sglite.runtime.quant.packed import PackedWeight, Unpacked
from sglite.runtime.quant.stored import Stored

GROUP = 32
"""Numbers that share a scale."""


def mxfp4(source: TensorSource, fields: Fields) -> Unpacked:
    """The view of an MXFP4 checkpoint."""
    stored = Stored(source, "mxfp4")
    for base, info in stored.ending("_blocks"):
        stored.part(f"{base}_blocks", ("U8",))
        if len(info.shape) != 4 or info.shape[3] != GROUP // 2:
            stored.refuse(f"{base}_blocks has shape {list(info.shape)} instead of [experts, out, in / 32, 16]")
        stored.part(f"{base}_scales", ("U8",), info.shape[:3])
        experts, rows, groups, _ = info.shape
        parts = {"blocks": f"{base}_blocks", "scales": f"{base}_scales"}
        stored.weights[base] = PackedWeight((experts, groups * GROUP, rows), parts, _make, "BF16")
    return stored.view()


def _make(found: Mapping[str, Tensor]) -> Tensor:
    """Expert by expert; numbers of two bits times powers of two are whole in bfloat16."""
    blocks, scales = found["blocks"], found["scales"]
    experts, rows, groups, _ = blocks.shape
    out = torch.empty((experts, rows, groups, GROUP), dtype=torch.bfloat16)
    for expert in range(experts):
        out[expert] = from_fp4(blocks[expert]) * from_e8m0(scales[expert])[..., None]
    return out.flatten(2).transpose(1, 2)
