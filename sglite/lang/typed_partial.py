"""Values of JSON text that is still being written.

The text's beginning is read as JSON, then shaped after pydantic's core schema of the type, without validation: see
``TypeSpec.partial`` for the rule. A kind of schema that is not known here leaves the JSON value as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from pydantic_core import SchemaError, SchemaValidator, ValidationError, from_json

_INNER = {
    "default": "schema",
    "definitions": "schema",
    "function-after": "schema",
    "function-before": "schema",
    "function-wrap": "schema",
    "json-or-python": "json_schema",
    "lax-or-strict": "lax_schema",
    "model-field": "schema",
    "dataclass-field": "schema",
    "typed-dict-field": "schema",
    "named-tuple-field": "schema",
    "arguments-parameter": "schema",
}
"""Kinds that wrap another, and where they keep it."""
_WHOLE = frozenset(
    ("enum", "literal", "date", "time", "datetime", "timedelta", "uuid", "decimal", "bytes", "url", "multi-host-url")
)
"""Kinds whose value is known when its text is whole, not before."""
_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "none": (type(None),),
    "list": (list,),
    "set": (list,),
    "frozenset": (list,),
    "tuple": (list,),
    "named-tuple": (list,),
    "call": (list,),
    "dict": (dict,),
    "tagged-union": (dict,),
}
"""What a kind is read from; a kind that is not named here may be read from anything."""
_Schema = Mapping[str, Any]


class Shaper:
    """Shapes JSON values after one core schema."""

    def __init__(self, core: Any) -> None:
        self._core: _Schema = core
        self._definitions: dict[str, _Schema] = {}
        self._readers: dict[int, SchemaValidator | None] = {}
        if core["type"] == "definitions":
            self._definitions = {each["ref"]: each for each in core["definitions"]}

    def value(self, text: str) -> Any:
        """The value of the beginning of a text; None where it has none, or is not the beginning of JSON text."""
        try:
            found = from_json(text, allow_partial="trailing-strings")
        except ValueError:
            return None
        try:
            return self._shape(self._core, found, last=True)
        except Exception:  # of a class that cannot be made this way; a view of unfinished text is not worth a failure
            return found

    def _shape(self, schema: _Schema, value: Any, last: bool) -> Any:
        """``last``: the text may go on with this value."""
        schema = self._inner(schema)
        kind = schema["type"]
        if kind in _WHOLE:
            return None if last else self._read(schema, value)
        if not _has_type(kind, value):
            return None
        if kind == "float":
            return float(value)
        shape = self._SHAPES.get(kind)
        return value if shape is None else shape(self, schema, value, last)

    def _inner(self, schema: _Schema) -> _Schema:
        """The schema below what wraps it."""
        while True:
            kind = schema["type"]
            if kind == "definition-ref" and schema["schema_ref"] in self._definitions:
                schema = self._definitions[schema["schema_ref"]]
            elif kind in _INNER:
                schema = schema[_INNER[kind]]
            else:
                return schema

    def _read(self, schema: _Schema, value: Any) -> Any:
        key = id(schema)  # schemas live as long as this shaper
        if key not in self._readers:
            try:
                self._readers[key] = SchemaValidator(schema)
            except SchemaError:
                self._readers[key] = None  # not a schema that stands alone
        reader = self._readers[key]
        try:
            return None if reader is None else reader.validate_python(value)
        except ValidationError:
            return None

    def _nullable(self, schema: _Schema, value: Any, last: bool) -> Any:
        return None if value is None else self._shape(schema["schema"], value, last)

    def _items(self, schema: _Schema, value: list[Any], last: bool) -> list[Any]:
        items = schema.get("items_schema")
        if items is None:
            return value
        final = len(value) - 1
        return [self._shape(items, item, last and i == final) for i, item in enumerate(value)]

    def _set(self, schema: _Schema, value: list[Any], last: bool) -> Any:
        items = self._items(schema, value, last)
        try:
            return (set if schema["type"] == "set" else frozenset)(items)
        except TypeError:  # of items that are not whole, and only then hashable
            return items

    def _tuple(self, schema: _Schema, value: list[Any], last: bool) -> tuple[Any, ...]:
        schemas = list(schema["items_schema"])
        at = schema.get("variadic_item_index")
        if at is not None:
            schemas[at : at + 1] = [schemas[at]] * max(0, len(value) - len(schemas) + 1)
        final = len(value) - 1
        return tuple(
            self._shape(each, item, last and i == final)
            for i, (each, item) in enumerate(zip(schemas, value, strict=False))
        )

    def _named_tuple(self, schema: _Schema, value: list[Any], last: bool) -> Any:
        arguments = schema.get("fields") or schema["arguments_schema"]["arguments_schema"]
        cls = schema.get("cls") or schema["function"]
        items = self._tuple({"items_schema": [each["schema"] for each in arguments]}, value, last)
        return cls._make([*items, *[None] * (len(arguments) - len(items))])

    def _dict(self, schema: _Schema, value: dict[str, Any], last: bool) -> dict[Any, Any]:
        keys, values = schema.get("keys_schema"), schema.get("values_schema")
        final = next(reversed(value), None)
        shaped = {}
        for key, item in value.items():
            name = key if keys is None or keys["type"] == "str" else self._read(self._inner(keys), key)
            if name is not None:
                shaped[name] = item if values is None else self._shape(values, item, last and key == final)
        return shaped

    def _model(self, schema: _Schema, value: Any, last: bool) -> Any:
        cls = schema["cls"]
        if schema.get("root_model"):
            known, extra = {"root": self._shape(schema["schema"], value, last)}, None
        elif isinstance(value, dict):
            fields = self._fields(schema)
            known = self._known(fields, value, last)
            kept = {name: item for name, item in value.items() if name not in _written(fields)}
            extra = kept if cls.model_config.get("extra") == "allow" else None
        else:
            return None
        instance = cls.__new__(cls)
        # What unpickling does: no validator, no hook and no default of the model takes part.
        instance.__setstate__(
            {
                "__dict__": {name: known.get(name) for name in cls.model_fields},
                "__pydantic_fields_set__": set(known),
                "__pydantic_extra__": extra,
                "__pydantic_private__": None,
            }
        )
        return instance

    def _dataclass(self, schema: _Schema, value: Any, last: bool) -> Any:
        if not isinstance(value, dict):
            return None
        known = self._known(self._fields(schema), value, last)
        instance = object.__new__(schema["cls"])
        for field in dataclasses.fields(schema["cls"]):
            object.__setattr__(instance, field.name, known.get(field.name))
        return instance

    def _typed_dict(self, schema: _Schema, value: Any, last: bool) -> Any:
        return self._known(self._fields(schema), value, last) if isinstance(value, dict) else None

    def _fields(self, schema: _Schema) -> dict[str, _Schema]:
        """The fields of a class by name."""
        schema = self._inner(schema["schema"] if schema["type"] in ("model", "dataclass") else schema)
        fields = schema.get("fields", {})
        return fields if isinstance(fields, dict) else {field["name"]: field for field in fields}

    def _known(self, fields: dict[str, _Schema], value: dict[str, Any], last: bool) -> dict[str, Any]:
        final = next(reversed(value), None)
        names = _written(fields)
        return {
            names[key]: self._shape(fields[names[key]], item, last and key == final)
            for key, item in value.items()
            if key in names
        }

    def _union(self, schema: _Schema, value: Any, last: bool) -> Any:
        choices = [choice[0] if isinstance(choice, tuple) else choice for choice in schema["choices"]]
        fitting = [choice for choice in choices if self._fits(choice, value)]
        return self._shape(fitting[0], value, last) if len(fitting) == 1 else value if fitting else None

    def _fits(self, schema: _Schema, value: Any) -> bool:
        """Whether a value may become one of a schema; names of fields are looked at, but nothing below them."""
        schema = self._inner(schema)
        kind = schema["type"]
        if kind == "nullable":
            return value is None or self._fits(schema["schema"], value)
        if kind == "union":
            return any(self._fits(c[0] if isinstance(c, tuple) else c, value) for c in schema["choices"])
        if kind == "model" and schema.get("root_model"):
            return self._fits(schema["schema"], value)
        if kind in ("model", "dataclass", "typed-dict"):
            return isinstance(value, dict) and value.keys() <= _written(self._fields(schema)).keys()
        return _has_type(kind, value)

    def _tagged(self, schema: _Schema, value: dict[str, Any], last: bool) -> Any:
        name = schema["discriminator"]
        if not isinstance(name, str) or name not in value or (last and name == next(reversed(value))):
            return value  # which member it is is not known yet
        choice = schema["choices"].get(value[name])
        return value if choice is None else self._shape(choice, value, last)

    _SHAPES: Mapping[str, Callable[..., Any]] = {
        "nullable": _nullable,
        "list": _items,
        "set": _set,
        "frozenset": _set,
        "tuple": _tuple,
        "named-tuple": _named_tuple,
        "call": _named_tuple,
        "dict": _dict,
        "model": _model,
        "dataclass": _dataclass,
        "typed-dict": _typed_dict,
        "union": _union,
        "tagged-union": _tagged,
    }


def _has_type(kind: str, value: Any) -> bool:
    if isinstance(value, bool) and kind in ("int", "float"):
        return False
    return kind not in _JSON_TYPES or isinstance(value, _JSON_TYPES[kind])


def _written(fields: dict[str, _Schema]) -> dict[str, str]:
    """Names of fields by the keys under which they are written."""
    return {_key(name, field.get("validation_alias")): name for name, field in fields.items()}


def _key(name: str, alias: Any) -> str:
    if isinstance(alias, str):
        return alias
    paths = alias if isinstance(alias, list) else []
    return next((path[0] for path in paths if isinstance(path, list) and len(path) == 1), name)
