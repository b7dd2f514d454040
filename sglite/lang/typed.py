"""Python types as what a model may write, and what it wrote as values of them.

One rule: ``int``, ``float``, ``bool``, ``None``, ``str`` and what has finitely many values (``Literal``, ``Enum``,
unions of those) are written bare, as a person would; everything else is JSON text.

    type                                   written
    int, float                             a decimal number: 42, -0.5, 1.5e-07
    bool, None                             true, false, null
    str                                    any text
    Literal["a", "b"], Enum                one of the alternatives; an Enum by value where its values are scalars
                                           that are written differently, else by member name
    Literal[...] | None, bool | None ...   one of the alternatives of all
    Annotated[any of these, check]         the same; ``AfterValidator`` is run on the value
    everything else                        JSON text: containers, dataclasses, TypedDict, NamedTuple, pydantic models,
                                           other unions, bounds and patterns, dates, UUID, Decimal, Any

Alternatives that would be written alike (``Literal[1, "1"]``) are JSON text as well, where they differ.

Schemas and validation are pydantic's, in its strict mode: nothing is converted that the schema does not allow, no field
is dropped, no number is infinite. Some texts that the constraint never writes are read all the same, as nothing of them
is lost: other white space, another order of fields, an item twice in a set, a named tuple as an object.

Promises. What ``parse`` refuses it refuses with one line; only a type's own validators make it refuse what the
constraint allows. ``partial`` never raises, and gives the value itself once JSON text is whole and valid.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from sglite.lang.typed_reading import Reading, reading_of


@dataclass(frozen=True)
class TypeSpec:
    """How values of ``type`` are written. At most one of ``regex`` and ``json_schema`` is given; neither: any text."""

    type: Any
    regex: str | None = None
    json_schema: str | None = None

    def parse(self, text: str) -> Any:
        """The value of a whole text. ValueError, in one line with the text's beginning, where it is none."""
        return self._reading.parse(text)

    def partial(self, text: str) -> Any:
        """The value of the beginning of a text, as far as it is known; None where nothing is.

        A text is itself, a number is what its digits say so far, an alternative is known when one is left. Of JSON
        text: lists and dicts hold what has been read. Models, dataclasses and named tuples are instances made without
        validation, without their ``__init__`` and without defaults: a field not read yet is None (``model_fields_set``
        tells which were read). The value at the end of the text is there if it is a string or a number, which may
        still grow; any other is None. Where several members of a union fit, the JSON value is given as it is.
        """
        return self._reading.partial(text)

    @cached_property
    def _reading(self) -> Reading:
        return _reading(self.type)


def type_spec(type: Any) -> TypeSpec:
    """The spec of a type; TypeError with the reason and what to use for a type that has none."""
    reading = _reading(type)
    return TypeSpec(type, reading.regex, reading.json_schema)


def _reading(type: Any) -> Reading:
    try:
        hash(type)
    except TypeError:  # such as Annotated with a Field that holds a list
        return reading_of(type)
    return _remembered(type, repr(type))


@lru_cache(maxsize=256)
def _remembered(type: Any, _spelled: str) -> Reading:
    """``_spelled`` keeps apart what Python calls equal: ``int | str`` and ``str | int``."""
    return reading_of(type)
