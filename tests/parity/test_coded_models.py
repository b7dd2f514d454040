"""Whole models with coded weights: quantised while they are loaded, and kept in the codes of their checkpoints.

The reference is a plain model in float32 with the numbers that the codes stand for, read by name. With four bits the
two do the same sums; with eight the rows of activations are rounded to 255 steps, whose share is bounded. Bounds are of
tiny random models (two layers of 128): about three times what was found.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from coded_models import PROMPT, agreement, divergence, kept_in_codes, logits, reference
from gguf_files import Packed, gguf_metadata, gguf_tensors, pack, write_gguf
from model_families import make_family
from native_kernels import backend_of
from quantised_checkpoints import write_quantised
from safetensors.torch import load_file, save
from tiny_models import make_checkpoint
from torch import Tensor

from sglite import Engine
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.loader import load_model
from sglite.runtime.model.reload import ModelWeights

SIZES = {"hidden_size": 128, "intermediate_size": 192, "head_dim": 32}


@pytest.fixture(params=["torch", "auto"])
def backend(request: pytest.FixtureRequest) -> CPUBackend:
    """The specification and the kernels."""
    return backend_of(request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "plain", tokenizer=False, **SIZES)


@pytest.mark.parametrize("tied", [True, False])
def test_eight_bits(folder: Path, tmp_path: Path, backend: CPUBackend, tied: bool) -> None:
    folder = make_checkpoint(tmp_path / "m", tokenizer=False, tie_word_embeddings=tied, **SIZES)
    loaded = load_model(folder, backend=backend, quantization="int8")
    found, expected = logits(loaded, backend), reference(loaded, folder, tmp_path / "numbers", backend)
    assert divergence(found, expected) < 3e-3 and agreement(found, expected) > 0.9
    assert divergence(expected, logits(load_model(folder, backend=backend), backend)) < 3e-3


def test_four_bits(folder: Path, tmp_path: Path, backend: CPUBackend) -> None:
    """The same sums as the reference but in the head, which has eight bits."""
    loaded = load_model(folder, backend=backend, quantization="int4")
    found, expected = logits(loaded, backend), reference(loaded, folder, tmp_path / "numbers", backend)
    assert divergence(found, expected) < 1e-3 and agreement(found, expected) > 0.9
    assert divergence(expected, logits(load_model(folder, backend=backend), backend)) < 0.15


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_kernels_compute_what_plain_torch_does(folder: Path, quantization: str) -> None:
    native, plain = backend_of("auto"), backend_of("torch")
    found, expected = (logits(load_model(folder, backend=b, quantization=quantization), b) for b in (native, plain))
    # A sum that is rounded otherwise may move a code of the next layer's rows by one.
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0)
    assert agreement(found, expected) == 1.0


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_memory_and_what_is_coded(folder: Path, backend: CPUBackend, quantization: str) -> None:
    whole = load_model(folder, backend=backend, dtype="bfloat16")
    loaded = load_model(folder, backend=backend, dtype="bfloat16", quantization=quantization)
    left = {name for name in loaded.weights.parts if name not in loaded.weights.coded}
    assert left == {"model.embed_tokens.weight", *(name for name in whole.weights.parts if "norm" in name)}
    coded = {name: part.numel() for name, part in whole.weights.parts.items() if name not in left}
    others = sum(whole.weights.parts[name].nbytes for name in left)
    bits = {name: coding.bits for name, coding in loaded.weights.coded.items()}
    values = sum(count * bits[name] // 8 for name, count in coded.items())
    assert values + others < loaded.weight_bytes <= values * 1.1 + others
    assert set(bits.values()) == ({8} if quantization == "int8" else {8, 4})
    assert {name for name, count in bits.items() if count == 8} == (
        set(bits) if quantization == "int8" else {"lm_head.weight"}
    )


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_weights_are_read_as_numbers_and_coded_again(folder: Path, tmp_path: Path, quantization: str) -> None:
    native = backend_of("auto")
    new = make_checkpoint(tmp_path / "new", tokenizer=False, seed=1, **SIZES)
    loaded, fresh = (load_model(path, backend=native, quantization=quantization) for path in (folder, new))
    weights = ModelWeights(loaded.weights, loaded.config, native)
    name = "model.layers.1.self_attn.k_proj.weight"
    stored = load_file(folder / "model.safetensors")[name]
    read = torch.tensor(weights.read(name, 5))
    assert read.shape == (5, 128) and 0 < (read - stored[:5]).abs().max() < 0.2 * stored.abs().max()
    before = logits(loaded, native)
    weights.load(save({name: stored}))
    assert torch.equal(logits(loaded, native), before)
    weights.load(str(new))
    assert torch.equal(logits(loaded, native), logits(fresh, native))
    with pytest.raises(ModelError, match=r"k_proj\.weight holds NaN or infinity"):
        weights.check(save({name: torch.full_like(stored, torch.nan)}))
    write_quantised(new, "gptq", tmp_path / "gptq", tmp_path / "numbers")
    with pytest.raises(ModelError, match="is quantised otherwise than in the model that runs; give an unquantised"):
        weights.check(str(tmp_path / "gptq"))


def test_a_head_that_repeats_a_tied_embedding_must_be_equal(tmp_path: Path) -> None:
    native = backend_of("auto")
    folder = make_checkpoint(tmp_path / "m", tokenizer=False, tie_word_embeddings=True, **SIZES)
    loaded = load_model(folder, backend=native, quantization="int8")
    weights = ModelWeights(loaded.weights, loaded.config, native)
    whole = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    weights.check(save({"lm_head.weight": whole}))
    with pytest.raises(ModelError, match=r"lm_head\.weight differs from model\.embed_tokens"):
        weights.check(save({"lm_head.weight": whole * 2}))


KEPT = {"ct-w8a8": 3e-3, "ct-w4a16": 1e-9, "ct-w4a16-asym": 1e-9, "ct-w4a16-channel": 1e-9, "awq": 1e-9, "gptq": 1e-9}
"""Formats that stay as they are, and how far their logits may be from those of the weights alone."""


@pytest.mark.parametrize("name", [*KEPT, "gptq-v2-asym"])
def test_checkpoints_are_kept_in_their_codes(folder: Path, tmp_path: Path, name: str) -> None:
    loaded, found, expected = kept_in_codes(folder, name, tmp_path)
    native, plain = backend_of("auto"), CPUBackend()
    assert abs(divergence(found, expected)) < max(KEPT.get(name, 0), 1e-7) and agreement(found, expected) > 0.9
    assert loaded.weight_bytes < 0.6 * load_model(tmp_path / "numbers", backend=plain).weight_bytes
    weights = ModelWeights(loaded.weights, loaded.config, native)
    weights.load(str(tmp_path / "quantised"))
    assert torch.equal(logits(loaded, native), found)


@pytest.mark.parametrize("name", ["ct-int8", "ct-int8-asym", "gptq-act-order", "gptq-8", "ct-w4a16-order"])
def test_what_no_kernel_fits_is_dequantised(folder: Path, tmp_path: Path, name: str) -> None:
    native = backend_of("auto")
    write_quantised(folder, name, tmp_path / "quantised", tmp_path / "numbers")
    loaded = load_model(tmp_path / "quantised", backend=native)
    assert not loaded.weights.coded
    assert torch.equal(logits(loaded, native), logits(load_model(tmp_path / "numbers", backend=native), native))


def test_plain_torch_keeps_no_codes(folder: Path, tmp_path: Path) -> None:
    write_quantised(folder, "awq", tmp_path / "quantised", tmp_path / "numbers")
    assert not load_model(tmp_path / "quantised", backend=CPUBackend()).weights.coded


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_gguf_files_are_kept_in_their_codes(tmp_path: Path, kind: str, family: str) -> None:
    """Of Llama rows of q and k are in another order there."""
    native, plain = backend_of("auto"), CPUBackend()
    folder = make_checkpoint(tmp_path / "plain", family, tokenizer=False, **SIZES)
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(3)
    tensors = {
        name: Packed(kind, tuple(tensor.shape), pack(kind, generator, *tensor.shape))
        if isinstance(tensor, Tensor) and tensor.ndim == 2
        else tensor
        for name, tensor in gguf_tensors(config, weights).items()
    }
    path = write_gguf(tmp_path / "model.gguf", gguf_metadata(config), tensors)
    loaded, whole = load_model(path, backend=native, dtype="float32"), load_model(path, backend=plain, dtype="float32")
    assert {name for name, part in whole.weights.parts.items() if part.ndim == 2} == set(loaded.weights.coded)
    with loaded.weights.plain(native, loaded.weights.parts):
        assert all(torch.equal(loaded.weights.numbers(n), part) for n, part in whole.weights.parts.items())
    found, expected = logits(loaded, native), logits(whole, plain)
    # Weights of random blocks are so large that softmaxes jump: of eight bits the rows' rounding shows.
    error = (found - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < (0.1 if kind == "Q8_0" else 1e-4)


@pytest.mark.parametrize("kernels", ["auto", "torch"])
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_engines_quantise_and_say_so(
    folder: Path, kernels: str, quantization: str, caplog: pytest.LogCaptureFixture
) -> None:
    backend_of(kernels)
    common = {"skip_tokenizer_init": True, "max_total_tokens": 256, "dtype": "bfloat16"}
    sampling = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
    with Engine(folder, quantization=quantization, cpu_kernels=kernels, **common) as engine:
        said, origin = engine.config.quantization, engine.config.origins["quantization"]
        engine.generate(input_ids=PROMPT, sampling_params=sampling)
    assert (said, origin) == (f"{quantization} for 86 % of the numbers", "argument")
    assert ("saves memory here and no time" in caplog.text) == (kernels == "torch")


@pytest.mark.slow  # transformers makes the models
@pytest.mark.parametrize("name", ["gemma3", "deepseek_v2", "qwen3_next", "qwen3_moe", "gpt_oss"])
def test_other_families_run_with_what_is_coded_and_what_is_not(tmp_path: Path, name: str, backend: CPUBackend) -> None:
    """Latents, interleaved experts and what else is read as tensors stay as they are."""
    folder = make_family(name, tmp_path / "m")
    loaded = load_model(folder, backend=backend, quantization="int8")
    assert any("self_attn" in key or "linear_attn" in key for key in loaded.weights.coded)
    assert not any("kv_b_proj" in key for key in loaded.weights.coded)
    experts = {key for key in loaded.weights.parts if ".experts." in key}
    assert experts & loaded.weights.coded.keys() == (set() if name == "gpt_oss" else experts)
    found, expected = (logits(each, backend) for each in (loaded, load_model(folder, backend=backend)))
    assert abs(divergence(found, expected)) < 0.02
