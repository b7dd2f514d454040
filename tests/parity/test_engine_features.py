"""What a request can ask of a real engine: stops, minimum lengths, biases, constraints, n, seeds, streams, threads.

All of it on one tiny checkpoint with a tokenizer. What it generates is gibberish, so a test first generates freely and
then asks for an end, a ban or a bias inside what it knows would come.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_engines import Oracle, is_idle, settles, some_prompts, threads_of_engines, tiny_engine
from tiny_models import make_checkpoint

from sglite import Engine

PROMPT = "the quick brown fox"
GREEDY = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}
LONG = {"temperature": 0, "max_new_tokens": 2000, "ignore_eos": True}
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["longer value", "shorter"]},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["kind", "n"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("features") / "model", seed=2, max_position_embeddings=4096)


@pytest.fixture(scope="module", params=[True, False], ids=["overlap", "sync"])
def engine(folder: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with tiny_engine(folder, chunked_prefill_size=16, disable_overlap_schedule=not request.param) as engine:
        yield engine


def free(engine: Engine, **more: Any) -> dict[str, Any]:
    result: dict[str, Any] = engine.generate(PROMPT, {**GREEDY, **more})
    return result


# --- ends ---------------------------------------------------------------------------------------------------------


def test_a_stop_string_ends_the_text_wherever_tokens_are_cut(engine: Engine) -> None:
    """Every substring of the free text, across token borders too: the text up to its first occurrence, not beyond."""
    whole = free(engine, max_new_tokens=12)["text"]
    printable = [(i, j) for i in range(2, len(whole)) for j in (i + 1, i + 3) if "\ufffd" not in whole[i:j]]
    stops = {whole[i:j] for i, j in printable if j <= len(whole)}
    assert len(stops) > 8
    results = engine.generate([PROMPT] * len(stops), [{**GREEDY, "stop": stop} for stop in stops])
    for stop, result in zip(stops, results, strict=True):
        assert result["text"] == whole[: whole.index(stop)], stop
        assert result["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}
        kept = engine.generate(PROMPT, {**GREEDY, "stop": [stop], "no_stop_trim": True})
        assert kept["text"].startswith(whole[: whole.index(stop) + len(stop)])


def test_a_stop_pattern_ends_the_text(engine: Engine) -> None:
    whole = free(engine, max_new_tokens=60)["text"]
    pattern = r"[a-z]{2,3}[^a-z]"
    found = re.search(pattern, whole)
    assert found is not None
    result = engine.generate(PROMPT, {**GREEDY, "max_new_tokens": 60, "stop_regex": pattern})
    assert result["meta_info"]["finish_reason"] == {"type": "stop", "matched": pattern}
    assert whole.startswith(result["text"])
    assert re.search(pattern, result["text"]) is None


def test_a_stop_id_ends_the_output_with_it(engine: Engine) -> None:
    ids = free(engine)["output_ids"]
    stop = ids[9]
    result = free(engine, stop_token_ids=[stop])
    assert result["output_ids"] == ids[: ids.index(stop) + 1]
    assert result["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}


def test_an_end_token_ends_the_output_and_is_not_shown(engine: Engine) -> None:
    result = engine.generate(PROMPT, {**GREEDY, "ignore_eos": False, "logit_bias": {"2": 100}})
    assert result["output_ids"] == [2] and result["text"] == ""
    assert result["meta_info"]["finish_reason"] == {"type": "stop", "matched": 2}


@pytest.mark.parametrize("least", [1, 5])
def test_no_end_before_the_least_length(engine: Engine, least: int) -> None:
    """Biased towards the end as strongly as can be, it ends at the first token at which it may."""
    params = {**GREEDY, "ignore_eos": False, "logit_bias": {"2": 100}, "min_new_tokens": least}
    result = engine.generate(PROMPT, params)
    assert len(result["output_ids"]) == least + 1 and result["output_ids"][-1] == 2
    ids = free(engine)["output_ids"]
    stopped = free(engine, stop_token_ids=[ids[2]], min_new_tokens=8)
    assert len(stopped["output_ids"]) > 8 and ids[2] not in stopped["output_ids"][:8]


def test_the_least_length_holds_for_stop_strings(engine: Engine) -> None:
    whole = free(engine)["text"]
    stop = next(c for c in whole if c.isascii())
    result = free(engine, stop=stop, min_new_tokens=12)
    assert len(result["output_ids"]) >= 12


def test_the_length_is_a_reason_to_end(engine: Engine) -> None:
    result = free(engine, max_new_tokens=7)
    assert result["meta_info"]["finish_reason"] == {"type": "length", "length": 7}
    assert result["output_ids"] == free(engine)["output_ids"][:7]


# --- choices ------------------------------------------------------------------------------------------------------


def test_a_bias_forces_and_forbids(engine: Engine) -> None:
    ids = free(engine)["output_ids"]
    assert set(free(engine, logit_bias={"77": 100})["output_ids"]) == {77}
    assert ids[0] not in free(engine, logit_bias={str(ids[0]): -100})["output_ids"]
    assert set(free(engine, allowed_token_ids=[50, 60])["output_ids"]) <= {50, 60}


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("logprobs", [False, True])
def test_constrained_text_is_a_member_of_its_language(engine: Engine, temperature: float, logprobs: bool) -> None:
    base = {"temperature": temperature, "max_new_tokens": 200, "seed": 3}
    prompts = [PROMPT, "Give JSON: ", "x"]
    schema = [{**base, "json_schema": json.dumps(SCHEMA)}] * 3
    for result in engine.generate(prompts, schema, return_logprob=logprobs):
        value = json.loads(result["text"])
        assert value["kind"] in ("longer value", "shorter") and 0 <= value["n"] <= 99 and list(value) == ["kind", "n"]
        assert result["meta_info"]["constraint_complete"] is True
        assert result["meta_info"]["forced_tokens"] > 0
        if logprobs:
            assert len(result["meta_info"]["output_token_logprobs"]) == len(result["output_ids"])
    for pattern in (r"[ab]{3}-\d{2,4}(yes|no)", r"(red|green|blue) box", r"[^a-z]{4}"):
        result = engine.generate(PROMPT, {**base, "regex": pattern}, return_logprob=logprobs)
        assert re.fullmatch(pattern, result["text"]), result["text"]
        assert result["meta_info"]["finish_reason"]["type"] == "stop"
    chosen = engine.generate(PROMPT, {**base, "choice": ["left", "right"]}, return_logprob=logprobs)
    assert chosen["text"] in ("left", "right")


def test_constrained_text_cut_off_says_so(engine: Engine) -> None:
    result = engine.generate(PROMPT, {"temperature": 0, "max_new_tokens": 3, "regex": "[a-z]{40}"})
    assert result["meta_info"]["constraint_complete"] is False
    assert result["meta_info"]["finish_reason"]["type"] == "length"


@pytest.mark.parametrize("pattern", [r"[ab]{6} and the (lazy|quick) dog", r"(the sun|the dog) sleeps in the sun"])
def test_constrained_output_is_the_same_in_every_configuration(folder: Path, pattern: str) -> None:
    params = [{"temperature": 0.9, "max_new_tokens": 40, "regex": pattern, "seed": seed} for seed in range(4)]
    seen = []
    for chunk, page_size, overlap, pool in [(None, 16, True, 4096), (1, 1, False, 4096), (7, 16, True, 64)]:
        with tiny_engine(
            folder, chunked_prefill_size=chunk, page_size=page_size, disable_overlap_schedule=not overlap,
            max_total_tokens=pool,
        ) as engine:  # fmt: skip
            batch = engine.generate([PROMPT] * 4, params, return_logprob=True)
            alone = [engine.generate(PROMPT, p, return_logprob=False) for p in params]
        assert [r["output_ids"] for r in batch] == [r["output_ids"] for r in alone]
        seen.append([r["output_ids"] for r in batch])
        for result in batch:
            assert re.fullmatch(pattern, result["text"])
            rows = result["meta_info"]["output_token_logprobs"]
            assert [token for _, token, _ in rows] == result["output_ids"]
    assert seen[0] == seen[1] == seen[2]


def test_n_outputs_share_the_prompt_and_each_has_its_seed(engine: Engine) -> None:
    params = {"temperature": 1.0, "max_new_tokens": 10, "ignore_eos": True, "seed": 5}
    several = engine.generate("a prompt nobody used", {**params, "n": 3})
    assert isinstance(several, list) and len({tuple(r["output_ids"]) for r in several}) == 3
    for i, result in enumerate(several):
        single = engine.generate("a prompt nobody used", {**params, "seed": 5 + i})
        assert single["output_ids"] == result["output_ids"]
    length = several[0]["meta_info"]["prompt_tokens"]
    metas = [r["meta_info"] for r in several]
    assert sum(meta["computed_prompt_tokens"] - meta["replayed_tokens"] for meta in metas) == length


# --- text, ids, streams -------------------------------------------------------------------------------------------


def test_ids_in_and_out_are_the_text(engine: Engine) -> None:
    assert engine.tokenizer is not None
    ids = engine.tokenizer.encode(PROMPT, add_bos=True)
    by_text, by_ids = free(engine), engine.generate(input_ids=ids, sampling_params=GREEDY)
    assert by_text["output_ids"] == by_ids["output_ids"] and by_text["text"] == by_ids["text"]
    assert by_text["text"] == engine.tokenizer.decode(by_text["output_ids"])


def test_events_of_a_stream_grow_to_the_whole(engine: Engine) -> None:
    whole = free(engine)
    events = list(engine.generate(PROMPT, GREEDY, stream=True))
    for before, after in itertools.pairwise(events):
        assert after["text"].startswith(before["text"])
        assert after["output_ids"][: len(before["output_ids"])] == before["output_ids"]
    assert events[-1]["text"] == whole["text"] and events[-1]["output_ids"] == whole["output_ids"]
    assert [e["meta_info"]["finish_reason"] is not None for e in events] == [False] * (len(events) - 1) + [True]


@pytest.mark.parametrize("params", [GREEDY, {**GREEDY, "n": 2}], ids=["n=1", "n=2"])
def test_a_stream_of_a_batch_names_its_prompts(engine: Engine, params: dict[str, Any]) -> None:
    """``index`` says whose event it is; with n > 1 every output still comes to its end."""
    prompts = [PROMPT, "{", "def"]
    events = list(engine.generate(prompts, params, stream=True))
    flat = [event for entry in events for event in (entry if isinstance(entry, list) else [entry])]
    ended = [event for event in flat if event["meta_info"]["finish_reason"] is not None]
    assert len({event["meta_info"]["id"] for event in ended}) == 3 * params.get("n", 1)
    assert {event["index"] for event in flat} >= {0, 1, 2}


@pytest.mark.parametrize("events", [0, 1, 3])
def test_a_stream_nobody_reads_any_more_frees_its_request(folder: Path, events: int) -> None:
    with tiny_engine(folder) as engine:
        stream = engine.generate(PROMPT, LONG, stream=True)
        for _ in range(events):
            next(stream)
        del stream
        assert settles(lambda: is_idle(engine), 1.0)
        assert engine.get_server_info()["totals"]["completion_tokens"] < 2000
        assert free(engine)["meta_info"]["completion_tokens"] == 24


def test_generating_inside_a_running_loop(engine: Engine) -> None:
    async def both() -> tuple[list[Any], list[Any], dict[str, Any]]:
        several = asyncio.gather(
            *(engine.async_generate(PROMPT, {**GREEDY, "max_new_tokens": 4 + i}) for i in range(5))
        )
        events = [event async for event in await engine.async_generate(PROMPT, GREEDY, stream=True)]
        long = await engine.async_generate(PROMPT, LONG, stream=True)
        first = await anext(long)
        await long.aclose()
        return await several, events, first

    several, events, first = asyncio.run(both())
    ids = free(engine)["output_ids"]
    assert [r["output_ids"] for r in several] == [ids[: 4 + i] for i in range(5)]
    assert events[-1]["output_ids"] == ids
    assert first["meta_info"]["finish_reason"] is None
    assert settles(lambda: is_idle(engine), 1.0)


def test_a_cancelled_task_frees_its_request(engine: Engine) -> None:
    async def cancelled() -> None:
        task = asyncio.ensure_future(engine.async_generate(PROMPT, LONG))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(cancelled())
    assert settles(lambda: is_idle(engine), 1.0)


def test_many_threads_may_generate_at_once(engine: Engine) -> None:
    want = {prompt: engine.generate(prompt, GREEDY)["output_ids"] for prompt in ("a", "b", "ab", "abc", PROMPT)}
    wrong: list[str] = []

    def work(prompt: str) -> None:
        for _ in range(5):
            if engine.generate(prompt, GREEDY)["output_ids"] != want[prompt]:
                wrong.append(prompt)

    threads = [threading.Thread(target=work, args=(prompt,)) for prompt in want]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_ctrl_c_ends_the_call_and_not_the_engine(engine: Engine) -> None:
    def press() -> None:
        assert settles(lambda: not is_idle(engine), 5.0)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press).start()
    with pytest.raises(KeyboardInterrupt):
        engine.generate([PROMPT] * 2, {**LONG, "n": 2})
    assert settles(lambda: is_idle(engine), 1.0)
    assert len(free(engine)["output_ids"]) == 24


# --- engines ------------------------------------------------------------------------------------------------------


def test_a_with_block_that_fails_stops_the_threads(folder: Path) -> None:
    before = threads_of_engines()
    with pytest.raises(ZeroDivisionError), tiny_engine(folder) as engine:
        engine.generate(PROMPT, {**GREEDY, "regex": "[a-z]+"})
        stream = engine.generate(PROMPT, LONG, stream=True)
        next(stream)
        raise ZeroDivisionError
    assert settles(lambda: threads_of_engines() <= before)
    events = list(stream)
    assert events[-1]["meta_info"]["finish_reason"]["type"] == "abort"
    engine.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        engine.generate(PROMPT, GREEDY)


def test_an_engine_nobody_holds_stops_its_threads(folder: Path) -> None:
    before = threads_of_engines()
    engine = tiny_engine(folder)
    assert len(threads_of_engines() - before) >= 2
    del engine
    assert settles(lambda: threads_of_engines() <= before)


def test_two_engines_in_one_process_do_not_know_each_other(folder: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", "llama", seed=9)
    with tiny_engine(folder) as one, tiny_engine(other) as two:
        streams = [one.generate(PROMPT, GREEDY, stream=True), two.generate(PROMPT, GREEDY, stream=True)]
        ends = [list(stream)[-1]["output_ids"] for stream in streams]
        assert ends[0] == free(one)["output_ids"] and ends[1] == free(two)["output_ids"] and ends[0] != ends[1]
        one.shutdown()
        assert free(two)["output_ids"] == ends[1]


def test_an_engine_without_a_tokenizer_works_on_ids(folder: Path) -> None:
    oracle = Oracle(folder)
    prompts = some_prompts(3, seed=6)
    with tiny_engine(folder, skip_tokenizer_init=True) as engine:
        for prompt in prompts:
            result = engine.generate(input_ids=prompt, sampling_params=GREEDY, return_logprob=True)
            oracle.greedy(prompt, 24).check_tokens(result["output_ids"])
            assert result["text"] == ""
        with pytest.raises(ValueError, match="input_ids"):
            engine.generate(PROMPT, GREEDY)
        for bad in ({"stop": "x"}, {"regex": "x"}):
            with pytest.raises(ValueError, match="skip_tokenizer_init"):
                engine.generate(input_ids=prompts[0], sampling_params={**GREEDY, **bad})


# --- sequences ----------------------------------------------------------------------------------------------------


def test_a_sequence_goes_on_from_what_it_generated_without_computing_it_again(engine: Engine) -> None:
    assert engine.tokenizer is not None
    engine.flush_cache()
    sequence = engine.open_sequence("program", engine.tokenizer.encode("Once there was a"))
    for _ in range(3):
        before = len(sequence.token_ids)
        result = sequence.generate({**GREEDY, "max_new_tokens": 9}).result()
        assert sequence.token_ids[before:] == result["output_ids"]
        sequence.extend(engine.tokenizer.encode(" and"))
    assert result["meta_info"]["computed_prompt_tokens"] <= len(engine.tokenizer.encode(" and")) + 1
    sequence.close()
    assert settles(lambda: engine.get_server_info()["pins"] == 0, 1.0)


@pytest.mark.timeout(30)
def test_a_sequence_goes_on_after_a_forced_end_with_logprobs(engine: Engine) -> None:
    assert engine.tokenizer is not None
    sequence = engine.open_sequence("program", engine.tokenizer.encode("Answer: "))
    for _ in range(3):
        result = sequence.generate({**GREEDY, "regex": "(yes|no), sir"}, return_logprob=True).result(timeout=10)
        assert result["text"] in ("yes, sir", "no, sir")
    sequence.close()


def test_a_sequence_survives_a_call_that_failed(engine: Engine) -> None:
    assert engine.tokenizer is not None
    sequence = engine.open_sequence("program", engine.tokenizer.encode("Once"))
    with pytest.raises(ValueError, match="max_new_tokens"):
        sequence.generate({**GREEDY, "max_new_tokens": 100_000}).result()
    sequence.extend([40])
    assert len(sequence.generate(GREEDY).result()["output_ids"]) == 24
    sequence.close()


def test_forks_and_scores_find_their_trunk_cached(engine: Engine) -> None:
    assert engine.tokenizer is not None
    engine.flush_cache()
    ids = engine.tokenizer.encode("a trunk that several branches share")
    sequence = engine.open_sequence("program", ids)
    branches = sequence.fork(3)
    for i, branch in enumerate(branches):
        branch.extend([100 + i])
    results = [branch.generate({**GREEDY, "max_new_tokens": 2}) for branch in branches]
    assert [r.result()["meta_info"]["cached_tokens"] for r in results] == [len(ids)] * 3
    scores = [g.result() for g in sequence.score([[100, 7], [101], [200, 8, 9]])]
    for result, length in zip(scores, (2, 1, 3), strict=True):
        assert len(result["meta_info"]["input_token_logprobs"]) == length
    assert sequence.token_ids == ids
    sequence.close()


def test_a_stream_keeps_its_engine_and_its_end_lets_it_go(folder: Path) -> None:
    """Nobody else holds the engine: it serves the stream to its end, and what it did last does not keep it."""
    before = threads_of_engines()
    stream = tiny_engine(folder).generate(PROMPT, {**GREEDY, "max_new_tokens": 5}, stream=True)
    gc.collect()
    assert [len(event["output_ids"]) for event in stream][-1] == 5
    del stream
    gc.collect()
    assert settles(lambda: threads_of_engines() <= before)


def test_the_default_limit_bends_to_the_context_and_a_given_one_does_not(folder: Path) -> None:
    with tiny_engine(folder, context_length=64) as engine:
        prompt = list(range(2, 52))
        result = engine.generate(input_ids=prompt, sampling_params={"ignore_eos": True, "temperature": 0})
        assert result["meta_info"]["completion_tokens"] == 64 - len(prompt)
        with pytest.raises(ValueError, match="give max_new_tokens<=14"):
            engine.generate(input_ids=prompt, sampling_params={"max_new_tokens": 128})


def test_a_fork_is_charged_to_its_program_and_every_branch_finds_the_prefix(engine: Engine) -> None:
    engine.flush_cache()
    trunk = some_prompts(1, seed=77)[0]
    sequence = engine.open_sequence("story", trunk)
    branches = sequence.fork(3)
    for index, branch in enumerate(branches):
        branch.extend([5 + index])
        meta = branch.generate({"max_new_tokens": 4, "temperature": 0}).result()["meta_info"]
        assert meta["cached_tokens"] == len(trunk) and meta["computed_prompt_tokens"] == 1
    cost = engine.get_program_info("story")
    assert cost is not None
    assert cost["computed_prompt_tokens"] == len(trunk) + 3
    assert cost["prompt_tokens"] == len(trunk) + 3 * (len(trunk) + 1)
    assert engine.get_program_info("nobody") is None
    for one in (sequence, *branches):
        one.close()
