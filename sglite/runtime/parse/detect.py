"""Which formats a checkpoint's model writes, found in its chat template and its vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sglite.runtime.parse.base import Content, Event, ReasoningFormat, Tool, ToolFormat, TurnParser
from sglite.runtime.text.chat_template import ChatTemplate
from sglite.runtime.text.tokenizer import Tokenizer


class PlainText(TurnParser):
    """A turn that is content and nothing else."""

    def feed(self, text: str) -> list[Event]:
        """See TurnParser."""
        return [Content(text)] if text else []

    def finish(self) -> list[Event]:
        """See TurnParser."""
        return []


@dataclass(frozen=True)
class Formats:
    """``None``: the model has no such format, or none that is known."""

    tools: ToolFormat | None = None
    reasoning: ReasoningFormat | None = None

    def turn_parser(self, tools: Sequence[Tool], opened: bool) -> TurnParser:
        """A machine for one turn: reasoning first, then content and calls."""
        rest: TurnParser = PlainText() if self.tools is None or not tools else self.tools.parser(tools)
        return rest if self.reasoning is None else self.reasoning.parser(opened, rest)

    def shown_special(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Special tokens that the machine must see."""
        marks = [mark for one in (self.tools, self.reasoning) if one is not None for mark in one.marks]
        found = [tokenizer.id_of(mark) for mark in marks]
        return tuple(token for token in found if token is not None and token in tokenizer.special_token_ids)


def formats_of(
    template: ChatTemplate | None, tokenizer: Tokenizer | None, tool_name: str = "auto", reasoning_name: str = "auto"
) -> Formats:
    """The formats called so; ``auto``: what the checkpoint shows, ``none``: none.

    Raises ``ConfigError`` for an unknown name, with the known ones.
    """
    return Formats()
