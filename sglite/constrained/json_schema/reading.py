"""From the keywords of one place to its normal form: what applies in place is met, united or subtracted.

`unevaluated*` needs to know which names and items the other keywords of its place have looked at. Shapes carry that
(`Seen`) through a *traced* reading, in which `anyOf` is the union over every set of its branches, each set's shapes
having seen what all its branches have: a value finds the set of all branches that it satisfies among them.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

from sglite.constrained.json_schema.document import Place
from sglite.constrained.json_schema.forms import Forms
from sglite.constrained.json_schema.keywords import (
    LOCAL_WORDS,
    REFERENCES,
    branches,
    check_schema,
    check_values,
    listing,
    mapping,
    mark_keywords,
    names,
)
from sglite.constrained.json_schema.local import absent, local_form
from sglite.constrained.json_schema.normal import (
    ALL,
    NONE,
    ArrayShape,
    Names,
    Normal,
    ObjectShape,
    Rule,
    join_arrays,
    kind_of,
    literal,
    union,
)
from sglite.constrained.json_schema.strings import StringSet
from sglite.constrained.json_schema.values import of_values
from sglite.constrained.spec import ConstraintRefused

_MAX_TRACED = 5  # branches of an anyOf whose sets are all formed
_FEW = 4  # branches that are compared pair by pair at once
_MAX_ONE_OF = 256  # branches of a oneOf that are told apart

# In which order the parts of a schema are met, which is the order of their properties: what is always there first.
_SOON = {"properties": 1, "allOf": 1, "const": 1, "enum": 1, **dict.fromkeys(REFERENCES, 1)}
_LATER = {"anyOf": 2, "oneOf": 2, "if": 3, "dependentSchemas": 4, "dependentRequired": 4, "dependencies": 4, "not": 4}
_RANK = {**_SOON, **_LATER}
_UNEVALUATED = ("unevaluatedProperties", "unevaluatedItems")


def read(forms: Forms, place: Place, traced: bool) -> Normal:
    """The form of a place."""
    check_schema(place)
    schema = place.schema
    if isinstance(schema, bool):
        return ALL if schema else NONE
    mark_keywords(place)
    if "$ref" in schema and place.resource.reading.ref_alone:
        return _reference(forms, place, "$ref", traced)
    unevaluated = [word for word in _UNEVALUATED if word in schema]
    traced = traced or bool(unevaluated)
    result = ALL
    if "properties" not in schema and not LOCAL_WORDS.isdisjoint(schema):
        result = _local(forms, place)
    for keyword in sorted((word for word in schema if word in _RANK), key=_RANK.__getitem__):
        part = _local(forms, place) if keyword == "properties" else _applied(forms, place, keyword, traced)
        result = forms.meet(result, part)
    for keyword in unevaluated:
        result = _evaluated(place, keyword, result)
    return result


def _local(forms: Forms, place: Place) -> Normal:
    keys: StringSet | None = None
    if "propertyNames" in place.schema:
        keys = forms.of_all(literal(place.sub("propertyNames"))).strings
        keys = None if keys is StringSet.ALL else keys
    return local_form(place, keys)


def _applied(forms: Forms, place: Place, keyword: str, traced: bool) -> Normal:
    if keyword in REFERENCES:
        return _reference(forms, place, keyword, traced)
    if keyword == "allOf":
        return reduce(forms.meet, [forms.of(branch, traced) for branch in branches(place, keyword)])
    if keyword == "anyOf":
        return _any_of(forms, place, traced)
    if keyword == "oneOf":
        return _one_of(forms, place, traced)
    if keyword == "not":
        return forms.complement(forms.of(place.sub("not")))
    if keyword == "if":
        return _if(forms, place, traced)
    if keyword in ("const", "enum"):
        values = listing(place, "enum") if keyword == "enum" else [place.schema["const"]]
        check_values(place, keyword, values)
        return of_values(values)
    return _dependent(forms, place, keyword, traced)


def _reference(forms: Forms, place: Place, keyword: str, traced: bool) -> Normal:
    try:
        target = place.document.resolve(place, keyword)
    except ConstraintRefused as error:
        place.document.refuse(place, keyword, f"is not followed: {error.reason}")
        return ALL
    return forms.of(target, traced)


def _any_of(forms: Forms, place: Place, traced: bool) -> Normal:
    parts = [forms.of(branch, traced) for branch in branches(place, "anyOf")]
    if not traced:
        return union(parts)
    if len(parts) > _MAX_TRACED:
        return _untold(union(parts, traced=True))
    sets = [ALL]
    for part in parts:
        sets += [forms.meet(each, part) for each in sets]
    return union(sets[1:], traced=True)


def _untold(form: Normal) -> Normal:
    """A form of which nobody knows what it has seen."""
    return form._replace(loose=frozenset(("array", "object")))


def _one_of(forms: Forms, place: Place, traced: bool) -> Normal:
    subs = branches(place, "oneOf")
    parts = [forms.of(branch, traced) for branch in subs]
    plain = [forms.of(branch) for branch in subs] if traced else parts
    if len(parts) > _MAX_ONE_OF:
        form = union(parts, traced)
        place.document.refuse(place, "oneOf", f"with more than {_MAX_ONE_OF} branches is not enforced; use anyOf")
        return form
    if len(parts) > _FEW and forms.told_apart(plain):
        return union(parts, traced)
    result = []
    for i, part in enumerate(parts):
        for j, other in enumerate(plain):
            if j != i:
                part = forms.subtract(part, other)
        result.append(part)
    return union(result, traced)


def _if(forms: Forms, place: Place, traced: bool) -> Normal:
    schema = place.schema
    if "then" not in schema and "else" not in schema and not traced:
        forms.of(place.sub("if"))  # for its verdicts
        return ALL
    condition = forms.of(place.sub("if"), traced)
    then = forms.of(place.sub("then"), traced) if "then" in schema else ALL
    other = forms.of(place.sub("else"), traced) if "else" in schema else ALL
    outside = forms.complement(forms.of(place.sub("if")))
    return union([forms.meet(condition, then), forms.meet(outside, other)], traced)


def _dependent(forms: Forms, place: Place, keyword: str, traced: bool) -> Normal:
    """dependentRequired, dependentSchemas, and dependencies, which is either: no such name, or what it asks for."""
    result = ALL
    for name, wanted in mapping(place, keyword).items():
        present = NONE._replace(objects=(ObjectShape(required={name: None}),))
        if isinstance(wanted, list) and keyword != "dependentSchemas":
            needed = dict.fromkeys([*names(place, keyword, wanted), name])
            there = NONE._replace(objects=(ObjectShape(required=needed),))
        else:
            there = forms.meet(present, forms.of(place.sub_in(keyword, name), traced))
        result = forms.meet(result, union([absent(name), there], traced))
    return result


def _evaluated(place: Place, keyword: str, form: Normal) -> Normal:
    """The form with everything that is not seen yet under the schema of an `unevaluated*`."""
    kind = "object" if keyword == "unevaluatedProperties" else "array"
    value = literal(place.sub(keyword))
    if value and (kind in form.loose or any(kind_of(each) == kind for each in form.constants)):
        return form._replace(loose=form.loose | {kind})
    if kind == "object":
        return form._replace(objects=tuple(_closed_object(shape, value) for shape in form.objects))
    if value and any(shape.seen.loose and shape.seen.items != -1 for shape in form.arrays):
        return form._replace(loose=form.loose | {kind})
    return form._replace(arrays=tuple(_closed_array(shape, value) for shape in form.arrays))


def _closed_object(shape: ObjectShape, value: Any) -> ObjectShape:
    seen = shape.seen
    if seen.every:
        return shape
    rule = Rule(Names(None, seen.names, seen.patterns), value)
    return shape._replace(rules=(*shape.rules, rule), seen=seen._replace(every=True))


def _closed_array(shape: ArrayShape, value: Any) -> ArrayShape:
    seen = shape.seen
    if seen.items == -1:
        return shape
    closed = join_arrays(shape, ArrayShape(((),) * seen.items, value))
    return closed._replace(seen=seen._replace(items=-1))
