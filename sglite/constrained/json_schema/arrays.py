"""Arrays of one shape: the items that have a place of their own, then those that share what they must satisfy.

`contains` is a counting automaton of states (i, counts). Items that must differ are choices of a Shuffle when few
values are possible, and else compared at run time.
"""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

from sglite.constrained.grammar import EMPTY, NOTHING, Node, Ref, Scope, Shuffle, Unique, alt, repeat, seq
from sglite.constrained.json_schema.listing import Values, bracketed, listed, maybe_empty
from sglite.constrained.json_schema.normal import (
    NEVER,
    ArrayShape,
    Conjunction,
    Contains,
    Normal,
    both,
    lower_of,
    negated,
)
from sglite.constrained.json_schema.scalars import constant

_MAX_STATES = 10_000
_MAX_CONTAINS = 3
_FEW = 8
_MAX_CHOICES = 64  # values of an item that are told apart by a Shuffle


def array_node(values: Values, shape: ArrayShape, rule: str) -> tuple[Node, bool]:
    """The arrays of a shape, with rules named after `rule`; and whether these are more than the shape has."""
    found = _ready(shape)
    if found is None:
        return NOTHING, False
    choices = finite(values.form(found.rest), _MAX_CHOICES) if found.unique and not found.contains else None
    if choices is not None and not found.prefix:
        nodes = tuple(constant(choice, values.layout) for choice in choices)
        return bracketed("[", _shuffled(values, nodes, found), "]", values.layout), False
    if choices is not None:  # there cannot be more, so the text is not led to where none is left
        found = found._replace(high=lower_of(found.high, len(found.prefix) + len(choices)))
    wide = False
    if found.contains:
        found, wide = _relaxed(found)
    inside = _counted(values, found, rule) if found.contains else _plain(values, found, rule)
    node = bracketed("[", inside, "]", values.layout)
    return (Scope(node) if found.unique else node), wide


def finite(form: Normal, most: int) -> list[Any] | None:
    """All values of a form, when it has no more than `most`."""
    if form.arrays or form.objects or form.loose:
        return None
    numbers, strings = form.numbers.finite(most), form.strings.finite(most)
    if numbers is None or strings is None:
        return None
    found = [*([None] if form.null else []), *sorted(form.booleans), *numbers, *strings]
    found += [each.value for each in form.constants]
    return found if len(found) <= most else None


def _ready(shape: ArrayShape) -> ArrayShape | None:
    """The shape without what says nothing; None when it has no arrays."""
    low, high = shape.low, shape.high
    contains = []
    for each in shape.contains:
        if not each.item:  # every item is one of them
            low = max(low, each.start + each.low if each.low else 0)
            high = lower_of(high, None if each.high is None else each.start + each.high)
        elif NEVER in each.item:
            if each.low:
                return None
        elif each.low or each.high is not None:
            if each.high is not None and each.high < each.low:
                return None
            contains.append(each)
    stop = next((i for i in range(len(shape.prefix) + 1) if NEVER in shape.item(i)), None)
    if stop is not None:
        high = stop if high is None else min(stop, high)
    if high is not None and high < low:
        return None
    prefix = shape.prefix if high is None else shape.prefix[:high]
    while prefix and prefix[-1] == shape.rest:
        prefix = prefix[:-1]
    unique = shape.unique and (high is None or high > 1)
    return shape._replace(prefix=prefix, low=low, high=high, unique=unique, contains=tuple(contains))


def _item(values: Values, shape: ArrayShape, terms: Conjunction) -> Node:
    node = values.value(terms)
    return Unique(node) if shape.unique and node != NOTHING else node


def _shuffled(values: Values, nodes: tuple[Node, ...], shape: ArrayShape) -> Node:
    filled: Node = NOTHING
    if nodes and shape.low <= len(nodes) and shape.high != 0:
        filled = Shuffle(nodes, frozenset(), values.layout.comma, max(1, shape.low), shape.high)
    return maybe_empty(filled, values.layout, shape.low)


