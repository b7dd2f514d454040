"""Every model family against transformers on the same random checkpoint, in float32: logits, greedy tokens, and the
same numbers however the sequence is cut, cached and shared."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from model_families import FAMILIES, make_family
from paged_runner import Extend, PagedRunner, computed_in_chunks
from tiny_models import VOCAB_SIZE
from torch import Tensor

from sglite import Engine
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.model.loader import LoadedModel, load_model

TOLERANCE = 1e-4
LENGTH = 90
every_family = pytest.mark.parametrize("name", FAMILIES)


class Checkpoints:
    """A checkpoint of every family, its oracle and our model, made once."""

    def __init__(self, root: Path) -> None:
        self.folder = cache(lambda name: make_family(name, root / name))
        self.oracle = cache(lambda name: load_oracle(self.folder(name)))
        self.ours = cache(lambda name: load_model(self.folder(name), backend=CPUBackend()))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("families"))


def load_oracle(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    load: Any = AutoModelForCausalLM.from_pretrained
    model, info = load(folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    return model.eval()


def prompt(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(3, VOCAB_SIZE), k=length)


@torch.no_grad()
def expected_logits(oracle: Any, ids: list[int]) -> Tensor:
    logits: Tensor = oracle(torch.tensor([ids]), use_cache=False).logits[0].float()
    return logits


def full_pass(loaded: LoadedModel, ids: list[int]) -> Tensor:
    return PagedRunner(loaded, CPUBackend()).step([Extend("row", ids)])[0]


@every_family
def test_a_full_pass_gives_the_logits_of_transformers(made: Checkpoints, name: str) -> None:
    ids = prompt(LENGTH)
    expected = expected_logits(made.oracle(name), ids)
    assert expected.std() > 0.5, "the weights are too small to tell anything"
    torch.testing.assert_close(full_pass(made.ours(name), ids), expected, atol=TOLERANCE, rtol=0)


@every_family
@pytest.mark.parametrize(("chunk", "page_size"), [(1, 4), (7, 16), (32, 1)])
def test_chunks_of_several_rows_equal_the_full_pass(made: Checkpoints, name: str, chunk: int, page_size: int) -> None:
    prompts = {row: prompt(length, seed) for seed, (row, length) in enumerate({"a": 75, "b": 9, "c": 40}.items())}
    runner = PagedRunner(made.ours(name), CPUBackend(), page_size=page_size)
    for row, logits in computed_in_chunks(runner, prompts, chunk).items():
        expected = expected_logits(made.oracle(name), prompts[row])
        torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)


@every_family
def test_greedy_tokens_are_those_of_transformers(made: Checkpoints, name: str) -> None:
    expected = prompt(20)
    for _ in range(64):
        expected.append(int(expected_logits(made.oracle(name), expected)[-1].argmax()))
    runner = PagedRunner(made.ours(name), CPUBackend(), page_size=4)
    ids = prompt(20)
    ids.append(int(runner.step([Extend("row", ids)])[0][-1].argmax()))
    while len(ids) < len(expected):
        ids.append(int(runner.step([Extend("row", ids[-1:])])[0][-1].argmax()))
    assert ids == expected


@every_family
@pytest.mark.parametrize("options", [{}, {"chunked_prefill_size": 16, "disable_overlap_schedule": True}], ids=str)
def test_an_engine_gives_the_same_with_and_without_its_cache(
    made: Checkpoints, name: str, options: dict[str, Any]
) -> None:
    """Cold, warm, branching off, several at once, without a cache: the same tokens, and hits that are counted."""
    shared = prompt(50, 1)
    prompts = [shared + prompt(20, 2), shared + prompt(9, 3), shared[:30] + prompt(12, 4), prompt(33, 5)]
    sampling = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}
    common: dict[str, Any] = {"skip_tokenizer_init": True, "max_total_tokens": 4096, "max_running_requests": 8}
    with Engine(made.folder(name), disable_radix_cache=True, **common) as plain:
        expected = [plain.generate(input_ids=ids, sampling_params=sampling)["output_ids"] for ids in prompts]
    for ids, output in zip(prompts, expected, strict=True):
        logits = expected_logits(made.oracle(name), ids + output)[len(ids) - 1 : -1]
        assert logits.argmax(-1).tolist() == output
    with Engine(made.folder(name), **common, **options) as engine:
        cold = [engine.generate(input_ids=ids, sampling_params=sampling) for ids in prompts]
        warm = [engine.generate(input_ids=ids, sampling_params=sampling) for ids in prompts]
        engine.flush_cache()
        together = engine.generate(input_ids=prompts * 2, sampling_params=sampling)
    assert [result["output_ids"] for result in cold] == expected
    assert [result["output_ids"] for result in warm] == expected
    assert [result["output_ids"] for result in together] == expected * 2
    assert all(result["meta_info"]["cached_tokens"] >= len(ids) - 1 for result, ids in zip(warm, prompts, strict=True))


@pytest.mark.parametrize("name", [name for name in FAMILIES if FAMILIES[name].config.get("num_experts_per_tok")])
def test_every_expert_counts_its_tokens(made: Checkpoints, name: str) -> None:
    """Each computed token goes to as many experts as the model says, in every layer that has some."""
    common: dict[str, Any] = {"skip_tokenizer_init": True, "max_total_tokens": 2048, "max_running_requests": 4}
    with Engine(made.folder(name), **common) as engine:
        result = engine.generate(input_ids=prompt(37), sampling_params={"temperature": 0, "max_new_tokens": 5})
        load = engine.expert_load()
    meta = result["meta_info"]
    computed = meta["computed_prompt_tokens"] + meta["completion_tokens"] - 1
    top_k = FAMILIES[name].config["num_experts_per_tok"]
    assert load and all(top_k * computed <= sum(layer) <= top_k * (computed + 1) for layer in load)
