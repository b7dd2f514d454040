"""One API call for several gens: what it serves, what it must not serve, and how often it asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paid_api import PaidApi, Talk, call_of, chat_answer, completion_answer, text_of, with_stream

from sglite.lang.backends.base import Stream
from sglite.lang.backends.deciding import last
from sglite.lang.backends.openai import OpenAI
from sglite.lang.backends.speculation import Step, Surplus, manner, match_turn
from sglite.lang.errors import BackendError, Unsupported

CARD = " Ada\nBorn: 1815\nJob: maths\n"


@pytest.fixture
def api() -> Iterator[PaidApi]:
    pytest.importorskip("openai")
    server = PaidApi()
    yield server
    server.close()


def openai(api: PaidApi, model: str) -> OpenAI:
    return OpenAI(model, base_url=f"{api.url}/v1", api_key="k")


# --- completions ---


async def card(stream: Stream, **second: Any) -> list[str]:
    """Three fields, as a program's gens would fill them; ``second``: what the second one asks for besides."""
    stream.speculate(64)
    values = []
    for literal, asked in (("Name:", {}), ("\nBorn:", second), ("\nJob:", {})):
        stream.append(literal)
        values.append(await text_of(stream, call_of(stop=("\n",), **asked)))
    return values


def test_one_completion_serves_the_gens_that_follow(api: PaidApi) -> None:
    api.answer = lambda path, body: completion_answer(CARD)
    assert with_stream(openai(api, "davinci-002"), card) == [" Ada", " 1815", " maths"]
    assert api.bodies == [{"model": "davinci-002", "prompt": "Name:", "max_tokens": 64}]


@pytest.mark.parametrize(
    "second",
    [{"temperature": 0.0}, {"n": 2}, {"max_new_tokens": 4}, {"top_p": 0.5}, {"return_logprob": True}],
    ids=lambda second: next(iter(second)),
)
def test_a_gen_that_asks_for_something_else_is_asked_for_by_itself(api: PaidApi, second: dict[str, Any]) -> None:
    """And what it answers is what the program goes on with, not what was written ahead."""

    def answer(path: str, body: dict[str, Any]) -> Any:
        if body["prompt"] == "Name:":
            return completion_answer(CARD)
        if body["prompt"] == "Name: Ada\nBorn:":
            return completion_answer(*[" 1816\nJob: poet\n" if "stop" not in body else " 1816"] * body.get("n", 1))
        assert body["prompt"] == "Name: Ada\nBorn: 1816\nJob:"
        return completion_answer(" poet\n")

    api.answer = answer
    values = with_stream(openai(api, "davinci-002"), lambda stream: card(stream, **second))
    assert values == [" Ada", " 1816", " poet"]


def test_text_the_model_did_not_foresee_is_asked_for_again(api: PaidApi) -> None:
    api.in_turn(completion_answer(" Ada\nAge: 36\n"), completion_answer(" 1815\nJob: maths\n"))
    assert with_stream(openai(api, "davinci-002"), card) == [" Ada", " 1815", " maths"]
    assert [body["prompt"] for body in api.bodies] == ["Name:", "Name: Ada\nBorn:"]


def test_a_gen_without_an_end_in_what_was_written_is_asked_for_by_itself(api: PaidApi) -> None:
    api.in_turn(
        completion_answer(" Ada\nBorn: 18", finish="length"),
        completion_answer(" 18", finish="length"),
        completion_answer(" 1815"),
        completion_answer(" maths\n"),
    )
    assert with_stream(openai(api, "davinci-002"), card) == [" Ada", " 1815", " maths"]
    assert [body.get("stop") for body in api.bodies] == [None, None, ["\n"], None]


def test_nothing_is_served_from_what_an_answer_of_its_own_has_replaced(api: PaidApi) -> None:
    async def use(stream: Stream) -> list[str]:
        stream.speculate(64)
        stream.append("Name:")
        asked: list[dict[str, Any]] = [{"return_logprob": True}, {}, {"seed": 1, "n": 2}, {"stop": ("|",)}]
        return [await text_of(stream, call_of(**{"stop": ("\n",), **more})) for more in asked]

    api.in_turn(*(completion_answer(*[text] * n) for text, n in ((" A", 1), ("b\nold|", 1), ("c", 2), ("fresh|", 1))))
    assert with_stream(openai(api, "davinci-002"), use) == [" A", "b", "c", "fresh"]
    assert ["stop" in body for body in api.bodies] == [True, False, True, False]


def test_branches_and_text_taken_back_have_no_part_in_the_surplus(api: PaidApi) -> None:
    async def use(stream: Stream) -> None:
        stream.speculate(64)
        stream.append("Name:")
        mark = stream.mark()
        await text_of(stream, call_of(stop=("\n",)))
        (branch,) = await stream.fork(1)
        branch.append("\nBorn:")
        await text_of(branch, call_of(stop=("\n",)))
        stream.rewind(mark)
        await text_of(stream, call_of(stop=("\n",)))

    api.answer = lambda path, body: completion_answer(CARD if body["prompt"] == "Name:" else " 1815\n")
    with_stream(openai(api, "davinci-002"), use)
    assert [body["prompt"] for body in api.bodies] == ["Name:", "Name: Ada\nBorn:", "Name:"]


