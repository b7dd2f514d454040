"""What ``explain()`` says of graphs whose costs can be worked out by hand, and its advice."""

from __future__ import annotations

from typing import Any

import pytest

from sglite.lang.choices import token_length_normalized, unconditional_likelihood_normalized
from sglite.lang.explain import Explanation
from sglite.lang.explain_tokens import Tokens
from sglite.lang.formats import named_format
from sglite.lang.graph import ProgramGraph
from sglite.lang.ir import (
    Arg,
    CaptureBegin,
    CaptureEnd,
    Checkpoint,
    Computed,
    Dynamic,
    Fork,
    Gen,
    Graph,
    Join,
    Lit,
    NodeRecord,
    Reasoned,
    RoleBegin,
    RoleEnd,
    Rollback,
    Sampling,
    Select,
    VarRef,
)


def letters(text: str, add_bos: bool = False) -> list[int]:
    """One token a character, after a token that begins the sequence."""
    return [-1] * add_bos + [ord(char) for char in text]


class Sketch:
    """Writes a graph by hand: each call appends a node to a stream, and returns its id."""

    def __init__(self) -> None:
        self.graph = Graph("sketch")
        self.last: dict[int, int | None] = {self.graph.new_stream(): None}

    def add(self, op: Any, stream: int = 0, sources: tuple[int, ...] = ()) -> int:
        self.last[stream] = self.graph.add(stream, self.last[stream], op, sources).id
        return self.last[stream]  # type: ignore[return-value]

    def gen(self, name: str, text: str | None = None, stream: int = 0, **meta: Any) -> int:
        node = self.add(Gen(name, Sampling(max_new_tokens=99)), stream)
        if text is not None:
            self.ran(node, text, **meta)
        return node

    def ran(self, node: int, text: str, **meta: Any) -> None:
        given = {
            "completion_tokens": len(text),
            "finish_reason": {"type": "length"},
            **meta,
        }
        self.graph.records[node] = NodeRecord(0.0, 1.0, text, given, [given], token_ids=tuple(letters(text)))

    def fork(self, n: int, stream: int = 0) -> tuple[int, ...]:
        streams = tuple(self.graph.new_stream() for _ in range(n))
        node = self.add(Fork(streams), stream)
        self.last.update(dict.fromkeys(streams, node))
        return streams

    def explain(self, **options: Any) -> Explanation:
        if not options.keys() & {"encode", "count", "backend"}:
            options["encode"] = letters
        return ProgramGraph(self.graph).explain(**options)


def numbers(said: Explanation) -> tuple[int, int, int, int]:
    return said.requests, int(said.prompt_tokens), int(said.computed_tokens), int(said.completion_tokens)


def test_a_gen_computes_its_prompt_once() -> None:
    s = Sketch()
    s.add(Lit("abcd"))
    s.gen("x", "XYZ")
    said = s.explain()
    assert numbers(said) == (1, 5, 5, 3) and said.exact and said.basis == "counted"


def test_the_last_token_of_an_output_is_computed_by_whoever_goes_on() -> None:
    s = Sketch()
    s.add(Lit("abcd"))
    s.gen("x", "XYZ")
    s.add(Lit("ef"))
    s.gen("y", "U")
    assert numbers(s.explain()) == (2, 5 + 10, 5 + 3, 4)  # Z, e and f


def test_a_token_that_ends_an_output_does_not_stay() -> None:
    s = Sketch()
    s.add(Lit("abcd"))
    s.gen("x", "XY", completion_tokens=3, finish_reason={"type": "stop", "matched": 7})
    s.add(Lit("ef"))
    s.gen("y", "U")
    assert numbers(s.explain()) == (2, 5 + 9, 5 + 2, 4)  # X and Y were computed on the way to the end


