"""A stream on a real engine whose steps are scripted: what was foretold is handed over, or never was."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import request_cost
from sequence_engines import ScriptedEngine, held, scripted_engine, text_folder
from tiny_engines import settles

from sglite.lang.backends import engine_stream
from sglite.lang.backends.base import GenCall, Hints
from sglite.lang.backends.engine import EngineBackend
from sglite.lang.backends.engine_stream import EngineStream
from sglite.lang.ir import REST_OF_CONTEXT, Sampling
from sglite.lang.messages import ToolSpec


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_folder(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module", params=[True, False], ids=["overlap", "sync"])
def engine(folder: Path, request: pytest.FixtureRequest) -> Iterator[ScriptedEngine]:
    with scripted_engine(folder, disable_overlap_schedule=not request.param) as engine:
        yield engine


def call(tokens: int = 5, **sampling: Any) -> GenCall:
    return GenCall(name=None, sampling=Sampling(max_new_tokens=tokens, ignore_eos=True, **sampling))


def opened(engine: ScriptedEngine) -> EngineStream:
    stream = EngineBackend(engine).open("program")
    assert isinstance(stream, EngineStream)
    return stream


async def taken(stream: EngineStream, asked: GenCall, text: str = "") -> list[str]:
    """The texts of a request after ``text``."""
    stream.append(text)
    texts: list[str] = []
    async for outputs in stream.generate(asked):
        texts = [output.text for output in outputs]
    return texts


def ids_of(stream: EngineStream) -> list[int]:
    return list(stream._sequence.token_ids)


def test_a_foretold_chain_runs_without_its_program(engine: ScriptedEngine) -> None:
    """The loop stands still, and the engine is through with it: k * t steps, nothing asked for anew."""

    async def main() -> tuple[list[Any], list[int], int, int]:
        stream = opened(engine)
        stream.append("once")
        for text in ("two", "", "three"):
            stream.prepare(text, call())
        before = engine.num_steps
        texts = [await taken(stream, call())]
        steps = engine.num_steps - before  # blocks until the engine rests
        handed = [told.generation for told in stream._foretold]
        assert len(handed) == 3
        assert settles(lambda: all(generation.finished for generation in handed))  # type: ignore[union-attr]
        texts += [await taken(stream, call(), text) for text in ("two", "", "three")]
        await stream.aclose()
        return texts, ids_of(stream), steps, engine.num_steps - before

    async def single() -> tuple[list[Any], list[int]]:
        stream = opened(engine)
        texts = [await taken(stream, call(), text) for text in ("once", "two", "", "three")]
        await stream.aclose()
        return texts, ids_of(stream)

    texts, ids, early, steps = asyncio.run(main())
    assert (texts, ids) == asyncio.run(single())
    assert early == steps == 4 * 5


@pytest.mark.parametrize("streamed", [False, True])
def test_another_text_or_call_is_as_if_nothing_had_been_foretold(engine: ScriptedEngine, streamed: bool) -> None:
    async def run(foretold: bool, text: str, asked: GenCall, wait: bool) -> Any:
        stream = opened(engine)
        if foretold:
            stream.prepare("x", replace(call(7), stream=streamed))
            stream.prepare("y", call(7))
        texts = [await taken(stream, replace(call(), stream=streamed), "begin")]
        while wait and not settles(lambda: not stream._sequence._links):  # type: ignore[attr-defined]
            pass
        texts += [await taken(stream, replace(asked, stream=streamed), text), await taken(stream, call(), "z")]
        found = texts, ids_of(stream)
        await stream.aclose()
        return found

    for text, asked in (("x!", call(7)), ("x", call(6)), ("", call(7)), ("x", call(7, temperature=0.5))):
        for wait in (False, True):
            want = asyncio.run(run(False, text, asked, False))
            assert asyncio.run(run(True, text, asked, wait)) == want
    same = replace(call(7), hints=Hints(node="elsewhere", upcoming=3))
    assert asyncio.run(run(True, "x", same, True)) == asyncio.run(run(False, "x", same, False))


@pytest.mark.parametrize("seeds", [range(15), pytest.param(range(15, 300), marks=pytest.mark.slow)], ids=["", "many"])
def test_random_programs_give_the_same_whatever_is_foretold(engine: ScriptedEngine, seeds: range) -> None:
    """Right guesses and wrong ones, at any moment; marks, retries, forks, scores, readers that go away, refusals."""
    for seed in seeds:
        want = asyncio.run(play(engine, seed, foretell=False))
        assert asyncio.run(play(engine, seed, foretell=True)) == want, seed
    assert engine.get_server_info()["open_sequences"] == 0


TEXTS = ["", "a", "then ", "12", '{"x":']
CALLS = [
    call(1), call(4), call(6, n=2), call(20, stop=("e", "3")), call(9, regex="(yes|no), sir"),
    replace(call(5), stream=True), call(20, stop_regex=("[0-9]",)), call(100_000),
]  # fmt: skip


async def play(engine: ScriptedEngine, seed: int, *, foretell: bool) -> list[Any]:
    """A random use of a stream; everything that can be seen of it."""
    rng, guesses = random.Random(seed), random.Random(-seed)
    stream, seen, marks = opened(engine), list[Any](), list[Any]()
    streams = [stream]
    stream.append("p")
    plan = [(rng.choice(TEXTS), rng.choice(CALLS[:7] if rng.random() < 0.95 else CALLS)) for _ in range(12)]
    for place, (text, asked) in enumerate(plan):
        if rng.random() < 0.15:
            marks.append(stream.mark())
        if foretell:
            guess(stream, plan[place + 1 :], guesses)
        if guesses.random() < 0.3:
            await asyncio.sleep(0.002)
        stream.append(text)
        before = stream.mark()
        kind = rng.choice(["gen"] * 8 + ["leave", "score", "fork", "rewind"])
        if kind == "score":
            scores = await stream.score(None, ["a", "bc", "a1"], unconditional=rng.random() < 0.5)
            seen.append((scores.input_token_logprobs, scores.unconditional_token_logprobs))
        elif kind == "fork":
            streams += await stream.fork(2)  # type: ignore[arg-type]
            stream = streams[-rng.choice([1, 2, 3])] if len(streams) > 2 else stream
        elif kind == "rewind" and marks and stream is streams[0]:
            try:
                stream.rewind(rng.choice(marks))
            except ValueError as error:
                seen.append(str(error))
        elif kind == "leave":
            reading = asyncio.ensure_future(taken(stream, asked))
            await asyncio.sleep(0)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            stream.rewind(before)  # what was foretold may have been over before it could be left
        else:
            seen.append(await outcome(stream, asked, guesses if foretell else None, plan[place + 1 :]))
        seen.append((ids_of(stream)[: stream._length], stream._pending, stream._fresh))
    for one in streams:
        await one.aclose()
    return seen


def guess(stream: EngineStream, coming: list[Any], rng: random.Random) -> None:
    for text, asked in coming[: rng.randrange(3)]:
        stream.prepare(text if rng.random() < 0.8 else "?", asked if rng.random() < 0.9 else call(3))


async def outcome(stream: EngineStream, asked: GenCall, guesses: random.Random | None, coming: list[Any]) -> Any:
    texts: list[str] = []
    try:
        async for outputs in stream.generate(asked):
            texts = [output.text for output in outputs]
            if guesses is not None and guesses.random() < 0.5:
                guess(stream, coming, guesses)
    except ValueError as error:
        return str(error)
    return texts


def test_a_place_that_was_taken_back_itself_is_no_place_any_more(engine: ScriptedEngine) -> None:
    async def main() -> None:
        stream = opened(engine)
        await taken(stream, call(), "a")
        early = stream.mark()
        want = (await taken(stream, call(), "b"))[0]
        late = stream.mark()
        for _ in range(2):
            stream.rewind(late)
            stream.rewind(early)
            with pytest.raises(ValueError, match="taken back itself"):
                stream.rewind(late)
            assert (await taken(stream, call(), "b"))[0] == want
            late = stream.mark()
        await stream.aclose()

    asyncio.run(main())


def test_a_refused_request_says_so_in_its_turn(engine: ScriptedEngine) -> None:
    """One that cannot even be begun, and one that the engine refuses; what follows is not begun, or dropped."""

    async def main(bad: GenCall) -> str:
        stream = opened(engine)
        stream.prepare("x", bad)
        stream.prepare("y", call())
        await taken(stream, call(), "begin")
        with pytest.raises(ValueError) as caught:
            await taken(stream, bad, "x")
        assert len((await taken(stream, call(), "y"))[0]) == 5
        await stream.aclose()
        return str(caught.value)

    assert "top_p" in asyncio.run(main(call(top_p=7.0)))
    assert "max_new_tokens=100000" in asyncio.run(main(call(100_000)))


def test_long_text_and_what_follows_it_wait_for_their_turn(engine: ScriptedEngine, monkeypatch: Any) -> None:
    monkeypatch.setattr(engine_stream, "_LONG_TEXT", 20)

    async def main() -> None:
        stream, long = opened(engine), "x" * 21
        for text in ("short", long, "after"):
            stream.prepare(text, call())
        await taken(stream, call(), "begin")
        assert [told.generation is not None for told in stream._foretold] == [True, False, False]
        await taken(stream, call(), "short")
        await taken(stream, call(), long)
        assert [told.generation is not None for told in stream._foretold] == [True]
        await taken(stream, call(), "after")
        assert not stream._foretold
        await stream.aclose()

    asyncio.run(main())


def test_a_reader_that_goes_away_ends_what_was_foretold(engine: ScriptedEngine) -> None:
    async def main() -> None:
        stream = opened(engine)
        with held(engine):
            stream.prepare("x", call(300))
            reading = asyncio.ensure_future(taken(stream, call(300), "begin"))
            await asyncio.sleep(0.01)
            foretold = stream._foretold[0].generation
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            assert foretold is not None and foretold.finished  # type: ignore[attr-defined]
        assert ids_of(stream) == engine.tokenizer.encode("begin", add_bos=True)  # type: ignore[union-attr]
        assert (await taken(stream, call(), ""))[0]
        await stream.aclose()

    before = engine.get_server_info()["totals"]["completion_tokens"]
    asyncio.run(main())
    engine.rest()
    assert engine.get_server_info()["totals"]["completion_tokens"] - before < 20


def test_hints_are_a_matter_of_bounds(engine: ScriptedEngine, monkeypatch: Any) -> None:
    """More than it keeps: the rest comes in its turn."""
    monkeypatch.setattr(engine_stream, "_MAX_FORETOLD", 2)

    async def main() -> None:
        stream = opened(engine)
        for text in "abcd":
            stream.prepare(text, call())
        assert len(stream._foretold) == 2
        texts = [(await taken(stream, call(), text))[0] for text in "-abcd"]
        assert len(texts) == 5 and not stream._foretold
        await stream.aclose()

    asyncio.run(main())


def test_hints_and_parking_reach_the_sequence(engine: ScriptedEngine, monkeypatch: Any) -> None:
    asked: list[Any] = []
    sequence = type(engine.open_sequence())
    for name in ("generate", "chain", "score", "park"):
        plain = getattr(sequence, name)

        def spy(self: Any, *args: Any, name: str = name, plain: Any = plain, **options: Any) -> Any:
            asked.append((name, options.get("hints"), *args[:1]) if name == "park" else (name, options.get("hints")))
            return plain(self, *args, **options)

        monkeypatch.setattr(sequence, name, spy)
    monkeypatch.setattr(type(engine), "park", lambda *_: None)

    async def main() -> None:
        stream, first = opened(engine), Hints(node="1/2", group="0/1", group_size=3, upcoming=1)
        stream.prepare("x", replace(call(), hints=replace(first, node="1/3")))
        await taken(stream, replace(call(), hints=first), "begin")
        await stream.score(None, ["a", "b"], unconditional=False, hints=replace(first, node="1/4"))
        stream.park(0.5)
        await stream.aclose()

    asyncio.run(main())
    grouped = {"node": "1/2", "group": "0/1", "group_size": 3, "upcoming": 1}
    assert asked == [
        ("generate", grouped),
        ("chain", {**grouped, "node": "1/3", "group": "", "group_size": 1}),
        ("score", {**grouped, "node": "1/4"}),
        ("park", None, 0.5),
    ]


def test_scores_with_and_without_the_prompt_are_one_step_each_at_most(engine: ScriptedEngine) -> None:
    async def main() -> Any:
        stream = opened(engine)
        stream.append("abcd")  # a page
        scores = await stream.score(None, ["x", "yz", "zz"], unconditional=True)
        await stream.aclose()
        return scores

    engine.rest()
    engine.worker.computed.clear()
    before = engine.num_steps
    scores = asyncio.run(main())
    assert engine.num_steps - before <= 2 and max(engine.worker.computed.values()) == 1
    assert scores.unconditional_token_logprobs is not None and len(scores.unconditional_token_logprobs) == 3


def test_every_sampling_field_arrives(engine: ScriptedEngine) -> None:
    """Those that the scripted worker has no use for are at least known to the engine, by name and type."""
    fields: list[dict[str, Any]] = [
        {"ebnf": 'root ::= "yes" | "no"'},
        {"structural_tag": '{"type": "structural_tag", "format": {"type": "const_string", "value": "yes"}}'},
        {"json_schema": '{"enum": ["yes"]}', "on_limit": "close"},
        {"seed": 7, "temperature": 0.5},
        {"repetition_penalty": 1.2, "min_p": 0.1, "top_k": 3, "min_new_tokens": 2},
        {"stop_token_ids": (41,)},
    ]

    async def main() -> list[Any]:
        found = []
        for given in fields:
            stream = opened(engine)
            found.append((await taken(stream, call(20, **given), "abc"))[0])
            await stream.aclose()
        return found

    texts = asyncio.run(main())
    assert texts[0] in ("yes", "no") and texts[1:3] == ["yes", '"yes"']


def test_the_rest_of_the_context_is_an_explicit_none(engine: ScriptedEngine) -> None:
    async def main() -> int:
        stream = opened(engine)
        await taken(stream, call(REST_OF_CONTEXT), "abc")
        await stream.aclose()
        return stream._length

    assert asyncio.run(main()) == 512


def test_prompts_of_conversations_are_the_templates(engine: ScriptedEngine) -> None:
    backend = EngineBackend(engine)
    template = engine.chat_template
    assert template is not None
    messages = [{"role": "user", "content": "hi"}]
    assert backend.render(messages, ()) == template.render(messages, add_generation_prompt=True)
    tool = ToolSpec("f", "does f", {"type": "object", "properties": {}})
    want = template.render(messages, tools=[tool.to_dict()], add_generation_prompt=True)
    assert backend.render(messages, (tool,)) == want
    assert backend.token_count("hi there") == len(engine.tokenizer.encode("hi there"))  # type: ignore[union-attr]
    engine.chat_template = None
    try:
        assert backend.render(messages, ()) is None
    finally:
        engine.chat_template = template


def test_what_a_request_costs_the_programs_loop(folder: Path) -> None:
    """Half of them take less than 0.3 ms of its thread's time, however long the sequence is."""
    command = [sys.executable, str(Path(request_cost.__file__)), str(folder), "20", "8000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    short, long = map(float, done.stdout.split())
    assert max(short, long) < 0.0003


def test_text_that_cannot_be_encoded_fails_its_own_request_and_not_the_one_before(engine: ScriptedEngine) -> None:
    async def main() -> None:
        stream = opened(engine)
        stream.append("ok")
        stream.prepare("\ud800", call())
        assert len(await taken(stream, call())) > 0
        with pytest.raises(ValueError, match="surrogate"):
            await taken(stream, call(), "\ud800")
        await stream.aclose()

    asyncio.run(main())
