"""Kernels of a GPU in the shapes of real models, for ``compiled_kernels``: nothing is computed, only sizes count."""

from __future__ import annotations

import torch
from torch import Tensor

from sglite.runtime.backend.experts import ExpertWeights, Matrices, Routing
from sglite.runtime.backend.kernels.delta import causal_conv, gated_delta_rule
from sglite.runtime.backend.kernels.experts import moe
from sglite.runtime.backend.kernels.products import logits, matmul
from sglite.runtime.backend.kernels.route import route
from sglite.runtime.backend.weights import Matrix
from sglite.runtime.quant.codes import Coding, empty

DTYPES = (torch.bfloat16, torch.float32)


def whole(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.int32)


def experts() -> None:
    """One token, few, so many that every expert has a tile of its own, and several."""
    for dtype in DTYPES:
        weights = [Matrices(torch.empty(8, *shape, dtype=dtype)) for shape in ((512, 512), (512, 256))]
        biases = [torch.empty(8, 512, dtype=dtype) for _ in range(2)]
        for tokens in (1, 4, 64, 512):
            x, ids = torch.empty(tokens, 512, dtype=dtype), torch.zeros(tokens, 4, dtype=torch.int64)
            moe(x, ExpertWeights(*weights), ids, torch.empty(tokens, 4), "silu")
        for activation in ("gelu", "gelu_tanh", "swiglu_oai"):
            moe(x[:1], ExpertWeights(*weights, *biases), ids[:1], torch.empty(1, 4), activation)


def choices() -> None:
    """Of Qwen3's experts, of Qwen3-Next's, of DeepSeek's."""
    pairs = Routing("sigmoid", 8, num_groups=8, top_groups=4, group_score="top2")
    for count, routing in ((128, Routing("softmax", 8)), (512, Routing("softmax", 10)), (256, pairs)):
        route(torch.empty(2, count), torch.empty(count), routing)


def recurrence() -> None:
    """Qwen3-Next's layers: decoding, and rows of many tokens."""
    for dtype in DTYPES:
        mixed = torch.empty(200, 8192, dtype=dtype)
        q, k, v = (part.unflatten(1, (-1, 128)) for part in mixed.split([2048, 2048, 4096], 1))
        kept, memory = torch.empty(8, 8192, 3, dtype=dtype), torch.empty(8, 32, 128, 128)
        for most in (1, 100):
            causal_conv(mixed, torch.empty(8192, 4, dtype=dtype), kept, whole(5), whole(4), most)
            gated_delta_rule(q, k, v, torch.empty(200, 32), torch.empty(200, 32), memory, whole(5), whole(4), most)


def products() -> None:
    """Few rows and many."""
    for dtype in DTYPES:
        for coding in (Coding(8), Coding(8, 128), Coding(4, 128), Coding(4, 32, zeros=True)):
            codes = empty(coding, 1024, 1024, dtype=dtype)
            for rows in (1, 32, 128, 512):
                matmul(torch.empty(rows, 1024, dtype=dtype), Matrix(codes.values, codes=codes))
            logits(torch.empty(1, 1024, dtype=dtype), Matrix(codes.values, codes=codes))
