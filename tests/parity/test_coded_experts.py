"""Mixtures whose experts are coded: while they are loaded, from whichever layout, and kept in their checkpoints' codes.

As ``test_coded_models``; experts of one layer and a dense one of a tiny Qwen3 mixture.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from coded_models import agreement, divergence, kept_in_codes, logits, reference
from gguf_files import Packed, gguf_metadata, gguf_tensors, pack, write_gguf
from native_kernels import backend_of
from quantised_checkpoints import write_folder, write_quantised
from safetensors.torch import load_file, save
from torch import Tensor

from sglite.runtime.backend.base import Guarantees
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.loader import load_model
from sglite.runtime.model.reload import ModelWeights

EXPERTS, HIDDEN, INNER = 6, 128, 96
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": HIDDEN,
    "intermediate_size": 192,
    "moe_intermediate_size": INNER,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "num_hidden_layers": 2,
    "mlp_only_layers": [1],
    "decoder_sparse_step": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 320,
}
EXPERT = "model.layers.0.mlp.experts"


@pytest.fixture(params=["torch", "auto"])
def backend(request: pytest.FixtureRequest) -> CPUBackend:
    """The specification and the kernels."""
    return backend_of(request.param)


def checkpoint(folder: Path, seed: int = 0) -> Path:
    """Weights of unit gain, experts one by one."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    loaded = load_model(folder, backend=CPUBackend(), dtype="float32", load_format="dummy", seed=seed)
    parts = loaded.weights.parts.items()
    gain = {name: 50 * (part.shape[-1] ** -0.5) if part.ndim == 2 else 1.0 for name, part in parts}
    return write_folder(folder, CONFIG, {name: part * gain[name] for name, part in parts})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoint(tmp_path / "plain")


def fused(source: Path, out: Path, *, transposed: bool) -> Path:
    """The same with a layer's experts in two tensors."""
    tensors = load_file(source / "model.safetensors")

    def together(expert: int, *parts: str) -> Tensor:
        whole = torch.cat([tensors.pop(f"{EXPERT}.{expert}.{part}.weight") for part in parts])
        return whole.t() if transposed else whole

    tensors[f"{EXPERT}.gate_up_proj"] = torch.stack([together(e, "gate_proj", "up_proj") for e in range(EXPERTS)])
    tensors[f"{EXPERT}.down_proj"] = torch.stack([together(e, "down_proj") for e in range(EXPERTS)])
    return write_folder(out, CONFIG, tensors)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_experts_are_quantised_while_they_are_loaded(
    folder: Path, tmp_path: Path, backend: CPUBackend, quantization: str
) -> None:
    whole = load_model(folder, backend=backend, dtype="bfloat16")
    loaded = load_model(folder, backend=backend, quantization=quantization)
    codings = loaded.weights.coded
    bits = {codings[name].bits for name in loaded.weights.parts if name.startswith(f"{EXPERT}.")}
    assert bits == {int(quantization[-1])}
    assert "model.layers.0.mlp.gate.weight" not in codings
    found, expected = logits(loaded, backend), reference(loaded, folder, tmp_path / "numbers", backend)
    assert divergence(found, expected) < 3e-3 and agreement(found, expected) > 0.8
    assert loaded.weight_bytes < (0.75 if quantization == "int8" else 0.55) * whole.weight_bytes


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_kernels_compute_what_plain_torch_does(folder: Path, quantization: str) -> None:
    native, plain = backend_of("auto"), backend_of("torch")
    found, expected = (logits(load_model(folder, backend=b, quantization=quantization), b) for b in (native, plain))
    assert divergence(found, expected) < 1e-3 and agreement(found, expected) > 0.95


