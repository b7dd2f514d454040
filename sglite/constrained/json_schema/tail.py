"""The properties of an object that are not declared."""

from __future__ import annotations

from sglite.constrained.grammar import EMPTY, NOTHING, Node, Ref, Shuffle, Unique, alt, repeat, seq
from sglite.constrained.json_schema.cells import Cell
from sglite.constrained.json_schema.listing import Values, listed, maybe_empty, name_node

MAX_SHUFFLED = 1024  # entries of a Shuffle
_MAX_LISTED = 64  # names written out where they could be compared instead


class Tail:
    """Any number of undeclared properties between two counts.

    With `listing` few names are written out, each used once at most; without, all are compared with those before them,
    as they have to be where others of the same names were written before the tail begins.
    """

    def __init__(self, values: Values, cells: list[Cell], rule: str, listing: bool = True) -> None:
        self._layout = values.layout
        named = [(name, cell.value) for cell in cells for name in cell.listed or ()]
        written = listing and len(named) <= _MAX_LISTED
        self._written = tuple(
            seq(name_node(name, values.layout), values.layout.colon, values.value(value))
            for name, value in (named if written else ())
        )
        self._more = alt(
            seq(Unique(cell.names.node(), cell.endless), values.layout.colon, values.value(cell.value))
            for cell in cells
            if cell.listed is None or not written
        )
        if self._more != NOTHING:
            values.rules[rule] = self._more
            self._more = Ref(rule)

    def alone(self, low: int, high: int | None) -> Node:
        """All there is in the object, with the space after it."""
        return maybe_empty(NOTHING if high == 0 else self._filled(max(low, 1), high), self._layout, low)

    def following(self, low: int, high: int | None) -> Node:
        """After another property."""
        if not self._written:
            return repeat(seq(self._layout.comma, self._more), low, high)
        filled = NOTHING if high == 0 else seq(self._layout.comma, self._filled(max(low, 1), high))
        return filled if low else alt([EMPTY, filled])

    @property
    def written(self) -> tuple[Node, ...]:
        """The entries whose names are written out."""
        return self._written

    @property
    def more(self) -> Node:
        """One of the other entries."""
        return self._more

    def _filled(self, low: int, high: int | None) -> Node:
        if not self._written:
            return NOTHING if self._more == NOTHING else listed(self._more, self._layout, low, high)
        if self._more == NOTHING and low > len(self._written):
            return NOTHING
        rest = None if self._more == NOTHING else self._more
        return Shuffle(self._written, frozenset(), self._layout.comma, low, high, rest)
