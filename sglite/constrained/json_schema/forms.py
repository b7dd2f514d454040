"""Forms: the normal form of every literal and conjunction of a document, each made once, and the algebra over them.

Every product is bounded, in shapes and in the work of one document. What goes over a bound makes the form loose,
which is still right, for finished values are then checked. A proof of emptiness may miss one, it never invents one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglite.constrained.json_schema.document import Document, Negation, Place
from sglite.constrained.json_schema.normal import (
    ALL,
    ANY_ARRAY,
    ANY_OBJECT,
    BOTH,
    EXACT,
    NEVER,
    NONE,
    ArrayShape,
    Conjunction,
    Constant,
    Exactly,
    Literal,
    Normal,
    ObjectShape,
    both,
    join_arrays,
    join_objects,
    kind_of,
    surely_empty,
)
from sglite.constrained.json_schema.numbers import NumberSet
from sglite.constrained.json_schema.shapes import (
    Budget,
    Shapes,
    not_array,
    not_object,
    shape_of_array,
    shape_of_object,
)
from sglite.constrained.json_schema.strings import StringSet
from sglite.constrained.json_schema.values import Members, of_values
from sglite.constrained.json_values import exact, identity
from sglite.constrained.spec import ConstraintError, ConstraintRefused

_MAX_PROOFS = 6  # proofs of emptiness inside one another

Read = Callable[["Forms", Place, bool], Normal]


class _Circle(Exception):
    """The form of a place is needed to make that same form."""


class Forms:
    """Normal forms for one document. `read` makes the form of a place from its keywords."""

    def __init__(self, document: Document, read: Read) -> None:
        self.document = document
        self._read = read
        self._forms: dict[Literal, Normal] = {NEVER: NONE}
        self._traced: dict[Literal, Normal] = {}
        self._conjunctions: dict[Conjunction, Normal] = {(): ALL, (NEVER,): NONE}
        self._empty: dict[Conjunction, bool] = {}
        self._exactly: dict[Any, Exactly] = {}
        self._busy: dict[tuple[Place, bool], None] = {}
        self._visited = 0
        self._proofs = 0
        self._members = Members(self.of)
        self.budget = Budget()
        self._arrays = Shapes(ANY_ARRAY, join_arrays, not_array, self._arrays_clash, self.budget)
        self._objects = Shapes(ANY_OBJECT, join_objects, not_object, self._objects_clash, self.budget)

    def of(self, term: Literal, traced: bool = False) -> Normal:
        """The form of one literal. `traced` forms know what their shapes have seen (`unevaluated*`)."""
        known = self._traced if traced else self._forms
        found = known.get(term)
        if found is None:
            if isinstance(term, Place):
                found = self._place(term, traced)
            elif isinstance(term, Negation):
                found = self.complement(self.of(term.of))
            else:
                assert isinstance(term, Exactly)
                found = of_values([term.value])
            known[term] = found
        return found

    def of_all(self, terms: Conjunction) -> Normal:
        """The form of a conjunction."""
        found = self._conjunctions.get(terms)
        if found is None:
            found = self.of(terms[0])
            for term in terms[1:]:
                found = self.meet(found, self.of(term))
            self._conjunctions[terms] = found
        return found

    def lowered(self, terms: Conjunction) -> Normal:
        """The same, for a caller that is not making a form: a circle is then an error of the schema."""
        try:
            return self.of_all(terms)
        except _Circle as circle:
            raise ConstraintError(str(circle)) from None

    def exactly(self, value: Any) -> Exactly:
        """The literal of one value."""
        key = identity(exact(value))
        found = self._exactly.get(key)
        if found is None:
            found = self._exactly[key] = Exactly(value, key)
        return found

    def _place(self, place: Place, traced: bool) -> Normal:
        limits = self.document.limits
        self._visited += 1
        if self._visited > limits.max_places:
            raise ConstraintRefused(f"too large: over {limits.max_places} subschemas to visit; simplify it")
        if len(self._busy) > 2 * limits.max_depth:
            raise ConstraintRefused("references and allOf nested too deeply; simplify it", pointer=place.pointer)
        if (place, traced) in self._busy:
            last = next(reversed(self._busy))[0]
            keyword = next((word for word in last.schema if word.endswith("ef")), "")
            raise _Circle(f"{last.at(keyword) if keyword else place.pointer}: the reference leads back to itself")
        self._busy[place, traced] = None
        try:
            return self._read(self, place, traced)
        except ConstraintRefused as error:
            if error.pointer:
                raise
            raise ConstraintRefused(error.reason, pointer=place.pointer, keyword=error.keyword) from None
        finally:
            del self._busy[place, traced]

    # algebra

    def meet(self, left: Normal, right: Normal) -> Normal:
        """The values of both."""
        if left is ALL or left is right:
            return right
        if right is ALL:
            return left
        loose = set(left.loose | right.loose)
        arrays = self._arrays.product(left.arrays, right.arrays)
        objects = self._objects.product(left.objects, right.objects)
        if arrays is None:
            arrays = min(left.arrays, right.arrays, key=len)
            loose.add("array")
        if objects is None:
            objects = min(left.objects, right.objects, key=len)
            loose.add("object")
        constants: tuple[Constant, ...] = ()
        if left.constants or right.constants:
            constants = self._common(left, right, loose)
        numbers = left.numbers if left.numbers is right.numbers else left.numbers & right.numbers
        strings = left.strings if left.strings is right.strings else left.strings & right.strings
        booleans = left.booleans & right.booleans
        return _normal(left.null and right.null, booleans, numbers, strings, arrays, objects, constants, loose)

    def told_apart(self, forms: list[Normal]) -> bool:
        """Whether all are objects with a required property, the same for all, whose constants tell them apart."""
        shapes = [shape for form in forms for shape in form.objects]
        if not shapes or any(form != NONE._replace(objects=form.objects, loose=form.loose) for form in forms):
            return False
        for name in shapes[0].required:
            known: set[str] = set()
            for form in forms:
                tags = {tag for shape in form.objects for tag in self._tags(shape, name)}
                if not tags or not known.isdisjoint(tags):
                    break
                known |= tags
            else:
                return True
        return False

    def _tags(self, shape: ObjectShape, name: str) -> frozenset[str]:
        """The values of a required property, when it has a few strings only."""
        value = self.of_all(shape.value_of(name)) if name in shape.required else ALL
        return value.strings.values or frozenset() if value == NONE._replace(strings=value.strings) else frozenset()

    def complement(self, form: Normal) -> Normal:
        """The values that are not in `form`."""
        if form is ALL or form is NONE:
            return NONE if form is ALL else ALL
        loose = set(form.loose)
        arrays = None if "array" in loose else self._arrays.outside(self._array_shapes(form))
        objects = None if "object" in loose else self._objects.outside(self._object_shapes(form))
        if arrays is None:
            arrays = (ANY_ARRAY,)
            loose.add("array")
        if objects is None:
            objects = (ANY_OBJECT,)
            loose.add("object")
        return _normal(not form.null, BOTH - form.booleans, ~form.numbers, ~form.strings, arrays, objects, (), loose)

    def subtract(self, left: Normal, right: Normal) -> Normal:
        """The values of `left` that are not in `right`. Where the two do not overlap nothing is expanded."""
        if not _may_overlap(left, right):
            return left
        loose = set(left.loose)
        constants = left.constants
        if constants:
            inside = [self._members.among(each, right) for each in constants]
            loose |= {kind_of(each) for each, known in zip(constants, inside, strict=True) if known is None}
            constants = tuple(each for each, known in zip(constants, inside, strict=True) if known is not True)
        arrays, objects = left.arrays, left.objects
        if arrays and (right.arrays or right.constants):
            less = None if "array" in right.loose else self._arrays.less(arrays, self._array_shapes(right))
            arrays = arrays if less is None else less
            loose |= {"array"} if less is None else set()
        if objects and (right.objects or right.constants):
            fewer = None if "object" in right.loose else self._objects.less(objects, self._object_shapes(right))
            objects = objects if fewer is None else fewer
            loose |= {"object"} if fewer is None else set()
        numbers, strings = left.numbers, left.strings
        if not numbers.is_empty() and not right.numbers.is_empty():
            numbers = numbers & ~right.numbers
        if strings != StringSet.NONE and right.strings != StringSet.NONE:
            strings = strings & ~right.strings
        booleans = left.booleans - right.booleans
        return _normal(left.null and not right.null, booleans, numbers, strings, arrays, objects, constants, loose)

    def _array_shapes(self, form: Normal) -> list[ArrayShape]:
        values = [each.value for each in form.constants if isinstance(each.value, list)]
        return [*form.arrays, *(shape_of_array(value, self.exactly) for value in values)]

    def _object_shapes(self, form: Normal) -> list[ObjectShape]:
        values = [each.value for each in form.constants if isinstance(each.value, dict)]
        return [*form.objects, *(shape_of_object(value, self.exactly) for value in values)]

    def _common(self, left: Normal, right: Normal, loose: set[str]) -> tuple[Constant, ...]:
        """The constants of either that the other has too, as a constant or by its shapes."""
        kept: dict[Any, Constant] = {}
        for these, other in ((left.constants, right), (right.constants, left)):
            for each in these:
                inside = each.key in kept or self._members.among(each, other)
                if inside is not False:
                    kept.setdefault(each.key, each)
                if inside is None:
                    loose.add(kind_of(each))
        return tuple(kept.values())

    # emptiness

    def is_empty(self, terms: Conjunction) -> bool:
        """Whether it is sure that no value satisfies a conjunction."""
        found = self._empty.get(terms)
        if found is None:
            if self._proofs >= _MAX_PROOFS:
                return False
            self._proofs += 1
            try:
                found = self._is_none(self.of_all(terms))
            except _Circle:
                return False
            finally:
                self._proofs -= 1
            self._empty[terms] = found
        return found

    def _is_none(self, form: Normal) -> bool:
        if form.null or form.booleans or form.constants or not form.numbers.is_empty():
            return False
        if not surely_empty(form.strings):
            return False
        return all(self._arrays_clash(shape, shape) for shape in form.arrays) and all(
            self._objects_clash(shape, shape) for shape in form.objects
        )

    def _arrays_clash(self, left: ArrayShape, right: ArrayShape) -> bool:
        low = max(left.low, right.low)
        if any(shape.high is not None and shape.high < low for shape in (left, right)):
            return True
        known = max(len(left.prefix), len(right.prefix))
        return any(self.is_empty(both(left.item(i), right.item(i))) for i in range(min(low, known + 1)))

    def _objects_clash(self, left: ObjectShape, right: ObjectShape) -> bool:
        low = max(left.low, right.low, len(left.required), len(right.required))
        if any(shape.high is not None and shape.high < low for shape in (left, right)):
            return True
        for name in {**left.required, **right.required}:
            if self.is_empty(both(left.value_of(name), right.value_of(name))):
                return True
        return False


def _normal(
    null: bool,
    booleans: frozenset[bool],
    numbers: NumberSet,
    strings: StringSet,
    arrays: tuple[ArrayShape, ...],
    objects: tuple[ObjectShape, ...],
    constants: tuple[Constant, ...],
    loose: set[str],
) -> Normal:
    """With nothing called loose that is not there at all."""
    if loose:
        there = {kind_of(each) for each in constants}
        there |= ({"array"} if arrays else set()) | ({"object"} if objects else set())
        loose &= there
    return Normal(null, booleans, numbers, strings, arrays, objects, constants, frozenset(loose) if loose else EXACT)


def _may_overlap(left: Normal, right: Normal) -> bool:
    """Whether two forms have values of one type in common, as far as that is quickly seen."""
    if (left.null and right.null) or left.booleans & right.booleans:
        return True
    if not (left.numbers.is_empty() or right.numbers.is_empty()):
        return True
    if left.strings != StringSet.NONE and right.strings != StringSet.NONE:
        one, two = left.strings.values, right.strings.values
        if one is None or two is None or not one.isdisjoint(two):
            return True
    if (left.arrays and right.arrays) or (left.objects and right.objects):
        return True
    return bool(left.constants or right.constants)
