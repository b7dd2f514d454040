"""What a turn with tools may be, as structural tags and schemas; see ``docs/constrained.md``.

Names and arguments are enforced: a call that has begun is one of a tool that there is, with arguments that fit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sglite.lang.messages import ToolSpec

Rules = dict[str, Any]
"""Arguments of ``gen``: ``structural_tag`` or ``json_schema``, or none."""
Form = dict[str, Any]
"""A format inside a structural tag."""
Begins = Sequence[tuple[str, ToolSpec]]
"""How the call of each tool begins, up to its arguments."""


@dataclass(frozen=True)
class Answer:
    """What an answer may be: any text, or what a type's spec says."""

    regex: str | None = None
    json_schema: str | None = None

    @property
    def is_free(self) -> bool:
        """Whether any text will do."""
        return self.regex is None and self.json_schema is None

    def form(self) -> Form:
        """An answer that is not free."""
        if self.regex is not None:
            return {"type": "regex", "pattern": self.regex}
        return _schema(json.loads(self.json_schema or "true"))

    def schema(self) -> Any:
        """An answer inside JSON."""
        if self.json_schema is not None:
            return json.loads(self.json_schema)
        return {"type": "string"} if self.regex is None else {"type": "string", "pattern": f"^(?:{self.regex})$"}


def anywhere(begins: Begins, end: str, trigger: str, choice: str, several: bool, answer: Answer) -> Form:
    """Calls that a trigger opens wherever it stands."""
    tags = _tags(begins, end, choice)
    if choice not in ("auto", "none"):
        return _separated(tags, "\n", several)
    if choice == "none":
        return {"type": "any_text", "excludes": [trigger]} if answer.is_free else answer.form()
    if not answer.is_free:
        return _either(_separated(tags, "\n", several), answer.form())
    return {
        "type": "triggered_tags",
        "triggers": [trigger],
        "tags": tags,
        "at_least_one": False,
        "stop_after_first": not several,
    }


def at_start(begins: Begins, end: str, trigger: str, tag: str, choice: str, several: bool, answer: Answer) -> Form:
    """Calls that are the whole turn, perhaps after ``tag``; any other text does not begin with ``trigger``."""
    calls = _separated(_tags(begins, end, choice), "; ", several)
    if choice not in ("auto", "none"):
        return calls
    pattern = rf"(?!\s*(?:{_escaped(tag)})?\s*{_escaped(trigger)})[\s\S]*"
    said = answer.form() if not answer.is_free else {"type": "regex", "pattern": pattern}
    if choice == "none":
        return said
    return _either(calls, {"type": "sequence", "elements": [_text(tag), calls]}, said)


def thoughtful(form: Form, thinks: str, choice: str) -> Rules:
    """``form`` after the model's thinking. Where a call is demanded, only a model that is thinking already thinks."""
    thought = {"type": "any_text"}
    if thinks == "opened":
        tag = {"type": "tag", "begin": "", "content": thought, "end": "</think>"}
        form = {"type": "sequence", "elements": [tag, _breaks(), form]}
    elif thinks == "writes" and choice in ("auto", "none"):
        tag = {"type": "tag", "begin": "<think>", "content": thought, "end": "</think>"}
        form = _either({"type": "sequence", "elements": [tag, _breaks(), form]}, form)
    return {"structural_tag": {"type": "structural_tag", "format": form}}


def union(tools: Sequence[ToolSpec], choice: str, answer: Answer) -> dict[str, Any]:
    """The schema of ``{"tool": name, "arguments": ...}`` or ``{"answer": ...}``."""
    parts: list[dict[str, Any]] = []
    definitions: dict[str, Any] = {}
    for tool in tools if choice != "none" else ():
        if choice not in ("auto", "required", tool.name):
            continue
        definitions[tool.name] = _moved(tool.parameters, f"#/$defs/{tool.name}")
        parts.append(_closed({"tool": {"const": tool.name}, "arguments": {"$ref": f"#/$defs/{tool.name}"}}))
    if choice in ("auto", "none"):
        definitions["(answer)"] = _moved(answer.schema(), "#/$defs/(answer)")
        parts.append(_closed({"answer": {"$ref": "#/$defs/(answer)"}}))
    return {"anyOf": parts, "$defs": definitions}


def _tags(begins: Begins, end: str, choice: str) -> list[Form]:
    return [
        {"type": "tag", "begin": begin, "content": _schema(tool.parameters), "end": end}
        for begin, tool in begins
        if choice in ("auto", "none", "required", tool.name)
    ]


def _separated(tags: list[Form], separator: str, several: bool) -> Form:
    return {
        "type": "tags_with_separator",
        "tags": tags,
        "separator": separator,
        "at_least_one": True,
        "stop_after_first": not several,
    }


def _schema(schema: Any) -> Form:
    return {"type": "json_schema", "json_schema": schema}


def _text(value: str) -> Form:
    return {"type": "const_string", "value": value}


def _breaks() -> Form:
    return {"type": "regex", "pattern": r"\n*"}


def _either(*forms: Form) -> Form:
    return {"type": "or", "elements": list(forms)}


def _escaped(text: str) -> str:
    return re.sub(r"([\\^$.|?*+()\[\]{}])", r"\\\1", text)


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _moved(schema: Any, place: str) -> Any:
    """A schema with its references to itself as they are when it stands at ``place``."""
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, place) for key, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = place + reference[1:]
    return moved
