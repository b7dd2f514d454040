"""Models in GGUF files against the same weights in safetensors: the same logits bit for bit, the same tokens served."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from gguf_files import TYPES, Packed, gguf_metadata, gguf_tensors, make_gguf, pack, referenced, write_gguf
from model_families import QWEN_MOE, Family, random_model
from paged_runner import Extend, PagedRunner
from safetensors.torch import load_file
from served import start
from tiny_models import VOCAB_SIZE, make_checkpoint, write_weights
from torch import Tensor

from sglite import Engine
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.loader import load_model

FOLDERS: dict[str, Callable[[Path], Path]] = {
    "llama": lambda path: make_checkpoint(path, "llama"),
    "llama-bias": lambda path: make_checkpoint(path, "llama", attention_bias=True, num_key_value_heads=4),
    "qwen2": lambda path: make_checkpoint(path, "qwen2"),
    "qwen2-tied": lambda path: make_checkpoint(path, "qwen2", tie_word_embeddings=True),
    "qwen3": lambda path: make_checkpoint(path, "qwen3", head_dim=32),
    "qwen2_moe": lambda path: make_experts("qwen2_moe", path, shared_expert_intermediate_size=56, norm_topk_prob=False),
    "qwen3_moe": lambda path: make_experts("qwen3_moe", path),
}


def make_experts(model_type: str, folder: Path, **config: Any) -> Path:
    random_model(Family(model_type, {**QWEN_MOE, **config})).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("gguf")
    return cache(lambda name: FOLDERS[name](root / name))


def logits(path: Path, **options: Any) -> Tensor:
    loaded = load_model(path, backend=CPUBackend(), **options)
    ids = random.Random(0).choices(range(3, VOCAB_SIZE), k=40)
    return PagedRunner(loaded, CPUBackend()).step([Extend("row", ids)])[0]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_gguf_file_gives_the_logits_of_the_checkpoint_it_was_made_from(
    folders: Callable[[str], Path], name: str, tmp_path: Path
) -> None:
    folder = folders(name)
    expected = logits(folder)
    assert expected.std() > 0.5
    assert torch.equal(logits(make_gguf(folder, tmp_path / "model.gguf")), expected)


def test_a_split_model_is_read_as_one(folders: Callable[[str], Path], tmp_path: Path) -> None:
    first = make_gguf(folders("qwen3"), tmp_path / "model.gguf", parts=3)
    assert torch.equal(logits(first), logits(folders("qwen3")))


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q4_K", "Q6_K"])
def test_packed_matrices_give_the_logits_of_what_they_stand_for(kind: str, tmp_path: Path) -> None:
    block = max(TYPES[kind][1], 64)
    folder = make_checkpoint(
        tmp_path / "plain", "qwen3", hidden_size=block, intermediate_size=block, num_hidden_layers=1
    )
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(3)
    packed = {
        name: Packed(kind, tuple(tensor.shape), pack(kind, generator, *tensor.shape))
        for name, tensor in weights.items()
        if "mlp" in name or name == "lm_head.weight"
    }
    write_weights(folder, {**weights, **{name: referenced(tensor) for name, tensor in packed.items()}})
    keys = gguf_metadata(config)
    ours = gguf_tensors(config, {**weights, **packed})
    assert torch.equal(logits(write_gguf(tmp_path / "model.gguf", keys, ours), dtype="float32"), logits(folder))


def test_long_contexts_of_llama_3_are_read_from_their_tensor(tmp_path: Path) -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    folder = make_checkpoint(
        tmp_path / "plain", "llama", rope_scaling={**scaling, "original_max_position_embeddings": 64}
    )
    config = json.loads((folder / "config.json").read_text())
    plain = 1.0 / 10000.0 ** (torch.arange(0, 16, 2, dtype=torch.float32) / 16)
    turns = 64 * plain / (2 * torch.pi)
    keep = ((turns - 1.0) / 3.0).clamp(0, 1)
    scaled = (1 - keep) * plain / 8.0 + keep * plain
    tensors = gguf_tensors(config, load_file(folder / "model.safetensors"))
    path = write_gguf(tmp_path / "m.gguf", gguf_metadata(config), {**tensors, "rope_freqs.weight": plain / scaled})
    expected = logits(folder)
    torch.testing.assert_close(logits(path), expected, atol=1e-4, rtol=0)
    assert (logits(write_gguf(tmp_path / "n.gguf", gguf_metadata(config), tensors)) - expected).abs().max() > 1e-2


def test_a_scaled_rope_is_read_from_its_keys(tmp_path: Path) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    folder = make_checkpoint(tmp_path / "plain", "qwen3", rope_scaling=scaling)
    keys = {"qwen3__rope__scaling__type": "yarn", "qwen3__rope__scaling__factor": 4.0}
    path = make_gguf(folder, tmp_path / "m.gguf", **keys, qwen3__rope__scaling__original_context_length=128)
    assert torch.equal(logits(path), logits(folder))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("qwen3__attention__sliding_window", 128),
        ("qwen3__logit_scale", 0.5),
        ("qwen3__attention__causal", False),
        ("qwen3__rope__scaling__type", "longrope"),
        ("qwen3__attention__value_length", 8),
        ("qwen3__rope__dimension_count", 8),
        ("qwen3__expert_count", 4),
        ("general__architecture", "rwkv7"),
    ],
)
def test_what_would_change_results_is_refused_by_its_key(
    folders: Callable[[str], Path], key: str, value: Any, tmp_path: Path
) -> None:
    path = make_gguf(folders("qwen3"), tmp_path / "m.gguf", **{key: value})
    with pytest.raises(ModelError) as error:
        load_model(path, backend=CPUBackend())
    said = str(error.value)
    assert str(path) in said and "\n" not in said and key.replace("__", ".") in said


def test_an_engine_runs_a_gguf_file_as_it_runs_the_folder(folders: Callable[[str], Path], tmp_path: Path) -> None:
    """By the file, by a folder that holds it alone, by its first part and by another."""
    folder = folders("qwen3")
    sampling = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}
    with Engine(folder) as engine:
        expected = engine.generate("the quick brown fox", sampling)
        template = engine.chat_template
    (tmp_path / "one").mkdir()
    (tmp_path / "split").mkdir()
    whole = make_gguf(folder, tmp_path / "one" / "model-Q8.gguf")
    make_gguf(folder, tmp_path / "split" / "m.gguf", parts=2)
    part = tmp_path / "split" / "m-00002-of-00002.gguf"
    for path in (whole, whole.parent, part, part.parent):
        with Engine(path) as engine:
            found = engine.generate("the quick brown fox", sampling)
            assert found["output_ids"] == expected["output_ids"] and found["text"] == expected["text"]
            assert found["meta_info"]["prompt_tokens"] == expected["meta_info"]["prompt_tokens"]
            assert template is not None and engine.chat_template is not None
            assert engine.chat_template.source == template.source
            assert engine.config.context_length == 512


def test_a_gguf_file_is_served(folders: Callable[[str], Path], tmp_path: Path) -> None:
    path = make_gguf(folders("qwen3"), tmp_path / "model.gguf")
    body = {"model": "default", "messages": [{"role": "user", "content": "yes"}], "max_tokens": 8, "temperature": 0}
    answers = []
    for model in (path, folders("qwen3")):
        with Engine(model) as engine:
            server, url, thread = start(engine)
            answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
            card = httpx.get(f"{url}/api/tags").json()["models"][0]
            server.should_exit = True
            thread.join(10)
        answers.append((answer["choices"], answer["usage"]["prompt_tokens"], card["details"]["parameter_size"]))
        assert card["details"]["format"] == ("gguf" if model == path else "safetensors")
        assert card["details"]["family"] == "qwen3" and card["size"] > 10**5
    assert answers[0] == answers[1]
