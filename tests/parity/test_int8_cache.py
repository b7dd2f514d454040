"""Whole engines with a cache of int8: log probabilities stay near those of a float32 cache whatever happens to the
pages, by either implementation of the CPU backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_engines import is_idle, settles, some_prompts, tiny_engine
from tiny_models import make_checkpoint

import sglite as sgl
from sglite import Engine

SCORED = {"temperature": 0.0, "max_new_tokens": 1}
PROMPTS = some_prompts(6, seed=3, longest=60)
NEAR = 0.1
"""Log probabilities of a random model of two layers move by about a hundredth."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"head_dim": 32, "hidden_size": 128, "intermediate_size": 192}
    return make_checkpoint(tmp_path_factory.mktemp("int8") / "model", seed=1, **sizes)


@pytest.fixture(scope="module", params=["torch", "auto"])
def engine_options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"cpu_kernels": request.param, "page_size": 4, "chunked_prefill_size": 16}


def scores(engine: Engine, prompts: list[list[int]]) -> list[list[float]]:
    found = engine.generate(input_ids=prompts, sampling_params=SCORED, return_logprob=True, logprob_start_len=0)
    return [[entry[0] for entry in one["meta_info"]["input_token_logprobs"][1:]] for one in found]


def assert_near(found: list[list[float]], expected: list[list[float]]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < NEAR


@pytest.fixture(scope="module")
def truth(folder: Path) -> list[list[float]]:
    with tiny_engine(folder) as engine:
        return scores(engine, PROMPTS)


def test_scores_cold_and_from_the_cache(folder: Path, truth: list[list[float]], engine_options: dict[str, Any]) -> None:
    with tiny_engine(folder, kv_cache_dtype="int8", **engine_options) as engine:
        assert engine.config.cache_dtype == "int8"
        assert_near(scores(engine, PROMPTS), truth)
        warm = engine.generate(input_ids=PROMPTS, sampling_params=SCORED, return_logprob=True)
        assert all(one["meta_info"]["cached_tokens"] > 0 for one in warm if one["meta_info"]["prompt_tokens"] > 4)
        assert_near(scores(engine, PROMPTS), truth)
        info = engine.get_server_info()
        assert settles(lambda: is_idle(engine)) and info["page_mismatches"] == 0


def test_preempted_requests_and_forks(folder: Path, engine_options: dict[str, Any]) -> None:
    """What was generated under pressure is scored by a float32 cache as the engine scored it."""
    greedy = {"temperature": 0.0, "max_new_tokens": 30, "ignore_eos": True}
    with tiny_engine(folder, kv_cache_dtype="int8", max_total_tokens=160, **engine_options) as engine:
        found = engine.generate(input_ids=PROMPTS, sampling_params=greedy, return_logprob=True)
        assert engine.get_server_info()["preemptions"] > 0
        several = engine.generate(
            input_ids=PROMPTS[0],
            sampling_params={"n": 3, "temperature": 1.0, "seed": 1, "max_new_tokens": 20},
            return_logprob=True,
        )
        assert engine.get_server_info()["page_mismatches"] == 0
    whole = [[*prompt, *one["output_ids"]] for prompt, one in zip(PROMPTS, found, strict=True)]
    whole += [[*PROMPTS[0], *one["output_ids"]] for one in several]
    with tiny_engine(folder) as engine:
        exact = scores(engine, whole)
    for one, expected in zip([*found, *several], exact, strict=True):
        ours = [entry[0] for entry in one["meta_info"]["output_token_logprobs"]]
        assert_near([ours], [expected[-len(ours) :]])


def test_a_program_with_branches(folder: Path, engine_options: dict[str, Any]) -> None:
    @sgl.function
    def branches(s):  # type: ignore[no-untyped-def]
        s += "one two three four five six seven eight nine ten"
        for fork in s.fork(3):
            fork += sgl.gen("word", max_tokens=6)

    with tiny_engine(folder, kv_cache_dtype="int8", **engine_options) as engine:
        branches.run(backend=engine)
        assert settles(lambda: is_idle(engine)) and engine.get_server_info()["page_mismatches"] == 0
