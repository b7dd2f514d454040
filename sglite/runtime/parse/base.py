"""What every wire format is: a machine that reads it piece by piece, and a grammar that keeps a model to it.

    output text --TurnParser.feed--> Reasoning | Content | CallStart | CallArguments | CallEnd

Promises: for every way to cut a text into pieces, ``feed`` of the pieces and then ``finish`` give the same reasoning,
content and calls as of the whole; nothing but a possible beginning of a mark is held back; no mark is ever shown as
content; nothing raises, whatever the text. What begins like a call and is none is content, as it was written.
Arguments that are no JSON object are handed on as they were written, and their call has no end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import msgspec


@dataclass(frozen=True)
class Tool:
    """A function that the model may call. ``parameters``: a JSON Schema of an object; ``None``: any object.

    ``grammar``: the texts of its only parameter, which is then a required string.
    """

    name: str
    parameters: dict[str, Any] | None = None
    description: str = ""
    strict: bool = False
    grammar: str | None = None


class Content(msgspec.Struct, frozen=True):
    """Text for the reader."""

    text: str


class Reasoning(msgspec.Struct, frozen=True):
    """Text of the model's thinking."""

    text: str


class CallStart(msgspec.Struct, frozen=True):
    """Call ``index`` (0, 1, ... in a turn) of a tool begins. ``id``: as the model wrote one, if its format has ids."""

    index: int
    name: str
    id: str | None = None


class CallArguments(msgspec.Struct, frozen=True):
    """More of the JSON text of the arguments of call ``index``; all of a call's pieces are one JSON object."""

    index: int
    text: str


class CallEnd(msgspec.Struct, frozen=True):
    """Call ``index`` is whole. A call that the output breaks off in has none."""

    index: int


Event = Content | Reasoning | CallStart | CallArguments | CallEnd


class TurnParser(ABC):
    """Reads one turn; see the module for what it promises."""

    @abstractmethod
    def feed(self, text: str) -> list[Event]:
        """What is certain after ``text`` more."""

    @abstractmethod
    def finish(self) -> list[Event]:
        """What is left when nothing more comes. Called once."""


@dataclass(frozen=True)
class Call:
    """A whole call, as tests and templates know it."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


class ToolFormat(ABC):
    """How a family of models writes calls of tools. Instances have no state; one serves all requests."""

    name: ClassVar[str]
    """What ``--tool-call-parser`` calls it; SGLang's name where it has one."""
    aliases: ClassVar[tuple[str, ...]] = ()
    marks: ClassVar[tuple[str, ...]] = ()
    """Marks that may be special tokens of the model: shown to the parser, never to the reader."""

    @abstractmethod
    def parser(self, tools: Sequence[Tool]) -> TurnParser:
        """A machine for one turn of content and calls; reasoning has been taken off before, see ``turn``."""

    @abstractmethod
    def calls(self, tools: Sequence[Tool], *, several: bool) -> dict[str, Any]:
        """A structural tag's format: one call of one of ``tools``, or more with ``several``, and nothing else."""

    @abstractmethod
    def free(self, tools: Sequence[Tool], *, several: bool) -> dict[str, Any]:
        """A structural tag's format: any text up to the format's own trigger, from there on a call as in ``calls``."""

    @abstractmethod
    def write(self, content: str, calls: Sequence[Call]) -> str:
        """A turn as the model writes it."""


class ReasoningFormat(ABC):
    """How a family of models marks its thinking. Instances have no state."""

    name: ClassVar[str]
    """What ``--reasoning-parser`` calls it; SGLang's name where it has one."""
    aliases: ClassVar[tuple[str, ...]] = ()
    opening: ClassVar[str]
    closing: ClassVar[str]
    """What stands around the thinking."""
    marks: ClassVar[tuple[str, ...]] = ()
    """As in ``ToolFormat``."""
    answer_follows: ClassVar[bool] = True
    """What stands behind the closing mark is the answer, and not another part of the turn."""

    @abstractmethod
    def opened_by(self, prompt: str) -> bool:
        """Whether the rendered prompt ends inside an open thought, so that the output begins with thinking."""

    @abstractmethod
    def parser(self, opened: bool, rest: TurnParser) -> TurnParser:
        """A machine that takes the thinking off and hands what follows to ``rest``."""

    @abstractmethod
    def tag(self, opened: bool, rest: dict[str, Any]) -> dict[str, Any]:
        """A structural tag's format: thinking, then ``rest``. With ``opened`` it has begun; else it may be left out."""

    def answer(self, content: dict[str, Any]) -> dict[str, Any]:
        """A structural tag's format: how ``content``, an answer and no call, stands in a turn."""
        return content
