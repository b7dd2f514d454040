"""Thinking between two marks at the beginning of a turn: ``<think>`` ... ``</think>`` and its relatives.

A thought can only stand at the beginning of a turn: either the prompt has opened it, or the turn begins with the
opening mark. Anywhere else the marks are text, so an argument of a call may hold them; a closing mark where no thought
is open closes nothing. A thought that is never closed is all thought. The line breaks around the marks belong to them.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any, ClassVar

from sglite.runtime.parse import grammar
from sglite.runtime.parse.base import Event, ReasoningFormat, TurnParser
from sglite.runtime.parse.machine import Machine, Reading
from sglite.runtime.parse.marks import Marks

_BREAKS = re.compile(r"\n*")
_NOTHING = Marks()


class Think(ReasoningFormat):
    """What DeepSeek R1 began and most families took over. Instances differ by their marks."""

    name = "deepseek-r1"
    aliases: ClassVar[tuple[str, ...]] = (
        "deepseek_r1",
        "deepseek-v3",
        "deepseek_v3",
        "deepseek-v31",
        "deepseek_v31",
        "deepseek-v32",
        "qwen3",
        "qwen3-thinking",
        "glm45",
        "step3",
        "interns1",
        "nano_v3",
        "think",
    )
    opening: ClassVar[str] = "<think>"
    closing: ClassVar[str] = "</think>"
    marks: ClassVar[tuple[str, ...]] = (opening, closing)
    interrupts: ClassVar[tuple[str, ...]] = ()
    """Marks of calls that end a thought too: a model that thinks between calls may leave the closing mark out."""

    @cached_property
    def ends(self) -> Marks:
        """What a thought may end with."""
        return Marks(self.closing, *self.interrupts)

    def opened_by(self, prompt: str) -> bool:
        return prompt.rstrip().endswith(self.opening)

    def parser(self, opened: bool, rest: TurnParser) -> TurnParser:
        return _Turn(self, opened, rest)

    def tag(self, opened: bool, rest: dict[str, Any]) -> dict[str, Any]:
        thought = grammar.tag("" if opened else self.opening, grammar.any_text(), self.closing)
        behind = grammar.sequence(thought, grammar.regex(r"\n{0,2}"), rest)
        return behind if opened else grammar.either(behind, rest)


class KimiK2Think(Think):
    """As the others, but a call may come straight out of a thought."""

    name = "kimi_k2"
    aliases = ()
    interrupts = ("<|tool_calls_section_begin|>",)


class KimiThink(Think):
    """The marks of Kimi VL and Kimi 1.5."""

    name = "kimi"
    aliases = ()
    opening = "◁think▷"
    closing = "◁/think▷"
    marks = (opening, closing)


class MistralThink(Think):
    """The marks of Magistral."""

    name = "mistral"
    aliases = ("magistral",)
    opening = "[THINK]"
    closing = "[/THINK]"
    marks = (opening, closing)


class _Turn(Machine):
    def __init__(self, form: Think, opened: bool, rest: TurnParser) -> None:
        super().__init__()
        self._form = form
        self._opened = opened
        self._rest = rest
        self._ends = form.ends
        self._breaks = ""  # line breaks that may stand before the closing mark
        self._passing = False  # nothing but the rest comes any more

    def feed(self, text: str) -> list[Event]:
        if not self._passing and text and not self._opened and self._run is None and not self._base:
            self._passing = text.lstrip()[:1] not in ("", self._form.opening[0])
        return self._rest.feed(text) if self._passing else super().feed(text)

    def finish(self) -> list[Event]:
        return self._rest.finish() if self._passing else [*super().finish(), *self._rest.finish()]

    def _turn(self) -> Reading[None]:
        if (yield from self._begins()):
            yield from self.matching(_BREAKS)
            mark = yield from self.until(self._ends, self._think)
            if mark is None:
                self.reasoning(self._breaks)
            elif mark == self._form.closing:
                yield from self.matching(_BREAKS)
            else:
                self._pass_on(mark)
        yield from self.until(_NOTHING, self._pass_on)

    def _begins(self) -> Reading[bool]:
        """Whether the turn begins with thinking; takes the mark that says so, which may repeat that of the prompt."""
        place = self.keep()
        yield from self.skip_space()
        if (yield from self.starts(self._form.opening)):
            self.release()
            return True
        self.rewind(place)
        return self._opened

    def _think(self, text: str) -> None:
        text = self._breaks + text
        body = text.rstrip("\n")
        self._breaks = text[len(body) :]
        self.reasoning(body)

    def _pass_on(self, text: str) -> None:
        self.tell(self._rest.feed(text))
