"""From a type to the text of its values and back: which way a type is written, and who reads it.

pydantic says what a type is (its core schema); the plain kinds are read here, all others by pydantic.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, NamedTuple, Protocol

from pydantic import TypeAdapter, ValidationError

from sglite.constrained.spec import ConstraintError, parse_json
from sglite.lang.typed_partial import Shaper
from sglite.lang.typed_schema import adapter_of, is_open, one_line, schema_of, type_name

INTEGER = r"(0|-?[1-9][0-9]{0,31})"
"""A whole number of at most 32 digits, as inside JSON: a model that repeats a digit for ever has to end some time."""
FLOAT = (
    r"(-?(0|[1-9][0-9]{0,31})(\.[0-9]{1,32})?"
    r"|-?[1-9](\.[0-9]{1,32})?[eE](\+?([0-9]|[1-9][0-9]|[12][0-9][0-9]|30[0-7])|-[0-9]{1,3}))"
)
"""What ``repr`` writes, and its like. Every number is finite, as exponents end at 307."""
_LONGEST_NUMBER = 66
_SYNTAX = re.compile(r"[\\^$.*+?()\[\]{}|]")
_SPACES = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_SHOWN = 60
_PLAIN = {"type", "strict", "ref", "metadata", "serialization", "allow_inf_nan"}
_NOTES = {"title", "description", "examples", "deprecated"}


class Reading(Protocol):
    """One way of writing; see ``TypeSpec``."""

    @property
    def regex(self) -> str | None: ...

    @property
    def json_schema(self) -> str | None: ...

    def parse(self, text: str) -> Any: ...

    def partial(self, text: str) -> Any: ...


def reading_of(type: Any) -> Reading:
    """How values of a type are written; TypeError for a type that has none."""
    adapter = adapter_of(type)
    core: Mapping[str, Any] = adapter.core_schema
    name = type_name(type)
    check = adapter.validate_python if core["type"] == "function-after" else None
    while core["type"] == "function-after":
        core = core["schema"]
    if _is_plain(core):
        if core["type"] == "str":
            return Text(name, check)
        if core["type"] == "int":
            return Number(name, check, INTEGER, int)
        if core["type"] == "float":
            return Number(name, check, FLOAT, float)
    found = alternatives(core)
    if found is not None:
        return OneOf(name, check, found)
    return Json(name, adapter, schema_of(type, adapter))


def _is_plain(core: Mapping[str, Any]) -> bool:
    """Whether a core schema says nothing beyond its kind and what a reader may want to know of it."""
    notes = core.get("metadata", {})
    return (
        core.keys() <= _PLAIN
        and notes.keys() <= {"pydantic_js_updates"}
        and notes.get("pydantic_js_updates", {}).keys() <= _NOTES
    )


class Alternative(NamedTuple):
    """A value and how it is written."""

    text: str
    value: Any


def alternatives(core: Mapping[str, Any]) -> list[Alternative] | None:
    """All values of a core schema; None where they are not finitely many scalars, or two are written alike."""
    found = _listed(core)
    if found is None:
        return None
    known: dict[str, Any] = {}
    for text, value in found:
        if text in known and (type(known[text]) is not type(value) or known[text] != value):
            return None
        known[text] = value
    return [Alternative(*item) for item in known.items()]


def _listed(core: Mapping[str, Any]) -> list[Alternative] | None:
    kind = core["type"]
    if kind == "enum":
        return _of_enum(core["members"])
    if kind == "literal":
        return _of_values(core["expected"])
    if kind == "nullable":
        return _together([core["schema"], {"type": "none"}])
    if kind == "union":
        return _together([choice[0] if isinstance(choice, tuple) else choice for choice in core["choices"]])
    if kind in ("bool", "none") and _is_plain(core):
        return _of_values([True, False] if kind == "bool" else [None])
    return None


def _together(cores: list[Any]) -> list[Alternative] | None:
    found = [_listed(core) for core in cores]
    return None if None in found else [item for items in found for item in items or ()]


def _of_values(values: list[Any]) -> list[Alternative] | None:
    texts = [written(value.value if isinstance(value, Enum) else value) for value in values]
    return None if None in texts else [Alternative(str(text), v) for text, v in zip(texts, values, strict=True)]


def _of_enum(members: list[Enum]) -> list[Alternative]:
    found = _of_values(list(members))
    if found is None or len({item.text for item in found}) < len(found):
        return [Alternative(member.name, member) for member in members]
    return found


def written(value: Any) -> str | None:
    """The bare text of a scalar: a string is itself, other values are as JSON has them; None if it is no scalar."""
    if isinstance(value, str):
        return value
    scalar = value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return json.dumps(value) if scalar else None


def escaped(text: str) -> str:
    """A pattern that matches a text alone, as both ECMA-262 (with its ``u`` flag) and Python read it."""
    pattern = _SYNTAX.sub(lambda found: "\\" + found[0], text)
    return "".join(_SPACES.get(char, char) for char in pattern)


def _unreadable(name: str, reason: str, text: str) -> ValueError:
    return ValueError(f"{name}: {reason}; the text begins {text[:_SHOWN]!r}")


class _Bare:
    """What is not JSON; ``check`` is what the type adds of its own to a value, if anything."""

    regex: str | None = None
    json_schema: str | None = None

    def __init__(self, name: str, check: Callable[[Any], Any] | None) -> None:
        self._name = name
        self._check = check

    def parse(self, text: str) -> Any:
        value = self._value(text)
        if self._check is None:
            return value
        try:
            return self._check(value)
        except ValidationError as error:
            raise _unreadable(self._name, one_line(error), text) from error

    def _value(self, text: str) -> Any:
        raise NotImplementedError


class Text(_Bare):
    """Any text."""

    def _value(self, text: str) -> str:
        return text

    def partial(self, text: str) -> str:
        return text


class Number(_Bare):
    """A number, whose pattern says all that there is to check."""

    def __init__(
        self, name: str, check: Callable[[Any], Any] | None, regex: str, convert: Callable[[str], float]
    ) -> None:
        super().__init__(name, check)
        self.regex = regex
        self._pattern = re.compile(regex)
        self._convert = convert

    def _value(self, text: str) -> float:
        if self._pattern.fullmatch(text) is None:
            raise _unreadable(self._name, "is written in decimal digits and nothing else", text)
        return self._convert(text)

    def partial(self, text: str) -> float | None:
        for end in range(min(len(text), _LONGEST_NUMBER), 0, -1):
            if self._pattern.fullmatch(text, 0, end):
                return self._convert(text[:end])
        return None


class OneOf(_Bare):
    """One of some texts."""

    def __init__(self, name: str, check: Callable[[Any], Any] | None, items: list[Alternative]) -> None:
        super().__init__(name, check)
        self._values = dict(items)
        self.regex = f"({'|'.join(escaped(text) for text in self._values)})"

    def _value(self, text: str) -> Any:
        if text not in self._values:
            known = ", ".join(repr(each) for each in list(self._values)[:8])
            raise _unreadable(self._name, f"is one of {known}{', ...' if len(self._values) > 8 else ''}", text)
        return self._values[text]

    def partial(self, text: str) -> Any:
        left = [value for each, value in self._values.items() if each.startswith(text)]
        return left[0] if len(left) == 1 else None


def _check_json(text: str) -> None:
    """Refuses what pydantic would read though it is no JSON, or not all of it: NaN, 1e999, {"a": 1, "a": 2}."""
    found = parse_json(text, "the text")
    try:
        json.dumps(found, allow_nan=False)
    except ValueError:
        raise ConstraintError("the text has a number that is too large") from None


class Json:
    """JSON text, which pydantic reads."""

    regex = None

    def __init__(self, name: str, adapter: TypeAdapter[Any], schema: dict[str, Any]) -> None:
        self.json_schema: str | None = json.dumps(schema, ensure_ascii=False)
        self._name = name
        self._adapter = adapter
        # Fields that a type would drop are not in its schema. Where one keeps them, each of its models decides.
        self._extra: Any = None if is_open(schema) else "forbid"
        self._shaper = Shaper(adapter.core_schema)

    def parse(self, text: str) -> Any:
        try:
            _check_json(text)
            return self._adapter.validate_json(text, strict=True, extra=self._extra)
        except ValidationError as error:
            raise _unreadable(self._name, one_line(error), text) from error
        except ConstraintError as error:
            raise _unreadable(self._name, str(error), text) from None

    def partial(self, text: str) -> Any:
        try:
            return self.parse(text)
        except Exception:  # of a validator of the user's too: it is the whole text that has to pass
            return self._shaper.value(text)
