"""Types as texts: what is written for a type, what is read, and that the constraint says the same."""

from __future__ import annotations

import dataclasses
import enum
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, Literal, NamedTuple, NewType, Optional, Union

import pydantic
import pytest
from constrained_walks import small_vocabulary
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, WithJsonSchema
from typing_extensions import TypeAliasType, TypedDict

from benchmarks.constrained.cases import accepts
from benchmarks.constrained.everyday_pydantic import TYPES, Aliased, Closed, Linked, Node, Open, Square
from sglite.constrained.compiler import CompiledConstraint, ConstraintCompiler
from sglite.constrained.spec import ConstraintSpec
from sglite.lang.typed import TypeSpec, type_spec

VOCAB = small_vocabulary()


class Colour(enum.Enum):
    RED = "red"
    REDDISH = "reddish"
    DOT = "a.b|(c)"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 10


class Pairs(enum.Enum):
    A = (1, 2)
    B = (3,)


class Alike(enum.Enum):
    NUMBER = 1
    TEXT = "1"


class Fruit(str, enum.Enum):
    PEAR = "pear"


@dataclasses.dataclass
class Stop:
    name: str
    minutes: int = 5


class Film(TypedDict, total=False):
    title: str


class Pair(NamedTuple):
    x: int
    y: float = 0.5


class Person(BaseModel):
    name: str
    age: int = Field(ge=0)
    stops: list[Stop] = []


class Checked(BaseModel):
    low: int
    high: int

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> Checked:
        if self.low > self.high:
            raise ValueError("low is above high")
        return self


def positive(value: int) -> int:
    if value <= 0:
        raise ValueError("not positive")
    return value * 2


Count = NewType("Count", int)
Word = TypeAliasType("Word", Literal["on", "off"])


@pytest.fixture(scope="module")
def allows() -> Iterator[Callable[[TypeSpec, str], bool]]:
    compiler = ConstraintCompiler(VOCAB)
    compiled: dict[tuple[str | None, str | None], CompiledConstraint] = {}

    def ask(spec: TypeSpec, text: str) -> bool:
        key = (spec.regex, spec.json_schema)
        if key not in compiled:
            made = (
                ConstraintSpec.regex(spec.regex) if spec.regex else ConstraintSpec.json_schema(spec.json_schema or "")
            )
            compiled[key] = compiler.compile(made)
        return accepts(compiled[key], VOCAB, text)

    yield ask
    compiler.close()


def parses(spec: TypeSpec, text: str) -> bool:
    try:
        spec.parse(text)
    except ValueError as error:
        assert "\n" not in str(error)
        return False
    return True


BARE: list[tuple[Any, dict[str, Any], list[str]]] = [
    (
        int,
        {"0": 0, "-7": -7, "1" * 32: int("1" * 32)},
        ["", "-", "-0", "007", "1.0", "+1", " 1", "1\n", "1" * 33, "١"],
    ),
    (
        float,
        {"0": 0.0, "-1.5": -1.5, "1e-07": 1e-7, "1e+22": 1e22, "9.9e307": 9.9e307, "5e-324": 5e-324, "3": 3.0},
        ["", ".5", "1.", "nan", "inf", "1e400", "1e309", "1e308", "01.5", "1e", "--1"],
    ),
    (bool, {"true": True, "false": False}, ["True", "1", "", "tru"]),
    (None, {"null": None}, ["None", ""]),
    (Literal["a", "ab", "", "a+"], {"a": "a", "ab": "ab", "": "", "a+": "a+"}, ["aa", "b", "aba"]),
    (Literal["x\ny", "–", 2, True, None], {"x\ny": "x\ny", "–": "–", "2": 2, "true": True, "null": None}, ["x", "1"]),
    (Colour, {"red": Colour.RED, "reddish": Colour.REDDISH, "a.b|(c)": Colour.DOT}, ["RED", "redd", "axb|(c)", "c"]),
    (Level, {"1": Level.LOW, "10": Level.HIGH}, ["LOW", "100"]),
    (Pairs, {"A": Pairs.A, "B": Pairs.B}, ["(1, 2)", "a"]),
    (Alike, {"NUMBER": Alike.NUMBER, "TEXT": Alike.TEXT}, ["1"]),
    (Literal[Colour.RED, "x"], {"red": Colour.RED, "x": "x"}, ["reddish"]),
    (Optional[Colour], {"red": Colour.RED, "null": None}, ["None"]),  # noqa: UP045
    (bool | Literal["maybe"], {"true": True, "maybe": "maybe"}, ["True"]),
    (Count, {"12": 12}, ["a"]),
    (Word, {"on": "on"}, ["o"]),
    (Annotated[int, Field(description="how many"), "a note"], {"3": 3}, ["03"]),
    (Annotated[int, AfterValidator(positive)], {"4": 8}, ["x"]),
]  # fmt: skip


