"""The normal form of a schema: for each type of value, which values.

A value has one type, so a schema is a set of nulls, of booleans, of numbers, of strings, of arrays and of objects,
and every boolean operation works on each of them alone. The first four are exact sets. Arrays and objects are unions
of *shapes* (and of constants), each a list of demands that all have to hold. What stands inside an array or an
object is not expanded: a shape holds conjunctions of *literals*, a literal being a place, a value, or
the negation of one.

`loose` names the types for which the form holds more than the schema allows, because the exact form would be too
large or has no shape; whoever writes a grammar for it has to check finished values.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from functools import reduce
from operator import or_
from typing import Any, NamedTuple, TypeAlias

from sglite.constrained.fsm import TooLarge
from sglite.constrained.json_schema.document import Negation, Place, Term
from sglite.constrained.json_schema.numbers import NumberSet
from sglite.constrained.json_schema.strings import StringSet


class Never:
    """The literal that no value satisfies."""

    __slots__ = ()


NEVER = Never()


class Exactly(Term):
    """The literal of one value, `key` being what it is equal by."""

    __slots__ = ("key", "value")

    def __init__(self, value: Any, key: Hashable) -> None:
        super().__init__()
        self.value = value
        self.key = key


Literal: TypeAlias = Term | Negation | Never
Conjunction: TypeAlias = tuple[Literal, ...]

IMPOSSIBLE: Conjunction = (NEVER,)


def literal(place: Place) -> Conjunction:
    """What a place says: nothing when it is `true`, one literal else."""
    if place.schema is True or place.schema == {}:
        return ()
    return IMPOSSIBLE if place.schema is False else (place,)


def negated(term: Literal) -> Conjunction:
    """What the opposite of a literal says."""
    if isinstance(term, Never):
        return ()
    return (term.of,) if isinstance(term, Negation) else (term.negation,)


def both(left: Conjunction, right: Conjunction) -> Conjunction:
    """All literals of two conjunctions, each once."""
    if not right or left is right:
        return left
    if not left:
        return right
    if NEVER in left or NEVER in right:
        return IMPOSSIBLE
    return (*left, *(term for term in right if term not in left))


class Names(NamedTuple):
    """Names that fit `inside` (None: all names) but are not in `but` and fit none of `outside`; or the one `only`."""

    inside: StringSet | None
    but: Collection[str] = ()
    outside: tuple[StringSet, ...] = ()
    only: str | None = None

    def has(self, name: str) -> bool:
        if self.only is not None:
            return name == self.only
        if name in self.but:
            return False
        if self.inside is not None and not self.inside.contains(name):
            return False
        return not any(pattern.contains(name) for pattern in self.outside)


class Rule(NamedTuple):
    """Every property with one of these names has such a value."""

    names: Names
    value: Conjunction


class Seen(NamedTuple):
    """What `unevaluated*` need not look at: these names, names of these patterns, every name; the first `items`
    items, -1 for all. `loose`: also items that no shape tells."""

    names: frozenset[str] = frozenset()
    patterns: tuple[StringSet, ...] = ()
    every: bool = False
    items: int = 0
    loose: bool = False


UNSEEN = Seen()


class ObjectShape(NamedTuple):
    """Objects that meet every demand. `names` are the declared properties, in order; `some` must occur."""

    names: dict[str, Conjunction] = {}  # noqa: RUF012  (never changed)
    required: dict[str, None] = {}  # noqa: RUF012
    rules: tuple[Rule, ...] = ()
    keys: StringSet | None = None
    low: int = 0
    high: int | None = None
    some: tuple[Rule, ...] = ()
    seen: Seen = UNSEEN

    def value_of(self, name: str) -> Conjunction:
        """What the value of one property has to satisfy."""
        if self.keys is not None and not self.keys.contains(name):
            return IMPOSSIBLE
        found = self.names.get(name, ())
        for rule in self.rules:
            if rule.names.has(name):
                found = both(found, rule.value)
        return found


class Contains(NamedTuple):
    """From item `start` on, `low` to `high` items satisfy `item`, which is one literal at most."""

    start: int
    item: Conjunction
    low: int
    high: int | None


class ArrayShape(NamedTuple):
    """Arrays that meet every demand. `prefix` speaks of the first items, `rest` of all others."""

    prefix: tuple[Conjunction, ...] = ()
    rest: Conjunction = ()
    low: int = 0
    high: int | None = None
    unique: bool = False
    contains: tuple[Contains, ...] = ()
    seen: Seen = UNSEEN

    def item(self, i: int) -> Conjunction:
        return self.prefix[i] if i < len(self.prefix) else self.rest


class Constant(NamedTuple):
    """An array or an object, as written, and what it is equal by."""

    value: Any
    key: Hashable


ANY_OBJECT = ObjectShape()
ANY_ARRAY = ArrayShape()


class Normal(NamedTuple):
    """A set of JSON values, by type. `booleans` are the values in it."""

    null: bool
    booleans: frozenset[bool]
    numbers: NumberSet
    strings: StringSet
    arrays: tuple[ArrayShape, ...]
    objects: tuple[ObjectShape, ...]
    constants: tuple[Constant, ...] = ()  # arrays and objects besides
    loose: frozenset[str] = frozenset()  # "array", "object"


BOTH = frozenset((False, True))
NEITHER: frozenset[bool] = frozenset()
EXACT: frozenset[str] = frozenset()
ALL = Normal(True, BOTH, NumberSet.ALL, StringSet.ALL, (ANY_ARRAY,), (ANY_OBJECT,))
NONE = Normal(False, NEITHER, NumberSet.NONE, StringSet.NONE, (), ())


def kind_of(constant: Constant) -> str:
    return "array" if isinstance(constant.value, list) else "object"


def union(forms: Iterable[Normal], traced: bool = False) -> Normal:
    """The values of any of these. `traced` keeps shapes apart that only differ in what they have seen."""
    parts = [form for form in forms if form is not NONE]
    if not traced and any(part is ALL for part in parts):
        return ALL
    if len(parts) < 2:
        return parts[0] if parts else NONE
    arrays = tuple({id(shape): shape for part in parts for shape in part.arrays}.values())
    objects = tuple({id(shape): shape for part in parts for shape in part.objects}.values())
    if not traced and ANY_ARRAY in arrays:
        arrays = (ANY_ARRAY,)
    if not traced and ANY_OBJECT in objects:
        objects = (ANY_OBJECT,)
    return Normal(
        any(part.null for part in parts),
        NEITHER.union(*(part.booleans for part in parts)),
        reduce(or_, (part.numbers for part in parts if not part.numbers.is_empty()), NumberSet.NONE),
        reduce(or_, (part.strings for part in parts if part.strings != StringSet.NONE), StringSet.NONE),
        arrays,
        objects,
        tuple({each.key: each for part in parts for each in part.constants}.values()),
        EXACT.union(*(part.loose for part in parts)),
    )


def join_objects(left: ObjectShape, right: ObjectShape) -> ObjectShape:
    """The objects that have both shapes. Names keep the order in which they are first mentioned."""
    if left is ANY_OBJECT or left is right:
        return right
    if right is ANY_OBJECT:
        return left
    names = left.names
    if right.names:
        names = dict(names)
        for name, value in right.names.items():
            names[name] = both(names[name], value) if name in names else value
    keys = left.keys if right.keys is None else right.keys if left.keys is None else left.keys & right.keys
    return ObjectShape(
        names,
        {**left.required, **right.required} if right.required else left.required,
        _with(left.rules, right.rules),
        keys,
        max(left.low, right.low),
        lower_of(left.high, right.high),
        _with(left.some, right.some),
        _seen_by_both(left.seen, right.seen),
    )


def join_arrays(left: ArrayShape, right: ArrayShape) -> ArrayShape:
    """The arrays that have both shapes."""
    if left is ANY_ARRAY or left is right:
        return right
    if right is ANY_ARRAY:
        return left
    length = max(len(left.prefix), len(right.prefix))
    return ArrayShape(
        tuple(both(left.item(i), right.item(i)) for i in range(length)),
        both(left.rest, right.rest),
        max(left.low, right.low),
        lower_of(left.high, right.high),
        left.unique or right.unique,
        _with(left.contains, right.contains),
        _seen_by_both(left.seen, right.seen),
    )


def lower_of(left: int | None, right: int | None) -> int | None:
    """The smaller limit; None is no limit."""
    return right if left is None else left if right is None else min(left, right)


def _with(left: tuple[Any, ...], right: tuple[Any, ...]) -> tuple[Any, ...]:
    if not right:
        return left
    return (*left, *(each for each in right if not any(each is other for other in left))) if left else right


def _seen_by_both(left: Seen, right: Seen) -> Seen:
    if right is UNSEEN or left is right:
        return left
    if left is UNSEEN:
        return right
    return Seen(
        left.names | right.names,
        (*left.patterns, *right.patterns),
        left.every or right.every,
        -1 if -1 in (left.items, right.items) else max(left.items, right.items),
        left.loose or right.loose,
    )


def surely_empty(strings: StringSet) -> bool:
    """Whether a set of strings is known to be empty, within what may be spent on finding out."""
    try:
        return strings.is_empty()
    except TooLarge:
        return False
