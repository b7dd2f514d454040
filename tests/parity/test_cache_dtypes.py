"""A cache of another type than the model's: keys and values are rounded once, when they are stored, and nothing else
differs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from model_families import FAMILIES, make_family
from paged_runner import PagedRunner, computed_in_chunks
from tiny_models import VOCAB_SIZE
from torch import Tensor

from sglite.runtime.backend.base import AttentionMetadata
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.cpu_cache import quantised
from sglite.runtime.cache.pool import KVPool
from sglite.runtime.executor.build import in_cache_dtype
from sglite.runtime.model.loader import LoadedModel, load_model

PROMPTS = {"a": list(range(3, VOCAB_SIZE, 5)), "b": list(range(9, 200, 7))}
KINDS = ("qwen3_moe", "gpt_oss", "gemma3", "deepseek_v3", "deepseek_v32", "qwen3_next")
every_kind = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in FAMILIES])


class RoundingBackend(CPUBackend):
    """Rounds to bfloat16 before it stores, in a cache of float32."""

    def store_kv(self, pool: KVPool, layer: int, k: Tensor, v: Tensor | None, meta: AttentionMetadata) -> None:
        super().store_kv(pool, layer, k.bfloat16().float(), None if v is None else v.bfloat16().float(), meta)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("families")
    return cache(lambda kind: make_family(kind, root / kind))


def logits(loaded: LoadedModel, backend: CPUBackend, dtype: str) -> Sequence[Tensor]:
    runner = PagedRunner(replace(loaded, groups=in_cache_dtype(loaded.groups, dtype)), backend, page_size=4)
    return list(computed_in_chunks(runner, PROMPTS, 11).values())


@every_kind
def test_a_smaller_cache_rounds_what_is_stored_and_nothing_else(folders: Callable[[str], Path], kind: str) -> None:
    backend = RoundingBackend()
    rounded = logits(load_model(folders(kind), backend=backend), backend, "auto")
    loaded = load_model(folders(kind), backend=CPUBackend())
    found = logits(loaded, CPUBackend(), "bfloat16")
    for ours, expected in zip(found, rounded, strict=True):
        assert torch.equal(ours, expected)
    assert not torch.equal(found[0], logits(loaded, CPUBackend(), "float32")[0])


class QuantisingBackend(CPUBackend):
    """Rounds to int8 before it stores, in a cache of float32; no value moves by more than half a step of its head."""

    def store_kv(self, pool: KVPool, layer: int, k: Tensor, v: Tensor | None, meta: AttentionMetadata) -> None:
        assert v is not None
        super().store_kv(pool, layer, rounded_heads(k), rounded_heads(v), meta)


def rounded_heads(part: Tensor) -> Tensor:
    whole, scale = quantised(part)
    stored = whole * scale[..., None]
    steps = part.abs().amax(-1, keepdim=True) / 127
    assert ((stored - part).abs() <= steps * 0.5001).all()
    return stored


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in FAMILIES and not kind.startswith("deepseek")])
def test_a_cache_of_int8_rounds_every_head_and_nothing_else(folders: Callable[[str], Path], kind: str) -> None:
    backend, plain = QuantisingBackend(), CPUBackend()
    rounded = logits(load_model(folders(kind), backend=backend), backend, "auto")
    loaded = load_model(folders(kind), backend=plain)
    exact, found = (logits(loaded, plain, dtype) for dtype in ("auto", "int8"))
    assert all(map(torch.equal, found, rounded))
    ours, whole = torch.cat(list(found)), torch.cat(list(exact))
    error = ((ours - whole).square().mean() / whole.square().mean()).sqrt()
    assert error > 0
    if kind == "gemma3":  # with experts, a row whose router hesitates goes another way, and the rows that read it too
        assert error < 0.01


@every_kind
def test_a_larger_cache_holds_what_the_models_own_does(folders: Callable[[str], Path], kind: str) -> None:
    loaded = load_model(folders(kind), backend=CPUBackend(), dtype="bfloat16")
    own, larger = (logits(loaded, CPUBackend(), dtype) for dtype in ("auto", "float32"))
    for ours, expected in zip(larger, own, strict=True):
        assert torch.equal(ours, expected)