def test_a_fork_computes_its_prefix_once_and_branches_find_it() -> None:
    s = Sketch()
    s.add(Lit("abcd"))
    for i, stream in enumerate(s.fork(3)):
        s.add(Lit(f"{i}ef"), stream)
        s.gen("x", "X", stream)
    said = s.explain()
    assert numbers(said) == (4, 5 + 3 * 8, 5 + 3 * 3, 3) and said.forks == 1 and said.exact
    assert said.shared[0].tokens == 5 and said.shared[0].source == 1 and said.shared[0].saved == 15
    assert said.cached_tokens == 15 and said.critical_path_requests == 1


def test_a_fork_of_what_is_computed_asks_for_nothing() -> None:
    s = Sketch()
    s.add(Lit("abcd"))
    s.gen("x", "XY", completion_tokens=3, finish_reason={"type": "stop", "matched": 7})
    for i, stream in enumerate(s.fork(2)):
        s.add(Lit(str(i)), stream)
        s.gen("y", "Y", stream)
    assert numbers(s.explain()) == (3, 5 + 2 * 8, 5 + 2, 5)


def test_a_choice_is_a_request_and_what_choices_share_is_computed_once() -> None:
    s = Sketch()
    s.add(Lit("abcd"))
    s.ran(s.add(Select("c", ("yes", "you"), token_length_normalized)), "yes", completion_tokens=0)
    s.add(Lit("ef"))
    s.gen("x", "X")
    said = s.explain()
    assert numbers(said) == (3, 8 + 8 + 10, 5 + 3 + 2 + 2, 1) and said.exact
    alone = Sketch()
    alone.add(Lit("abcd"))
    alone.add(Select("c", ("yes", "you"), unconditional_likelihood_normalized))
    assert numbers(alone.explain())[:3] == (4, 8 + 8 + 4 + 4, 5 + 3 + 2 + 3 + 2)  # the first token of all is shared


def test_text_is_encoded_with_its_neighbours_up_to_a_request() -> None:
    """``ab`` is one token where nothing has come between its halves."""

    def pairs(text: str) -> list[int]:
        return [hash(text[i : i + 2]) for i in range(0, len(text), 2)]

    s = Sketch()
    for part in ("a", "b", "c"):
        s.add(Lit(part))
    s.gen("x", "X")
    s.add(Lit("d"))
    s.ran(s.add(Select("c", ("e",), token_length_normalized)), "e", completion_tokens=0)
    s.add(Lit("f"))
    s.gen("y", "Y")
    assert numbers(s.explain(encode=pairs)) == (3, 2 + 4 + 5, 2 + 2 + 1, 2)  # de, then de f: never d, e, f


def test_joined_text_goes_on_behind_the_parent() -> None:
    s = Sketch()
    s.add(Lit("abcd"))
    branches = s.fork(2)
    for i, stream in enumerate(branches):
        s.add(Lit(f"{i}e"), stream)
        s.gen("x", "XX", stream)
    ends = tuple(node for stream in branches if (node := s.last[stream]) is not None)
    s.add(Join("concate_and_append"), sources=ends)
    s.gen("y", "Y")
    said = s.explain()
    assert numbers(said)[:2] == (4, 5 + 7 + 7 + 13)
    assert int(said.computed_tokens) == 5 + 2 + 2 + 5  # 0eX is branch 0's own; its last X, 1, e, X, X are not


def test_what_two_streams_may_write_first_is_told_as_bounds() -> None:
    s = Sketch()
    s.add(Lit("ab"))
    left, right = s.fork(2)
    s.gen("x", "XYZ", left)
    s.add(Lit("XYQ"), right)
    s.gen("y", "W", right)
    said = s.explain()
    assert not said.exact and said.computed_bounds == (3 + 1, 3 + 3)  # X and Y: by whoever is first
    assert "between 4 and 6" in str(said)


