"""Everyday schemas, first half: what pydantic emits for the types that its documentation lists."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import ipaddress
import pathlib
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Generic, Literal, NamedTuple, Optional, TypeVar, Union
from zoneinfo import ZoneInfo

import pydantic as p
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from typing_extensions import NotRequired, TypedDict

from benchmarks.constrained.cases import Case

UTC = dt.timezone.utc
NOON = dt.datetime(2024, 2, 29, 12, 30, 5, tzinfo=UTC)
ID = uuid.UUID("6fa459ea-ee8a-4ca4-894e-db77e160355e")


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 9


class Mixed(enum.Enum):
    ONE = 1
    TWO = "two"


class Point(NamedTuple):
    x: int
    y: float = 0.5


class Movie(TypedDict):
    title: str
    year: NotRequired[int]


class OpenMovie(TypedDict, total=False):
    title: str


@dataclasses.dataclass
class Basket:
    owner: str
    items: list[int] = dataclasses.field(default_factory=list)


class User(BaseModel):
    """Docstrings become descriptions."""

    name: str = Field(min_length=1, max_length=20, description="Full name", examples=["Ada"])
    age: int = Field(ge=0, le=150)
    email: str | None = None
    tags: set[str] = set()


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    a: int
    b: str = "x"


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    a: int


class OpenTyped(BaseModel):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, int]
    a: str


class Node(BaseModel):
    value: int
    children: list[Node] = []


class Linked(BaseModel):
    head: str
    tail: Optional[Linked] = None  # noqa: UP045 -- the documentation's own spelling


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog", "puppy"]
    barks: float


class Pet(BaseModel):
    pet: Annotated[Union[Cat, Dog], Field(discriminator="kind")]  # noqa: UP007
    n: int


class Aliased(BaseModel):
    model_config = ConfigDict(populate_by_name=True)
    user_name: str = Field(alias="userName")
    year: int = Field(validation_alias="yearIn", serialization_alias="yearOut")


class Numbers(p.RootModel[list[int]]):
    pass


class Square(BaseModel):
    side: float

    @p.computed_field  # type: ignore[prop-decorator]
    @property
    def area(self) -> float:
        return self.side**2


T = TypeVar("T")


class Reply(BaseModel, Generic[T]):
    data: T
    error: str | None = None


class Nested(BaseModel):
    user: User
    replies: dict[str, Reply[int]]
    when: dt.datetime
    colour: Colour = Colour.RED
    size: tuple[int, int]


class Described(BaseModel):
    model_config = ConfigDict(json_schema_extra={"examples": [{"a": 1}]}, title="Something else")
    a: int = Field(deprecated=True, title="Der A", json_schema_extra={"x-order": 1})


TYPES: list[tuple[Any, list[Any]]] = [
    (int, [0, -17, 10**20]),
    (float, [0.0, -1.5, 1e-7, 1e22]),
    (bool, [True, False]),
    (str, ["", "héllo \"you\"\n\t\\", "日本"]),
    (bytes, [b"abc"]),
    (None, [None]),
    (Any, [None, [1, {"a": "b"}], "x"]),
    (object, [{"a": [1]}]),
    (complex, [1 + 2j]),
    (decimal.Decimal, [decimal.Decimal("1.10")]),
    (fractions.Fraction, [fractions.Fraction(1, 3)]),
    (dt.datetime, [NOON]),
    (dt.date, [dt.date(2024, 2, 29)]),
    (dt.time, [dt.time(23, 59, 1, tzinfo=UTC)]),
    (dt.timedelta, [dt.timedelta(days=3, hours=4, minutes=1, seconds=5)]),
    (p.AwareDatetime, [NOON]),
    (p.PastDate, [dt.date(1999, 1, 1)]),
    (p.FutureDate, [dt.date(2999, 1, 1)]),
    (uuid.UUID, [ID]),
    (p.UUID4, [ID]),
    (Colour, [Colour.GREEN]),
    (Level, [Level.HIGH]),
    (Mixed, [Mixed.ONE, Mixed.TWO]),
    (Literal["a", 1, None, True], ["a", 1, None, True]),
    (Literal[Colour.RED], [Colour.RED]),
    (list[int], [[], [1, 2]]),
    (list, [[], [1, "a"]]),
    (set[int], [set(), {1, 2, 3}]),
    (frozenset[str], [frozenset(("a", "b"))]),
    (tuple[int, str], [(1, "a")]),
    (tuple[int, ...], [(), (1, 2)]),
    (tuple[()], [()]),
    (dict[str, int], [{}, {"a": 1, "b c": 2}]),
    (dict, [{}, {"x": [1]}]),
    (dict[int, str], [{1: "a"}]),
    (dict[Colour, int], [{Colour.RED: 1}]),
    (dict[uuid.UUID, int], [{ID: 1}]),
    (dict[Annotated[str, Field(pattern="^[a-z]+$")], int], [{"ab": 1}]),
    (dict[Annotated[str, Field(min_length=2, max_length=3)], bool], [{"ab": True}]),
    (Annotated[dict[str, int], Field(min_length=1, max_length=2)], [{"a": 1}, {"a": 1, "b": 2}]),
    (Mapping[str, float], [{"a": 1.5}]),
    (collections.OrderedDict[str, int], [collections.OrderedDict(a=1)]),
    (collections.defaultdict[str, list[int]], [collections.defaultdict(list, a=[1])]),
    (collections.Counter[str], [collections.Counter("aab")]),
    (collections.deque[int], [collections.deque((1, 2))]),
    (Sequence[int], [[1, 2]]),
    (Iterable[int], [[1, 2]]),
    (int | str, [1, "a"]),
    (Optional[int], [None, 3]),  # noqa: UP045
    (Union[list[int], dict[str, int], None], [[1], {"a": 1}, None]),  # noqa: UP007
    (Movie, [{"title": "A", "year": 1999}, {"title": "B"}]),
    (OpenMovie, [{}, {"title": "x"}]),
    (Point, [Point(1, 2.5), Point(3)]),
    (Basket, [Basket("me", [1, 2])]),
    (pathlib.Path, [pathlib.Path("/a/b.txt")]),
    (re.Pattern[str], [re.compile("^a+$")]),
    (ipaddress.IPv4Address, [ipaddress.IPv4Address("192.168.0.1")]),
    (ipaddress.IPv6Address, [ipaddress.IPv6Address("2001:db8::1")]),
    (ipaddress.IPv4Network, [ipaddress.IPv4Network("192.168.0.0/16")]),
    (ipaddress.IPv6Interface, [ipaddress.IPv6Interface("2001:db8::1/64")]),
    (p.IPvAnyAddress, [ipaddress.IPv4Address("10.0.0.1")]),
    (p.AnyUrl, [p.AnyUrl("ftp://example.org/a?b=c#d")]),
    (p.HttpUrl, [p.HttpUrl("https://example.org/a")]),
    (p.PostgresDsn, [p.PostgresDsn("postgres://user:pass@localhost:5432/db")]),
    (p.SecretStr, [p.SecretStr("hidden")]),
    (p.SecretBytes, [p.SecretBytes(b"hidden")]),
    (p.ByteSize, [p.ByteSize(1024)]),
    (p.Base64Str, ["aGVsbG8=\n"]),
    (ZoneInfo, [ZoneInfo("UTC")]),
    (p.StrictInt, [4]),
    (p.StrictStr, ["s"]),
    (p.PositiveInt, [1, 99]),
    (p.NegativeInt, [-1]),
    (p.NonNegativeFloat, [0.0, 2.5]),
    (p.conint(gt=3, le=12), [4, 12]),
    (p.conint(multiple_of=5, ge=-10), [-10, 0, 35]),
    (p.confloat(ge=-0.5, lt=1e3), [-0.5, 999.75]),
    (p.confloat(multiple_of=0.25), [0.75]),
    (p.condecimal(max_digits=5, decimal_places=2, ge=0), [decimal.Decimal("123.45")]),
    (p.constr(min_length=2, max_length=5), ["ab", "😀😀😀😀😀"]),
    (p.constr(pattern=r"^[A-Z]{2}-\d{3,5}$"), ["AB-1234"]),
    (p.constr(pattern=r"\d+", max_length=6), ["a12b"]),
    (p.constr(to_lower=True, strip_whitespace=True), ["abc"]),
    (p.conlist(int, min_length=1, max_length=3), [[1], [1, 2, 3]]),
    (p.conset(int, min_length=2), [{1, 2}]),
    (Annotated[list[Annotated[str, Field(max_length=3)]], Field(max_length=2)], [["abc"], []]),
    (User, [User(name="Ada", age=36, tags={"x"}), User(name="Bo", age=0, email="b@example.org")]),
    (Closed, [Closed(a=1), Closed(a=-2, b="\u2028")]),
    (Open, [Open(a=1, extra=[1, None])]),  # type: ignore[call-arg]
    (OpenTyped, [OpenTyped(a="x", other=3)]),  # type: ignore[call-arg]
    (Node, [Node(value=1, children=[Node(value=2), Node(value=3, children=[Node(value=4)])])]),
    (Linked, [Linked(head="a", tail=Linked(head="b"))]),
    (Pet, [Pet(pet=Cat(kind="cat", lives=9), n=1), Pet(pet=Dog(kind="puppy", barks=1.5), n=2)]),
    (Numbers, [Numbers([1, 2])]),
    (Square, [Square(side=1.5)]),
    (Reply[int], [Reply[int](data=3)]),
    (Reply[list[Closed]], [Reply[list[Closed]](data=[Closed(a=1)], error="none")]),
    (Nested, [Nested(user=User(name="A", age=1), replies={"r": Reply[int](data=1)}, when=NOON, size=(1, 2))]),
    (Described, [Described(a=3)]),
    (Aliased, [Aliased(userName="u", yearIn=3)]),  # type: ignore[call-arg]
]  # fmt: skip


def cases() -> list[Case]:
    """Both schemas of every type, for writing and, where it is another, for reading; with dumps of instances."""
    found = []
    for kind, values in TYPES:
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
        dumps = tuple(adapter.dump_python(value, mode="json", by_alias=True, warnings=False) for value in values)
        name, written, read = (
            f"pydantic/{_name(kind)}",
            adapter.json_schema(mode="serialization"),
            adapter.json_schema(),
        )
        found.append(Case(name, written, dumps))
        if read != written and kind not in (Aliased, Square):  # these read something else than they write
            found.append(Case(f"{name} (read)", read, dumps))
    return found + _by_hand()


def _by_hand() -> list[Case]:
    """Where what a type reads is not a dump of it; and what other versions of pydantic emit."""
    json_list: TypeAdapter[Any] = TypeAdapter(p.Json[list[int]])
    number = {"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"}
    price = {"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*(?:\d{0,3}|(?=[\d.]{1,6}0*$)\d{0,3}\.\d{0,2}0*$)"}
    return [
        Case("pydantic/Json[list[int]]", json_list.json_schema(), ("[1, 2]",)),
        Case("pydantic/Aliased read", Aliased.model_json_schema(), ({"userName": "u", "yearIn": 3},)),
        Case("pydantic/Aliased by name", Aliased.model_json_schema(by_alias=False), ({"user_name": "u", "year": 3},)),
        Case("pydantic/Square read", Square.model_json_schema(), ({"side": 2},)),
        Case("pydantic/Decimal with a pattern", {"anyOf": [{"type": "number"}, number]}, ("-01.50", 2.5)),
        Case("pydantic/Decimal with digits", price, ("123.45", "7")),
    ]


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", "") if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)
