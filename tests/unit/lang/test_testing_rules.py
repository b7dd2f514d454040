"""A Mock's answers are written as their requests ask for it, or refused with the names of both and the rule."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import importlib.util
from typing import Any, Literal

import pydantic
import pytest

import sglite as sgl
from sglite.lang.backends.base import GenCall, Output
from sglite.lang.ir import Sampling
from sglite.lang.messages import ToolCall, ToolSpec
from sglite.lang.testing import Call, Invalid, Mock, MockError, Say, no_network
from sglite.lang.typed import type_spec


class Size(enum.Enum):
    small = "s"
    large = "l"


@dataclasses.dataclass
class City:
    name: str
    people: int


class Person(pydantic.BaseModel):
    name: str
    born: int = pydantic.Field(alias="b")


@dataclasses.dataclass
class Dog:
    name: str
    people: int = 0


def asked(answer: Any, *, strict: bool = True, **call: Any) -> Output:
    """What a gen called "v" gets from a Mock with one answer."""

    async def ask() -> Output:
        stream = Mock({"v": [answer]}, strict=strict).open("")
        stream.append("some words")
        (step,) = [step async for step in stream.generate(GenCall(**{"name": "v", "sampling": Sampling(), **call}))]
        return step[0]

    return asyncio.run(ask())


def asked_type(type: Any, answer: Any, **more: Any) -> Output:
    spec = type_spec(type)
    sampling = Sampling(regex=spec.regex, json_schema=spec.json_schema)
    return asked(answer, schema_of=spec, sampling=sampling, **more)


# --- values and rules ---


@pytest.mark.parametrize(
    ("type", "answer", "text"),
    [
        (int, 7, "7"),
        (int, "7", "7"),
        (float, 0.5, "0.5"),
        (bool, True, "true"),
        (str, "any text", "any text"),
        (Literal["x", "y"], "y", "y"),
        (Size, "s", "s"),
        (list[int], [1, 2], "[1,2]"),
        (list[int], "[1, 2]", "[1, 2]"),
        (City, City("Oslo", 7), '{"name":"Oslo","people":7}'),
        (City, {"name": "Oslo", "people": 7}, '{"name":"Oslo","people":7}'),
        (Person, Person(name="Zoë", b=3), '{"name":"Zoë","b":3}'),
        (list[City], [City("A", 1)], '[{"name":"A","people":1}]'),
        (int | None, None, "null"),
    ],
)
def test_a_value_is_written_as_a_gen_of_its_type_writes_it(type: Any, answer: Any, text: str) -> None:
    output = asked_type(type, Say(answer))
    assert output.text == text
    if not isinstance(answer, (str, dict)):
        assert type_spec(type).parse(output.text) == answer


def test_an_enum_is_written_so_that_it_is_read_as_itself() -> None:
    class Number(enum.Enum):
        one = 1
        two = 2

    class Pair(enum.Enum):
        near = (1, 2)
        far = (1, 9)

    for member in [*Size, *Number, *Pair]:
        assert type_spec(type(member)).parse(asked_type(type(member), member).text) is member


def test_without_a_type_numbers_and_structures_have_the_obvious_text() -> None:
    assert [asked(answer).text for answer in (3, 0.5, Say([1, "a"]), {"a": None}, City("A", 1), Size.small)] == [
        "3", "0.5", '[1,"a"]', '{"a":null}', '{"name":"A","people":1}', "s",
    ]  # fmt: skip
    assert asked(True, sampling=Sampling(regex="(True|False)")).text == "True"


@pytest.mark.parametrize(
    ("type", "answer", "words"),
    [
        (int, "seven", "'seven' for 'v' is no int: "),
        (int, 7.5, "7.5 for 'v' is no int: "),
        (bool, "yes", "'yes' for 'v' is no bool: "),
        (Literal["x", "y"], "z", "'z' for 'v' is no "),
        (Size, "medium", "'medium' for 'v' is no Size: "),
        (list[int], Say([1, "a"]), r"\[1, 'a'\] for 'v' is no list"),
        (City, {"name": "Oslo"}, r"\{'name': 'Oslo'\} for 'v' is no City: .*people"),
        (City, Dog("Rex"), r"Dog\(name='Rex', people=0\) for 'v' is no City but a Dog"),
        (Person, '{"name": "Ana"}', """'{"name": "Ana"}' for 'v' is no Person: b: """),
    ],
)
def test_an_answer_of_another_type_is_refused(type: Any, answer: Any, words: str) -> None:
    with pytest.raises(MockError, match=f"the Mock's answer {words}"):
        asked_type(type, answer)


PATTERN = Sampling(regex="[a-z]{2}")
SCHEMA = Sampling(json_schema='{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}')


@pytest.mark.parametrize(
    ("sampling", "answer", "words"),
    [
        (PATTERN, "abc", r"'abc' for 'v' does not match the regex '\[a-z\]\{2\}'"),
        (SCHEMA, "nope", "'nope' for 'v' is no JSON, which its json_schema asks for: "),
        (SCHEMA, '{"a": "1"}', r"for 'v' violates its json_schema: '1' is not of type 'integer' at \$\.a"),
        (SCHEMA, {}, r"\{\} for 'v' violates its json_schema: 'a' is a required property at \$"),
        (Sampling(stop=("\n", "END")), "the END of", "'the END of' for 'v' has the stop string 'END' in it"),
        (Sampling(), None, "None for 'v' is no answer"),
        (Sampling(), object(), "for 'v' has no text: .*; write it as a str"),
        (Sampling(json_schema='{"type": "nothing"}'), "1", "cannot be checked here"),
    ],
)
def test_an_answer_that_breaks_a_rule_is_refused(sampling: Sampling, answer: Any, words: str) -> None:
    with pytest.raises(MockError, match=words):
        asked(answer, sampling=sampling)


def test_a_schema_elsewhere_is_not_fetched() -> None:
    with no_network() as guard, pytest.raises(MockError, match="cannot be checked here"):
        asked("1", sampling=Sampling(json_schema='{"$ref": "http://elsewhere/x"}'))
    assert guard.attempts == []


def test_answers_that_keep_the_rules_pass() -> None:
    assert asked("ab", sampling=PATTERN).text == "ab"
    assert asked('{"a": 1, "b": 2}', sampling=SCHEMA).text == '{"a": 1, "b": 2}'
    assert asked({"a": 1}, sampling=SCHEMA).text == '{"a":1}'


@pytest.mark.parametrize("answer", [Invalid("seven"), Invalid(Say("seven"))])
def test_an_invalid_answer_on_purpose_is_given(answer: Any) -> None:
    assert asked_type(int, answer).text == "seven" == asked_type(int, "seven", strict=False).text

    @sgl.function
    def f(s: Any) -> None:
        s += sgl.gen("v", type=int)

    with pytest.raises(sgl.VariableError, match="seven") as caught:
        f.run(backend=Mock({"v": answer}))["v"]
    assert not isinstance(caught.value.__cause__, MockError)


def test_an_output_that_was_cut_off_need_not_be_complete() -> None:
    output = asked_type(int, Say("-", finish="length"))
    assert output.text == "-" and output.meta["finish_reason"] == {"type": "length", "length": 1}
    assert output.meta["constraint_complete"] is False


def test_without_jsonschema_a_text_only_has_to_be_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert asked('{"a": "1"}', sampling=SCHEMA).text == '{"a": "1"}'
    with pytest.raises(MockError, match="is no JSON"):
        asked("nope", sampling=SCHEMA)


# --- tools ---

PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a"]}
ADD = ToolSpec("add", "Add.", PARAMETERS)
PING = ToolSpec("ping", "Ping.", {"type": "object", "properties": {}})


def test_calls_are_given_as_calls_with_ids_of_their_own() -> None:
    async def ask() -> list[Output]:
        stream = Mock([Call("add", a=2), [Call("add", a=1, b=2), Call("ping")], Say("So:", [Call("ping")]), "5"]).open(
            ""
        )
        call = GenCall(name=None, sampling=Sampling(), tools=(ADD, PING))
        return [step[0] for _ in range(4) async for step in stream.generate(call)]

    one, two, said, text = asyncio.run(ask())
    assert one.tool_calls == (ToolCall("call_0", "add", '{"a":2}'),) and one.text == ""
    assert [(c.id, c.name) for c in two.tool_calls] == [("call_1", "add"), ("call_2", "ping")]
    assert said.text == "So:" and said.tool_calls[0].id == "call_3"
    assert said.meta["finish_reason"] == {"type": "tool_calls"}
    assert text.text == "5" and text.tool_calls == () and text.meta["finish_reason"] == {"type": "stop"}


def test_a_tool_may_have_an_argument_called_name() -> None:
    assert (
        Call("find", name="x").arguments == {"name": "x"} and repr(Call("find", name="x")) == "Call('find', name='x')"
    )


@pytest.mark.parametrize(
    ("answer", "call", "words"),
    [
        (Call("mul", a=1), {}, r"Call\('mul', a=1\) for 'v' calls an unknown tool; the request offers add, ping"),
        (Call("add", a=1), {"tools": ()}, "calls a tool, but the request offers none"),
        (Call("add", b=1), {}, "has arguments that the tool 'add' does not take: 'a' is missing"),
        (Call("add", a=1, c=2), {}, "no argument is called 'c'; there are a, b"),
        (Call("ping", c=2), {}, "no argument is called 'c'; there are none"),
        (Call("add", a="x"), {}, r"'x' is not of type 'integer' at \$\.a"),
        ([Call("add", a=1), Call("add")], {}, "'a' is missing"),
        (Call("add", a=1), {"tool_choice": "none"}, "is not what tool_choice='none' asks for"),
        (Call("add", a=1), {"tool_choice": "ping"}, "is not what tool_choice='ping' asks for"),
        ("no", {"tool_choice": "required"}, "'no' for 'v' calls no tool, which tool_choice='required' demands"),
        ("no", {"tool_choice": "add"}, "calls no tool"),
    ],
)
def test_calls_that_the_request_does_not_allow_are_refused(answer: Any, call: dict[str, Any], words: str) -> None:
    with pytest.raises(MockError, match=words):
        asked(answer, **{"tools": (ADD, PING), **call})


def test_invalid_calls_on_purpose_are_given() -> None:
    broken = ToolCall("id", "add", '{"a":')
    answers = [Invalid(Call("mul", x=1)), [Call("ping"), Invalid(Call("add"))], broken]
    outputs = [asked(answer, tools=(ADD, PING)) for answer in answers]
    assert [[(c.name, c.arguments) for c in o.tool_calls] for o in outputs] == [
        [("mul", '{"x":1}')], [("ping", "{}"), ("add", "{}")], [("add", '{"a":')],
    ]  # fmt: skip
