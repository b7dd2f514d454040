"""Unions of shapes, of arrays or of objects: their product, complement and difference, within bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from sglite.constrained.json_schema.normal import (
    IMPOSSIBLE,
    ArrayShape,
    Conjunction,
    Contains,
    Exactly,
    Names,
    ObjectShape,
    Rule,
    negated,
)

MAX_SHAPES = 48  # of a product
_MAX_FACTORS = 4096  # pairs of one product
_MAX_WORK = 8_000  # pairs looked at in one document

Shape = TypeVar("Shape", ArrayShape, ObjectShape)


class Budget:
    """The pairs of shapes that may still be looked at."""

    def __init__(self) -> None:
        self.left = _MAX_WORK

    def spend(self, pairs: int) -> bool:
        """Whether there is enough left for so many."""
        self.left -= pairs
        return pairs <= _MAX_FACTORS and self.left >= 0


class Shapes(Generic[Shape]):
    """The algebra of one kind. `clash` tells that two shapes are sure to have no value in common.

    Whatever would go over a bound, or has no shape, is None.
    """

    def __init__(
        self,
        every: Shape,
        join: Callable[[Shape, Shape], Shape],
        opposite: Callable[[Shape], list[Shape] | None],
        clash: Callable[[Shape, Shape], bool],
        budget: Budget,
    ) -> None:
        self._all: tuple[Shape, ...] = (every,)
        self._join: Callable[[Shape, Shape], Shape] = join
        self._opposite: Callable[[Shape], list[Shape] | None] = opposite
        self._clash: Callable[[Shape, Shape], bool] = clash
        self._budget = budget

    def product(self, left: tuple[Shape, ...], right: tuple[Shape, ...]) -> tuple[Shape, ...] | None:
        """The values of both unions."""
        if left == self._all or left is right:
            return right
        if right == self._all:
            return left
        if len(left) == 1 and len(right) == 1:
            return (self._join(left[0], right[0]),)
        if not self._budget.spend(len(left) * len(right)):
            return None
        result = [self._join(a, b) for a in left for b in right if not self._clash(a, b)]
        return tuple(result) if len(result) <= MAX_SHAPES else None

    def outside(self, shapes: Sequence[Shape]) -> tuple[Shape, ...] | None:
        """The values of this kind that have none of these shapes."""
        return self._without(self._all, shapes)

    def less(self, left: tuple[Shape, ...], taken: Sequence[Shape]) -> tuple[Shape, ...] | None:
        """The values of `left` that have none of the shapes `taken`. What does not overlap is left alone."""
        result: list[Shape] = []
        for shape in left:
            if not self._budget.spend(len(taken)):
                return None
            rest = self._without((shape,), [other for other in taken if not self._clash(shape, other)])
            if rest is None:
                return None
            result += rest
        return tuple(result) if len(result) <= max(MAX_SHAPES, len(left)) else None

    def _without(self, left: tuple[Shape, ...], taken: Sequence[Shape]) -> tuple[Shape, ...] | None:
        result: tuple[Shape, ...] | None = left
        if taken and not self._budget.spend(len(taken)):
            return None
        for shape in taken:
            opposite = self._opposite(shape)
            if opposite is None or result is None:
                return None
            result = self.product(result, tuple(opposite))
        return result


def not_object(shape: ObjectShape) -> list[ObjectShape] | None:
    """The objects without that shape: those that break one of its demands."""
    found = [ObjectShape(rules=(Rule(Names(None, only=name), IMPOSSIBLE),)) for name in shape.required]
    for name, value in shape.names.items():
        found += [ObjectShape({name: negated(term)}, {name: None}) for term in value]
    for rule in shape.rules:
        found += [ObjectShape(some=(Rule(rule.names, negated(term)),)) for term in rule.value]
    if shape.keys is not None:
        found.append(ObjectShape(some=(Rule(Names(~shape.keys), ()),)))
    if shape.low:
        found.append(ObjectShape(high=shape.low - 1))
    if shape.high is not None:
        found.append(ObjectShape(low=shape.high + 1))
    for some in shape.some:
        if len(some.value) > 1:
            return None
        found.append(ObjectShape(rules=(Rule(some.names, negated(some.value[0]) if some.value else IMPOSSIBLE),)))
    return found


def not_array(shape: ArrayShape) -> list[ArrayShape] | None:
    """The arrays without that shape."""
    if shape.unique:
        return None
    found = []
    for i, value in enumerate(shape.prefix):
        found += [ArrayShape(((),) * i + (negated(term),), low=i + 1) for term in value]
    start = len(shape.prefix)
    found += [ArrayShape(contains=(Contains(start, negated(term), 1, None),)) for term in shape.rest]
    if shape.low:
        found.append(ArrayShape(high=shape.low - 1))
    if shape.high is not None:
        found.append(ArrayShape(low=shape.high + 1))
    for each in shape.contains:
        if each.low:
            found.append(ArrayShape(contains=(each._replace(low=0, high=each.low - 1),)))
        if each.high is not None:
            found.append(ArrayShape(contains=(each._replace(low=each.high + 1, high=None),)))
    return found


def shape_of_array(value: list[Any], exactly: Callable[[Any], Exactly]) -> ArrayShape:
    """The arrays that equal a constant one."""
    return ArrayShape(tuple((exactly(item),) for item in value), IMPOSSIBLE, len(value), len(value))


def shape_of_object(value: dict[str, Any], exactly: Callable[[Any], Exactly]) -> ObjectShape:
    """The objects that equal a constant one."""
    names: dict[str, Conjunction] = {name: (exactly(item),) for name, item in value.items()}
    return ObjectShape(names, dict.fromkeys(value), (Rule(Names(None, value), IMPOSSIBLE),))
