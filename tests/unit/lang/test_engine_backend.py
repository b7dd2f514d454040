"""The language on an engine, told by a small stand-in: when text becomes tokens, and what is shared."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

import sglite as sgl

BOS = 1


class PairTokenizer:
    """One token per character, but ``ab`` is a single one, so that boundaries matter."""

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def encode(self, text: str, *, add_bos: bool = False) -> list[int]:
        self.encoded.append(text)
        ids = [BOS] if add_bos else []
        i = 0
        while i < len(text):
            pair = text[i : i + 2] == "ab"
            ids.append(2 if pair else ord(text[i]))
            i += 2 if pair else 1
        return ids


class StubGeneration:
    """``begin``: called before anything comes of it; ``on_done``: when it has ended, gives the sequence's length."""

    def __init__(self, events: list[Any], begin: Any = None, on_done: Any = None, hang: bool = False) -> None:
        self.events, self.begin, self.on_done, self.hang, self.aborted = events, begin, on_done, hang, False
        self.num_committed: int | None = None

    async def __aiter__(self) -> AsyncIterator[Any]:
        for event in self.events:
            yield event
        self.finish()

    async def wait(self) -> Any:
        if self.hang:
            await asyncio.sleep(60)
        self.finish()
        return self.events[-1]

    def finish(self) -> None:
        if self.on_done and self.num_committed is None:
            if self.begin:
                self.begin()
            self.num_committed = self.on_done()

    def abort(self) -> None:
        self.aborted = True


class StubSequence:
    def __init__(self, engine: StubEngine, token_ids: Sequence[int]) -> None:
        self.engine, self.token_ids, self.closed = engine, list(token_ids), False
        engine.sequences.append(self)

    def extend(self, token_ids: Sequence[int]) -> int:
        self.token_ids += token_ids
        return len(self.token_ids)

    def rewind(self, length: int) -> None:
        del self.token_ids[length:]
        for generation in self.engine.generations:
            generation.aborted |= generation.num_committed is None

    def generate(
        self, sampling_params: dict[str, Any], *, stream: bool = False, hints: Any = None, **options: Any
    ) -> StubGeneration:
        if sampling_params.get("top_p") == 7.0:
            raise ValueError("top_p: must be in (0, 1], got 7.0")
        self.engine.requests.append((list(self.token_ids), sampling_params, options))
        return self.answer(sampling_params, None, hints)

    def chain(
        self, token_ids: list[int], sampling_params: dict[str, Any], *, stream: bool = False, **options: Any
    ) -> StubGeneration:
        before, hints = self.engine.generations[-1], options.pop("hints", None)

        def begin() -> None:
            before.finish()
            self.extend(token_ids)
            self.engine.requests.append((list(self.token_ids), sampling_params, options))

        self.engine.chained += 1
        return self.answer(sampling_params, begin, hints)

    def answer(self, sampling_params: dict[str, Any], begin: Any, hints: Any) -> StubGeneration:
        output = [ord("o"), ord("k")] if sampling_params.get("max_new_tokens") else []
        events: list[Any] = [{"text": "ok"[:i], "meta_info": {}} for i in (1, 2)]
        if (n := sampling_params.get("n") or 1) > 1:
            events = [[{"text": f"ok{i or ''}", "meta_info": {}} for i in range(n)]]
        generation = StubGeneration(events, begin, lambda: self.extend(output), self.engine.hang)
        self.engine.generations.append(generation)
        self.engine.hints.append(hints)
        return generation

    def park(self, expected_s: float | None = None) -> None:
        self.engine.parked.append(expected_s)

    def score(self, continuations: list[list[int]], *, hints: Any = None) -> list[StubGeneration]:
        self.engine.hints.append(hints)
        self.engine.scored.append((list(self.token_ids), continuations))
        rows = [
            [[None if i == 0 and not self.token_ids else -float(t), t, None] for i, t in enumerate(ids)]
            for ids in continuations
        ]
        return [StubGeneration([{"text": "", "meta_info": {"input_token_logprobs": r}}]) for r in rows]

    def fork(self, n: int) -> list[StubSequence]:
        self.engine.forks.append((list(self.token_ids), n))
        return [StubSequence(self.engine, self.token_ids) for _ in range(n)]

    def close(self) -> None:
        self.closed = True


class StubEngine:
    default_system = None
    chat_template = None

    def __init__(self) -> None:
        self.tokenizer = PairTokenizer()
        self.hang = False
        self.sequences: list[StubSequence] = []
        self.generations: list[StubGeneration] = []
        self.requests: list[Any] = []
        self.scored: list[Any] = []
        self.forks: list[Any] = []
        self.hints: list[Any] = []
        self.parked: list[Any] = []
        self.chained = 0

    def turn(self, role: str, first: bool) -> tuple[str, str]:
        return f"<{role}{'!' if first else ''}>", "</>"

    def open_sequence(self, program_id: str = "", token_ids: Sequence[int] = ()) -> StubSequence:
        return StubSequence(self, token_ids)

    def flush_cache(self) -> bool:
        return True

    def get_server_info(self) -> dict[str, Any]:
        return {"model": "stub"}


