"""Whether a constant value belongs to a normal form, and the form of an enumeration of values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any

from sglite.constrained.json_schema.normal import (
    ArrayShape,
    Conjunction,
    Constant,
    Literal,
    Normal,
    ObjectShape,
)
from sglite.constrained.json_schema.numbers import NumberSet
from sglite.constrained.json_schema.strings import StringSet
from sglite.constrained.json_values import exact, identity


class Members:
    """Membership, three-valued: None where a form is loose and does not tell."""

    def __init__(self, form_of: Callable[[Literal], Normal]) -> None:
        self._form_of = form_of

    def holds(self, terms: Conjunction, value: Any) -> bool | None:
        """Whether a value satisfies a conjunction; None when its form does not tell."""
        return _every(self._has(self._form_of(term), value) for term in terms)

    def among(self, constant: Constant, form: Normal) -> bool | None:
        """The same for a constant and a form."""
        if any(constant.key == other.key for other in form.constants):
            return True
        return self._has(form, constant.value)

    def _has(self, form: Normal, value: Any) -> bool | None:
        if value is None:
            return form.null
        if isinstance(value, bool):
            return value in form.booleans
        if isinstance(value, str):
            return form.strings.contains(value)
        if isinstance(value, int | float):
            return form.numbers.contains(Decimal(exact(value)))
        if form.constants and any(identity(exact(value)) == each.key for each in form.constants):
            return None if form.loose else True
        if isinstance(value, list):
            found = _some(self._array_has(shape, value) for shape in form.arrays)
            return None if found and "array" in form.loose else found
        found = _some(self._object_has(shape, value) for shape in form.objects)
        return None if found and "object" in form.loose else found

    def _array_has(self, shape: ArrayShape, value: list[Any]) -> bool | None:
        if len(value) < shape.low or (shape.high is not None and len(value) > shape.high):
            return False
        if shape.unique and len({identity(exact(item)) for item in value}) < len(value):
            return False
        parts = [_every(self.holds(shape.item(i), item) for i, item in enumerate(value))]
        for each in shape.contains:
            told = [self.holds(each.item, item) for item in value[each.start :]]
            least, most = told.count(True), len(told) - told.count(False)
            if most < each.low or (each.high is not None and least > each.high):
                return False
            parts.append(True if each.low <= least and (each.high is None or most <= each.high) else None)
        return _every(parts)

    def _object_has(self, shape: ObjectShape, value: dict[str, Any]) -> bool | None:
        if len(value) < shape.low or (shape.high is not None and len(value) > shape.high):
            return False
        if any(name not in value for name in shape.required):
            return False
        parts = [self.holds(shape.value_of(name), item) for name, item in value.items()]
        for some in shape.some:
            parts.append(_some(self.holds(some.value, item) for name, item in value.items() if some.names.has(name)))
        return _every(parts)


def of_values(values: list[Any]) -> Normal:
    """The form of an enumeration, each value as `json.loads` gives it."""
    texts = [value for value in values if isinstance(value, str)]
    numbers = [Decimal(exact(v)) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    constants = {identity(exact(v)): v for v in values if isinstance(v, list | dict)}
    return Normal(
        any(value is None for value in values),
        frozenset(value for value in values if isinstance(value, bool)),
        NumberSet.of(numbers) if numbers else NumberSet.NONE,
        StringSet.of(texts) if texts else StringSet.NONE,
        (),
        (),
        tuple(Constant(value, key) for key, value in constants.items()),
    )


def _every(parts: Iterable[bool | None]) -> bool | None:
    told: bool | None = True
    for part in parts:
        if part is False:
            return False
        told = None if part is None else told
    return told


def _some(parts: Iterable[bool | None]) -> bool | None:
    told: bool | None = False
    for part in parts:
        if part is True:
            return True
        told = None if part is None else told
    return told
