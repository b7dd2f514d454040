"""Turns of a model for tests of parsers: what makes them hard, how to feed them, what to compare."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sglite.runtime.parse.base import (
    Call,
    CallArguments,
    CallEnd,
    CallStart,
    Content,
    Event,
    Reasoning,
    Tool,
    TurnParser,
)

TOOLS = [Tool("f"), Tool("get-b.c"), Tool("g_2")]

MARKS = (
    "<tool_call>\n</tool_call> [TOOL_CALLS] [ARGS] ]}, <｜tool▁call▁end｜> <｜tool▁calls▁end｜> ``` <|tool_call_end|> "
    "<|tool_call_begin|> <|call|> <|end|> <|return|> <|channel|>final<|message|> <|python_tag|> <|python_end|> "
    "<think></think> [THINK] ◁/think▷"
)

NASTY: list[dict[str, Any]] = [
    {"a": 1},
    {},
    {"marks": MARKS, "inner": {MARKS: "a key"}},
    {"quotes": '"\'`\\\\" \\', "controls": "\n\t\r\b\f\x01", "unicode": "é 漢字 😀 \u2028 \ufeff", "empty": ""},
    {"brackets": '}}]]){{[[("', "nested": [[1, [2, {"k": []}]], {"x": None, "y": [True, False]}], "e": {}},
    {"numbers": [0, -1, 1.5, -1.5e-7, 12345678901234567890], "half": 0.5, "t": True, "n": None},
    {"code": 'def f(a):\n    return {"a": "\\\\}"}  # </tool_call>', "looks": '{"name": "f", "arguments": {}}'},
]

TURNS: list[tuple[str, list[Call]]] = [
    ("Hello.", []),
    (" Hello \n\n  there", []),
    *(("", [Call("f", arguments)]) for arguments in NASTY),
    ("Let me see.", [Call("f", NASTY[0])]),
    ("é: [1] {2} <b>", [Call("get-b.c", NASTY[2]), Call("f", {}), Call("unknown_one", NASTY[3])]),
    ("", [Call("g_2", NASTY[4]), Call("g_2", NASTY[4]), Call("f", NASTY[6])]),
]


@dataclass
class Read:
    """What a turn was read as; ``calls``: (name, id, JSON text of the arguments, whether it ended)."""

    content: str
    reasoning: str
    calls: list[tuple[str, str | None, str, bool]]


def feed(parser: TurnParser, pieces: Iterable[str]) -> list[Event]:
    return [*(event for piece in pieces for event in parser.feed(piece)), *parser.finish()]


def read(parser: TurnParser, pieces: Iterable[str]) -> Read:
    """The events put together. Fails where their order is none that they may come in."""
    found = Read("", "", [])
    for event in feed(parser, pieces):
        if isinstance(event, Content):
            found.content += event.text
        elif isinstance(event, Reasoning):
            found.reasoning += event.text
        elif isinstance(event, CallStart):
            assert event.index == len(found.calls)
            found.calls.append((event.name, event.id, "", False))
        else:
            name, id_, text, ended = found.calls[event.index]
            assert event.index == len(found.calls) - 1 and not ended
            more = event.text if isinstance(event, CallArguments) else ""
            found.calls[-1] = (name, id_, text + more, isinstance(event, CallEnd))
    return found


def cuts(text: str, rng: random.Random, rounds: int = 3) -> Iterator[list[str]]:
    """Every way to cut a text in two, its characters, and some random pieces."""
    yield from ([text[:i], text[i:]] for i in range(len(text) + 1))
    yield list(text)
    yield from (pieces(text, 1, most, rng) for most in (4, 16, 40) for _ in range(rounds))


def pieces(text: str, least: int, most: int, rng: random.Random) -> list[str]:
    found, at = [], 0
    while at < len(text):
        size = rng.randint(least, most)
        found.append(text[at : at + size])
        at += size
    return found


def read_every_way(make: Callable[[], TurnParser], text: str, rounds: int = 3) -> Read:
    """What the whole is read as; fails where a way to cut it gives anything else."""
    whole = read(make(), [text])
    for some in cuts(text, random.Random(len(text)), rounds):
        assert read(make(), some) == whole, some
    return whole
