"""Prompts, schemas and tools, made from a seed: the same seed, the same load. Nothing is fetched."""

from __future__ import annotations

import random
from typing import Any

_WORDS = (
    "river", "stone", "window", "morning", "letter", "garden", "engine", "paper", "silver", "market", "table", "winter",
    "bridge", "number", "evening", "forest", "station", "bottle", "harbour", "valley", "teacher", "kitchen", "island",
    "summer", "doctor", "mountain", "copper", "village", "question", "answer",
)  # fmt: skip
_NAMES = ("city", "count", "status", "price", "tags", "owner", "date", "active", "level", "note", "items", "limit")


def token_ids(rng: random.Random, count: int, vocab_size: int) -> list[int]:
    """``count`` ids from anywhere in the vocabulary."""
    return [rng.randrange(vocab_size) for _ in range(count)]


def words(rng: random.Random, count: int) -> str:
    """``count`` everyday words, about a token each."""
    return " ".join(rng.choice(_WORDS) for _ in range(count))


def length(rng: random.Random, most: int, spread: float) -> int:
    """A length from ``most * (1 - spread)`` to ``most``, at least 1."""
    return rng.randint(max(1, round(most * (1 - spread))), max(1, most))


def schema(rng: random.Random, depth: int = 2) -> dict[str, Any]:
    """An object's JSON Schema: two to five required properties of the kinds that ``valid`` knows."""
    names = rng.sample(_NAMES, rng.randint(2, 5))
    return {
        "type": "object",
        "properties": {name: _kind(rng, depth) for name in names},
        "required": names,
        "additionalProperties": False,
    }


def _kind(rng: random.Random, depth: int) -> dict[str, Any]:
    kinds: list[dict[str, Any]] = [
        {"type": "integer", "minimum": 0, "maximum": rng.choice((9, 99, 1000))},
        {"type": "boolean"},
        {"enum": rng.sample(_WORDS, 3)},
        {"type": "string", "maxLength": rng.randint(4, 12)},
        {"type": "array", "items": {"enum": rng.sample(_WORDS, 4)}, "minItems": 1, "maxItems": 3},
    ]
    if depth > 1:
        kinds.append(schema(rng, depth - 1))
    return rng.choice(kinds)


def tools(rng: random.Random, count: int) -> list[dict[str, Any]]:
    """``count`` functions with different names, in OpenAI's form."""
    verbs = rng.sample(("get", "find", "set", "list", "book", "send", "check", "plan"), min(count, 8))
    made = []
    for index in range(count):
        name = f"{verbs[index % len(verbs)]}_{rng.choice(_NAMES)}_{index}"
        function = {"name": name, "description": f"Use it to {name.split('_')[0]} things.", "parameters": schema(rng)}
        made.append({"type": "function", "function": function})
    return made


def valid(value: Any, wanted: dict[str, Any]) -> bool:
    """Whether a JSON value is what a schema of ``schema`` asks for. Written apart from what enforces it."""
    if "enum" in wanted:
        return any(value == one and type(value) is type(one) for one in wanted["enum"])
    kind = wanted["type"]
    if kind == "boolean":
        return isinstance(value, bool)
    if kind == "integer":
        whole = type(value) is int or (isinstance(value, float) and value.is_integer())
        return whole and wanted["minimum"] <= value <= wanted["maximum"]
    if kind == "string":
        return isinstance(value, str) and len(value) <= wanted["maxLength"]
    if kind == "array":
        fits = isinstance(value, list) and wanted["minItems"] <= len(value) <= wanted["maxItems"]
        return fits and all(valid(one, wanted["items"]) for one in value)
    fits = isinstance(value, dict) and value.keys() == wanted["properties"].keys()
    return fits and all(valid(value[name], inner) for name, inner in wanted["properties"].items())
