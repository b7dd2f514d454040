"""Chained generations: what they give is what single calls give, and nothing stands still between them."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sequence_engines import LETTERS, ScriptedEngine, held, result_of, scripted_engine, some_ids, text_folder
from tiny_engines import settles

from sglite.runtime.engine import sequence as sequences
from sglite.runtime.engine.generation import EngineError, RequestRefused
from sglite.runtime.sample.params import InvalidParameter

PLAIN = {"max_new_tokens": 5, "ignore_eos": True}
PROMPT = [*LETTERS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_folder(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module", params=[True, False], ids=["overlap", "sync"])
def engine(folder: Path, request: pytest.FixtureRequest) -> Iterator[ScriptedEngine]:
    with scripted_engine(folder, disable_overlap_schedule=not request.param) as engine:
        yield engine


def open_ids(engine: ScriptedEngine, ids: list[int] = PROMPT) -> sequences.Sequence:
    return engine.open_sequence("program", ids)


# --- nothing stands still -----------------------------------------------------------------------------------------


def test_a_chain_costs_its_tokens_in_steps_whatever_its_caller_does(engine: ScriptedEngine) -> None:
    """k gens of t tokens: k * t steps, a row in each, and the first of a gen right after the last of the one before.

    Nobody reads anything before all of it is over, and the event loop it belongs to is blocked.
    """

    async def main() -> list[Any]:
        sequence = open_ids(engine)
        chain = [sequence.generate(PLAIN), *(sequence.chain([50 + i, 41], PLAIN) for i in range(3))]
        assert settles(lambda: chain[-1].finished)  # blocks the loop
        ids = [await g.wait() for g in chain]
        sequence.close()
        return ids

    start, first = engine.num_steps, len(engine.worker.steps)
    events = asyncio.run(main())
    assert engine.num_steps - start == 4 * 5
    steps = engine.worker.steps[first:]
    assert [len(step.rows) for step in steps] == [1] * 20
    assert [len(step.rows[0].token_ids) for step in steps[5::5]] == [1 + 2] * 3, "the last token, and the literal"
    assert [event["meta_info"]["forward_passes"] for event in events] == [5] * 4


def test_a_compiled_constraint_costs_no_step_between(engine: ScriptedEngine) -> None:
    """It is compiled while the generation before it runs."""
    sequence = open_ids(engine, [*PROMPT, 45])
    with held(engine):
        chain = [sequence.generate(PLAIN), sequence.chain([51], {"regex": "[a-c]{6}"})]
        compiler: Any = engine._admission._compiler
        assert settles(lambda: any(one.spec.value == "[a-c]{6}" for one in compiler._cache.values())), "not before"
    assert [len(result_of(g)) for g in chain] == [1, 1]
    assert engine.get_server_info()["late_steps"] == 0
    sequence.close()


def test_who_waits_for_the_end_is_woken_once_and_who_follows_more_often(
    engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.worker, "_step_seconds", 0.002)

    async def main() -> tuple[int, int]:
        loop, woken = asyncio.get_running_loop(), 0
        wake = loop.call_soon_threadsafe

        def counted(*args: Any, **options: Any) -> Any:
            nonlocal woken
            woken += 1
            return wake(*args, **options)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        sequence = open_ids(engine)
        await sequence.generate({**PLAIN, "max_new_tokens": 20}).wait()
        once, events = woken, 0
        async for _ in sequence.generate({**PLAIN, "max_new_tokens": 20}):
            events += 1
        sequence.close()
        return once, events

    once, events = asyncio.run(main())
    assert once == 1 and events > 3


# --- chained or not, the same -------------------------------------------------------------------------------------

KINDS: list[dict[str, Any]] = [
    PLAIN,
    {"max_new_tokens": 9},
    {"max_new_tokens": 0},
    {"max_new_tokens": 7, "n": 3},
    {"max_new_tokens": 30, "stop_token_ids": [41, 43], "ignore_eos": True},
    {"max_new_tokens": 30, "stop": ["a", "e"], "ignore_eos": True},
    {"max_new_tokens": 30, "stop_regex": "[a-e]", "ignore_eos": True},
    {"max_new_tokens": 30, "stop": ["g"], "no_stop_trim": True},
    {"max_new_tokens": 8, "regex": "(yes|no), sir"},
    {"max_new_tokens": 40, "json_schema": '{"enum": ["alpha", "beta", "gamma"]}'},
    {"max_new_tokens": 6, "temperature": 0.7, "seed": 3, "frequency_penalty": 0.5},
]
REFUSED = {"max_new_tokens": 100_000}


def draw_calls(rng: random.Random) -> list[tuple[list[int], dict[str, Any], dict[str, Any]]]:
    """Literals with what is generated after each; now and then one that the engine refuses."""
    calls = []
    for _ in range(rng.randrange(2, 8)):
        options = {"return_logprob": True, "logprob_start_len": rng.choice([None, 0])} if rng.random() < 0.2 else {}
        calls.append((some_ids(rng), REFUSED if rng.random() < 0.04 else rng.choice(KINDS), options))
    return calls


def run_single(engine: ScriptedEngine, calls: list[Any]) -> tuple[list[Any], list[int]]:
    sequence, results = open_ids(engine), []
    for ids, params, options in calls:
        sequence.extend(ids)
        results.append(result_of(sequence.generate(params, **options)))
        if results[-1][0] == "RequestRefused":
            break
    sequence.close()
    return results, sequence.token_ids


def run_chained(engine: ScriptedEngine, calls: list[Any], rng: random.Random) -> tuple[list[Any], list[int]]:
    """Some are chained before the first has begun, some while others run, some when all is over."""
    sequence, started = open_ids(engine), []
    engine.worker.gate.clear()
    open_at = rng.randrange(len(calls) + 1)
    for index, (ids, params, options) in enumerate(calls):
        if index == open_at:
            engine.worker.gate.set()
        if index and rng.random() < 0.1 and index > open_at:
            result_of(started[-1])
        started.append(sequence.chain(ids, params, **options))
    engine.worker.gate.set()
    results = [result_of(generation) for generation in started]
    sequence.close()
    return results, sequence.token_ids


@pytest.mark.parametrize("first", range(0, 60, 20))
def test_chained_calls_give_what_single_calls_give(engine: ScriptedEngine, first: int) -> None:
    """Texts, ids, ends, counters, the sequence's ids and the sums of the program, over random chains."""
    refused = 0
    for seed in range(first, first + 20):
        rng = random.Random(seed)
        calls = draw_calls(rng)
        engine.rest()
        before = engine.get_server_info()["totals"]
        single, ids = run_single(engine, calls)
        between = engine.rest()["totals"]
        chained, chained_ids = run_chained(engine, calls, rng)
        after = engine.rest()["totals"]
        assert chained[: len(single)] == single, seed
        assert chained_ids == ids, seed
        for late in chained[len(single) :]:
            refused += 1
            assert late[0][2]["type"] == "abort" and "failed: max_new_tokens=100000" in late[0][2]["message"]
        for name in ("prompt_tokens", "cached_tokens", "computed_prompt_tokens", "completion_tokens", "forward_passes"):
            assert after[name] - between[name] == between[name] - before[name], (seed, name)
    assert refused > 0


