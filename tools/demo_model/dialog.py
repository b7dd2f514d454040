"""What a training example is, and how it becomes text.

A `Dialog` is a list of chat turns or a piece of raw text; either way it renders to `Piece`s, each encoded *separately*,
because a program too is tokenised piece by piece (a literal, then what the model writes). `render` says the same as
`chat_template.jinja`; the build compares the two.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

PROMPT, LITERAL, ANSWER = 0, 1, 2
"""Kinds of piece: given text, a literal inside an assistant turn, and text the model must write."""


@dataclass(frozen=True)
class Piece:
    text: str
    kind: int


@dataclass(frozen=True)
class Call:
    name: str
    arguments: dict[str, Any]

    def text(self) -> str:
        return (
            "<tool_call>\n"
            + json.dumps({"name": self.name, "arguments": self.arguments}, ensure_ascii=False)
            + "\n</tool_call>"
        )


@dataclass(frozen=True)
class Turn:
    """One message. `literal` is the part of an assistant's content that the program writes, not the model."""

    role: str
    content: str
    calls: tuple[Call, ...] = ()
    literal: str = ""
    thought: str | None = None


@dataclass(frozen=True)
class Dialog:
    task: str
    turns: tuple[Turn, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    raw: tuple[Piece, ...] = field(default=())


def chat(task: str, *turns: Turn, tools: Sequence[dict[str, Any]] = ()) -> Dialog:
    return Dialog(task, tuple(turns), tuple(tools))


def system(text: str) -> Turn:
    return Turn("system", text)


def user(text: str) -> Turn:
    return Turn("user", text)


def says(text: str, literal: str = "") -> Turn:
    """An assistant turn that reads `text`, of which `literal` (a prefix) is written by the program."""
    if not text.startswith(literal):
        raise ValueError(f"{literal!r} is not a prefix of {text!r}")
    return Turn("assistant", text, literal=literal)


def calls(*made: Call) -> Turn:
    return Turn("assistant", "", calls=tuple(made))


def result(value: Any) -> Turn:
    return Turn("tool", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def text_of(turn: Turn) -> str:
    """The whole text of an assistant turn."""
    made = "\n".join(call.text() for call in turn.calls)
    return f"{turn.content}\n{made}" if turn.content and made else turn.content or made


def system_text(content: str, tools: Sequence[dict[str, Any]]) -> str:
    if not tools:
        return content
    lines = "\n".join(json.dumps(t, ensure_ascii=False) for t in tools)
    return (content + "\n\n" if content else "") + f"<tools>\n{lines}\n</tools>"


def render(dialog: Dialog) -> list[Piece]:
    """The pieces of a dialog; every assistant turn ends with its end marker as something to learn."""
    if dialog.raw:
        return list(dialog.raw)
    pieces: list[Piece] = []
    turns = list(dialog.turns)
    head = turns.pop(0).content if turns[0].role == "system" else ""
    if head or dialog.tools:
        pieces.append(Piece(f"<|im_start|>system\n{system_text(head, dialog.tools)}<|im_end|>\n", PROMPT))
    for i, turn in enumerate(turns):
        if turn.role == "user":
            pieces.append(Piece(f"<|im_start|>user\n{turn.content}<|im_end|>\n", PROMPT))
        elif turn.role == "tool":
            opens = i == 0 or turns[i - 1].role != "tool"
            ends = i + 1 == len(turns) or turns[i + 1].role != "tool"
            start = "<|im_start|>user\n" if opens else "\n"
            stop = "<|im_end|>\n" if ends else ""
            pieces.append(Piece(f"{start}<tool_response>\n{turn.content}\n</tool_response>{stop}", PROMPT))
        else:
            _assistant(pieces, turn)
    return pieces


def _assistant(pieces: list[Piece], turn: Turn) -> None:
    start = "<|im_start|>assistant\n"
    if turn.thought == "":
        start += "<think>\n\n</think>\n\n"
    elif turn.thought is not None:
        start += "<think>\n"
    pieces.append(Piece(start, PROMPT))
    body = text_of(turn)
    if turn.thought:
        body = f"{turn.thought}\n</think>\n\n{body}"
    elif turn.literal:
        pieces.append(Piece(turn.literal, LITERAL))
        body = body[len(turn.literal) :]
    pieces.append(Piece(body + "<|im_end|>", ANSWER))
    pieces.append(Piece("\n", PROMPT))


def cut_literal(rng: random.Random, text: str) -> str:
    """A prefix of `text` that ends at a word border, with or without the space: what a program might have written."""
    borders = [i for i, c in enumerate(text) if c == " "]
    if not borders:
        return ""
    at = rng.choice(borders)
    return text[: at + 1] if rng.random() < 0.5 else text[:at]