def _plain(values: Values, shape: ArrayShape, rule: str) -> Node:
    layout, low, high = values.layout, shape.low, shape.high
    count = len(shape.prefix)
    rest = NOTHING if high is not None and high <= count else _item(values, shape, shape.rest)
    if max(low, high or 0) > _FEW and rest != NOTHING:
        values.rules[f"{rule}.item"] = rest  # by name, it is counted as one thing
        rest = Ref(f"{rule}.item")
    if not count:
        filled = NOTHING if rest == NOTHING or high == 0 else listed(rest, layout, low, high)
        return maybe_empty(filled, layout, low)
    items = [_item(values, shape, terms) for terms in shape.prefix]
    more = repeat(seq(layout.comma, rest), max(0, low - count), None if high is None else high - count)
    here = max(1, min(low, count))  # items that are there if any is
    following: Node = more
    if here < count:
        values.rules[f"{rule}.{count}"] = more
        for i in range(count - 1, here - 1, -1):
            values.rules[f"{rule}.{i}"] = alt([EMPTY, seq(layout.comma, items[i], Ref(f"{rule}.{i + 1}"))])
        following = Ref(f"{rule}.{here}")
    written = [part for item in items[1:here] for part in (layout.comma, item)]
    return maybe_empty(seq(items[0], *written, following), layout, low)


def _relaxed(shape: ArrayShape) -> tuple[ArrayShape, bool]:
    """The shape without what would take too many states, and whether that is less than it says."""
    wide = len(shape.contains) > _MAX_CONTAINS
    shape = shape._replace(contains=shape.contains[:_MAX_CONTAINS])
    if _states(shape) > _MAX_STATES and max(shape.low, shape.high or 0) > len(shape.prefix):
        shape, wide = shape._replace(low=0, high=None), True
    while _states(shape) > _MAX_STATES:
        shape, wide = shape._replace(contains=shape.contains[1:]), True
    return shape, wide


def _length(shape: ArrayShape) -> int:
    """Items that are counted: after those every further one is like the last."""
    starts = [each.start for each in shape.contains]
    return max(len(shape.prefix), shape.low, shape.high or 0, *starts)


def _states(shape: ArrayShape) -> int:
    return (_length(shape) + 1) * prod(_cap(each) + 1 for each in shape.contains) << len(shape.contains)


def _cap(each: Contains) -> int:
    return each.low if each.high is None else each.high


def _counted(values: Values, shape: ArrayShape, rule: str) -> Node:
    """The automaton of `contains`: i items are there, counts[k] of them satisfy the k-th."""
    layout, length = values.layout, _length(shape)
    start = (0,) * len(shape.contains)
    waiting: list[tuple[int, tuple[int, ...], bool]] = [(0, start, True)]
    while waiting:
        i, counts, first = waiting.pop()
        name = _state_name(rule, i, counts, first)
        if name in values.rules:
            continue
        enough = all(have >= each.low for have, each in zip(counts, shape.contains, strict=True))
        options: list[Node] = []
        if i >= shape.low and enough:
            options.append(EMPTY if first else layout.space)
        if shape.high is None or i < shape.high:
            for then, terms in _choices(shape, i, counts):
                to = (min(i + 1, length), then, False)
                waiting.append(to)
                comma = EMPTY if first else layout.comma
                options.append(seq(comma, _item(values, shape, terms), Ref(_state_name(rule, *to))))
        values.rules[name] = alt(options)
    return Ref(_state_name(rule, 0, start, True))


def _choices(shape: ArrayShape, i: int, counts: tuple[int, ...]) -> list[tuple[tuple[int, ...], Conjunction]]:
    """What item i may be: the counts then, and what it has to satisfy."""
    ways: list[list[tuple[int, Conjunction]]] = []
    for have, each in zip(counts, shape.contains, strict=True):
        if i < each.start:
            ways.append([(have, ())])
        elif each.high is None:  # one that is not counted may satisfy it all the same
            ways.append([(min(have + 1, each.low), each.item), (have, ())] if have < each.low else [(have, ())])
        else:
            counted = [(have + 1, each.item)] if have < each.high else []
            ways.append([*counted, (have, negated(each.item[0]))])
    result = []
    for way in product(*ways):
        terms = shape.item(i)
        for _, wanted in way:
            terms = both(terms, wanted)
        if NEVER not in terms:
            result.append((tuple(count for count, _ in way), terms))
    return result


def _state_name(rule: str, i: int, counts: tuple[int, ...], first: bool) -> str:
    return f"{rule}.{i}.{'.'.join(map(str, counts))}{'' if first else '+'}"
