"""A whole engine against transformers on the same fp32 checkpoint: greedy tokens and log probabilities, in every
configuration, alone and in company, cold and warm, with preemption and with aborts around it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_matrix import GREEDY, PROMPTS, among_aborts, check
from tiny_engines import Oracle, is_idle, settles, some_prompts, tiny_engine
from tiny_models import make_checkpoint

from sglite import Engine

CONFIGURATIONS = list(itertools.product([1, 7, 64, None], [1, 16, 64], [False, True]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("greedy") / "model", seed=1)


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Oracle:
    return Oracle(folder)


def engine_of(folder: Path, chunk: int | None, page_size: int, overlap: bool, **more: Any) -> Engine:
    return tiny_engine(
        folder, chunked_prefill_size=chunk, page_size=page_size, disable_overlap_schedule=not overlap, **more
    )


@pytest.mark.parametrize(("chunk", "page_size", "overlap"), CONFIGURATIONS)
def test_greedy_tokens_are_those_of_transformers(
    folder: Path, oracle: Oracle, chunk: int | None, page_size: int, overlap: bool
) -> None:
    with engine_of(folder, chunk, page_size, overlap) as engine:
        check(
            [engine.generate(input_ids=prompt, sampling_params=GREEDY) for prompt in PROMPTS[:2]], oracle, PROMPTS[:2]
        )
        engine.flush_cache()
        check(engine.generate(input_ids=PROMPTS, sampling_params=GREEDY), oracle)
        check(engine.generate(input_ids=PROMPTS, sampling_params=GREEDY), oracle)
        scored = engine.generate(input_ids=PROMPTS, sampling_params=GREEDY, return_logprob=True, logprob_start_len=0)
        check(scored, oracle)
        assert all(len(r["meta_info"]["input_token_logprobs"]) == len(p) for r, p in zip(scored, PROMPTS, strict=True))


@pytest.mark.parametrize(("chunk", "page_size", "overlap"), [(None, 1, True), (7, 16, False), (64, 16, True)])
def test_preempted_requests_give_the_same(
    folder: Path, oracle: Oracle, chunk: int | None, page_size: int, overlap: bool
) -> None:
    prompts = some_prompts(8, seed=9, longest=40)
    greedy = {**GREEDY, "max_new_tokens": 40}
    with engine_of(folder, chunk, page_size, overlap, max_total_tokens=160) as engine:
        check(engine.generate(input_ids=prompts, sampling_params=greedy, return_logprob=True), oracle, prompts, 40)
        info = engine.get_server_info()
        assert info["preemptions"] > 0 and info["page_mismatches"] == 0


@pytest.mark.parametrize(("page_size", "overlap"), [(1, True), (16, False), (16, True)])
def test_aborts_around_a_request_do_not_touch_it(folder: Path, oracle: Oracle, page_size: int, overlap: bool) -> None:
    """Others with its prefix start before and after it, and go away one by one while it runs."""
    with engine_of(folder, 7, page_size, overlap) as engine:
        check([among_aborts(engine)], oracle, PROMPTS[:1])
        assert settles(lambda: is_idle(engine))


def test_sampling_with_a_seed_does_not_depend_on_configuration_or_company(folder: Path) -> None:
    """Same seeds, same tokens: alone, in a batch of others, warm, in chunks, on pages of any size, preempted."""
    params = [
        {"temperature": 0.8, "max_new_tokens": 20, "ignore_eos": True, "seed": 11 + i, "top_p": 0.9, "top_k": 40}
        for i in range(len(PROMPTS))
    ]
    with tiny_engine(folder) as engine:
        pairs = zip(PROMPTS, params, strict=True)
        alone = [engine.generate(input_ids=p, sampling_params=s)["output_ids"] for p, s in pairs]
    assert len({tuple(ids) for ids in alone}) == len(alone)
    for chunk, page_size, overlap, pool in [
        (1, 16, True, 4096), (7, 1, False, 4096), (None, 64, True, 4096), (64, 16, False, 128), (7, 16, True, 128),
    ]:  # fmt: skip
        with engine_of(folder, chunk, page_size, overlap, max_total_tokens=pool) as engine:
            for _ in range(2):
                batch = engine.generate(input_ids=PROMPTS, sampling_params=params, return_logprob=True)
                assert [result["output_ids"] for result in batch] == alone


def test_logprobs_of_a_prompt_are_those_of_transformers_from_any_position(folder: Path, oracle: Oracle) -> None:
    prompt = some_prompts(1, seed=3)[0] + list(range(20, 50))
    truth = oracle.greedy(prompt, 1)
    with engine_of(folder, 7, 16, True) as engine:
        for start in (0, 1, 17, len(prompt) - 1, len(prompt)):
            result = engine.generate(
                input_ids=prompt, sampling_params={**GREEDY, "max_new_tokens": 0}, return_logprob=True,
                logprob_start_len=start, top_logprobs_num=3, token_ids_logprob=[5, 300],
            )  # fmt: skip
            meta = result["meta_info"]
            assert result["output_ids"] == [] and len(meta["input_token_logprobs"]) == len(prompt) - start
            truth.check_rows(meta["input_token_logprobs"], start)
            for position, (top, given) in enumerate(
                zip(meta["input_top_logprobs"], meta["input_token_ids_logprobs"], strict=True), start
            ):
                if position == 0:
                    assert top is None and given is None
                    continue
                row = truth.logprobs[position - 1]
                best = row.topk(3)
                assert [t for _, t, _ in top] == best.indices.tolist()
                assert [p for p, _, _ in top] == pytest.approx(best.values.tolist(), abs=1e-4)
                assert [(t, p) for p, t, _ in given] == [(t, pytest.approx(row[t].item(), abs=1e-4)) for t in (5, 300)]


PENALTIES = {"repetition_penalty": 1.3, "frequency_penalty": 0.7, "presence_penalty": 0.4}


@torch.no_grad()
def penalised(oracle: Oracle, prompt: list[int], n: int) -> list[int]:
    """Greedy tokens with all three penalties, by their definitions; stops where a choice is not clear."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + n:
        logits = oracle.model(torch.tensor([tokens])).logits[0, -1].float()
        for token in set(tokens):
            value = logits[token].item()
            value = value / 1.3 if value > 0 else value * 1.3
            count = tokens[len(prompt) :].count(token)
            logits[token] = value - 0.7 * count - 0.4 * (count > 0)
        best = logits.topk(2)
        if best.values[0] - best.values[1] <= 1e-3:
            break
        tokens.append(int(best.indices[0]))
    return tokens[len(prompt) :]


@pytest.mark.parametrize(("chunk", "overlap", "pool"), [(None, True, 4096), (7, False, 4096), (16, True, 128)])
def test_penalties_count_every_token_once_in_every_configuration(
    folder: Path, oracle: Oracle, chunk: int | None, overlap: bool, pool: int
) -> None:
    """After a preemption too, when the worker has to be told again what was output."""
    prompts = PROMPTS[:4]
    params = {**GREEDY, **PENALTIES, "max_new_tokens": 30}
    with engine_of(folder, chunk, 16, overlap, max_total_tokens=pool) as engine:
        results = engine.generate(input_ids=prompts, sampling_params=params)
        assert pool > 128 or engine.get_server_info()["preemptions"] > 0
    for prompt, result in zip(prompts, results, strict=True):
        want = penalised(oracle, prompt, 30)
        assert len(want) > 10 and result["output_ids"][: len(want)] == want
    assert results[0]["output_ids"] != oracle.greedy(prompts[0], 30).tokens
