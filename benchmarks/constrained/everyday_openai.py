"""Everyday schemas, second half: the subset of JSON Schema that OpenAI documents for strict structured outputs.

Every supported type, every supported keyword of each, definitions, both kinds of recursion, optional fields as unions
with null; and the shapes of the guide's own examples, written anew.
"""

from __future__ import annotations

from typing import Any

from benchmarks.constrained.cases import Case


def strict(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An object as strict mode wants it: closed, every property required."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
        **more,
    }


TEXT: dict[str, Any] = {"type": "string"}
NUMBER: dict[str, Any] = {"type": "number"}


def _texts() -> list[Case]:
    formats = {
        "date-time": ("2024-02-29T23:59:59Z", "2024-01-01T00:00:00.123+05:30"),
        "time": ("20:20:39+00:00", "08:30:06Z"),
        "date": ("2018-11-13", "2024-02-29"),
        "duration": ("P3D", "P1Y2M3DT4H5M6S", "PT0S"),
        "email": ("ada@example.org",),
        "hostname": ("api.example.org", "localhost"),
        "ipv4": ("127.0.0.1",),
        "ipv6": ("2001:db8::ff00:42:8329", "::1"),
        "uuid": ("3e4666bf-d5e5-4aa7-b8ce-cefe41c7568a",),
    }
    found = [
        Case(f"openai/format {name}", strict({"v": {"type": "string", "format": name}}), tuple({"v": t} for t in texts))
        for name, texts in formats.items()
    ]
    pattern = {"type": "string", "pattern": "^@[a-zA-Z0-9_]+$"}
    return [*found, Case("openai/pattern", strict({"v": pattern}), ({"v": "@ada_1"},))]


def _numbers() -> list[Case]:
    bounds: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
        ({"minimum": -130, "maximum": 130}, (-130, 0, 12.5, 130)),
        ({"exclusiveMinimum": 0, "exclusiveMaximum": 1}, (0.001, 0.5, 0.999)),
        ({"multipleOf": 10}, (-20, 0, 70)),
        ({"multipleOf": 0.5, "minimum": 1}, (1, 1.5, 20)),
    ]
    found = [
        Case(
            f"openai/number {'+'.join(keys)}", strict({"v": {"type": "number", **keys}}), tuple({"v": n} for n in good)
        )
        for keys, good in bounds
    ]
    whole = {"type": "integer", "minimum": 3, "maximum": 1200, "multipleOf": 3}
    return [*found, Case("openai/integer", strict({"v": whole}), ({"v": 3}, {"v": 999}, {"v": 1200}))]


def _containers() -> list[Case]:
    few = {"type": "array", "items": TEXT, "minItems": 1, "maxItems": 3}
    nested = strict({"list": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}})
    choice = {"type": "string", "enum": ["celsius", "fahrenheit", 'it\'s "odd"']}
    optional = {"type": ["string", "null"], "enum": ["a", None]}
    return [
        Case("openai/array", strict({"v": few}), ({"v": ["a"]}, {"v": ["a", "b", "c"]})),
        Case("openai/arrays", nested, ({"list": []}, {"list": [[], [1, 2], [3]]})),
        Case("openai/enum", strict({"v": choice}), ({"v": "celsius"}, {"v": 'it\'s "odd"'})),
        Case("openai/enum or null", strict({"v": optional}), ({"v": "a"}, {"v": None})),
        Case("openai/const", strict({"v": {"type": "string", "const": "only"}}), ({"v": "only"},)),
        Case("openai/boolean", strict({"v": {"type": "boolean"}, "w": {"type": "null"}}), ({"v": True, "w": None},)),
        Case("openai/empty object", strict({}), ({},)),
    ]  # fmt: skip


def _examples() -> list[Case]:
    texts = {"type": "array", "items": TEXT}
    maybe = {"type": ["string", "null"]}
    weather = strict({"location": TEXT, "units": {**maybe, "enum": ["celsius", "fahrenheit", None]}})
    account = strict({"username": {**TEXT, "pattern": "^@[a-zA-Z0-9_]+$"}, "email": {**TEXT, "format": "email"}})
    event = strict({"name": TEXT, "date": TEXT, "participants": texts})
    paper = strict({"title": TEXT, "authors": texts, "abstract": TEXT, "keywords": texts})
    return [
        Case(
            "openai/weather call",
            weather,
            ({"location": "Bogotá, Colombia", "units": None}, {"location": "X", "units": "celsius"}),
        ),
        Case("openai/user data", account, ({"username": "@x", "email": "x@example.org"},)),
        Case("openai/calendar event", event, ({"name": "Fair", "date": "Friday", "participants": ["Alice", "Bob"]},)),
        Case("openai/paper", paper, ({"title": "T", "authors": ["A"], "abstract": "…", "keywords": []},)),
    ]


def _unions() -> list[Case]:
    category = {"type": ["string", "null"], "enum": ["violence", "sexual", "self_harm", None]}
    reason = {"type": ["string", "null"]}
    moderation = strict({"is_violating": {"type": "boolean"}, "category": category, "explanation": reason})
    person = strict({"name": {**TEXT, "description": "Name of the person"}, "age": NUMBER})
    place = strict({"number": TEXT, "street": TEXT, "city": TEXT})
    step = strict({"explanation": TEXT, "output": TEXT})
    steps = {"type": "array", "items": {"$ref": "#/$defs/step"}}
    solution = strict({"steps": steps, "final_answer": TEXT}, **{"$defs": {"step": step}})
    return [
        Case(
            "openai/moderation",
            moderation,
            (
                {"is_violating": False, "category": None, "explanation": None},
                {"is_violating": True, "category": "violence", "explanation": "why"},
            ),
        ),
        Case(
            "openai/anyOf",
            strict({"item": {"anyOf": [person, place]}}),
            ({"item": {"name": "A", "age": 3}}, {"item": {"number": "1", "street": "S", "city": "C"}}),
        ),
        Case(
            "openai/definitions",
            solution,
            (
                {"steps": [{"explanation": "e", "output": "8x = -30"}], "final_answer": "x"},
                {"steps": [], "final_answer": ""},
            ),
        ),
    ]


def _recursions() -> list[Case]:
    attribute = strict({"name": TEXT, "value": TEXT})
    ui = strict({
        "type": {"type": "string", "enum": ["div", "button", "field"]}, "label": TEXT,
        "children": {"type": "array", "items": {"$ref": "#"}}, "attributes": {"type": "array", "items": attribute},
    }, description="A user interface")  # fmt: skip
    leaf = {"type": "button", "label": "OK", "children": [], "attributes": [{"name": "a", "value": "b"}]}
    node = strict({"value": NUMBER, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}})
    linked = strict({"linked_list": {"$ref": "#/$defs/node"}}, **{"$defs": {"node": node}})
    return [
        Case(
            "openai/root recursion",
            ui,
            (leaf, {"type": "div", "label": "", "children": [leaf, leaf], "attributes": []}),
        ),
        Case("openai/linked list", linked, ({"linked_list": {"value": 1, "next": {"value": 2, "next": None}}},)),
    ]


def cases() -> list[Case]:
    """The subset and the examples."""
    return [*_texts(), *_numbers(), *_containers(), *_examples(), *_unions(), *_recursions()]
