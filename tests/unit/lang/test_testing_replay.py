"""Recorder and Replay: a recorded program runs again without a model; a changed one is told the first difference."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

import sglite as sgl
from sglite.lang.testing import Fail, Mock, Recorder, Replay, ReplayError, Say
from sglite.lang.testing.differences import common_start, difference
from sglite.lang.testing.recording import Record

CHOICES = ["red", "green", "blue"]


def sampled() -> Mock:
    """A Mock that never says the same twice, as a model at temperature 1."""
    count = itertools.count()

    def answer(request: Any) -> Any:
        if request.choices:
            return dict(zip(request.choices, random.Random(next(count)).sample([-0.5, -1.5, -2.5], 3), strict=True))
        return Say(f"{hashlib.sha256(request.prompt.encode()).hexdigest()[:3]} {next(count)}", meta={"id": next(count)})

    return Mock(answer)


def body(s: Any, rng: random.Random, depth: int) -> None:
    """A random program; branches often ask exactly the same."""
    for _ in range(rng.randrange(1, 4)):
        kind = rng.choice(["lit", "gen", "gen", "select", "several", "fork", "fork", "turn"])
        if kind == "lit":
            s += rng.choice(["a ", "b\n"])
        elif kind == "gen":
            s += sgl.gen(rng.choice("xy"), max_tokens=rng.choice([4, 8]))
        elif kind == "several":
            s += sgl.gen("n", n=2)
        elif kind == "select":
            s += sgl.select("c", CHOICES)
        elif kind == "turn" and depth == 2:
            s += sgl.user(rng.choice(["hi", "ho"]) + sgl.gen("u"))
        elif kind == "fork" and depth:
            seed = rng.randrange(3)
            branches = s.fork(rng.randrange(1, 5))
            for branch in branches:
                body(branch, random.Random(seed), depth - 1)
            branches.join(rng.choice(["gather_variable", "concate_and_append"]))


@sgl.function
def program(s: Any, seed: int, again: str = "") -> None:
    s += f"program {seed}{again}: "
    body(s, random.Random(seed), 2)


def everything(state: Any) -> Any:
    """All that can be read of a run."""
    text = state.text()
    values = {name: (state[name], state.get_meta_info(name)) for name in "xyncu" if name in state}
    return text, state.messages(), values


@pytest.mark.parametrize("stream", [False, True])
def test_random_programs_replay_identically(stream: bool) -> None:
    asked = 0
    for seed in range(60):
        recorder = Recorder(sampled())
        live = program.run(seed, backend=recorder, stream=stream)
        pieces = list(live.text_iter()) if stream else None
        with Replay(recorder.dump()) as replay:
            again = program.run(seed, backend=replay, stream=stream)
            assert everything(again) == everything(live)
            if stream:
                assert "".join(again.text_iter()) == "".join(pieces or [])
        asked += len(recorder.dump()["requests"])
    assert asked > 200, "the programs ask too little to tell"


def test_a_batch_replays_row_by_row(tmp_path: Path) -> None:
    recorder = Recorder(sampled())
    rows = [(seed,) for seed in range(20)]
    live = program.run_batch(rows, backend=recorder)
    recorder.save(tmp_path / "run.json")
    with Replay(tmp_path / "run.json") as replay:
        again = program.run_batch(list(reversed(rows)), backend=replay)
    assert [everything(state) for state in reversed(again)] == [everything(state) for state in live]


def test_branches_that_ask_the_same_get_their_own_answers_in_any_order() -> None:
    """The recorded order of arrival is turned round; places in the program decide."""

    @sgl.function
    def f(s: Any) -> None:
        branches = s.fork(3)
        branches += "same" + sgl.gen("v")
        branches.join()

    recorder = Recorder(sampled())
    live = f.run(backend=recorder)["v"]
    data = recorder.dump()
    data["requests"].reverse()
    assert f.run(backend=Replay(data))["v"] == live and len(set(live)) == 3


def test_one_place_that_asks_the_same_again_gets_the_answers_in_order() -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "n=" + sgl.gen("n", check=lambda v: v == "9", retries=3)

    recorder = Recorder(Mock({"n": ["1", "2", "9"]}))
    live = f.run(backend=recorder)
    with Replay(recorder.dump()) as replay:
        again = f.run(backend=replay)
        assert again["n"] == live["n"] == "9" and again.text() == live.text()


def test_streams_replay_chunk_by_chunk_also_when_they_were_not_streamed() -> None:
    f = sgl.function(lambda s: s.__iadd__(sgl.gen("v")))
    recorders = Recorder(Mock({"v": "one two three"})), Recorder(Mock({"v": "one two three"}), chunks=False)
    f.run(backend=recorders[0], stream=True).sync()
    f.run(backend=recorders[1]).sync()

    async def chunks(backend: Any) -> list[tuple[str, int]]:
        state = f.run(backend=backend, stream=True)
        pieces = state.text_async_iter("v", return_meta_data=True)
        return [(text, meta.get("completion_tokens")) async for text, meta in pieces]

    assert asyncio.run(chunks(Replay(recorders[0].dump()))) == [("one", 1), (" two", 2), (" three", 3)]
    assert [text for text, _ in asyncio.run(chunks(Replay(recorders[1].dump())))] == ["one", " two", " three"]


def test_failures_fail_again() -> None:
    f = sgl.function(lambda s: s.__iadd__("p" + sgl.gen("v")))
    for error, kind in [("overloaded", sgl.BackendError), (ValueError("bad top_p"), ValueError)]:
        recorder = Recorder(Mock({"v": Fail(error)}))  # type: ignore[arg-type]
        live = f.run(backend=recorder).error()
        with Replay(recorder.dump()) as replay:
            again = f.run(backend=replay).error()
        assert str(again) == str(live) and isinstance(again.__cause__, kind)


def test_a_stream_that_fails_half_way_does_so_again() -> None:
    f = sgl.function(lambda s: s.__iadd__(sgl.gen("v")))
    recorder = Recorder(Mock({"v": Fail("gone", after="one two")}))
    f.run(backend=recorder, stream=True).sync()
    state = f.run(backend=Replay(recorder.dump()), stream=True)
    assert "".join(state.text_iter("v")) == "one two" and "gone" in str(state.error())


def test_a_request_that_was_given_up_has_no_answer() -> None:
    f = sgl.function(lambda s: s.__iadd__("p" + sgl.gen("v")))
    recorder = Recorder(Mock({"v": "late"}, delay_s=60))
    state = f.run(backend=recorder)
    data = recorder.dump(timeout_s=0.05)
    state.cancel()
    with Replay(data) as replay, pytest.raises(sgl.VariableError, match="given up before it had an answer"):
        f.run(backend=replay)["v"]
    Replay(data).done()  # nothing that has to be asked for


# --- changed programs ---


@sgl.function
def changing(s: Any, words: str, name: str = "b", heat: float = 0.0) -> None:
    s += "The quick brown fox " + words + " over the lazy dog, and then: " + sgl.gen("a", temperature=heat)
    s += "|" + sgl.gen(name)


def recorded() -> dict[str, Any]:
    recorder = Recorder(Mock({"a": "yes", "b": "no"}))
    changing.run("jumps", backend=recorder).sync()
    return recorder.dump()


def placeless(message: object) -> str:
    """A message without the places of requests."""
    return re.sub(r" at \d+/\d+", "", str(message))


def test_a_changed_prompt_is_shown_where_it_changed() -> None:
    replay = Replay(recorded())
    error = changing.run("leaps", backend=replay).error()
    assert isinstance(error.__cause__, ReplayError) and str(error.__cause__) == replay.difference
    assert placeless(replay.difference) == (
        "gen 'a' was not recorded; nearest is request 0, gen 'a'; the prompts differ at character 20: "
        "recorded 'The quick brown fox jumps over the lazy dog, and t'..., "
        "now 'The quick brown fox leaps over the lazy dog, and t'..."
    )
    changing.run("walks", backend=replay).sync()
    assert str(error.__cause__) == replay.difference, "the first one stays"
    with pytest.raises(AssertionError, match=r"first difference: gen 'a'.*; recorded, but not asked for: request 0, "):
        replay.done()


def test_a_changed_parameter_is_named_with_both_values() -> None:
    error = changing.run("jumps", heat=0.5, backend=Replay(recorded())).error()
    assert placeless(error).endswith("nearest is request 0, gen 'a'; temperature: recorded 0.0, now 0.5")
    error = changing.run("jumps", max_new_tokens=3, backend=Replay(recorded())).error()
    assert str(error).endswith("; max_new_tokens: recorded None, now 3")


def test_a_changed_name_is_named() -> None:
    error = changing.run("jumps", name="z", backend=Replay(recorded())).error()
    difference = "gen 'z' was not recorded; nearest is request 1, gen 'b'; the name: recorded 'b', now 'z'"
    assert difference in placeless(error)


def test_changed_choices_and_another_kind_of_request_are_named() -> None:
    @sgl.function
    def f(s: Any, choices: list[str] | None) -> None:
        s += "x" + (sgl.select("c", choices) if choices else sgl.gen("c"))

    recorder = Recorder(Mock({"c": "a"}))
    f.run(["a", "b"], backend=recorder).sync()
    error = f.run(["a", "z"], backend=Replay(recorder.dump())).error()
    assert "choices: recorded ['a', 'b'], now ['a', 'z']" in str(error)
    error = f.run(None, backend=Replay(recorder.dump())).error()
    assert "the kind of request: recorded select, now gen" in str(error)


def test_asking_more_often_than_recorded_is_told_and_less_often_too() -> None:
    data = recorded()
    replay = Replay(data)
    changing.run("jumps", backend=replay).sync()
    assert "was recorded once and is asked for once more" in str(changing.run("jumps", backend=replay).error())
    with pytest.raises(AssertionError) as caught:
        replay.done()
    assert placeless(caught.value).startswith("first difference: gen 'a' was recorded once")
    with pytest.raises(AssertionError) as caught, Replay(data):
        pass
    assert placeless(caught.value) == "recorded, but not asked for: request 0, gen 'a', request 1, gen 'b'"
    assert "the recording has no requests" in str(changing.run("x", backend=Replay({**data, "requests": []})).error())


def test_a_program_that_differs_everywhere_still_shows_its_first_difference() -> None:
    replay = Replay(recorded())
    errors = [str(state.error()) for state in changing.run_batch([(str(i),) for i in range(40)], backend=replay)]
    told = [f"the first difference was: {replay.difference}" in error for error in errors]
    assert sum(told) == 20 and all("nearest is" in error for error in errors)


def test_seeds_and_places_matter_only_where_it_is_strict() -> None:
    data = recorded()
    assert changing.run("jumps", backend=Replay(data), seed=3).error() is None
    assert "seed: recorded None, now" in str(changing.run("jumps", backend=Replay(data, strict=True), seed=3).error())
    assert changing.run("jumps", backend=Replay(data, strict=True)).error() is None
    for request in data["requests"]:
        request["node"] = "7/7"
    assert changing.run("jumps", backend=Replay(data)).error() is None
    error = changing.run("jumps", backend=Replay(data, strict=True)).error()
    assert "its place: recorded '7/7', now '" in str(error)


def test_the_nearest_record_is_that_of_the_place_then_of_the_name_then_of_the_text() -> None:
    def nearest(asked: Record, *records: Record) -> int:
        return next(
            i
            for i in range(len(records))
            if f"nearest is request {i}," in difference(asked, records, set(), strict=False)
        )

    here = Record(kind="gen", name="a", prompt="abcd", node="0/1")
    place = Record(kind="gen", name="z", prompt="x", node="0/1")
    name = Record(kind="gen", name="a", prompt="x", node="0/2")
    text = Record(kind="gen", name="z", prompt="abcx", node="0/2")
    other = Record(kind="select", name="a", prompt="x", node="0/2")
    for records in itertools.permutations([place, text, Record(kind="gen", name="z", prompt="ab", node="0/2")]):
        assert records[nearest(here, *records)] is place
        assert records[nearest(Record(kind="gen", name="z", prompt="abcd"), *records)] is text
    assert nearest(here, text, name) == 1 == nearest(here, other, name)


def test_common_start_is_where_texts_part() -> None:
    rng = random.Random(0)
    for _ in range(300):
        a, b = ("".join(rng.choice("ab") for _ in range(rng.randrange(8))) for _ in range(2))
        n = common_start(a, b)
        assert a[:n] == b[:n] and a[n : n + 1] + b[n : n + 1] in ("", a[n:], b[n:], *"ab", "ab", "ba")
        assert n == min(len(a), len(b)) or a[n] != b[n]


@pytest.fixture(scope="module")
def engine() -> Any:
    with sgl.Engine(random_seed=0) as engine:
        yield engine


@pytest.mark.parametrize("stream", [False, True])
def test_programs_on_an_engine_replay_identically(engine: Any, stream: bool) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += sgl.user("Name a colour.") + sgl.assistant(sgl.gen("u", max_tokens=6))
        branches = s.fork(3)
        branches += " It is" + sgl.gen("x", max_tokens=4) + sgl.select("c", [" red", " blue"])
        branches.join("gather_variable")
        s += "Again: " + sgl.gen("n", n=2, max_tokens=3) + sgl.gen("y", regex="[a-c]{2}", return_logprob=True)

    recorder = Recorder(engine)
    live = f.run(backend=recorder, stream=stream)
    expected = everything(live)
    with Replay(json.loads(json.dumps(recorder.dump()))) as replay:
        again = f.run(backend=replay, stream=stream)
        assert everything(again) == expected
    assert len(expected[2]["x"][0]) == 3 and live.get_meta_info("u")["completion_tokens"] > 0