@pytest.mark.parametrize("transposed", [False, True], ids=["as they are", "transposed"])
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_the_layout_of_the_checkpoint_does_not_matter(
    folder: Path, tmp_path: Path, backend: CPUBackend, quantization: str, transposed: bool
) -> None:
    other = fused(folder, tmp_path / "fused", transposed=transposed)
    several, one = (load_model(path, backend=backend, quantization=quantization) for path in (folder, other))
    assert {f"{EXPERT}.gate_up_proj", f"{EXPERT}.down_proj"} <= one.weights.coded.keys()
    expected = logits(several, backend)
    assert torch.equal(logits(one, backend), expected)
    weights = ModelWeights(one.weights, one.config, backend)
    weights.load(str(fused(checkpoint(tmp_path / "new", seed=1), tmp_path / "new fused", transposed=transposed)))
    assert not torch.equal(logits(one, backend), expected)
    weights.load(str(other))
    assert torch.equal(logits(one, backend), expected)
    with pytest.raises(ModelError, match="gate_up_proj is kept in another form than the checkpoint's"):
        weights.read(f"{EXPERT}.gate_up_proj", 1)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_weights_of_experts_are_read_as_numbers_and_coded_again(
    folder: Path, tmp_path: Path, quantization: str
) -> None:
    native = backend_of("auto")
    loaded = load_model(folder, backend=native, quantization=quantization)
    fresh = load_model(checkpoint(tmp_path / "new", seed=1), backend=native, quantization=quantization)
    weights = ModelWeights(loaded.weights, loaded.config, native)
    name = f"{EXPERT}.3.up_proj.weight"
    stored = load_file(folder / "model.safetensors")[name]
    read = torch.tensor(weights.read(name, 4))
    assert 0 < (read - stored[:4]).abs().max() < 0.2 * stored.abs().max()
    before = logits(loaded, native)
    weights.load(save({name: stored}))
    assert torch.equal(logits(loaded, native), before)
    weights.load(save({name: stored * 3}))
    assert not torch.equal(logits(loaded, native), before)
    weights.load(str(tmp_path / "new"))
    assert torch.equal(logits(loaded, native), logits(fresh, native))


@pytest.mark.parametrize("name", ["ct-w8a8", "ct-w4a16", "ct-w4a16-asym", "awq", "gptq"])
def test_experts_are_kept_in_the_codes_of_their_checkpoint(folder: Path, tmp_path: Path, name: str) -> None:
    _, found, expected = kept_in_codes(folder, name, tmp_path)
    assert divergence(found, expected) < (3e-3 if name == "ct-w8a8" else 1e-6) and agreement(found, expected) > 0.8


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_experts_of_gguf_files_are_kept_in_their_codes(folder: Path, tmp_path: Path, kind: str) -> None:
    native, plain = backend_of("auto"), backend_of("torch")
    config = {**CONFIG, "mlp_only_layers": []}
    everywhere = {
        name.replace("layers.0.mlp", f"layers.{layer}.mlp"): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
        if "layers.1.mlp" not in name
        for layer in ((0, 1) if "layers.0.mlp" in name else (0,))
    }
    generator = torch.Generator().manual_seed(3)
    tensors = {
        name: Packed(kind, tuple(tensor.shape), pack(kind, generator, EXPERTS * tensor.shape[1], tensor.shape[2]))
        if isinstance(tensor, Tensor) and "_exps" in name
        else tensor
        for name, tensor in gguf_tensors(config, everywhere).items()
    }
    path = write_gguf(tmp_path / "model.gguf", gguf_metadata(config), tensors)
    loaded, whole = load_model(path, backend=native, dtype="float32"), load_model(path, backend=plain, dtype="float32")
    assert {name for name in whole.weights.parts if ".experts." in name} == set(loaded.weights.coded)
    with loaded.weights.plain(native, loaded.weights.parts):
        assert all(torch.equal(loaded.weights.numbers(n), part) for n, part in whole.weights.parts.items())
    found, expected = logits(loaded, native), logits(whole, plain)
    error = (found - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < (0.1 if kind == "Q8_0" else 1e-4)


class WithoutExperts(CPUBackend):
    """As a backend whose kernels take no coded experts."""

    guarantees = Guarantees(batch_invariant=False, dtypes=(torch.float32, torch.bfloat16), codings=(8, 4))


def test_backends_that_take_no_coded_experts_have_them_as_they_are(folder: Path, tmp_path: Path) -> None:
    write_quantised(folder, "gptq", tmp_path / "quantised", tmp_path / "numbers")
    for path, quantization in ((folder, "int8"), (tmp_path / "quantised", None)):
        coded = load_model(path, backend=WithoutExperts(), quantization=quantization).weights.coded
        assert coded and not any(".experts." in name for name in coded)