def test_reading_first_settles_the_order() -> None:
    s = Sketch()
    s.add(Lit("ab"))
    left, right = s.fork(2)
    x = s.gen("x", "XYZ", left)
    s.graph.reads = [(x, len(s.graph.nodes), 0.5)]  # type: ignore[attr-defined]
    s.add(Lit("XYQ"), right)
    s.gen("y", "W", right)
    said = s.explain()
    assert said.exact and said.computed_tokens == 4 and said.critical_path_requests == 2
    assert any(item.kind == "a read that blocked" and "500 ms" in item.text for item in said.advice)


def test_outputs_whose_ids_nobody_told_may_be_spelled_otherwise() -> None:
    """Text that is appended again behind the same prefix has the ids of the output, or others for the same text."""
    s = Sketch()
    s.add(Lit("ab"))
    (branch,) = s.fork(1)
    x = s.gen("x", "XYZ", branch)
    s.add(VarRef("x", x), sources=(x,))
    s.gen("y", "W")
    assert s.explain().exact and s.explain().computed_tokens == 3 + 1  # X and Y are there, Z is computed
    s.graph.records[x].token_ids = None
    assert not s.explain().exact and s.explain().computed_bounds == (3 + 1, 3 + 3)
    s.graph.records[x].meta["completion_tokens"] = 2  # not the tokens that its text would be encoded to
    assert s.explain().computed_bounds == (3 + 2, 3 + 3)


def test_going_back_keeps_what_was_computed() -> None:
    s = Sketch()
    s.add(Lit("abcd"))
    s.add(Checkpoint(1))
    s.add(Lit("ef"))
    s.gen("x", "X")
    s.add(Rollback(1))
    s.add(Lit("eg"))
    s.gen("y", "Y")
    assert numbers(s.explain()) == (2, 7 + 7, 7 + 1, 2)


def test_attempts_outputs_and_reasoning_are_requests_for_one_prompt() -> None:
    s = Sketch()
    s.add(Lit("abcd"))
    node = s.gen("x", "XY")
    record = s.graph.records[node]
    record.metas, record.attempts = [{"completion_tokens": 5}, record.meta], 2
    s.ran(s.add(Gen("n", Sampling(n=2))), "ZZ")
    several = s.graph.records[s.last[0]]  # type: ignore[index]
    several.meta = several.metas = [several.meta, {"completion_tokens": 1}]
    s.ran(s.add(Reasoned(Gen("r", Sampling()), ("<t>", "</t>"))), "ok", completion_tokens=20)
    s.add(Lit("!"))
    s.gen("y", "Y")
    said = s.explain()
    assert numbers(said) == (6, 5 + 5 + 7 + 7 + 9 + 12, 5 + 1 + 1 + 3, 5 + 2 + 2 + 1 + 20 + 1)


def test_scopes_and_values_are_text_again() -> None:
    s = Sketch()
    s.add(CaptureBegin("all"))
    s.add(Lit("ab"))
    x = s.gen("x", "XY")
    end = s.add(CaptureEnd("all"))
    s.add(VarRef("all", end))
    s.add(VarRef("x", x))
    s.gen("y", "Y")
    assert numbers(s.explain())[:3] == (2, 3 + 11, 3 + 7)  # Y, abXY, XY


def test_turns_are_spelled_as_the_model_wants_them() -> None:
    s = Sketch()
    for op in (RoleBegin("user"), Lit("hi"), RoleEnd("user"), RoleBegin("assistant")):
        s.add(op)
    s.gen("x", "X")
    chat = named_format("qwen")
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    text = f"{system}<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert s.explain(chat_format=chat).prompt_tokens == 1 + len(text)
    assert any("turns are counted as plain text" in note for note in s.explain().notes)


def test_before_a_run_counts_are_known_plus_unknown() -> None:
    s = Sketch()
    s.add(Lit("abcd"))
    s.add(Arg("topic"))
    s.gen("x")
    s.add(Lit("ef"))
    s.add(Computed("len(y)"))
    s.gen("y")
    said = s.explain()
    assert str(said.prompt_tokens) == "12 + topic + x + len(y) + 1 more" and said.prompt_tokens.unknown == 4
    assert str(said.computed_tokens) == "7 + topic + len(y)" and str(said.completion_tokens) == "0 + x + y"
    assumed = s.explain(assume={"topic": 3, "x": 5, "y": 1, "len(y)": 2})
    assert numbers(assumed)[1:] == (8 + 15, 8 + 3, 6)  # the computed text stays unknown
    s.add(Dynamic("if x"))
    assert "what follows depends on the run" in s.explain().notes


