"""Layers that draft, of DeepSeek V3 and V3.2: left in the file unless asked for, and then those of transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model_families import FAMILIES, random_model, randomise
from paged_runner import Extend, PagedRunner
from safetensors.torch import load_file, save_file
from tiny_models import VOCAB_SIZE
from torch import Tensor

from sglite.runtime.backend.base import ForwardContext
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.model.errors import CheckpointMismatch, ModelError
from sglite.runtime.model.loader import LoadedModel, load_model
from sglite.runtime.model.reload import ModelWeights

LAYERS, DRAFTS = 4, 2
LENGTH = 50
drafting = pytest.mark.parametrize("name", ["deepseek_v3", "deepseek_v3-switches", "deepseek_v32"])


def make(name: str, folder: Path, seed: int = 0) -> tuple[Any, Any]:
    """A checkpoint with drafting layers by their hub names; transformers' model, and its model of those layers."""
    from transformers.modeling_layers import MtpModel

    switches = {
        "num_mtp_layers": DRAFTS,
        "mtp_layer_types": ["indexed_attention"] * DRAFTS,
        "mtp_mlp_layer_types": ["sparse"] * DRAFTS,
    }
    family = FAMILIES[name]
    main = random_model(replace(family, config={**family.config, **switches}), seed)
    oracle: Any = MtpModel(main, DRAFTS)
    randomise(oracle.layers, seed + 1)
    main.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": DRAFTS}))
    tensors = load_file(folder / "model.safetensors")
    for depth, layer in enumerate(oracle.layers):
        for key, tensor in layer.state_dict().items():
            tensors.update(hub_tensors(f"model.layers.{LAYERS + depth}.", key, tensor))
    first = f"model.layers.{LAYERS}."
    tensors[f"{first}embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors[f"{first}shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return main, oracle.eval()


def hub_tensors(prefix: str, key: str, tensor: Tensor) -> dict[str, Tensor]:
    """What transformers keeps as ``key`` of a layer, by the names and in the shapes of the hub."""
    key = key.removeprefix("mtp_block.").replace("post_norm.", "shared_head.norm.")
    if not key.startswith("mlp.experts."):
        return {prefix + key: tensor.clone()}
    base, _, part = key.rpartition(".")
    names = ["gate_proj", "up_proj"] if part == "gate_up_proj" else ["down_proj"]
    return {
        f"{prefix}{base}.{expert}.{name}.weight": piece.clone()
        for expert, whole in enumerate(tensor)
        for name, piece in zip(names, whole.chunk(len(names)), strict=True)
    }


@torch.inference_mode()
def drafted(loaded: LoadedModel, ids: list[int], chunk: int) -> list[Tensor]:
    """Logits that each drafting layer gives at all of its positions, computed ``chunk`` tokens a step."""
    model: Any = loaded.model
    runner = PagedRunner(loaded, CPUBackend(), page_size=4)
    steps: list[list[Tensor]] = [[] for _ in range(DRAFTS)]
    for first in range(0, len(ids) - DRAFTS, chunk):
        part = slice(first, min(first + chunk, len(ids) - DRAFTS))
        layout = runner.layout([Extend("row", ids[part])])
        context = ForwardContext(runner.backend, runner.backend.plan(layout), runner.pool)
        positions = torch.tensor(layout.positions)
        hidden = model.forward(torch.tensor(ids[part]), positions, context)
        for depth in range(DRAFTS):
            ahead = torch.tensor(ids[part.start + depth + 1 : part.stop + depth + 1])
            hidden = model.draft(ahead, hidden, positions + depth + 1, context, depth)
            steps[depth].append(model.logits(hidden))
        runner.rows["row"].length = part.stop
    return [torch.cat(logits) for logits in steps]


@torch.no_grad()
def expected(main: Any, oracle: Any, ids: list[int]) -> list[Tensor]:
    """Layer by layer, with a mask of our own: transformers' loop makes none for V3.2."""
    known = torch.tensor([ids])
    hidden = main.model(known).last_hidden_state[:, :-DRAFTS]
    length = hidden.shape[1]
    mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
    results = []
    for depth, layer in enumerate(oracle.layers):
        ahead = slice(depth + 1, depth + 1 + length)
        embedded, positions = main.model.embed_tokens(known[:, ahead]), torch.arange(ahead.start, ahead.stop)[None]
        angles = main.model.rotary_emb(embedded, position_ids=positions)
        hidden = layer(embedded, hidden, angles, mask, positions, None)
        results.append(main.lm_head(hidden)[0].float())
    return results


@drafting
def test_drafts_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    main, oracle = make(name, tmp_path)
    loaded = load_model(tmp_path, backend=CPUBackend(), drafts=True)
    ids = torch.randint(3, VOCAB_SIZE, (LENGTH,), generator=torch.Generator().manual_seed(0)).tolist()
    results = zip(drafted(loaded, ids, LENGTH), drafted(loaded, ids, 7), expected(main, oracle, ids), strict=True)
    for whole, parts, logits in results:
        assert logits.std() > 0.5, "the weights are too small to tell anything"
        torch.testing.assert_close(whole, logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(parts, logits, atol=1e-4, rtol=0)


def test_layers_that_draft_stay_in_the_file_unless_asked_for(tmp_path: Path) -> None:
    make("deepseek_v3", tmp_path)
    without = load_model(tmp_path, backend=CPUBackend())
    loaded = load_model(tmp_path, backend=CPUBackend(), drafts=True)
    layer = (without.weight_bytes - 2 * 4 * VOCAB_SIZE * 64) / LAYERS  # about: the first layer is dense
    assert loaded.weight_bytes - without.weight_bytes > DRAFTS * layer
    assert sum(group.num_layers for group in without.groups) == LAYERS
    assert sum(group.num_layers for group in loaded.groups) == LAYERS + DRAFTS


@pytest.mark.parametrize("missing", ["eh_proj.weight", "self_attn.kv_b_proj.weight", "mlp.experts.3.up_proj.weight"])
def test_a_draft_layer_that_is_not_whole_is_refused(tmp_path: Path, missing: str) -> None:
    make("deepseek_v3", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[f"model.layers.{LAYERS}.{missing}"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    load_model(tmp_path, backend=CPUBackend())
    with pytest.raises(CheckpointMismatch, match=f"1 missing: model.layers.{LAYERS}.{missing}"):
        load_model(tmp_path, backend=CPUBackend(), drafts=True)


def test_an_embedding_of_its_own_is_refused(tmp_path: Path) -> None:
    make("deepseek_v3", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = f"model.layers.{LAYERS}.embed_tokens.weight"
    tensors[name] += 1
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=f"{name} differs from model.embed_tokens.weight"):
        load_model(tmp_path, backend=CPUBackend(), drafts=True)


def test_weights_are_exchanged_with_those_of_the_drafting_layers(tmp_path: Path) -> None:
    """The parts of projections that attention looks at change with the whole."""
    for seed, name in enumerate(("old", "new")):
        make("deepseek_v3", tmp_path / name, 10 * seed)
    old, new = (load_model(tmp_path / name, backend=CPUBackend(), drafts=True) for name in ("old", "new"))
    ids = list(range(3, 30))
    assert not torch.allclose(drafted(old, ids, 40)[1], drafted(new, ids, 40)[1], atol=0.1)
    ModelWeights(old.weights, old.config, CPUBackend()).load(str(tmp_path / "new"))
    for exchanged, fresh in zip(drafted(old, ids, 40), drafted(new, ids, 40), strict=True):
        assert torch.equal(exchanged, fresh)


def test_drafts_are_refused_where_there_are_none(tmp_path: Path) -> None:
    random_model(FAMILIES["deepseek_v2"]).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="DeepseekV2ForCausalLM with num_nextn_predict_layers=0 has no layers that"):
        load_model(tmp_path, backend=CPUBackend(), drafts=True)
