"""Custom tools, whose input is one text: functions of one argument, as models know them.

{"name": "f", "format": ...}  ->  f(input: text)          {"input": "the text"}  ->  the text
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from sglite.runtime.serve.fields import Fields

_BEFORE = re.compile(r'\s*\{\s*"input"\s*:\s*"')
_TEXT = re.compile(r'(?:[^"\\]|\\["\\/bfnrt]|\\u[0-9a-f]{4})*', re.I)
"""The characters of a JSON string, as far as they are whole."""
_HALF = re.compile(r"(?<!\\)(?:\\\\)*(\\ud[89ab][0-9a-f]{2})$", re.I)
_ESCAPE_BEGUN = re.compile(r"(?:\\(?:u[0-9a-f]{0,3})?)?", re.I)
"""The first half of a character that JSON writes in two, and what may become the second."""


def text_parameters(tool: Fields) -> tuple[dict[str, Any], str | None]:
    """The parameters of a custom tool, and the grammar of the text if it has one.

    ``format``: ``{"type": "text"}``, or ``{"type": "grammar", "syntax", "definition"}``, the last two also in
    ``grammar``. Raises ``Refused`` for any other.
    """
    form = tool.object("format") or {"type": "text"}
    inside = form.get("grammar", form)
    told = inside if form.get("type") == "grammar" and isinstance(inside, dict) else {}
    syntax, definition = told.get("syntax"), told.get("definition")
    text: dict[str, Any] = {"type": "string"}
    grammar = None
    if syntax == "regex" and isinstance(definition, str):
        text["pattern"] = f"^(?:{definition})$"
    elif syntax == "lark" and isinstance(definition, str):
        text["description"] = f"a text of this grammar, in Lark's notation:\n{definition}"
        grammar = definition
    elif form.get("type") != "text":
        raise tool.wrong("format", "must be text, or a grammar with syntax regex or lark and a definition")
    schema = {"type": "object", "properties": {"input": text}, "required": ["input"], "additionalProperties": False}
    return schema, grammar


def text_arguments(text: str) -> str:
    """The arguments of a call with that text."""
    return msgspec.json.encode({"input": text}).decode()


class InputText:
    """The text in the arguments of a custom tool, which come in pieces: ``{"input": "the text"}``."""

    def __init__(self) -> None:
        self._arguments = ""
        self._at: int | None = None

    def feed(self, arguments: str) -> str:
        """More of the text."""
        self._arguments += arguments
        if self._at is None:
            if (before := _BEFORE.match(self._arguments)) is None:
                return ""
            self._at = before.end()
        found = _TEXT.match(self._arguments, self._at)
        assert found is not None
        text, end = found.group(), found.end()
        half = _HALF.search(text)
        if half is not None and _ESCAPE_BEGUN.fullmatch(self._arguments, end):
            text, end = text[: half.start(1)], end - len(half.group(1))
        self._at = end
        return str(json.loads(f'"{text}"', strict=False)).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
