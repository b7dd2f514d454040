"""The matrices of the engine over a hybrid model: recurrent state must be right wherever a sequence is cut, shared,
taken up again, pushed out or gone on with, with many state slots and with hardly more than the running requests have.

The model has what hybrids have, layers of both kinds and experts; transformers is the judge, or an engine without a
cache where transformers has no such thing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_matrix import GREEDY, PLAIN, PROMPTS, N, among_aborts, check, constrained, interview, walk
from model_families import FAMILIES, Family, random_model
from tiny_engines import Oracle, is_idle, settles, some_prompts, tiny_engine
from tiny_models import make_tokenizer

from sglite import Engine

SHAPES: list[dict[str, Any]] = [
    {},
    {"chunked_prefill_size": 7, "page_size": 1, "disable_overlap_schedule": True},
    {"chunked_prefill_size": 16, "page_size": 64, "max_mamba_cache_size": 7, "max_running_requests": 6},
    {"page_size": 4, "max_mamba_cache_size": 2, "disable_overlap_schedule": True},
]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hybrid") / "model"
    two_layers = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
    random_model(Family("qwen3_next", {**FAMILIES["qwen3_next"].config, **two_layers})).save_pretrained(folder)
    return make_tokenizer(folder)


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Oracle:
    return Oracle(folder)


@pytest.fixture(params=[True, False], ids=["overlap", "sync"])
def engine(folder: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with tiny_engine(folder, chunked_prefill_size=16, disable_overlap_schedule=not request.param) as engine:
        yield engine
        rest(engine)


def rest(engine: Engine) -> dict[str, int]:
    """What is said of states when nothing runs; every slot is accounted for."""
    assert settles(lambda: is_idle(engine))
    info = engine.get_server_info()
    states: dict[str, int] = info["states"]
    assert info["page_mismatches"] == 0 and states["held"] == 0
    assert states["free"] + states["cached"] == states["total"]
    assert states["saved"] - states["dropped"] == states["cached"]
    return states


@every_shape
def test_greedy_tokens_are_those_of_transformers(folder: Path, oracle: Oracle, shape: dict[str, Any]) -> None:
    with tiny_engine(folder, **shape) as engine:
        check([engine.generate(input_ids=ids, sampling_params=GREEDY) for ids in PROMPTS[:2]], oracle, PROMPTS[:2])
        check(engine.generate(input_ids=PROMPTS, sampling_params=GREEDY), oracle)
        check(engine.generate(input_ids=PROMPTS, sampling_params=GREEDY), oracle)
        scored = engine.generate(input_ids=PROMPTS, sampling_params=GREEDY, return_logprob=True, logprob_start_len=0)
        check(scored, oracle)
        states, few = rest(engine), "max_mamba_cache_size" in shape
        assert few == (states["dropped"] > 0) and (few or states["restored"] > len(PROMPTS))


@every_shape
def test_preempted_requests_give_the_same(folder: Path, oracle: Oracle, shape: dict[str, Any]) -> None:
    prompts = some_prompts(8, seed=9, longest=40)
    greedy = {**GREEDY, "max_new_tokens": 30}
    with tiny_engine(folder, **{**shape, "max_total_tokens": 192}) as engine:
        check(engine.generate(input_ids=prompts, sampling_params=greedy, return_logprob=True), oracle, prompts, 30)
        assert shape.get("max_mamba_cache_size", 99) < 8 or engine.get_server_info()["preemptions"] > 0
        rest(engine)


@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "sync"])
def test_aborts_around_a_request_do_not_touch_it(folder: Path, oracle: Oracle, overlap: bool) -> None:
    """Others with its prefix start before and after it, and go away one by one while it runs."""
    with tiny_engine(folder, chunked_prefill_size=7, disable_overlap_schedule=not overlap) as engine:
        check([among_aborts(engine)], oracle, PROMPTS[:1])
        rest(engine)


def test_sampling_with_a_seed_does_not_depend_on_configuration_or_company(folder: Path) -> None:
    params = [{**GREEDY, "temperature": 0.8, "seed": 11 + i, "top_p": 0.9, "top_k": 40} for i in range(len(PROMPTS))]
    with tiny_engine(folder, **PLAIN) as engine:
        pairs = zip(PROMPTS, params, strict=True)
        alone = [engine.generate(input_ids=p, sampling_params=s)["output_ids"] for p, s in pairs]
    for shape in (*SHAPES, {"max_total_tokens": 128, "chunked_prefill_size": 7}):
        with tiny_engine(folder, **shape) as engine:
            for _ in range(2):
                batch = engine.generate(input_ids=PROMPTS, sampling_params=params, return_logprob=True)
                assert [result["output_ids"] for result in batch] == alone


def test_several_outputs_of_a_prompt_compute_it_once(engine: Engine) -> None:
    prompt = some_prompts(1, seed=8, longest=90)[0]
    params = {**GREEDY, "temperature": 1.0, "seed": 3, "n": 4}
    together = engine.generate(input_ids=prompt, sampling_params=params)
    metas = [output["meta_info"] for output in together]
    assert sorted(meta["computed_prompt_tokens"] for meta in metas) == [1, 1, 1, len(prompt)]
    single = [{**params, "seed": 3 + i, "n": 1} for i in range(4)]
    alone = engine.generate(input_ids=[prompt] * 4, sampling_params=single)
    assert [output["output_ids"] for output in together] == [output["output_ids"] for output in alone]


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_forced_tokens_do_not_change_what_a_constraint_gives(folder: Path, temperature: float) -> None:
    """With jump-forward, without, and without a cache; values that are taken back and tried again included."""
    found, forced = [], []
    for shape in (PLAIN, {"jump_forward": False}, *SHAPES):
        with tiny_engine(folder, **shape) as engine:
            results = constrained(engine, temperature)
            found.append([result["output_ids"] for result in results])
            forced.append(sum(result["meta_info"]["forced_tokens"] for result in results))
            rest(engine)
    assert all(other == found[0] for other in found[1:])
    assert forced[1] == 0 < forced[2] and set(json.loads(results[0]["text"])) == {"kind", "n"}


def test_sequences_that_fork_and_truncate_are_what_they_are_without_a_cache(folder: Path) -> None:
    seeds = range(4)
    with tiny_engine(folder, **PLAIN) as engine:
        expected = [walk(engine, seed) for seed in seeds]
    for shape in SHAPES:
        with tiny_engine(folder, **shape) as engine:
            for seed in seeds:
                assert walk(engine, seed) == expected[seed], (shape, seed)
            rest(engine)


def test_forks_find_their_trunk_cached(engine: Engine) -> None:
    trunk = some_prompts(1, seed=77)[0]
    sequence = engine.open_sequence("story", trunk)
    branches = sequence.fork(3)
    for index, branch in enumerate(branches):
        branch.extend([5 + index])
        meta = branch.generate({"max_new_tokens": 4, "temperature": 0}).result()["meta_info"]
        assert (meta["cached_tokens"], meta["computed_prompt_tokens"]) == (len(trunk), 1)
    cost = engine.get_program_info("story")
    assert cost is not None and cost["computed_prompt_tokens"] == len(trunk) + 3
    for one in (sequence, *branches):
        one.close()


def test_a_conversation_computes_only_what_is_new(engine: Engine) -> None:
    """Ends by a token that stops it, so that with overlap one more has been computed by then."""
    history = some_prompts(1, seed=12)[0]
    for turn in range(4):
        free = engine.generate(input_ids=history, sampling_params=GREEDY)["output_ids"]
        stop = next(i for i in range(3, N) if free[i] not in free[:i])
        engine.flush_cache()
        first = engine.generate(input_ids=history, sampling_params={**GREEDY, "stop_token_ids": [free[stop]]})
        known = [*history, *first["output_ids"]]
        history = [*known, 30 + turn, 50]
        meta = engine.generate(input_ids=history, sampling_params=GREEDY)["meta_info"]
        assert meta["cached_tokens"] >= len(known) - 1


def test_programs_give_what_they_give_without_a_cache(folder: Path) -> None:
    names = [{"name": "Ada"}, {"name": "Alan"}, {"name": "Ada"}]
    found = []
    for shape in (PLAIN, *SHAPES):
        with tiny_engine(folder, **shape) as engine:
            states = interview.run_batch(names, backend=engine)
            found.append([(state.text(), state["mood"], state["age"]) for state in states])
            rest(engine)
    assert all(other == found[0] for other in found[1:]) and found[0][0] == found[0][2]
