"""Random types and values of them: the text of a value is allowed and read back, and no beginning of it is misread.

Unions are drawn with members that JSON tells apart, since a value must know which of them it came from.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime as dt
import enum
import json
import re
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, Union

import jsonschema
import pytest
from constrained_walks import small_vocabulary
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter, create_model
from typing_extensions import NotRequired, TypedDict

from benchmarks.constrained.cases import accepts, mutants
from sglite.constrained.compiler import ConstraintCompiler
from sglite.constrained.spec import ConstraintSpec
from sglite.lang.typed import TypeSpec, type_spec

VOCAB = small_vocabulary()
SETTINGS = settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


class Colour(enum.Enum):
    RED = "red"
    REDDISH = "reddish"
    LATE = 3


class Level(enum.IntEnum):
    LOW = 2
    HIGH = 12


class Kind(NamedTuple):
    """A type, values of it, and whether these can be items of a set."""

    type: Any
    values: st.SearchStrategy[Any]
    hashable: bool = True


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
FLOATS = st.floats(-9e290, 9e290).filter(lambda value: value == 0 or abs(value) > 1e-290)
"""Of the size that numbers inside JSON have."""
SCALARS = [
    Kind(int, st.integers(-(10**32) + 1, 10**32 - 1)),
    Kind(float, FLOATS),
    Kind(bool, st.booleans()),
    Kind(None, st.none()),
    Kind(str, TEXT),
    Kind(Literal["a", "ab", "b|c", 1, None, True], st.sampled_from(["a", "ab", "b|c", 1, None, True])),
    Kind(Colour, st.sampled_from(Colour)),
    Kind(Level, st.sampled_from(Level)),
    Kind(Annotated[int, Field(ge=-3, lt=1000)], st.integers(-3, 999)),
    Kind(Annotated[str, Field(min_length=1, max_length=3)], st.text("aé\"\n", min_size=1, max_size=3)),
    Kind(dt.date, st.dates()),
    Kind(dt.datetime, st.datetimes(timezones=st.just(dt.timezone.utc), min_value=dt.datetime(1900, 1, 1))),
    Kind(uuid.UUID, st.uuids()),
    Kind(Decimal, st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-999, max_value=999)),
]  # fmt: skip
NAMES = ["first", "second", "third"]


def fields(kinds: list[Kind], needed: int) -> st.SearchStrategy[dict[str, Any]]:
    """Values by name, in the order of the names; those after the first ``needed`` may be missing."""
    named = dict(zip(NAMES, (kind.values for kind in kinds), strict=False))
    must = {name: named[name] for name in list(named)[:needed]}
    found = st.fixed_dictionaries(must, optional={n: v for n, v in named.items() if n not in must})
    return found.map(lambda drawn: {name: drawn[name] for name in NAMES if name in drawn})


def classes(kinds: list[Kind], needed: int, how: str) -> Kind:
    """A class with a field a kind; a field that may be missing has a default that is not one of its values."""
    values, named = fields(kinds, needed), list(zip(NAMES, kinds, strict=False))
    made: Any
    if how == "typed dict":
        made = TypedDict("Made", {n: k.type if i < needed else NotRequired[k.type] for i, (n, k) in enumerate(named)})
        return Kind(made, values, False)
    if how == "named tuple":
        made = NamedTuple("Made", [(name, kind.type) for name, kind in named])
        return Kind(made, st.tuples(*[kind.values for kind in kinds]).map(made._make), all(k.hashable for k in kinds))
    if how == "dataclass":
        given = [(n, k.type) if i < needed else (n, k.type, "unset") for i, (n, k) in enumerate(named)]
        made = dataclasses.make_dataclass("Made", given)
    else:
        made = create_model(
            "Made", **{n: k.type if i < needed else (k.type, "unset") for i, (n, k) in enumerate(named)}
        )
    return Kind(
        made, values.map(lambda found: made(**found) if how == "dataclass" else made.model_construct(**found)), False
    )


def several(inner: st.SearchStrategy[Kind]) -> st.SearchStrategy[Kind]:
    lists = st.lists(inner, min_size=1, max_size=3)
    hashable = st.sampled_from(SCALARS) | st.sampled_from(SCALARS).map(
        lambda k: Kind(frozenset[k.type], st.frozensets(k.values, max_size=3))  # type: ignore[name-defined]
    )
    simple = [SCALARS[0], SCALARS[4], SCALARS[3]]
    return st.one_of(
        inner.map(lambda k: Kind(list[k.type], st.lists(k.values, max_size=3), False)),  # type: ignore[name-defined]
        inner.map(lambda k: Kind(tuple[k.type, ...], st.lists(k.values, max_size=3).map(tuple), k.hashable)),  # type: ignore[name-defined]
        lists.map(
            lambda ks: Kind(
                tuple[tuple(k.type for k in ks)],  # type: ignore[misc]
                st.tuples(*[k.values for k in ks]),
                all(k.hashable for k in ks),
            )
        ),
        hashable.map(lambda k: Kind(set[k.type], st.sets(k.values, max_size=3), False)),  # type: ignore[name-defined]
        inner.map(lambda k: Kind(dict[str, k.type], st.dictionaries(TEXT, k.values, max_size=3), False)),  # type: ignore[name-defined]
        inner.map(lambda k: Kind(Union[k.type, None], st.none() | k.values, k.hashable)),  # noqa: UP007
        inner.map(
            lambda k: Kind(
                Union[(list[k.type], *[each.type for each in simple])],  # type: ignore[name-defined]
                st.one_of(st.lists(k.values, max_size=3), *[each.values for each in simple]),
                False,
            )
        ),
        st.builds(
            classes, lists, st.integers(0, 3), st.sampled_from(["typed dict", "named tuple", "dataclass", "model"])
        ),
    )


KINDS = st.recursive(st.sampled_from(SCALARS), several, max_leaves=5)


def text_of(spec: TypeSpec, value: Any) -> str:
    """A value as the constraint has it written."""
    if spec.json_schema is None:
        plain = value.value if isinstance(value, enum.Enum) else value
        return plain if isinstance(plain, str) else json.dumps(plain)
    return json.dumps(dumped(spec, value), ensure_ascii=False)


def dumped(spec: TypeSpec, value: Any) -> Any:
    """The JSON value, without fields that are left to their defaults."""
    adapter = TypeAdapter(spec.type)
    found = adapter.dump_python(value, mode="json", exclude_defaults=True, warnings=False)
    return found


@pytest.fixture(scope="module")
def compiler() -> Iterator[ConstraintCompiler]:
    made = ConstraintCompiler(VOCAB)
    yield made
    made.close()


def constraint(spec: TypeSpec) -> ConstraintSpec:
    if spec.json_schema is not None:
        return ConstraintSpec.json_schema(spec.json_schema)
    return ConstraintSpec.regex(spec.regex if spec.regex is not None else r"[\s\S]*")


def refused(spec: TypeSpec, text: str) -> bool:
    try:
        spec.parse(text)
    except ValueError:
        return True
    return False


@SETTINGS
@given(kind=KINDS, data=st.data())
def test_what_is_written_is_allowed_and_read_back(
    compiler: ConstraintCompiler, kind: Kind, data: st.DataObject
) -> None:
    spec = type_spec(kind.type)
    value = data.draw(kind.values)
    text = text_of(spec, value)
    assert accepts(compiler.compile(constraint(spec)), VOCAB, text), text
    read = spec.parse(text)
    assert read == value and type(read) is type(value)
    for end in range(len(text) + 1):
        assert agrees(spec.partial(text[:end]), value), text[:end]
    if spec.json_schema is not None:
        assert spec.partial(text) == value


def agrees(part: Any, whole: Any) -> bool:
    """Whether a value of unfinished text is what the whole one begins with, or not known."""
    if part is None:
        return True
    if isinstance(whole, bool | enum.Enum | dt.date | uuid.UUID | Decimal):
        return bool(part == whole)
    if type(part) is not type(whole):
        return False
    if isinstance(whole, str):
        return whole.startswith(part)
    if isinstance(whole, int | float):
        return True  # its digits may go on
    if isinstance(whole, set | frozenset):
        return len(part - whole) <= 1
    if isinstance(whole, BaseModel):
        return all(agrees(getattr(part, name), getattr(whole, name)) for name in part.model_fields_set)
    if dataclasses.is_dataclass(whole):
        return all(agrees(getattr(part, f.name), getattr(whole, f.name)) for f in dataclasses.fields(part))
    if isinstance(whole, dict):
        return all(key in whole and agrees(item, whole[key]) for key, item in part.items())
    return len(part) <= len(whole) and all(agrees(*both) for both in zip(part, whole, strict=False))


def without_unique(schema: Any) -> Any:
    """A schema without the one keyword that pydantic does not check."""
    if isinstance(schema, list):
        return [without_unique(item) for item in schema]
    if isinstance(schema, dict):
        return {key: without_unique(item) for key, item in schema.items() if key != "uniqueItems"}
    return schema


@SETTINGS
@given(kind=KINDS, data=st.data())
def test_what_is_invalid_is_neither_allowed_nor_read(
    compiler: ConstraintCompiler, kind: Kind, data: st.DataObject
) -> None:
    spec = type_spec(kind.type)
    if spec.json_schema is None:
        return
    judge = jsonschema.Draft202012Validator(without_unique(copy.deepcopy(json.loads(spec.json_schema))))
    compiled = compiler.compile(constraint(spec))
    value = json.loads(text_of(spec, data.draw(kind.values)))
    for mutant in list(mutants(value))[:30]:
        if not judge.is_valid(mutant):
            text = json.dumps(mutant, ensure_ascii=False)
            assert refused(spec, text), text
            assert not accepts(compiled, VOCAB, text), text


@SETTINGS
@given(
    type_=st.sampled_from([int, float, bool, None, Colour, Level, Literal["a", "ab", "b|c", 1, None, True]]),
    text=st.text("0123456789-+.eE tru", max_size=8)
    | st.sampled_from(["red", "reddish", "null", "b", "b|c", "ab", "1e309"]),
)
def test_the_pattern_the_constraint_and_parse_are_one(compiler: ConstraintCompiler, type_: Any, text: str) -> None:
    spec = type_spec(type_)
    verdicts = {
        re.fullmatch(spec.regex or "", text) is not None,
        accepts(compiler.compile(constraint(spec)), VOCAB, text),
        not refused(spec, text),
    }
    assert len(verdicts) == 1, text
    spec.partial(text)


@SETTINGS
@given(kind=KINDS, text=st.text('{}[]",: 0123456789-.eaftrunls\\"', max_size=30))
def test_no_text_whatever_breaks_partial(kind: Kind, text: str) -> None:
    type_spec(kind.type).partial(text)