@given(st.lists(st.tuples(st.text("ab\n ", max_size=4), st.text("ab ", max_size=6)), min_size=1, max_size=5))
def test_values_from_a_surplus_are_those_of_one_request_each(fields: list[tuple[str, str]]) -> None:
    """The reference: a model that writes the same text, cut at each gen's stop."""
    call = call_of(stop=("|",))
    written = "".join(f"{value}|{literal}" for literal, value in fields)
    surplus = Surplus(written, True, manner(call))
    rest = written
    for literal, _ in fields:
        expected = rest[: rest.index("|")]
        value = surplus.take(call)
        if not rest:
            return
        assert value is not None and value.text == expected and value.matched == "|"
        rest = rest[len(expected) :]
        if rest.startswith("|" + literal):
            assert surplus.skip("|" + literal)
            rest = rest[1 + len(literal) :]
        else:
            assert not surplus.skip("|" + literal)
            return


# --- chat ---


async def turn(stream: Stream, opening: str = "Name:") -> list[str]:
    """A turn of three fields, the back end being told of it as the executor does."""
    stream.speculate(64)
    stream.append(f"USER: hi\nASSISTANT: {opening}")
    steps = [
        Step(literal, call_of(Talk(open_text="..."), stop=("\n",), name=name))
        for literal, name in (("\nBorn:", "born"), ("\nJob:", "job"))
    ]
    for step in steps:
        stream.prepare(*step)
    stream.prepare("\nUSER: next\nASSISTANT: ", call_of(name="other turn"))
    values = [await text_of(stream, call_of(Talk(open_text=opening), stop=("\n",), name="name"))]
    for step in steps:
        stream.append(step.literal)
        values.append(await text_of(stream, step.call))
    return values


def test_one_call_writes_a_whole_turn(api: PaidApi) -> None:
    api.answer = lambda path, body: chat_answer("Name:" + CARD)
    assert with_stream(openai(api, "gpt-4"), turn) == [" Ada", " 1815", " maths"]
    assert [(body["max_tokens"], "stop" in body) for body in api.bodies] == [(64, False)]


def test_a_turn_of_another_form_is_asked_for_three_times_in_all(api: PaidApi) -> None:
    api.in_turn(chat_answer("Sure! Here it is"), chat_answer("Name: Ada\nJob: maths"), chat_answer("Name:" + CARD))
    assert with_stream(openai(api, "gpt-4"), turn)[0] == " Ada" and len(api.seen) == 3
    api.in_turn(chat_answer("Sure! Here it is"))
    with pytest.raises(BackendError, match=r"3 calls did not bring .* '\\nBorn:' <born> .*'Sure! Here it is'"):
        with_stream(openai(api, "gpt-4"), turn)
    assert len(api.seen) == 6


def test_a_turn_of_one_gen_is_an_ordinary_request(api: PaidApi) -> None:
    async def use(stream: Stream) -> None:
        stream.speculate(64)
        stream.append("USER: hi\nASSISTANT: ")
        await last(stream.generate(call_of(stop=("\n",))))

    with_stream(openai(api, "gpt-4"), use)
    assert (api.bodies[0]["max_tokens"], api.bodies[0]["stop"]) == (128, ["\n"])


def test_what_the_program_does_otherwise_is_not_served(api: PaidApi) -> None:
    async def use(stream: Stream) -> None:
        stream.speculate(64)
        stream.append("ASSISTANT: ")
        stream.prepare("\nBorn:", call_of(stop=("\n",), name="born"))
        assert await text_of(stream, call_of(stop=("\n",), name="name")) == "Ada"
        stream.append("\nDied:")
        await text_of(stream, call_of(Talk(open_text="Ada\nDied:"), stop=("\n",), name="born"))

    api.answer = lambda path, body: chat_answer("Ada\nBorn: 1815\n")
    with pytest.raises(Unsupported, match="has to open the assistant's turn"):
        with_stream(openai(api, "gpt-4"), use)
    assert len(api.seen) == 1


def steps(*fields: tuple[str, str | None]) -> list[Step]:
    return [Step(literal, call_of(stop=() if stop is None else (stop,))) for literal, stop in fields]


@pytest.mark.parametrize(
    ("reply", "form", "values"),
    [
        ("A: x\nB: y", steps(("A:", "\n"), ("\nB:", None)), [" x", " y"]),
        ("  A: x, B: y", steps(("A:", None), (", B:", None)), [" x", " y"]),
        ("x\ny\n", steps(("", "\n"), ("\n", "\n")), ["x", "y"]),
        ("A: x\nC: y", steps(("A:", "\n"), ("\nB:", None)), None),
        ("B: x", steps(("A:", "\n")), None),
        ("A: x, more\nB: y", steps(("A:", ","), ("\nB:", None)), None),
        ("A: x", steps(("A:", "\n"), ("\nB:", None)), None),
    ],
)
def test_a_turn_is_matched_literal_by_literal(reply: str, form: list[Step], values: list[str] | None) -> None:
    found = match_turn(reply, form, ended=True)
    assert (None if found is None else [value.text for value in found]) == values


def test_a_turn_that_was_cut_off_has_no_last_value() -> None:
    form = steps(("A:", "\n"), ("\nB:", None))
    assert match_turn("A: x\nB: y", form, ended=False) is None
    assert match_turn("A: x\nB: y\n", steps(("A:", "\n"), ("\nB:", "\n")), ended=False) is not None
