"""Whole models with native kernels against plain torch: logits, greedy tokens, weights that are read and replaced."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_matrix import GREEDY, check
from native_kernels import NATIVE, backend_of
from paged_runner import Extend, PagedRunner
from safetensors.torch import load_file
from tiny_engines import Oracle, tiny_engine
from tiny_models import make_checkpoint
from torch import Tensor

from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.cpu_native import NativeBackend
from sglite.runtime.model.loader import LoadedModel, load_model
from sglite.runtime.model.reload import ModelWeights

BIG_HEADS = {"head_dim": 32, "hidden_size": 128, "intermediate_size": 192}
"""Sizes that the kernels take."""
PROMPT = [(7 * i + 3) % 380 for i in range(70)]


@pytest.fixture(scope="module", params=NATIVE)
def native(request: pytest.FixtureRequest) -> NativeBackend:
    backend = backend_of(request.param)
    assert isinstance(backend, NativeBackend)
    return backend


def steps(loaded: LoadedModel, backend: CPUBackend) -> list[Tensor]:
    """Logits of prompts in chunks beside decoding rows."""
    runner = PagedRunner(loaded, backend, page_size=4)
    found = runner.step([Extend("a", PROMPT[:40]), Extend("b", PROMPT[:3])])
    found += runner.step([Extend("a", PROMPT[40:]), Extend("b", [5])])
    found += runner.step([Extend("c", [9]), Extend("a", [11]), Extend("b", [6, 7], [-1, 0])])
    return found + runner.step([Extend("a", [12]), Extend("b", [8, 9, 10], [-1, -1, 0])])


def greedy(loaded: LoadedModel, backend: CPUBackend, count: int) -> list[int]:
    runner, tokens = PagedRunner(loaded, backend), list(PROMPT)
    logits = runner.step([Extend("a", tokens)])[0]
    for _ in range(count):
        tokens.append(int(logits[-1].argmax()))
        logits = runner.step([Extend("a", tokens[-1:])])[0]
    return tokens


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("qwen3", {"tie_word_embeddings": True}),
        ("qwen2", {}),
        ("llama", {"num_attention_heads": 8, "num_key_value_heads": 1}),
        ("qwen3", {"vocab_size": 390, "head_dim": 16}),
    ],
    ids=["qwen3 tied", "qwen2 with biases", "llama, one KV head", "sizes that stay with torch"],
)
def test_logits_and_greedy_tokens(tmp_path: Path, native: CPUBackend, family: str, fields: dict[str, int]) -> None:
    """float32: within 1e-4, the bound of the engine's promise, and the same tokens."""
    folder = make_checkpoint(tmp_path, family, tokenizer=False, **{**BIG_HEADS, **fields})
    plain = CPUBackend()
    reference, loaded = load_model(folder, backend=plain), load_model(folder, backend=native)
    for found, expected in zip(steps(loaded, native), steps(reference, plain), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert greedy(loaded, native, 30) == greedy(reference, plain, 30)


def test_bfloat16_is_as_near_to_float32_as_plain_torch_is(tmp_path: Path, native: CPUBackend) -> None:
    """The kernels round less often, so their error may not exceed the specification's by more than chance."""
    folder, plain = make_checkpoint(tmp_path, tokenizer=False, **BIG_HEADS), CPUBackend()
    exact = torch.cat(steps(load_model(folder, backend=plain), plain))
    errors = [
        (torch.cat(steps(load_model(folder, backend=backend, dtype="bfloat16"), backend)) - exact).square().mean()
        for backend in (native, plain)
    ]
    assert errors[0].sqrt() <= 1.2 * errors[1].sqrt()


def test_an_engine_whose_rows_share_a_prefix(tmp_path: Path, native: NativeBackend) -> None:
    """Greedy tokens are those of transformers, whichever rows run together: prefixes of all of them and of some."""
    folder = make_checkpoint(tmp_path, **BIG_HEADS)
    prompts = [[*PROMPT, *PROMPT[: 40 * (i // 4)], 9 + i] for i in range(8)]
    with tiny_engine(folder, cpu_kernels=native.level, num_threads=2, page_size=4) as engine:
        for _ in range(2):
            check(engine.generate(input_ids=prompts, sampling_params=GREEDY), Oracle(folder), prompts)


def test_packed_weights_are_read_checked_and_replaced(tmp_path: Path, native: CPUBackend) -> None:
    """Names are the checkpoint's, also where several share a packed matrix; what is replaced is packed again."""
    old = make_checkpoint(tmp_path / "old", tokenizer=False, **BIG_HEADS)
    new = make_checkpoint(tmp_path / "new", tokenizer=False, seed=1, **BIG_HEADS)
    loaded, fresh = (load_model(folder, backend=native) for folder in (old, new))
    weights = ModelWeights(loaded.weights, loaded.config, native)
    before = steps(loaded, native)
    for name, tensor in load_file(old / "model.safetensors").items():
        assert weights.read(name, 3) == tensor[:3].tolist()
    weights.check(str(new))
    assert all(map(torch.equal, steps(loaded, native), before))
    weights.load(str(new))
    assert all(map(torch.equal, steps(loaded, native), steps(fresh, native)))
    part = "model.layers.1.self_attn.k_proj.weight"
    assert weights.read(part, 64) == load_file(new / "model.safetensors")[part].tolist()
