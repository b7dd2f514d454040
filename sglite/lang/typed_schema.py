"""JSON Schemas of Python types, as a constraint needs them: pydantic's, with nothing left open that a type drops.

Beyond what pydantic emits: objects are closed unless their type keeps unknown fields, so that a model writes nothing
that would be lost; titles made up from field names are left out; what pydantic would leave out with a warning, or could
never read back, is a TypeError.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, JsonSchemaWarningKind
from pydantic_core import core_schema

_REMEDY = (
    "use int, float, bool, str, Literal, an Enum, list, tuple, set or dict[str, ...] of such types, a dataclass, "
    "TypedDict, NamedTuple or pydantic model"
)


def type_name(type_: Any) -> str:
    """A type as its author would name it."""
    if isinstance(type_, type) and not hasattr(type_, "__args__"):
        return type_.__name__
    return repr(type_).replace("typing.", "").replace("__main__.", "")


def adapter_of(type_: Any) -> TypeAdapter[Any]:
    """pydantic's view of a type; TypeError where it has none."""
    if isinstance(type_, str):
        raise TypeError(f"the type {type_!r} is given by its name; give the type itself")
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(type_)
        adapter.core_schema["type"]  # a type with names that are not defined says so only here
    except (PydanticUserError, NameError) as error:
        raise no_text(type_name(type_), error) from error
    return adapter


def schema_of(type_: Any, adapter: TypeAdapter[Any]) -> dict[str, Any]:
    """The closed schema of a type; TypeError where it has none."""
    try:
        return adapter.json_schema(schema_generator=ClosedSchema)
    except (PydanticUserError, Refused) as error:
        raise no_text(type_name(type_), error) from error


def no_text(name: str, error: Exception) -> TypeError:
    """The refusal of a type, or of a function's arguments, in one line."""
    reason = str(error).partition("\n")[0].partition(". Set `arbitrary_types_allowed")[0]
    return TypeError(f"{name}: there is no text a model could write for it: {reason.rstrip('.')}; {_REMEDY}")


def one_line(error: ValidationError, limit: int | None = 5) -> str:
    """What pydantic found wrong, at most ``limit`` things of it, in one line."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    places = [(".".join(map(str, one["loc"])), " ".join(one["msg"].split())) for one in found[:limit]]
    lines = [f"{place}: {reason}" if place else reason for place, reason in places]
    return "; ".join(lines + ([f"and {len(found) - len(lines)} more"] if len(found) > len(lines) else []))


def is_open(schema: Any) -> bool:
    """Whether a class in a schema keeps fields that it does not declare."""
    if isinstance(schema, list):
        return any(is_open(item) for item in schema)
    if not isinstance(schema, dict):
        return False
    kept = isinstance(schema.get("properties"), dict) and schema.get("additionalProperties", False) is not False
    return kept or any(is_open(item) for item in schema.values())


class Refused(Exception):
    """Part of a type has no text; the message says why."""


class ClosedSchema(GenerateJsonSchema):
    """pydantic's generator with the differences that the module names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        return _closed(super().model_schema(schema))

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        return _closed(super().dataclass_schema(schema))

    def typed_dict_schema(self, schema: core_schema.TypedDictSchema) -> JsonSchemaValue:
        return _closed(super().typed_dict_schema(schema))

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        found = super().dict_schema(schema)
        return {"additionalProperties": False, **found} if "patternProperties" in found else found

    def enum_schema(self, schema: core_schema.EnumSchema) -> JsonSchemaValue:
        _check_scalars([member.value for member in schema["members"]], schema["cls"].__name__)
        return super().enum_schema(schema)

    def literal_schema(self, schema: core_schema.LiteralSchema) -> JsonSchemaValue:
        _check_scalars(schema["expected"], "a Literal")
        return super().literal_schema(schema)

    def call_schema(self, schema: core_schema.CallSchema) -> JsonSchemaValue:
        function = schema["function"]
        if not isinstance(function, type):  # named tuples were calls of their class once
            raise Refused(f"{getattr(function, '__name__', function)!r} is a function, not a type")
        return super().call_schema(schema)

    def generator_schema(self, schema: core_schema.GeneratorSchema) -> JsonSchemaValue:
        raise Refused("an Iterable would be checked only while it is read, write list[...]")

    def emit_warning(self, kind: JsonSchemaWarningKind, detail: str) -> None:
        if kind == "skipped-choice":
            raise Refused(f"a member of a union has none: {detail}")


def _closed(schema: JsonSchemaValue) -> JsonSchemaValue:
    if schema.get("type") == "object" and "properties" in schema:
        schema.setdefault("additionalProperties", False)
    return schema


def _check_scalars(values: list[Any], where: str) -> None:
    for value in values:
        if isinstance(value, Enum) and not isinstance(value, str | int):
            # pydantic compares what was read with the member itself
            raise Refused(f"{where} inside JSON cannot name {value}; derive its Enum from str or int, or name values")
        if not (value is None or isinstance(value, str | int | float)):
            raise Refused(f"{where} has the value {value!r}, which JSON cannot tell; use strings or numbers")
