"""The matrices of the engine over one model of each kind: dense with both implementations, experts, latents, windows.

Other dense models have ``test_engine_greedy`` and ``test_engine_features``, hybrids ``test_engine_hybrid``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from engine_matrix import GREEDY, PLAIN, PROMPTS, check, constrained, interview, rest, walk
from model_families import FAMILIES, Family, random_model
from staged_backend import staged
from tiny_engines import Oracle, some_prompts, tiny_engine
from tiny_models import make_checkpoint, make_tokenizer

from sglite import Engine

WIDE = {"hidden_size": 128, "intermediate_size": 192, "head_dim": 32}
"""Sizes that there are kernels for."""
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense, native": ("qwen3", WIDE),
    "dense, plain torch": ("qwen3", WIDE),
    "dense, staged": ("qwen3", WIDE),
    "experts": ("qwen3_moe", {}),
    "latents": ("deepseek_v3", {}),
    "sparse latents": ("deepseek_v32", {"index_topk": 16}),
    "latents, staged": ("deepseek_v3", {}),
    "windows, staged": ("gemma3", {"layer_types": ["sliding_attention", "full_attention"]}),
    "windows": ("gemma3", {"layer_types": ["sliding_attention", "full_attention"]}),
}
SHAPES: list[dict[str, Any]] = [
    {},
    {"chunked_prefill_size": 7, "page_size": 1, "disable_overlap_schedule": True},
    {"chunked_prefill_size": 16, "page_size": 64},
]
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def make(kind: str) -> Path:
        name, changes = KINDS[kind]
        folder = tmp_path_factory.mktemp("kind") / "model"
        if name == "qwen3":
            return make_checkpoint(folder, **changes)
        family = FAMILIES[name]
        fields = {**family.config, "num_hidden_layers": 2, **changes}
        random_model(Family(family.model_type, fields)).save_pretrained(folder)
        return make_tokenizer(folder)

    return make


@pytest.fixture(scope="module")
def oracles(made: Callable[[str], Path]) -> Callable[[str], Oracle]:
    return cache(lambda kind: Oracle(made(kind)))


def engine_of(made: Callable[[str], Path], kind: str, **arguments: Any) -> Engine:
    if kind.endswith("staged"):
        with staged():
            return tiny_engine(made(kind), cuda_graph_max_bs=5, **arguments)
    return tiny_engine(made(kind), cpu_kernels="torch" if kind.endswith("plain torch") else "auto", **arguments)


@every_kind
def test_greedy_tokens_and_scores_are_those_of_transformers(made: Any, oracles: Any, kind: str) -> None:
    """Alone, in company, cold, warm, with scores of the whole prompt."""
    for shape in SHAPES:
        with engine_of(made, kind, **shape) as engine:
            alone = [engine.generate(input_ids=ids, sampling_params=GREEDY) for ids in PROMPTS[:2]]
            check(alone, oracles(kind), PROMPTS[:2])
            check(engine.generate(input_ids=PROMPTS, sampling_params=GREEDY), oracles(kind))
            whole = {"return_logprob": True, "logprob_start_len": 0}
            check(engine.generate(input_ids=PROMPTS, sampling_params=GREEDY, **whole), oracles(kind))
            rest(engine)


@every_kind
def test_preempted_requests_give_the_same(made: Any, oracles: Any, kind: str) -> None:
    prompts = some_prompts(8, seed=9, longest=40)
    greedy = {**GREEDY, "max_new_tokens": 30}
    for shape in SHAPES:
        with engine_of(made, kind, **shape, max_total_tokens=192) as engine:
            results = engine.generate(input_ids=prompts, sampling_params=greedy, return_logprob=True)
            check(results, oracles(kind), prompts, 30)
            few_pages = shape.get("page_size", 16) > 16  # so few that hardly two requests run at a time
            assert few_pages or engine.get_server_info()["preemptions"] > 0
            rest(engine)


@every_kind
def test_sampling_with_a_seed_does_not_depend_on_configuration_or_company(made: Any, kind: str) -> None:
    params = [{**GREEDY, "temperature": 0.8, "seed": 11 + i, "top_p": 0.9, "top_k": 40} for i in range(len(PROMPTS))]
    with engine_of(made, kind, **PLAIN) as engine:
        pairs = zip(PROMPTS, params, strict=True)
        alone = [engine.generate(input_ids=p, sampling_params=s)["output_ids"] for p, s in pairs]
    for shape in (*SHAPES, {"max_total_tokens": 128, "chunked_prefill_size": 7}):
        with engine_of(made, kind, **shape) as engine:
            for _ in range(2):
                batch = engine.generate(input_ids=PROMPTS, sampling_params=params)
                assert [result["output_ids"] for result in batch] == alone


@every_kind
def test_forced_tokens_do_not_change_what_a_constraint_gives(made: Any, kind: str) -> None:
    found, forced = [], []
    for shape in (PLAIN, {"jump_forward": False}, *SHAPES):
        with engine_of(made, kind, **shape) as engine:
            results = constrained(engine, 1.0)
            found.append([result["output_ids"] for result in results])
            forced.append(sum(result["meta_info"]["forced_tokens"] for result in results))
            rest(engine)
    assert all(other == found[0] for other in found[1:])
    assert forced[1] == 0 < forced[2] and set(json.loads(results[0]["text"])) == {"kind", "n"}


@every_kind
def test_sequences_and_programs_give_what_they_give_without_a_cache(made: Any, kind: str) -> None:
    """Random sequences that extend, fork, truncate and score; a program whose forks sample."""
    names, found = [{"name": "Ada"}, {"name": "Alan"}, {"name": "Ada"}], []
    for shape in (PLAIN, *SHAPES):
        with engine_of(made, kind, **shape) as engine:
            walks = [walk(engine, seed) for seed in range(3)]
            states = interview.run_batch(names, backend=engine)
            found.append((walks, [(state.text(), state["mood"], state["age"]) for state in states]))
            rest(engine)
    assert all(other == found[0] for other in found[1:]) and found[0][1][0] == found[0][1][2]