# --- ends ---------------------------------------------------------------------------------------------------------


def ends(generations: list[Any]) -> list[tuple[str, str]]:
    """How generations ended, and what they say about it."""
    reasons = [g.result(10)["meta_info"]["finish_reason"] for g in generations]
    return [(reason["type"], reason.get("message", "")) for reason in reasons]


def test_what_follows_an_aborted_generation_ends_and_says_why(engine: ScriptedEngine) -> None:
    sequence = open_ids(engine)
    with held(engine):
        chain = [sequence.generate(PLAIN), sequence.chain([50], PLAIN), sequence.chain([51], PLAIN)]
        chain[0].abort()
    assert ends(chain) == [
        ("abort", "aborted by the client"),
        ("abort", "the generation before it in its sequence was aborted: aborted by the client"),
        ("abort", "the generation before it in its sequence was aborted: aborted by the client"),
    ]
    assert sequence.token_ids == PROMPT
    assert len(sequence.generate(PLAIN).result()["output_ids"]) == 5, "it goes on from where it was"
    sequence.close()


def test_a_waiting_generation_can_be_aborted_and_takes_those_behind_it_along(engine: ScriptedEngine) -> None:
    sequence = open_ids(engine)
    with held(engine):
        chain = [sequence.generate(PLAIN), *(sequence.chain([50 + i], PLAIN) for i in range(3))]
        chain[2].abort()
        assert chain[2].finished and chain[3].finished and not chain[1].finished
    found = ends(chain)
    assert [kind for kind, _ in found] == ["length", "length", "abort", "abort"]
    assert found[2][1] == "aborted by the client" and "a generation before it" in found[3][1]
    output = [g.result()["output_ids"] for g in chain[:2]]
    assert sequence.token_ids == [*PROMPT, *output[0], 50, *output[1]]
    sequence.close()


