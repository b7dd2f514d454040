"""Models with experts, latent attention, recurrent layers and centred norms: native kernels against plain torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_families import FAMILIES, architecture_of, random_model
from native_kernels import backend_of
from paged_runner import Extend, PagedRunner
from safetensors.torch import load_file
from tiny_engines import tiny_engine
from tiny_models import make_tokenizer
from torch import Tensor

from sglite.runtime.backend import native_mixers
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.model.loader import LoadedModel, load_model
from sglite.runtime.model.reload import ModelWeights

SIZES: dict[str, Any] = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 96}
MOE: dict[str, Any] = {"moe_intermediate_size": 48}
LATENTS: dict[str, Any] = {
    **MOE,
    "head_dim": None,
    "q_lora_rank": 48,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
}
RECURRENT: dict[str, Any] = {
    **MOE,
    "shared_expert_intermediate_size": 64,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 48,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "experts": ("qwen3_moe", MOE),
    "experts with biases": ("gpt_oss", {"intermediate_size": 48}),
    "latents": ("deepseek_v3", LATENTS),
    "latents, chosen": ("deepseek_v32", {**LATENTS, "index_head_dim": 32}),
    "recurrent, grouped": ("qwen3_next", RECURRENT),
    "recurrent": ("qwen3_5_moe", RECURRENT),
    "centred norms": ("gemma3", {}),
}
"""Sizes that the kernels take."""
CALLS = {
    "experts": {"moe", "route"},
    "experts with biases": {"moe", "route"},
    "latents": {"moe", "route", "mla_attention", "matmul_each"},
    "latents, chosen": {"moe", "route", "matmul_each"},
    "recurrent, grouped": {"moe", "route", "causal_conv", "gated_delta_rule", "gated_norm"},
    "recurrent": {"moe", "route", "causal_conv", "gated_delta_rule", "gated_norm"},
    "centred norms": set(),
}
PROMPT = [(7 * i + 3) % 380 for i in range(70)]


@pytest.fixture(scope="module")
def native() -> CPUBackend:
    return backend_of("auto")


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, kind: str) -> Path:
    return make(tmp_path_factory.mktemp("m"), kind, seed=0)


def make(folder: Path, kind: str, seed: int) -> Path:
    name, sizes = KINDS[kind]
    family = replace(FAMILIES[name], config={**FAMILIES[name].config, **SIZES, **sizes})
    family = replace(family, architecture=architecture_of(FAMILIES[name]))
    random_model(family, seed).save_pretrained(folder)
    return make_tokenizer(folder)


def steps(loaded: LoadedModel, backend: CPUBackend) -> list[Tensor]:
    """Logits of prompts in chunks beside decoding rows."""
    runner = PagedRunner(loaded, backend, page_size=4)
    found = runner.step([Extend("a", PROMPT[:40]), Extend("b", PROMPT[:3])])
    found += runner.step([Extend("a", PROMPT[40:]), Extend("b", [5])])
    found += runner.step([Extend("c", [9]), Extend("a", [11]), Extend("b", [6, 7])])
    return found + runner.step([Extend("a", [12]), Extend("b", [8])])


def test_logits(folder: Path, kind: str, native: CPUBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32: within 1e-4, the bound of the engine's promise; computed by the kernels, not by their fallbacks."""
    used: set[str] = set()
    for name in CALLS["latents"] | CALLS["recurrent"]:
        whole = getattr(native_mixers, name)

        def seen(*args: Any, _name: str = name, _whole: Any = whole) -> Any:
            found = _whole(*args)
            used.update([_name] if found is not None else [])
            return found

        monkeypatch.setattr(native_mixers, name, seen)
    plain = CPUBackend()
    reference, loaded = load_model(folder, backend=plain), load_model(folder, backend=native)
    for found, expected in zip(steps(loaded, native), steps(reference, plain), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert used == CALLS[kind]


def test_bfloat16_is_as_near_to_float32_as_plain_torch_is(tmp_path: Path, kind: str, native: CPUBackend) -> None:
    """In the tenth of the rows of four models with the least errors: where a router hesitates, either may go the other
    way."""
    plain = CPUBackend()
    errors: dict[str, list[Tensor]] = {"native": [], "plain": []}
    for seed in range(4):
        folder = make(tmp_path / str(seed), kind, seed)
        exact = torch.cat(steps(load_model(folder, backend=plain), plain))
        for name, backend in (("native", native), ("plain", plain)):
            found = torch.cat(steps(load_model(folder, backend=backend, dtype="bfloat16"), backend))
            errors[name].append((found - exact).square().mean(1).sqrt())
    least = {name: torch.cat(rows).quantile(0.1) for name, rows in errors.items()}
    assert least["native"] <= 1.2 * least["plain"]


def test_packed_weights_are_read_checked_and_replaced(
    folder: Path, kind: str, tmp_path: Path, native: CPUBackend
) -> None:
    """Names are the checkpoint's, those of single experts too; what is replaced is packed again."""
    new = make(tmp_path, kind, seed=1)
    loaded, fresh = (load_model(each, backend=native) for each in (folder, new))
    weights = ModelWeights(loaded.weights, loaded.config, native)
    before = steps(loaded, native)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if name in loaded.weights.parts and not loaded.weights.converted(name):
            assert weights.read(name, 3) == tensor[:3].tolist()
    weights.check(str(new))
    assert all(map(torch.equal, steps(loaded, native), before))
    weights.load(str(new))
    assert all(map(torch.equal, steps(loaded, native), steps(fresh, native)))


@pytest.mark.slow
def test_engines_give_the_same_cold_and_warm(folder: Path) -> None:
    """Greedy tokens of prompts that share much, alone, together and from the cache; natively as in plain torch."""
    prompts = [PROMPT[:50], PROMPT[:50], [*PROMPT[:33], 9, 9], PROMPT[:20]]
    params = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
    seen = []
    for kernels in ("torch", "auto"):
        with tiny_engine(folder, cpu_kernels=kernels) as engine:
            cold = [engine.generate(input_ids=ids, sampling_params=params)["output_ids"] for ids in prompts]
            warm = [result["output_ids"] for result in engine.generate(input_ids=prompts, sampling_params=params)]
            seen += [cold, warm]
    assert all(tokens == seen[0] for tokens in seen)
