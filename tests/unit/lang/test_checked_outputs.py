"""Typed and checked outputs, going back, limits of a run."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import Any, Literal

import pytest

import sglite as sgl


@dataclasses.dataclass
class City:
    name: str
    people: int


def script(*answers: str) -> Any:
    rest = list(answers)
    return lambda prompt, call: rest.pop(0)


def test_a_typed_variable_is_the_object_and_raw_its_text(echo: Any) -> None:
    text = '{"name": "Oslo", "people": 7}'
    echo.answers = lambda prompt, call: text

    @sgl.function
    def f(s: Any) -> None:
        s += "city: " + sgl.gen("c", type=City) + "."

    state = f.run(backend=echo)
    assert state["c"] == City("Oslo", 7) and state.raw("c") == text and state.text() == f"city: {text}."
    assert echo.calls[0][1].schema_of.type is City and echo.calls[0][1].sampling.json_schema


def test_partial_objects_come_while_the_text_is_written(echo: Any) -> None:
    echo.answers = lambda prompt, call: "[1, 22, 333]"

    @sgl.function
    def f(s: Any) -> None:
        s += "list: " + sgl.gen("v", type=list[int])

    seen = list(f.run(backend=echo, stream=True).partial_iter("v"))
    assert seen[-1] == [1, 22, 333] and [1] in seen
    assert all(seen[-1][: len(part) - 1] == part[: len(part) - 1] for part in seen if part)


def test_an_output_cut_off_inside_its_type_is_incomplete_and_shows_what_there_is(echo: Any) -> None:
    echo.answers = lambda prompt, call: "[1, 2"
    echo.meta = {"finish_reason": {"type": "length"}}

    @sgl.function
    def f(s: Any) -> None:
        s += sgl.gen("v", type=list[int], max_tokens=5)

    state = f.run(backend=echo)
    with pytest.raises(sgl.Incomplete) as caught:
        state["v"]
    assert caught.value.text == "[1, 2" and caught.value.partial[:1] == [1]
    assert isinstance(caught.value, sgl.VariableError) and caught.value.variable == "v"
    assert isinstance(state.error().__cause__, sgl.Incomplete)


def test_a_refused_value_is_taken_back_and_written_again_from_the_same_prefix(echo: Any) -> None:
    echo.answers = script("2", "nonsense", "9")
    checked: list[str] = []

    def large(value: str) -> bool:
        checked.append(value)
        return int(value) > 5

    @sgl.function
    def f(s: Any) -> None:
        s += "n=" + sgl.gen("n", check=large, retries=3, temperature=0) + "!!" + sgl.gen("m")

    state = f.run(backend=echo)
    assert state["n"] == "9" and checked == ["2", "nonsense", "9"]
    assert [prompt for prompt, _ in echo.calls[:3]] == ["n="] * 3
    assert echo.rewound == ["n=2", "n=nonsense"]
    temperatures = [call.sampling.temperature for _, call in echo.calls[:3]]
    assert temperatures[0] == 0 and 0 < temperatures[1] < temperatures[2]
    assert state.usage.requests >= 3 and state.usage.retries == 2


def test_the_same_text_again_is_refused_without_asking_and_the_end_says_what_was_tried(echo: Any) -> None:
    echo.answers = lambda prompt, call: "no"
    asked: list[str] = []

    def never(value: str) -> bool:
        asked.append(value)
        return False

    @sgl.function
    def f(s: Any) -> None:
        s += "n=" + sgl.gen("n", check=never, retries=2)

    state = f.run(backend=echo)
    with pytest.raises(sgl.CheckFailed, match="none of 3 attempts") as caught:
        state["n"]
    assert asked == ["no"] and [text for text, _ in caught.value.attempts] == ["no"] * 3


def test_only_refusals_are_retried_a_bug_in_a_check_is_an_error(echo: Any) -> None:
    def buggy(value: str) -> bool:
        raise ZeroDivisionError("oops")

    @sgl.function
    def f(s: Any) -> None:
        s += "n=" + sgl.gen("n", check=buggy, retries=5)

    state = f.run(backend=echo)
    assert isinstance(state.error().__cause__, ZeroDivisionError) and len(echo.calls) == 1


def test_nothing_of_a_refused_text_is_streamed(echo: Any) -> None:
    echo.answers = script("bad", "good")

    @sgl.function
    def f(s: Any) -> None:
        s += "n=" + sgl.gen("n", check=lambda v: v == "good", retries=1)

    state = f.run(backend=echo, stream=True)
    assert "".join(state.text_iter("n")) == "good" and state.text() == "n=good"


async def _slow(value: str) -> bool:
    return value == "yes"


def test_checks_may_be_coroutines(echo: Any) -> None:
    echo.answers = script("no", "yes")

    @sgl.function
    def f(s: Any) -> None:
        s += sgl.gen("n", check=_slow, retries=1)

    assert f.run(backend=echo)["n"] == "yes"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"retries": -1, "check": bool}, "retries=-1"),
        ({"retries": 2}, "nothing to refuse"),
        ({"retries": 1, "check": bool, "n": 2}, "n=2"),
        ({"type": int, "regex": "x"}, "exclude each other"),
        ({"type": int, "ebnf": "root ::= 'x'"}, "exclude each other"),
        ({"choices": ["a"], "check": bool}, "check"),
    ],
)
def test_arguments_that_exclude_each_other_are_refused_where_they_are_written(arguments: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        sgl.gen("x", **arguments)


def test_rollback_restores_text_turns_and_variables_any_number_of_times(echo: Any) -> None:
    @sgl.function
    def f(s: Any) -> list[str]:
        s.user("q")
        place = s.checkpoint()
        tries = []
        for word in ("one", "two"):
            with s.assistant():
                s += word + sgl.gen("a")
            tries.append(s["a"])
            s.rollback(place)
            assert "a" not in s
        s.assistant("fine")
        return tries

    state = f.run(backend=echo)
    base = "USER: q\nASSISTANT: "
    assert state.ret_value == [echo.answer(base + "one"), echo.answer(base + "two")]
    assert state.text() == base + "fine\n"
    assert [m["role"] for m in state.messages()] == ["user", "assistant"]


def test_compact_goes_on_from_a_summary_and_gives_the_old_sequence_back(echo: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s.system("rules")
        s.user("long story")
        s.assistant(sgl.gen("a"))
        with s.copy() as c:
            c.user("Summarise")
            summary = c.gen(str)
        s.compact(summary)
        s.assistant(sgl.gen("b"))

    state = f.run(backend=echo)
    summary = echo.answer(f"SYSTEM: rules\nUSER: long story\nASSISTANT: {state['a']}\nUSER: Summarise\nASSISTANT: ")
    assert state.text() == f"SYSTEM: rules\nUSER: {summary}\nASSISTANT: {state['b']}\n"
    assert state["b"] == echo.answer(f"SYSTEM: rules\nUSER: {summary}\nASSISTANT: ")
    state.run.finished.result(5)
    assert echo.closed == echo.opened


def test_repeat_gives_a_list_that_code_may_fork_over(echo: Any) -> None:
    echo.answers = lambda prompt, call: "red\n- blue" if prompt.endswith("- ") else None

    @sgl.function
    def f(s: Any) -> None:
        s += "Colours:\n- " + sgl.repeat("colours", max=3, sep="\n- ")
        branches = s.fork(len(s["colours"]))
        for branch, colour in zip(branches, s["colours"], strict=True):
            branch += f"\nWhy {colour}? " + sgl.gen("why")
        branches.join()

    state = f.run(backend=echo)
    assert state["colours"] == ["red", "blue"] and len(state["why"]) == 2
    pattern = echo.calls[0][1].sampling.regex
    import re

    assert re.fullmatch(pattern, "a\n- b\n- c") and not re.fullmatch(pattern, "a\n- b\n- c\n- d")
    assert sgl.repeat("n", int, sep=", ").type.parse("1, 22") == [1, 22]
    assert sgl.repeat("n", Literal["a", "b"], sep="|", max=2).type.parse("a|b") == ["a", "b"]


def test_unordered_blocks_put_first_what_most_runs_have(echo: Any) -> None:
    @sgl.function
    def f(s: Any, own: str) -> None:
        with s.unordered() as blocks:
            blocks.add(f"own {own};")
            blocks.add("common;")
        s += sgl.gen("x")

    texts = [f.run(str(i), backend=echo).text() for i in range(3)]
    assert texts[0].startswith("own 0;common;")  # nothing is known yet: as written
    assert texts[1].startswith("common;own 1;") and texts[2].startswith("common;own 2;")


def test_a_token_budget_bounds_what_all_outputs_have_together(echo: Any) -> None:
    echo.answers = lambda prompt, call: "x" * min(6, call.sampling.max_new_tokens)

    @sgl.function
    def f(s: Any) -> None:
        s += sgl.gen("a") + sgl.gen("b") + sgl.gen("c")

    state = f.run(backend=echo, token_budget=10)
    assert (state["a"], state["b"]) == ("x" * 6, "x" * 4)
    assert isinstance(state.error().__cause__, sgl.BudgetExceeded) and "token_budget=10" in str(state.error())
    assert state.usage.completion_tokens == 10


def test_a_deadline_ends_what_runs_and_says_so(echo: Any) -> None:
    echo.gate = threading.Event()

    @sgl.function
    def f(s: Any) -> Any:
        s += "a" + sgl.gen("x")
        return s["x"]

    started = time.monotonic()
    with pytest.raises(sgl.VariableError, match=r"deadline=0\.05") as caught:
        f.run(backend=echo, deadline=0.05)
    assert isinstance(caught.value.__cause__, sgl.DeadlineExceeded) and time.monotonic() - started < 5
    assert echo.cancelled == 1


@pytest.mark.parametrize("options", [{"deadline": 0}, {"token_budget": 0}, {"history": "x"}, {"seed": "1"}])
def test_wrong_options_of_a_run_are_refused_by_name(echo: Any, options: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += sgl.gen("x")

    with pytest.raises(ValueError, match=next(iter(options))):
        f.run(backend=echo, **options)


def test_a_programs_own_parameter_comes_before_an_option_of_that_name(echo: Any) -> None:
    @sgl.function
    def f(s: Any, seed: str) -> None:
        s += seed + sgl.gen("x")

    assert f.run(seed="abc", backend=echo).text().startswith("abc")


def test_seeds_are_those_of_a_requests_place_in_its_program(echo: Any) -> None:
    @sgl.function
    def f(s: Any, order: Any) -> None:
        s += sgl.gen("a")
        branches = s.fork(3)
        for i in order:
            branches[i] += str(i) + sgl.gen("b")
        s += sgl.gen("c")

    def seeds(seed: int | None, order: Any) -> dict[str, Any]:
        echo.calls.clear()
        f.run(order, backend=echo, seed=seed).run.finished.result(5)
        return {call.hints.node: call.sampling.seed for _, call in echo.calls}

    one = seeds(7, (0, 1, 2))
    assert one == seeds(7, (2, 0, 1)) and len(set(one.values())) == 5
    assert not set(one.values()) & set(seeds(8, (0, 1, 2)).values())
    assert set(seeds(None, (0, 1, 2)).values()) == {None}


@pytest.mark.parametrize("extra", [{"retries": 2}, {"heal": True}, {"on_limit": "close"}])
def test_what_a_choice_would_ignore_is_refused(extra: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(extra))):
        sgl.gen("x", choices=["a"], **extra)


@pytest.mark.parametrize("extra", [{"type": int}, {"check": bool}, {"type": int, "retries": 1}, {"heal": True}])
def test_what_separated_reasoning_would_ignore_is_refused(extra: Any) -> None:
    with pytest.raises(ValueError, match="separate_reasoning"):
        sgl.separate_reasoning(sgl.gen("x", **extra), model_type="qwen3")