@pytest.mark.parametrize(("type_", "valid", "invalid"), BARE, ids=[str(case[0]) for case in BARE])
def test_scalars_and_alternatives_are_written_bare(
    allows: Callable[[TypeSpec, str], bool], type_: Any, valid: dict[str, Any], invalid: list[str]
) -> None:
    spec = type_spec(type_)
    assert spec.json_schema is None and spec.regex is not None
    for text, value in valid.items():
        assert allows(spec, text) and re.fullmatch(spec.regex, text), text
        read = spec.parse(text)
        assert read == value and type(read) is type(value)
    for text in invalid:
        assert not parses(spec, text) and not allows(spec, text) and not re.fullmatch(spec.regex, text), text


def test_a_string_is_any_text() -> None:
    spec = type_spec(str)
    assert (spec.regex, spec.json_schema) == (None, None)
    for text in ("", ' "quoted"\n', "日本"):
        assert spec.parse(text) == spec.partial(text) == text
    assert type_spec(Annotated[str, AfterValidator(str.strip)]).parse(" a ") == "a"


JSON: list[tuple[Any, dict[str, Any], list[str]]] = [
    (Annotated[int, Field(ge=1, le=10)], {"1": 1, "10": 10}, ["0", "11", "1.0", '"5"', "1e1"]),
    (Annotated[int, WithJsonSchema({"type": "integer", "maximum": 3})], {"3": 3}, ["3.0"]),
    (Annotated[float, Field(gt=0)], {"0.5": 0.5}, ["0", "-1", "NaN", "1e400"]),
    (Annotated[str, Field(pattern="^[a-z]+$", max_length=3)], {'"abc"': "abc"}, ['"abcd"', "abc", '"A"']),
    (Literal[1, "1"], {"1": 1, '"1"': "1"}, ["2", "null", "[1]"]),
    (int | str, {"5": 5, '"5"': "5"}, ["5.0", "null", "five"]),
    (Optional[int], {"null": None, "3": 3}, ["None", "3.0"]),  # noqa: UP045
    (list[bool], {"[]": [], "[true, false]": [True, False]}, ["[1]", "[true", '["true"]', "[true] x"]),
    (tuple[int, str], {'[1, "a"]': (1, "a")}, ["[1]", '[1, "a", 2]', '["a", 1]']),
    (dict[str, int], {"{}": {}, '{"a": 1}': {"a": 1}}, ['{"a": "1"}', '{"a": 1, "a": 2}']),
    (dict[Annotated[str, Field(pattern="^x")], int], {'{"x1": 1}': {"x1": 1}}, ['{"a": 1}']),
    (Stop, {'{"name": "a"}': Stop("a"), '{"name": "a", "minutes": 1}': Stop("a", 1)}, ["{}", '{"name": "a", "b": 1}']),
    (Film, {"{}": {}, '{"title": "a"}': {"title": "a"}}, ['{"title": 1}', '{"year": 1}']),
    (Pair, {"[1]": Pair(1), "[1, 2.5]": Pair(1, 2.5)}, ["[]", "[1, 2, 3]", '{"x": "1"}']),
    (Person, {'{"name": "A", "age": 0}': Person(name="A", age=0)}, ['{"name": "A", "age": -1}', '{"name": "A"}']),
    (Person, {}, ['{"name": "A", "age": 1, "stops": [{"name": "s", "minuets": 2}]}']),
    (Open, {'{"a": 1, "b": [2]}': Open(a=1, b=[2])}, ['{"b": 1}']),  # type: ignore[call-arg]
    (Closed, {'{"a": 1}': Closed(a=1)}, ['{"a": 1, "c": 2}']),
    (Linked, {'{"head": "a", "tail": {"head": "b"}}': Linked(head="a", tail=Linked(head="b"))}, ['{"tail": null}']),
    (list[Node], {'[{"value": 1, "children": [{"value": 2}]}]': [Node(value=1, children=[Node(value=2)])]}, ["[{}]"]),
    (list[Fruit], {'["pear"]': [Fruit.PEAR]}, ['["PEAR"]']),
    (list[Literal[Fruit.PEAR]], {'["pear"]': [Fruit.PEAR]}, ['["apple"]']),
]  # fmt: skip


@pytest.mark.parametrize(("type_", "valid", "invalid"), JSON, ids=[f"{n} {case[0]}" for n, case in enumerate(JSON)])
def test_everything_else_is_json_text(
    allows: Callable[[TypeSpec, str], bool], type_: Any, valid: dict[str, Any], invalid: list[str]
) -> None:
    spec = type_spec(type_)
    assert spec.regex is None and spec.json_schema is not None
    for text, value in valid.items():
        assert allows(spec, text), text
        assert spec.parse(text) == value == spec.partial(text)
    for text in invalid:
        assert not parses(spec, text) and not allows(spec, text), text


CHANGED = (Aliased, Square, pydantic.SecretStr, pydantic.SecretBytes, pydantic.Base64Str, Iterable[int])
EVERYDAY = [(kind, values) for kind, values in TYPES if kind not in CHANGED]


