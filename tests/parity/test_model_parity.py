"""Every family against transformers (eager attention) on the same random checkpoint."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from paged_runner import Extend, PagedRunner, computed_in_chunks
from tiny_models import VOCAB_SIZE, make_checkpoint
from torch import Tensor

from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.model.loader import LoadedModel, load_model

TOLERANCE = 1e-4
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"factor": 4.0, "original_max_position_embeddings": 128}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-rope-llama3-old": ("llama", {"rope_scaling": {"rope_type": "llama3", **LLAMA3}, "rope_theta": 5e5}),
    "llama-rope-llama3-new": (
        "llama",
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}, "rope_theta": None},
    ),
    "llama-rope-linear": ("llama", {"rope_scaling": {"type": "linear", "factor": 3.0}}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-head-dim": ("llama", {"head_dim": 24}),
    "llama-head-dim-from-hidden": ("llama", {"head_dim": None}),
    "llama-mqa": ("llama", {"num_key_value_heads": 1}),
    "qwen2": ("qwen2", {"head_dim": None}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True, "use_sliding_window": False, "sliding_window": 64}),
    "qwen2-rope-yarn": ("qwen2", {"rope_scaling": {"type": "yarn", **YARN}, "rope_theta": 1e6}),
    "qwen3": ("qwen3", {}),
    "qwen3-tied-mha": ("qwen3", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "qwen3-head-dim": ("qwen3", {"head_dim": 32}),
    "qwen3-biases": ("qwen3", {"attention_bias": True}),
    "qwen3-rope-yarn-factor": (
        "qwen3",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "attention_factor": 1.3, **YARN}},
    ),
    "qwen3-rope-yarn-mscale": (
        "qwen3",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "mscale": 1.5, "mscale_all_dim": 0.7, **YARN}},
    ),
    "qwen3-rope-yarn-untruncated": (
        "qwen3",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "truncate": False, "beta_fast": 16, **YARN}},
    ),
}


def prompt(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(VOCAB_SIZE), k=length)


def oracle(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' model of a folder; every tensor of the checkpoint must have found its place in it."""
    from transformers import AutoModelForCausalLM

    load: Any = AutoModelForCausalLM.from_pretrained
    model, info = load(folder, attn_implementation="eager", dtype=dtype, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


@torch.no_grad()
def oracle_logits(model: Any, ids: list[int]) -> Tensor:
    logits: Tensor = model(torch.tensor([ids])).logits[0].float()
    return logits


def full_pass(loaded: LoadedModel, ids: list[int]) -> Tensor:
    return PagedRunner(loaded, CPUBackend()).step([Extend("row", ids)])[0]


@pytest.mark.parametrize("variant", VARIANTS)
def test_full_pass_gives_the_logits_of_transformers(variant: str, tmp_path: Path) -> None:
    family, overrides = VARIANTS[variant]
    folder = make_checkpoint(tmp_path, family, tokenizer=False, **overrides)
    ids = prompt(200)
    expected = oracle_logits(oracle(folder), ids)
    torch.testing.assert_close(
        full_pass(load_model(folder, backend=CPUBackend()), ids), expected, atol=TOLERANCE, rtol=0
    )


@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_over_scattered_pages_equal_the_full_pass(chunk: int, page_size: int, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "qwen3", tokenizer=False)
    loaded = load_model(folder, backend=CPUBackend())
    reference = oracle(folder)
    prompts = {name: prompt(length, seed) for seed, (name, length) in enumerate({"a": 130, "b": 9, "c": 77}.items())}
    runner = PagedRunner(loaded, CPUBackend(), page_size=page_size)
    for name, logits in computed_in_chunks(runner, prompts, chunk).items():
        torch.testing.assert_close(logits, oracle_logits(reference, prompts[name]), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_greedy_tokens_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, family, tokenizer=False)
    reference, loaded = oracle(folder), load_model(folder, backend=CPUBackend())
    expected = prompt(20)
    for _ in range(64):
        expected.append(int(oracle_logits(reference, expected)[-1].argmax()))
    runner = PagedRunner(loaded, CPUBackend(), page_size=4)
    ids = prompt(20)
    ids.append(int(runner.step([Extend("row", ids)])[0][-1].argmax()))
    while len(ids) < len(expected):
        ids.append(int(runner.step([Extend("row", ids[-1:])])[0][-1].argmax()))
    assert ids == expected


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_bfloat16_is_as_near_to_the_truth_as_transformers_is(family: str, tmp_path: Path) -> None:
    """The truth: float32 arithmetic on the bfloat16 weights. Ours may differ from theirs by what both lose."""
    folder = make_checkpoint(tmp_path, family, tokenizer=False, dtype="bfloat16")
    ids = prompt(150)
    truth = oracle_logits(oracle(folder), ids)
    theirs = oracle_logits(oracle(folder, torch.bfloat16), ids)
    loaded = load_model(folder, backend=CPUBackend())
    assert loaded.dtype == torch.bfloat16
    prompts = {"row": ids}
    for ours in (full_pass(loaded, ids), computed_in_chunks(PagedRunner(loaded, CPUBackend()), prompts, 7)["row"]):
        lost = (theirs - truth).abs().mean()
        assert (ours - truth).abs().mean() < 1.25 * lost
        assert (ours - theirs).abs().mean() < 2 * lost
        assert (ours - theirs).abs().max() < 2 * (theirs - truth).abs().max()


@pytest.mark.parametrize("known", [1, 5])
def test_draft_tree_equals_one_causal_row_a_branch(known: int, tmp_path: Path) -> None:
    """Tree: two branches from the last known token, the first one branching again."""
    folder = make_checkpoint(tmp_path, "qwen3", tokenizer=False)
    reference, loaded = oracle(folder), load_model(folder, backend=CPUBackend())
    drafts, parents = [11, 12, 13, 14, 15, 16], [-1, -1, 0, 0, 1, 3]
    paths = {0: [11], 1: [12], 2: [11, 13], 3: [11, 14], 4: [12, 15], 5: [11, 14, 16]}
    ids = prompt(40)
    runner = PagedRunner(loaded, CPUBackend(), page_size=4)
    runner.step([Extend("tree", ids[:-known]), Extend("plain", prompt(30, 1))])
    tree, _ = runner.step([Extend("tree", ids[-known:] + drafts, parents), Extend("plain", [7])])
    torch.testing.assert_close(tree[:known], oracle_logits(reference, ids)[-known:], atol=TOLERANCE, rtol=0)
    for draft, path in paths.items():
        expected = oracle_logits(reference, ids + path)[-1]
        torch.testing.assert_close(tree[known + draft], expected, atol=TOLERANCE, rtol=0)


def test_rows_that_share_pages_see_what_the_other_stores_in_the_same_step(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, "qwen3", tokenizer=False)
    reference, loaded = oracle(folder), load_model(folder, backend=CPUBackend())
    shared, tail_a, tail_b = prompt(32), prompt(5, 1), prompt(9, 2)
    runner = PagedRunner(loaded, CPUBackend(), page_size=16)
    owner, sibling = Extend("a", shared + tail_a), Extend("b", tail_b)
    runner.layout([owner])  # takes the owner's pages
    runner.rows["b"] = type(runner.rows["a"])(length=32, pages=runner.rows["a"].pages[:2])
    ours = runner.step([sibling, owner])
    torch.testing.assert_close(ours[0], oracle_logits(reference, shared + tail_b)[32:], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(ours[1], oracle_logits(reference, shared + tail_a), atol=TOLERANCE, rtol=0)
