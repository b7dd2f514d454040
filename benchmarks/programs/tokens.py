"""Counting for closed forms: what programs have to compute, from their texts and the lengths of their outputs.

It knows nothing of how programs run. A *position* is a token with all that comes before it; the least that can be
computed is every position once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Piece = str | int | tuple[int, int] | tuple[list[str], str]
"""Of a stream: a literal; an output of so many tokens, or (tokens, the last of them that generating does not compute),
which is 1 unless a constraint forced its end; a select, as (choices, the one chosen)."""


class Tokens:
    """``tokens(text)``: how many tokens a text has.

    Args:
        encode: text to ids; adds nothing at its ends.
        turn: what opens and closes a turn of a role in a conversation.
        render: what a model's chat template makes of messages and tools, up to the opening of the assistant's turn.
    """

    def __init__(
        self,
        encode: Callable[[str], Sequence[int]],
        turn: Callable[[str], tuple[str, str]],
        render: Callable[[Any, Any], str | None],
    ) -> None:
        self.encode = encode
        self.turn = turn
        self.render = render

    def __call__(self, text: str) -> int:
        return len(self.encode(text))

    def tree(self, texts: Iterable[str]) -> int:
        """Positions of texts that all start at the same place: what they share counts once."""
        positions: dict[tuple[int, int], int] = {}
        for text in texts:
            at = -1
            for token in self.encode(text):
                at = positions.setdefault((at, token), len(positions))
        return len(positions)

    @staticmethod
    def lengths(state: Any) -> list[int]:
        """How many tokens the outputs of a run had, in the order in which the program asked for them."""
        graph = state.graph()
        metas = [graph.records[node.id].meta for node in graph.nodes if node.id in graph.records]
        return [meta["completion_tokens"] for meta in metas if meta and meta.get("completion_tokens")]

    def turns(self, *turns: tuple[str, str], ask: bool = True) -> str:
        """The text of whole turns, and of what opens the assistant's answer."""
        written = [f"{self.turn(role)[0]}{text}{self.turn(role)[1]}" for role, text in turns]
        return "".join(written) + (self.turn("assistant")[0] if ask else "")

    def answered(self, *turns: tuple[str, str], ask: bool = True) -> str:
        """The end of the assistant's turn, and ``turns``."""
        return self.turn("assistant")[1] + self.turns(*turns, ask=ask)

    def chain(self, pieces: Iterable[Piece]) -> tuple[int, int]:
        """Tokens of all prompts of a stream of its own, and its positions, without outputs that nothing follows."""
        length = prompts = computed = tail = 0
        text, scored = "", 0
        for piece in pieces:
            if isinstance(piece, str):
                text += piece
                continue
            if isinstance(piece, tuple) and isinstance(piece[0], list):
                choices, chosen = [text + choice for choice in piece[0]], text + str(piece[1])
                prompts += sum(length + self(choice) for choice in choices)
                computed += tail + self.tree(choices)
                text, tail, scored = chosen, 0, self(chosen)
                continue
            output, left = piece if isinstance(piece, tuple) else (piece, 1)
            assert isinstance(output, int) and isinstance(left, int)
            prompts += length + self(text)
            computed += tail + self(text) - scored
            length, tail = length + self(text) + output, left
            text, scored = "", 0
        return prompts, computed


def of_engine(engine: Any) -> Tokens:
    """Counting with an engine's tokenizer and chat template."""

    def render(messages: Any, tools: Any) -> str | None:
        template = engine.chat_template
        return None if template is None else str(template.render(messages, tools=tools, add_generation_prompt=True))

    return Tokens(engine.tokenizer.encode, lambda role: engine.turn(role, False), render)