@pytest.fixture
def engine() -> StubEngine:
    return StubEngine()


def ids(text: str) -> list[int]:
    return PairTokenizer().encode(text)


def test_literals_are_encoded_together_once_and_outputs_are_never_encoded(engine: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "xa"
        s += "b" + sgl.gen("v", max_tokens=2) + "ca"
        s += "b" + sgl.gen("w", max_tokens=2)

    assert f.run(backend=engine).text() == "xabokcabok"
    assert engine.tokenizer.encoded == ["xab", "cab"]
    assert [r[0] for r in engine.requests] == [[BOS, ord("x"), 2], [BOS, ord("x"), 2, *ids("ok"), ord("c"), 2]]


def test_a_fork_is_a_hard_boundary_and_shares_the_committed_tokens(engine: Any) -> None:
    @sgl.function
    def f(s: Any) -> Any:
        s += "xa"
        group = s.fork(2)
        group += "b" + sgl.gen("v", max_tokens=2)
        return group

    state = f.run(backend=engine)
    assert [branch.text() for branch in state.ret_value] == ["xabok"] * 2
    assert engine.forks == [([BOS, *ids("xa")], 2)]
    assert [r[0] for r in engine.requests] == [[BOS, ord("x"), ord("a"), ord("b")]] * 2


def test_every_sequence_is_closed_at_the_end(engine: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "p" + sgl.select("c", ["a", "b"]) + sgl.separate_reasoning(sgl.gen("v"), "qwen3")
        s.fork(2)

    f.run(backend=engine).run.finished.result(5)
    assert len(engine.sequences) == 4 and all(sequence.closed for sequence in engine.sequences)


def test_select_scores_each_choice_as_it_would_be_encoded_in_place(engine: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "xa" + sgl.select("c", ["b", "cc"]) + "." + sgl.gen("v", max_tokens=2)

    state = f.run(backend=engine)
    assert state.text() == "xab.ok" and state["c"] == "b"  # mean of -2 against mean of -(97 + 99 + 99) / 3
    assert engine.scored == [([BOS, ord("x")], [[2], ids("acc")])]
    assert engine.requests[0][0] == [BOS, ord("x"), 2, ord(".")], "the choice is encoded with its neighbours"


def test_unconditional_scores_start_from_an_empty_sequence(engine: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "x" + sgl.select("c", ["b", "c"], choices_method=sgl.unconditional_likelihood_normalized)

    state = f.run(backend=engine)
    assert state.get_meta_info("c")["normalized_unconditional_prompt_logprobs"] == [0.0, 0.0]
    assert engine.scored == [([BOS, ord("x")], [ids("b"), ids("c")]), ([BOS], [ids("b"), ids("c")])]


def test_turns_are_the_engines(engine: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += sgl.user("a") + sgl.assistant("b")

    assert f.run(backend=engine).text() == "<user!>a</><assistant>b</>"


def test_streamed_events_become_pieces_and_lists_become_n_outputs(engine: Any) -> None:
    @sgl.function
    def f(s: Any, n: int) -> None:
        s += "p" + sgl.gen("v", n=n, max_tokens=2, return_logprob=True)

    state = f.run(1, backend=engine, stream=True)
    assert list(state.text_iter("v")) == ["o", "k"]
    for stream in (False, True):
        assert f.run(2, backend=engine, stream=stream)["v"] == ["ok", "ok1"]
    assert engine.requests[0][2] == {"return_logprob": True}


def test_a_refused_parameter_is_reported_with_its_name(engine: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "p" + sgl.gen("v", top_p=7.0)

    error = f.run(backend=engine).error()
    assert isinstance(error.__cause__, ValueError) and "top_p: must be in (0, 1]" in str(error)


def test_cancelling_a_run_aborts_its_request(engine: Any) -> None:
    engine.hang = True
    waiting = threading.Event()

    @sgl.function
    def f(s: Any) -> None:
        s += "p" + sgl.gen("v")

    state = f.run(backend=engine)
    while not engine.generations:
        waiting.wait(0.002)
    time.sleep(0.02)
    state.cancel()
    state.run.finished.result(5)
    assert engine.generations[0].aborted


def test_cache_flush_and_info_go_to_the_engine(engine: Any) -> None:
    @sgl.function
    def f(s: Any, q: str) -> None:
        s += "xab" + q  # type: ignore[operator]

    f.cache(backend=engine)
    # the last token, "ab", is left out: with what follows it may become another one
    assert engine.requests == [([BOS, ord("x")], {"max_new_tokens": 0, "temperature": 0.0}, {})]
    assert sgl.flush_cache(engine) is True and sgl.get_server_info(engine) == {"model": "stub"}


def test_long_literals_are_encoded_beside_the_loop(engine: Any) -> None:
    where = []
    encode = engine.tokenizer.encode
    engine.tokenizer.encode = lambda *a, **k: where.append(threading.current_thread().name) or encode(*a, **k)

    @sgl.function
    def f(s: Any, text: str) -> None:
        s += text + sgl.gen("v", max_tokens=2)

    f.run("x", backend=engine).sync()
    f.run("x" * 30_000, backend=engine).sync()
    assert where[0] == "sglite-programs" != where[1]