def test_without_a_tokenizer_a_run_says_what_it_measured() -> None:
    s = Sketch()
    s.add(Lit("abcd efgh"))
    counters = {"cached_tokens": 30, "computed_prompt_tokens": 12, "replayed_tokens": 2, "forward_passes": 7}
    s.gen("x", "X", prompt_tokens=42, **counters)
    said = s.explain(encode=None)
    assert said.basis == "measured" and (said.prompt_tokens, said.computed_tokens, said.cached_tokens) == (42, 10, 32)
    assert said.critical_path_passes == (7, 7) and any("no tokenizer" in note for note in said.notes)
    s.graph.records.clear()
    assert s.explain(encode=None).basis == "estimated"
    by_count = s.explain(count=lambda text: 3 * len(text.split()))
    assert by_count.basis == "counted" and by_count.prompt_tokens == 6 and not by_count.exact
    with pytest.raises(ValueError, match="exclude each other"):
        s.explain(encode=letters, count=len)


def test_after_a_failure_nothing_more_is_counted() -> None:
    s = Sketch()
    s.add(Lit("ab"))
    node = s.gen("x", "X")
    s.graph.records[node].error = "gone"
    s.add(Lit("cd"))
    s.gen("y")
    said = s.explain()
    assert said.requests == 1 and not said.exact and "a request failed" in said.notes[0]


def test_advice_comes_with_its_numbers() -> None:
    s = Sketch()
    s.add(Lit("Q: "))
    s.add(Arg("q"))
    s.add(Lit("r" * 148))
    streams = s.fork(3)
    for i, stream in enumerate(streams):
        s.add(Lit("s" * 20 + f"{i}" + "t" * 30), stream)
        s.gen("x", stream=stream)
    for name in ("a", "b", "c"):
        s.gen(name)
    said = s.explain()
    texts = {item.kind: item.text for item in said.advice}
    assert texts["late argument"] == (
        "argument 'q' appears at token 3 of stream 0; 148 constant tokens after it cannot be shared across runs: "
        "put it later"
    )
    assert "all begin with" in texts["repeated in every branch"] and "20 tokens" in texts["repeated in every branch"]
    assert "those 30 tokens are computed 3 times" in texts["differs at its beginning"]
    assert "gens 'a', 'b', 'c' of stream 0" in texts["in sequence by order only"]
    assert said.advice[0].kind == "late argument" and texts["late argument"] in str(said)


def test_good_programs_get_no_advice() -> None:
    s = Sketch()
    s.add(Lit("rules " * 50))
    s.add(Arg("q"))
    for stream in s.fork(2):
        s.add(Lit(f"view {stream}"), stream)
        s.gen("x", stream=stream)
    assert s.explain().advice == ()


def test_numbers_with_unknown_parts_read_as_sums() -> None:
    assert str(Tokens(1480, 2, ("q", "q"))) == "1,480 + q + 1 more" and Tokens(3) == 3
    both = Tokens(1, 1, ("a",)).plus(Tokens(2, 1, ("b",)))
    assert (int(both), both.unknown, f"{both}", f"{both:>3}") == (3, 2, "3 + a + b", "  3")


def test_ten_thousand_nodes_are_explained_in_seconds() -> None:
    s = Sketch()
    s.add(Lit("abcd" * 500))
    for stream in s.fork(1000):
        for i in range(5):
            s.add(Lit(f"{stream} {i} text"), stream)
            s.gen("x", "XYZ", stream)
    said = s.explain()
    assert said.requests == 5001 and said.exact and len(str(said)) < 2500
