"""The words in which formats describe what a model may write: formats of a structural tag.

They say the same as the parsers read, in one spelling: the one that the models' templates write.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeAlias

from sglite.runtime.parse.base import Tool
from sglite.runtime.parse.schemas import argument_schema

Format: TypeAlias = dict[str, Any]


def text(value: str) -> Format:
    return {"type": "const_string", "value": value}


def regex(pattern: str) -> Format:
    return {"type": "regex", "pattern": pattern}


def any_text(excludes: Sequence[str] = ()) -> Format:
    """Any text in which none of ``excludes`` stands."""
    return {"type": "any_text", "excludes": list(excludes)}


def sequence(*parts: Format) -> Format:
    return {"type": "sequence", "elements": list(parts)}


def either(*parts: Format) -> Format:
    return {"type": "or", "elements": list(parts)}


def tag(begin: str, content: Format, end: str) -> Format:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def arguments(tool: Tool) -> Format:
    """The arguments of a call as a JSON object."""
    if tool.grammar is None:
        return {"type": "json_schema", "json_schema": argument_schema(tool)}
    return sequence(text(f"{{{quoted(only_argument(tool))}: "), json_string(tool.grammar), text("}"))


def json_string(of_grammar: str) -> Format:
    """A text of a grammar as a JSON string."""
    return sequence(text('"'), {"type": "grammar", "grammar": of_grammar, "style": "json"}, text('"'))


def only_argument(tool: Tool) -> str:
    """The name of the text of a tool that has a grammar."""
    (name,) = argument_schema(tool)["properties"]
    return str(name)


def quoted(name: str) -> str:
    """A name as JSON writes it."""
    return json.dumps(name, ensure_ascii=False)


def listed(tags: Sequence[Format], separator: str, *, several: bool) -> Format:
    """One of ``tags``; with ``several``, any number of them with ``separator`` in between."""
    return {
        "type": "tags_with_separator",
        "tags": list(tags),
        "separator": separator,
        "at_least_one": True,
        "stop_after_first": not several,
    }


def triggered(triggers: Sequence[str], tags: Sequence[Format], *, several: bool) -> Format:
    """Any text; a trigger in it begins one of ``tags``. Without ``several`` the first one ends the turn."""
    return {
        "type": "triggered_tags",
        "triggers": list(triggers),
        "tags": list(tags),
        "at_least_one": False,
        "stop_after_first": not several,
    }


def unless_begun(first: str, opening: str, calls: Format) -> Format:
    """``calls`` at the beginning or behind the mark ``opening``, or text without them, which then does not begin with
    the character ``first`` as they do, nor with ``<|`` as marks do."""
    begun = regex(rf"\s*([^\s<\{first}]|<[^|])")
    before = either(text(""), text(opening), sequence(begun, tag("", any_text(), opening)))
    return either(sequence(before, calls), sequence(begun, any_text([opening])), regex(r"\s*<?"))
