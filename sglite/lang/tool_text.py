"""Calls of tools in text: one JSON object each, found wherever they stand, whole or cut off."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

_HEAD = re.compile(r'\s*\{\s*"(?:name|tool)"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*', re.S)
_NAME = re.compile(r'"(?:name|tool)"\s*:\s*"((?:[^"\\]|\\.)*)"', re.S)
_CLOSE = re.compile(r"\s*\}")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Found:
    """A call in text. ``arguments``: JSON text as it was written; ``end``: where the text goes on; ``whole``: it is
    JSON and complete."""

    name: str
    arguments: str
    end: int
    whole: bool = True


def begins_call(text: str) -> bool:
    """Whether it begins like a call that has arguments, however it goes on."""
    return _HEAD.match(text) is not None


def call_at(text: str, at: int, *, needs_arguments: bool = False) -> Found | None:
    """The whole call that begins at ``at``, possibly after white space; None where there is none.

    ``needs_arguments``: an object with nothing but a name is none.
    """
    head = _HEAD.match(text, at)
    if head is None:
        return _in_any_order(text, at, needs_arguments)
    end = value_end(text, head.end())
    close = None if end is None else _CLOSE.match(text, end)
    if end is None or close is None:
        return _in_any_order(text, at, needs_arguments)
    try:
        name = json.loads(head[1], strict=False)
    except ValueError:  # an escape that JSON does not have
        return None
    return Found(name, text[head.end() : end], close.end())


def cut_call(text: str, at: int, end: int) -> Found:
    """What can be told of a call that is broken: its name, if that is there, and the rest as its arguments."""
    head = _HEAD.match(text, at, end)
    name = _NAME.search(text, at, end)
    return Found(name[1] if name else "", text[head.end() if head else at : end].strip(), end, whole=False)


def value_end(text: str, at: int) -> int | None:
    """Where the JSON value that begins at ``at`` ends; None if there is none."""
    try:
        return _DECODER.raw_decode(text, at)[1]
    except (ValueError, RecursionError):
        return None


def _in_any_order(text: str, at: int, needs_arguments: bool) -> Found | None:
    """A call whose arguments come first, or that has none."""
    try:
        value, end = _DECODER.raw_decode(text, at + len(text[at:]) - len(text[at:].lstrip()))
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    name = value.pop("name", None)
    name = value.pop("tool", None) if name is None else name
    arguments = value.pop("arguments", None)
    arguments = value.pop("parameters", None if needs_arguments else {}) if arguments is None else arguments
    if not isinstance(name, str) or value or not isinstance(arguments, dict):
        return None
    return Found(name, json.dumps(arguments, ensure_ascii=False), end)
