"""Values of text that is still being written: what is known is there, what is not is None."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import uuid
from typing import Annotated, Any, Literal, NamedTuple

import pytest
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PrivateAttr, RootModel, field_validator
from typing_extensions import TypedDict

from sglite.lang.typed import type_spec


class Colour(enum.Enum):
    RED = "red"
    REDDISH = "reddish"
    BLUE = "blue"


@dataclasses.dataclass(frozen=True)
class Stop:
    name: str
    minutes: int = 5

    def __post_init__(self) -> None:
        assert self.minutes >= 0  # would fail on what is not known yet


@dataclasses.dataclass
class Slotted:
    __slots__ = ("a", "b")
    a: int
    b: str


class Film(TypedDict, total=False):
    title: str
    stops: list[Stop]


class Pair(NamedTuple):
    x: int
    when: dt.date | None = None


class Person(BaseModel):
    name: str
    email: str = "none@example.org"
    colour: Colour = Colour.RED
    friends: list[Person] = []
    _secret: int = PrivateAttr(default=3)

    @field_validator("name")
    @classmethod
    def _no_validator_runs_on_a_part(cls, value: str) -> str:
        if len(value) < 3:
            raise KeyError(value)  # not an error that pydantic would catch
        return value

    def model_post_init(self, context: Any) -> None:
        self.name.upper()  # would fail on what is not known yet


class Aliased(BaseModel):
    model_config = ConfigDict(extra="allow")
    user: str = Field(alias="userName")
    year: int = Field(validation_alias=AliasChoices("yearIn", "y"))


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    barks: int


class Whale(BaseModel):
    kind: Literal["whale", "dogfish"]
    barks: int


class Numbers(RootModel[list[int]]):
    pass


Pet = Annotated[Cat | Dog | Whale, Field(discriminator="kind")]
SCALARS: list[tuple[Any, dict[str, Any]]] = [
    (str, {"": "", "any ": "any "}),
    (int, {"": None, "-": None, "-1": -1, "12": 12, "x": None}),
    (float, {"-": None, "1.": 1.0, "1.5e": 1.5, "1.5e-": 1.5, "1.5e-7": 1.5e-7}),
    (bool, {"": None, "t": True, "f": False, "x": None}),
    (None, {"": None, "nu": None}),
    (Colour, {"": None, "re": None, "redd": Colour.REDDISH, "b": Colour.BLUE, "red": None, "x": None}),
    (Literal["a", 10, 2], {"1": 10, "a": "a"}),
]


@pytest.mark.parametrize(("type_", "texts"), SCALARS, ids=[str(case[0]) for case in SCALARS])
def test_scalars(type_: Any, texts: dict[str, Any]) -> None:
    spec = type_spec(type_)
    assert {text: spec.partial(text) for text in texts} == texts


WHEN = uuid.UUID("6fa459ea-ee8a-4ca4-894e-db77e160355e")
JSON: list[tuple[Any, dict[str, Any]]] = [
    (list[int], {"": None, "[": [], "[1": [1], "[1, 2": [1, 2], "[1, 2.": [1], "nonsense": None}),
    (list[Colour], {'["red", "bl': [Colour.RED, None], '["red", "blue", "b': [Colour.RED, Colour.BLUE, None]}),
    (list[dt.date], {'["2024-01-0': [None], '["2024-01-01", ': [None]}),
    (list[dt.date], {'["2024-01-01", "': [dt.date(2024, 1, 1), None]}),
    (tuple[int, str, uuid.UUID], {'[1, "a': (1, "a"), f'[1, "a", "{WHEN}"]': (1, "a", WHEN)}),
    (tuple[Colour, ...], {'["red", "r': (Colour.RED, None)}),
    (set[str], {'["a", "b': {"a", "b"}}),
    (dict[int, bool | None], {'{"1": nul': {}, '{"1": null, "2": true, "3': {1: None, 2: True}}),
    (dict[Colour, int], {'{"red": 1, "blue": 2': {Colour.RED: 1, Colour.BLUE: 2}}),
    (Pair, {"[": Pair(None, None), "[1": Pair(1, None), '[1, "2024': Pair(1, None)}),  # type: ignore[arg-type]
    (Film, {"{": {}, '{"title": "Al': {"title": "Al"}, '{"title": "A", "sto': {"title": "A"}}),
    (int | list[str], {"1": 1, '["a': ["a"]}),
    (float | list[float], {"[1": [1.0]}),
    (Numbers, {"[1, ": Numbers.model_construct([1])}),
    (Any, {'{"a": [tr': {"a": []}}),
]  # fmt: skip


@pytest.mark.parametrize(("type_", "texts"), JSON, ids=[f"{n} {case[0]}" for n, case in enumerate(JSON)])
def test_json(type_: Any, texts: dict[str, Any]) -> None:
    spec = type_spec(type_)
    for text, value in texts.items():
        found = spec.partial(text)
        assert found == value and type(found) is type(value), text


def test_a_model_has_all_its_fields_and_says_which_are_known() -> None:
    found = type_spec(Person).partial('{"name": "An')
    assert isinstance(found, Person) and found.model_fields_set == {"name"}
    assert (found.name, found.email, found.colour, found.friends) == ("An", None, None, None)
    found = type_spec(Person).partial('{"name": "Ana", "colour": "blue", "friends": [{"name": "B')
    assert found.colour is Colour.BLUE and isinstance(found.friends[0], Person) and found.friends[0].name == "B"
    assert "name='Ana'" in repr(found)


def test_no_code_of_a_class_runs_before_its_text_is_whole() -> None:
    found = type_spec(Stop).partial('{"name": "North')
    assert isinstance(found, Stop) and (found.name, found.minutes) == ("North", None)
    assert type_spec(Stop).partial('{"name": "North"}') == Stop("North", 5)
    slotted = type_spec(Slotted).partial('{"a": 1')
    assert (slotted.a, slotted.b) == (1, None)


def test_a_whole_text_that_the_type_refuses_stays_a_part() -> None:
    found = type_spec(Person).partial('{"name": "An"}')
    assert isinstance(found, Person) and found.name == "An" and found.email is None
    with pytest.raises(KeyError):
        type_spec(Person).parse('{"name": "An"}')


def test_aliases_and_extra_fields() -> None:
    found = type_spec(Aliased).partial('{"userName": "u", "yearIn": 3, "more": [1')
    assert (found.user, found.year, found.more) == ("u", 3, [1])


def test_a_member_of_a_union_once_it_is_certain() -> None:
    for union in (Pet, Cat | Dog):
        spec = type_spec(list[union])  # type: ignore[valid-type]
        assert spec.partial('[{"kind": "dog') == [{"kind": "dog"}]  # or dogfish, for all that is known
        (found,) = spec.partial('[{"kind": "dog", "barks": 3')
        assert isinstance(found, Dog) and found.barks == 3
    assert type_spec(list[int | float]).partial("[1, 2") == [1, 2]


def test_a_class_that_cannot_be_made_this_way_gives_its_json() -> None:
    class Awkward(BaseModel):
        a: int

        def __setstate__(self, state: Any) -> None:
            raise RuntimeError("no")

    assert type_spec(Awkward).partial('{"a": 1') == {"a": 1}
    assert type_spec(Awkward).partial('{"a": 1}') == Awkward(a=1)
