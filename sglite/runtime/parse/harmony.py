"""Harmony, the format of gpt-oss: a turn is messages, each with a channel and, for a call, a recipient.

    <|channel|>analysis<|message|>thinking<|end|><|start|>assistant
    <|channel|>commentary to=functions.f <|constrain|>json<|message|>{...}<|call|>
    <|channel|>final<|message|>the answer<|return|>

One machine reads all of it, thinking and calls. Messages of the same kind are kept apart by a line break. The marks
that end a call or an answer end the model's turn, so they need not be seen, and an enforced turn has one call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from sglite.runtime.parse import grammar
from sglite.runtime.parse.base import Call, Content, Event, Reasoning, ReasoningFormat, Tool, ToolFormat, TurnParser
from sglite.runtime.parse.call_object import read_arguments
from sglite.runtime.parse.machine import Machine, Reading
from sglite.runtime.parse.marks import Marks

_START, _CHANNEL, _MESSAGE, _CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
_END, _CALL, _RETURN = "<|end|>", "<|call|>", "<|return|>"
_ALL = (_START, _CHANNEL, _MESSAGE, _CONSTRAIN, _END, _CALL, _RETURN)
_PREFIX = "functions."
_ANALYSIS = f"{_CHANNEL}analysis{_MESSAGE}"
_NEXT = f"{_END}{_START}assistant"

_HEADS = (_START, _CHANNEL, _MESSAGE, " to=", "to=")
_HEAD_END = Marks(_MESSAGE, _END, _CALL, _RETURN)
_BODY_END = Marks(_END, _CALL, _RETURN, _START, _CHANNEL)
_TO = re.compile(r"to=([^\s<]+)")
_NAMED_CHANNEL = re.compile(re.escape(_CHANNEL) + r"\s*(\w+)")


class Harmony(ToolFormat):
    """``<|channel|>commentary to=functions.f <|constrain|>json<|message|>{...}``"""

    name = "gpt-oss"
    aliases = ("openai", "harmony")
    marks = _ALL

    def parser(self, tools: Sequence[Tool]) -> TurnParser:
        return HarmonyTurn()

    def calls(self, tools: Sequence[Tool], *, several: bool) -> dict[str, Any]:
        return grammar.listed(
            [grammar.tag(_call_head(tool.name), grammar.arguments(tool), "") for tool in tools], "", several=False
        )

    def free(self, tools: Sequence[Tool], *, several: bool) -> dict[str, Any]:
        preamble = grammar.tag(f"{_CHANNEL}commentary{_MESSAGE}", grammar.any_text(), _NEXT)
        return grammar.sequence(
            grammar.either(preamble, grammar.text("")),
            grammar.either(self.calls(tools, several=several), _final(grammar.any_text())),
        )

    def write(self, content: str, calls: Sequence[Call]) -> str:
        messages = [f"{_CHANNEL}{'commentary' if calls else 'final'}{_MESSAGE}{content}{_END}"] if content else []
        messages += [
            f"{_call_head(call.name)}{json.dumps(call.arguments, ensure_ascii=False)}{_CALL}" for call in calls
        ]
        return f"{_START}assistant".join(messages).removesuffix(_END).removesuffix(_CALL)


class HarmonyReasoning(ReasoningFormat):
    """The analysis channel."""

    name = "gpt-oss"
    aliases = ("openai_gptoss", "harmony")
    opening = _ANALYSIS
    closing = _END
    answer_follows = False
    marks = _ALL

    def opened_by(self, prompt: str) -> bool:
        return prompt.endswith(_ANALYSIS)

    def parser(self, opened: bool, rest: TurnParser) -> TurnParser:
        """The whole turn is read by one machine; ``rest`` only says whether there are calls in it."""
        return HarmonyTurn(opened=opened, calls=isinstance(rest, HarmonyTurn))

    def tag(self, opened: bool, rest: dict[str, Any]) -> dict[str, Any]:
        thought = grammar.tag("" if opened else _ANALYSIS, grammar.any_text(), _NEXT)
        behind = grammar.sequence(thought, rest)
        return behind if opened else grammar.either(behind, rest)

    def answer(self, content: dict[str, Any]) -> dict[str, Any]:
        return _final(content)


def _call_head(name: str) -> str:
    return f"{_CHANNEL}commentary to={_PREFIX}{name} {_CONSTRAIN}json{_MESSAGE}"


def _final(content: grammar.Format) -> grammar.Format:
    return grammar.sequence(grammar.text(f"{_CHANNEL}final{_MESSAGE}"), content)


class HarmonyTurn(Machine):
    """Text outside of messages is content: the prompt may have begun one."""

    def __init__(self, *, opened: bool = False, calls: bool = True) -> None:
        super().__init__()
        self._opened = opened
        self._reads_calls = calls
        self._head = ""  # a mark that ended a message and begins the next
        self._told: set[type[Event]] = set()  # kinds of text that earlier messages had

    def _turn(self) -> Reading[None]:
        head = _ANALYSIS if self._opened else (yield from self._read_head())
        self._opened = False
        if head is None:
            return
        recipient = _TO.search(head)
        channel = _NAMED_CHANNEL.search(head)
        if recipient is not None and self._reads_calls:
            ended = yield from self._call(recipient.group(1).removeprefix(_PREFIX))
        elif channel is not None and channel.group(1) == "analysis":
            ended = yield from self.until(_BODY_END, self._teller(Reasoning))
        else:
            ended = yield from self.until(_BODY_END, self._teller(Content))
        self._head = ended if ended in (_START, _CHANNEL) else ""

    def _read_head(self) -> Reading[str | None]:
        """What stands before a message's text; empty where the text begins at once, None where no message comes."""
        begun, self._head = self._head, ""
        for head in () if begun else _HEADS:
            if (yield from self.starts(head)):
                begun = head
                break
        if not begun:
            return "" if (yield from self.more()) else None
        if begun == _MESSAGE:
            return begun
        pieces = [begun]
        mark = yield from self.until(_HEAD_END, pieces.append)
        return "".join(pieces) if mark == _MESSAGE else None

    def _call(self, name: str) -> Reading[str | None]:
        self.begin_call(name)
        yield from self.skip_space()
        mark = None
        for end in _BODY_END.marks:
            if mark is None and (yield from self.starts(end)):
                mark = end
        if mark is not None:
            self.arguments("{}")
        elif not (yield from read_arguments(self, self.arguments)):
            return (yield from self.until(_BODY_END, self.arguments))
        self.end_call()
        return mark or (yield from self.until(_BODY_END, _drop))

    def _teller(self, kind: type[Content] | type[Reasoning]) -> Callable[[str], None]:
        """What takes the text of a message."""
        gap = "\n" if kind in self._told else ""
        told = False

        def tell(text: str) -> None:
            nonlocal told
            self.tell([kind(text if told else gap + text)])
            told = True
            self._told.add(kind)

        return tell


def _drop(text: str) -> None:
    pass