def test_what_is_chained_after_a_failure_fails_too_until_somebody_goes_on(engine: ScriptedEngine) -> None:
    """Whether it was chained before the failure or after is a matter of microseconds, and must not matter."""
    sequence = open_ids(engine)
    first = sequence.generate(REFUSED)
    with pytest.raises(RequestRefused):
        first.result(10)
    assert "failed: max_new_tokens" in ends([sequence.chain([50], PLAIN)])[0][1]
    for go_on in (lambda: sequence.extend([]), lambda: sequence.rewind(3), lambda: sequence.generate(PLAIN).result()):
        assert ends([sequence.chain([50], PLAIN)])[0][0] == "abort"
        go_on()
        assert ends([sequence.chain([50], PLAIN)])[0][0] == "length"
        aborted = sequence.chain([50], {**PLAIN, "max_new_tokens": 300})
        aborted.abort()
        assert ends([aborted])[0][0] == "abort"
    sequence.close()


def test_a_refusal_is_its_own_and_cancels_what_follows(engine: ScriptedEngine) -> None:
    sequence = open_ids(engine)
    with held(engine):
        chain = [sequence.generate(PLAIN), sequence.chain([50], REFUSED), sequence.chain([51], PLAIN)]
    chain[0].result()
    with pytest.raises(RequestRefused, match="max_new_tokens=100000 with a prompt of 26 tokens"):
        chain[1].result(10)
    assert ends(chain[2:])[0][0] == "abort"
    assert len(sequence) == len(PROMPT) + 5 + 1, "as after extend() and a refused generate()"
    sequence.close()


def test_what_the_length_decides_is_refused_when_the_length_is_known(engine: ScriptedEngine) -> None:
    sequence = open_ids(engine)
    with held(engine):
        first, second = sequence.generate(PLAIN), sequence.chain([50], PLAIN, return_logprob=True, logprob_start_len=99)
    first.result()
    with pytest.raises(RequestRefused, match="logprob_start_len=99 is outside the prompt of 26 tokens"):
        second.result(10)
    sequence.close()


def test_bad_values_are_refused_when_they_are_given(engine: ScriptedEngine) -> None:
    sequence = open_ids(engine)
    with held(engine):
        first = sequence.generate(PLAIN)
        for params, options in (
            ({"top_p": 7}, {}),
            ({"regex": "("}, {}),
            (PLAIN, {"hints": {"nod": "1"}}),
            (PLAIN, {"hints": {"group_size": -1}}),
            (PLAIN, {"priority": "high"}),
        ):
            with pytest.raises((InvalidParameter, RequestRefused)):
                sequence.chain([50], params, **options)
    assert len(first.result()["output_ids"]) == 5 and len(sequence) == len(PROMPT) + 5
    sequence.close()


def test_closing_ends_what_waits_and_lets_what_runs_go_on(engine: ScriptedEngine) -> None:
    sequence = open_ids(engine)
    with held(engine):
        chain = [sequence.generate(PLAIN), sequence.chain([50], PLAIN)]
        sequence.close()
        sequence.close()
    assert ends(chain) == [("length", ""), ("abort", "the sequence was closed")]
    for use in (lambda: sequence.generate(PLAIN), lambda: sequence.chain([1], PLAIN), lambda: sequence.fork(2)):
        with pytest.raises(RuntimeError, match="closed"):
            use()
    assert settles(lambda: engine.get_server_info()["pins"] == 0, 2.0)