@pytest.mark.parametrize(("type_", "values"), EVERYDAY, ids=[f"{n} {case[0]}" for n, case in enumerate(EVERYDAY)])
def test_types_of_every_day_come_back(allows: Callable[[TypeSpec, str], bool], type_: Any, values: list[Any]) -> None:
    spec, adapter = type_spec(type_), TypeAdapter(type_)
    for value in values:
        dumped = adapter.dump_python(value, mode="json", by_alias=True, warnings=False)
        bare = spec.json_schema is None and isinstance(dumped, str)
        text = dumped if bare else json.dumps(dumped, ensure_ascii=False)
        assert spec.parse(text) == value
        assert spec == TypeSpec(type_) or allows(spec, text)


def test_properties_come_as_declared_and_defaults_may_be_left_out() -> None:
    schema = json.loads(type_spec(Person).json_schema or "")
    assert list(schema["properties"]) == ["name", "age", "stops"] and schema["required"] == ["name", "age"]
    assert schema["additionalProperties"] is False and schema["$defs"]["Stop"]["additionalProperties"] is False
    assert "title" not in schema["properties"]["name"]


def test_a_model_decides_on_unknown_fields_where_one_keeps_them() -> None:
    class Both(BaseModel):
        open: Open
        film: Film

    spec = type_spec(Both)
    read = spec.parse('{"open": {"a": 1, "b": 2}, "film": {}}')
    assert read.open.b == 2
    assert json.loads(spec.json_schema or "")["additionalProperties"] is False


def test_own_validators_have_the_last_word() -> None:
    assert type_spec(Checked).parse('{"low": 1, "high": 2}') == Checked(low=1, high=2)
    with pytest.raises(ValueError, match="Checked: Value error, low is above high; the text begins"):
        type_spec(Checked).parse('{"low": 3, "high": 2}')
    with pytest.raises(ValueError, match="not positive"):
        type_spec(Annotated[int, AfterValidator(positive)]).parse("-1")


def test_an_error_names_the_type_the_places_and_the_text() -> None:
    with pytest.raises(ValueError) as caught:
        type_spec(list[Person]).parse('[{"name": 1, "age": -1, "stops": 3}]' + " " * 100)
    message = str(caught.value)
    assert message.startswith("list[") and "0.name: Input should be a valid string; 0.age: " in message
    assert message.endswith("'" + '[{"name": 1, "age": -1, "stops": 3}]' + " " * 24 + "'")
    with pytest.raises(
        ValueError, match=r"^list\[float\]: .* a number that is too large; the text begins '\[1e999\]'$"
    ):
        type_spec(list[float]).parse("[1e999]")
    with pytest.raises(ValueError, match=r"^int: is written in decimal digits .*; the text begins 'about 3'$"):
        type_spec(int).parse("about 3")
    with pytest.raises(ValueError, match=r"^Level: is one of '1', '10'; the text begins 'LOW'$"):
        type_spec(Level).parse("LOW")


class Plain:
    pass


class Holds(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    plain: Plain


REFUSED = [
    (Plain, "Plain"),
    (Holds, "IsInstance"),
    (Callable[[int], int], "Callable"),
    (int | Callable[[int], int], "a member of a union has none"),
    (positive, "'positive' is a function"),
    (list[Iterable[int]], r"write list\[...\]"),
    (list[Pairs], r"value \(1, 2\)"),
    (list[Literal[Colour.RED]], "derive its Enum from str or int"),
    (Literal[b"x"], "b'x'"),
    ("int", "give the type itself"),
    (5, "5: there is no text"),
    (list["Unheard"], "Unheard"),  # type: ignore[name-defined]  # noqa: F821
]


@pytest.mark.parametrize(("type_", "reason"), REFUSED, ids=[str(case[0]) for case in REFUSED])
def test_a_type_without_text_is_refused_with_a_remedy(type_: Any, reason: str) -> None:
    with pytest.raises(TypeError, match=reason) as caught:
        type_spec(type_)
    assert "\n" not in str(caught.value) and ("; use int, float" in str(caught.value) or "give" in str(caught.value))


def test_specs_are_equal_and_made_once() -> None:
    assert type_spec(Person) == type_spec(Person) and hash(type_spec(Person)) == hash(type_spec(Person))
    assert type_spec(Person)._reading is type_spec(Person)._reading
    orders = [
        [each["type"] for each in json.loads(type_spec(t).json_schema or "")["anyOf"]] for t in (int | str, str | int)
    ]
    assert orders == [["integer", "string"], ["string", "integer"]]
    assert type_spec(list[Literal[1]]) != type_spec(list[Literal[True]])
    unhashable = Annotated[int, Field(ge=1, examples=[1]), ["a note"]]
    assert type_spec(unhashable).parse("3") == 3
    assert type_spec(Union[int, None]) == type_spec(Optional[int])  # noqa: UP007, UP045
