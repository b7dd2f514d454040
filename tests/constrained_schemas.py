"""Random JSON Schemas, seeded and small, values that are likely to satisfy them, and who judges whether they do."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import jsonschema

from sglite.constrained.grammar import Grammar, normalise
from sglite.constrained.json_schema.check import Checker
from sglite.constrained.json_schema.lower import lower_parsed
from sglite.constrained.json_schema.strings import StringSet
from sglite.constrained.limits import Limits
from sglite.constrained.spec import ConstraintError, ConstraintRefused

NAMES = ["a", "ab", "b", "x1", 'q"', "é"]
CONSTANTS: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2.5,
    "a",
    "ab",
    "",
    [],
    [1],
    [1, 1],
    {},
    {"a": 1},
    {"a": 1, "b": "a"},
]
PATTERNS = ["^a", "b$", "^[a-c]{1,3}$", "^x", "^(a|bc)*$", "^.{2}$", "a.?b", "^[^a]*$"]
FORMATS = ["date", "ipv4", "uuid", "time", "unheard-of"]
TYPES = ["null", "boolean", "integer", "number", "string", "array", "object"]
WORDS = ["", "a", "ab", "abc", "b", "bc", "x1", "zz", "aab", "é", 'q"', "2024-02-29", "1.2.3.4", "12:30:00Z"]


class Schemas:
    """Draws schemas from a seeded generator; `places` bounds how many subschemas one of them has."""

    def __init__(self, rng: random.Random, places: int = 10) -> None:
        self.rng = rng
        self.left = places

    def draw(self) -> Any:
        """A whole schema, with definitions when it refers to some."""
        schema = self.some()
        if not isinstance(schema, dict):
            return schema
        if "#/$defs/" in str(schema):
            self.left = 4
            schema["$defs"] = {name: self.some(2) for name in ("d", "e")}
        return schema

    def some(self, depth: int = 0) -> Any:
        """A schema of one to three groups of keywords."""
        rng = self.rng
        self.left -= 1
        if self.left < 0 or depth > 3:
            return rng.choice([True, {"type": rng.choice(TYPES[:5])}, {"const": rng.choice(CONSTANTS)}])
        if rng.random() < 0.06:
            return rng.choice([True, False, {}, {"$ref": "#"}, {"$ref": "#/$defs/d"}, {"$ref": "#/$defs/e"}])
        schema: dict[str, Any] = {}
        for _ in range(rng.choice([1, 1, 1, 2, 2, 3])):
            schema.update(rng.choice(self._groups())(depth + 1))
        return schema

    def _groups(self) -> list[Callable[[int], dict[str, Any]]]:
        return [self.typed, self.number, self.string, self.object, self.object, self.array, self.listed, self.applied]

    def typed(self, depth: int) -> dict[str, Any]:
        chosen = self.rng.sample(TYPES, self.rng.choice([1, 1, 1, 2, 3]))
        return {"type": chosen if len(chosen) > 1 else chosen[0]}

    def number(self, depth: int) -> dict[str, Any]:
        rng = self.rng
        bound = [rng.choice([-3, 0, 1, 7, 2.5, -0.5, 100]) for _ in range(2)]
        words = {
            "minimum": min(bound),
            "maximum": max(bound),
            "exclusiveMinimum": min(bound),
            "exclusiveMaximum": max(bound),
            "multipleOf": rng.choice([1, 2, 3, 7, 0.5]),
        }
        return {**self.pick(words, 2), **({"type": rng.choice(["integer", "number"])} if rng.random() < 0.7 else {})}

    def string(self, depth: int) -> dict[str, Any]:
        rng = self.rng
        words = {
            "minLength": rng.randint(0, 4),
            "maxLength": rng.choice([0, 1, 3, 5, 30]),
            "pattern": rng.choice(PATTERNS),
            "format": rng.choice(FORMATS),
        }
        return {**self.pick(words, 2), **({"type": "string"} if rng.random() < 0.7 else {})}

    def object(self, depth: int) -> dict[str, Any]:
        rng = self.rng
        names = rng.sample(NAMES, rng.randint(1, 3))
        words = {
            "properties": {name: self.some(depth) for name in names},
            "required": rng.sample(NAMES, rng.randint(0, 2)),
            "additionalProperties": rng.choice([False, True, self.some(depth)]),
            "patternProperties": {rng.choice(PATTERNS): self.some(depth)},
            "propertyNames": rng.choice(
                [{"maxLength": 2}, {"pattern": "^a"}, {"enum": NAMES[:3]}, {"not": {"const": "a"}}]
            ),
            "minProperties": rng.randint(0, 3),
            "maxProperties": rng.randint(0, 4),
            "dependentRequired": {rng.choice(NAMES): rng.sample(NAMES, 1)},
            "dependentSchemas": {rng.choice(NAMES): self.some(depth)},
            "unevaluatedProperties": rng.choice([False, self.some(depth)]),
        }
        return {**self.pick(words, 3), **({"type": "object"} if rng.random() < 0.7 else {})}

    def array(self, depth: int) -> dict[str, Any]:
        rng = self.rng
        words = {
            "items": self.some(depth),
            "prefixItems": [self.some(depth) for _ in range(rng.randint(1, 2))],
            "minItems": rng.randint(0, 3),
            "maxItems": rng.randint(0, 4),
            "uniqueItems": True,
            "contains": self.some(depth),
            "unevaluatedItems": rng.choice([False, self.some(depth)]),
        }
        drawn = self.pick(words, 3)
        if "contains" in drawn:
            drawn |= self.pick({"minContains": rng.randint(0, 2), "maxContains": rng.randint(1, 3)}, 1)
        return {**drawn, **({"type": "array"} if rng.random() < 0.7 else {})}

    def listed(self, depth: int) -> dict[str, Any]:
        rng = self.rng
        if rng.random() < 0.4:
            return {"const": rng.choice(CONSTANTS)}
        return {"enum": rng.sample(CONSTANTS, rng.randint(1, 5))}

    def applied(self, depth: int) -> dict[str, Any]:
        rng = self.rng
        several = [self.some(depth) for _ in range(rng.randint(1, 3))]
        words = {
            "allOf": several,
            "anyOf": several,
            "oneOf": several,
            "not": self.some(depth),
            "if": self.some(depth),
        }
        drawn = self.pick(words, 1)
        if "if" in drawn:
            drawn |= self.pick({"then": self.some(depth), "else": self.some(depth)}, 2)
        return drawn

    def pick(self, words: dict[str, Any], most: int) -> dict[str, Any]:
        chosen = self.rng.sample(sorted(words), self.rng.randint(1, min(most, len(words))))
        return {word: words[word] for word in words if word in chosen}


def values(schema: Any, rng: random.Random, count: int) -> list[Any]:
    """Values that have a chance to satisfy the schema: built from its own names, constants and bounds."""
    found: list[Any] = []
    material = [*CONSTANTS, *_constants(schema)]

    def build(depth: int) -> Any:
        kind = rng.randrange(10 if depth < 3 else 6)
        if kind < 2:
            return rng.choice(material)
        if kind < 4:
            return rng.choice([rng.randint(-4, 20), rng.randint(-8, 8) + 0.5, 7, 100])
        if kind < 6:
            return rng.choice(WORDS)
        if kind < 8:
            return [build(depth + 1) for _ in range(rng.randint(0, 4))]
        names = rng.sample([*NAMES, "zz", "bc"], rng.randint(0, 3))
        return {name: build(depth + 1) for name in names}

    for _ in range(count):
        found.append(build(0))
    return found


def _constants(schema: Any) -> list[Any]:
    if isinstance(schema, list):
        return [value for item in schema for value in _constants(item)]
    if not isinstance(schema, dict):
        return []
    own = [schema["const"]] if "const" in schema else list(schema.get("enum", []))
    return own + [value for item in schema.values() for value in _constants(item)]


def lowered(schema: Any, order: Any = "schema") -> Grammar | None:
    """The grammar of a schema; None when it is refused or nothing satisfies it."""
    try:
        grammar, _ = lower_parsed(schema, "fixed", True, Limits(), order)
        return normalise(grammar)
    except (ConstraintRefused, ConstraintError):
        return None


class Judge:
    """Whether a value is valid: jsonschema and our checker, formats asserted, must say the same."""

    def __init__(self, schema: Any) -> None:
        formats = jsonschema.FormatChecker(formats=())
        for name in ("date", "ipv4", "uuid", "time"):
            known = StringSet.format(name)
            if known is not None:
                formats.checks(name)(lambda value, known=known: not isinstance(value, str) or known.contains(value))
        self._validator = jsonschema.Draft202012Validator(schema, format_checker=formats)
        self._check = Checker(
            schema, formats=lambda name, text: (k := StringSet.format(name)) and k.contains(text)
        ).check([""])

    def __call__(self, text: str) -> bool:
        ours = self._check(text)
        try:
            theirs = self._validator.is_valid(json.loads(text))
        except RecursionError:  # a reference to itself, which the validator follows for ever
            return ours
        assert ours == theirs, (text, "checker", ours, "jsonschema", theirs)
        return ours
