"""The names that an object does not declare, cut into cells: languages of names whose values have to satisfy the same.

With k patterns there are up to 2^k cells, of which only those that hold a name are kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sglite.constrained.json_schema.affordable import affordable
from sglite.constrained.json_schema.normal import NEVER, Conjunction, Names, ObjectShape, both, surely_empty
from sglite.constrained.json_schema.strings import StringSet

_MAX_CELLS = 64
MAX_FINITE = 64  # names of a cell that is written out


class Cell(NamedTuple):
    """`names` are the language; `listed` its names, in order, when they are few. `meets` are the indices of those
    demands in `ObjectShape.some` that such a property can meet."""

    names: StringSet
    value: Conjunction
    meets: tuple[int, ...]
    listed: tuple[str, ...] | None
    endless: bool  # every beginning of a name has no end of continuations
    exact: bool  # `names` holds no others


def cells_of(shape: ObjectShape, reserved: Iterable[str]) -> list[Cell] | None:
    """The cells of the names that are not `reserved`. None when there are too many."""
    patterns = _patterns(shape)
    cells: list[tuple[StringSet, frozenset[StringSet]]] = [(shape.keys or StringSet.ALL, frozenset())]
    if shape.keys is not None and surely_empty(shape.keys):
        return []
    for pattern in patterns:
        split = []
        for names, fits in cells:
            split += [(names & pattern, fits | {pattern}), (names & ~pattern, fits)]
        cells = [cell for cell in split if not surely_empty(cell[0])]
        if len(cells) > _MAX_CELLS:
            return None
    merged: dict[tuple[Conjunction, tuple[int, ...]], StringSet] = {}
    for names, fits in cells:
        value: Conjunction = ()
        for rule in shape.rules:
            if _covers(rule.names, fits):
                value = both(value, rule.value)
        if NEVER not in value:
            key = (value, tuple(i for i, some in enumerate(shape.some) if _covers(some.names, fits)))
            merged[key] = merged[key] | names if key in merged else names
    plain = not patterns and shape.keys is None
    found = (_cell(names, value, meets, reserved, plain) for (value, meets), names in merged.items())
    return [cell for cell in found if cell is not None]


def _cell(
    names: StringSet, value: Conjunction, meets: tuple[int, ...], reserved: Iterable[str], plain: bool
) -> Cell | None:
    if plain:
        taken = list(reserved)
        names = names & ~StringSet.of(taken) if taken else names
        return Cell(names, value, meets, None, names.extendable, True)
    taken = [name for name in reserved if names.contains(name)]
    if taken:
        names = names & ~StringSet.of(taken)
    listed = names.finite(MAX_FINITE)
    if listed == []:
        return None
    if listed is not None:
        return Cell(names, value, meets, tuple(listed), False, True)
    names, exact = affordable(names)
    return Cell(names, value, meets, None, names.extendable, exact)


def _patterns(shape: ObjectShape) -> list[StringSet]:
    found: dict[StringSet, None] = {}
    for rule in (*shape.rules, *shape.some):
        if rule.names.inside is not None:
            found[rule.names.inside] = None
        found.update(dict.fromkeys(rule.names.outside))
    return list(found)


def _covers(names: Names, fits: frozenset[StringSet]) -> bool:
    """Whether a rule applies to the names of a cell, none of which is declared."""
    if names.only is not None or (names.inside is not None and names.inside not in fits):
        return False
    return fits.isdisjoint(names.outside)


def names_told(shape: ObjectShape) -> dict[str, None]:
    """Every name that a demand singles out, declared ones first."""
    found = {**shape.names, **shape.required}
    for rule in (*shape.rules, *shape.some):
        if rule.names.but is not shape.names:
            found.update(dict.fromkeys(rule.names.but))
        if rule.names.only is not None:
            found[rule.names.only] = ()
    return dict.fromkeys(found)