def test_the_number_of_waiting_generations_is_bounded(engine: ScriptedEngine, monkeypatch: Any) -> None:
    monkeypatch.setattr(sequences, "MAX_CHAINED", 3)
    sequence = open_ids(engine)
    with held(engine):
        for _ in range(4):
            sequence.chain([50], PLAIN)
        with pytest.raises(RuntimeError, match="3 generations of this sequence wait already"):
            sequence.chain([50], PLAIN)
        sequence.rewind(0)
    sequence.close()


@pytest.mark.parametrize("how", ["shutdown", "a bug"])
def test_nobody_hangs_when_the_engine_ends(folder: Path, how: str) -> None:
    engine = scripted_engine(folder)
    sequence = open_ids(engine)
    with held(engine):
        chain = [sequence.generate(PLAIN), *(sequence.chain([50], PLAIN) for _ in range(3))]
        if how == "a bug":
            engine.client.call(lambda core: setattr(core.scheduler, "update", None))
        else:
            threading.Thread(target=engine.shutdown).start()
            assert settles(lambda: engine.client._closing)
    if how == "a bug":
        with pytest.raises(EngineError, match="the engine's step loop failed"):
            chain[0].result(10)
    else:
        assert chain[0].result(10)["meta_info"]["finish_reason"]["type"] == "abort"
    assert all(kind == "abort" for kind, _ in ends(chain[1:]))
    engine.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        sequence.generate(PLAIN)
    sequence.close()


def test_an_output_that_cannot_be_taken_over_is_the_end_of_the_chain(engine: ScriptedEngine) -> None:
    """Whatever happens there, everybody gets an end."""
    sequence = open_ids(engine)
    with held(engine):
        chain = [sequence.generate(PLAIN), sequence.chain([50], PLAIN)]
        chain[0]._presenters[0].state_ids = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    chain[0].result(10)
    assert ends(chain[1:]) == [
        ("abort", "the generation before it in its sequence could not be followed: division by zero")
    ]
    sequence.close()


# --- taking back --------------------------------------------------------------------------------------------------


def test_a_sequence_is_taken_back_under_everything_that_goes_on(engine: ScriptedEngine) -> None:
    """At once, as if none of it had been: what still comes of it joins nothing."""
    want = result_of(open_ids(engine, [*PROMPT, 44]).generate(PLAIN))[0][:3]
    for wait in (0, 1, 2):
        sequence = open_ids(engine)
        chain = [sequence.generate(PLAIN), sequence.chain([50], PLAIN), sequence.chain([51], PLAIN)]
        for generation in chain[:wait]:
            generation.result()
        sequence.rewind(len(PROMPT))
        sequence.extend([44])
        assert result_of(sequence.generate(PLAIN))[0][:3] == want
        assert sequence.token_ids == [*PROMPT, 44, *want[1]]
        for generation in chain:
            assert generation.result(10)["meta_info"]["finish_reason"]["type"] in ("length", "abort")
        assert sequence.token_ids == [*PROMPT, 44, *want[1]]
        sequence.close()


def test_truncating_waits_for_the_output_and_leaves_what_was_computed_in_the_cache(engine: ScriptedEngine) -> None:
    engine.rest()
    engine.worker.computed.clear()
    sequence = open_ids(engine)
    with held(engine):
        generation = sequence.generate({**PLAIN, "max_new_tokens": 9})
        for use in (lambda: sequence.truncate(3), lambda: sequence.extend([1])):
            with pytest.raises(RuntimeError, match="generating"):
                use()
    generation.result()
    assert generation.num_committed == len(PROMPT) + 9
    for bad in (-1, len(sequence) + 1):
        with pytest.raises(ValueError, match=f"length={bad}: the sequence has 29 tokens"):
            sequence.truncate(bad)
    sequence.truncate(len(PROMPT) + 4)
    assert engine.get_server_info()["pins"] == 1
    again = sequence.generate({**PLAIN, "max_new_tokens": 5}).result()
    assert again["output_ids"] == generation.result()["output_ids"][4:]
    assert again["meta_info"]["cached_tokens"] == len(PROMPT) + 4 - 1, "the last one is replayed, for its logits"
    sequence.close()
    assert settles(lambda: engine.get_server_info()["pins"] == 0, 2.0)
    assert not [count for count in engine.worker.computed.values() if count > 1]
