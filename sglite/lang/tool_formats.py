"""How models write calls of tools, and how they are kept to it.

A format reads a turn (``read``), writes one as the model's template would (``write``), and says what a turn may be
(``rules``): free text until the model's own trigger, from there on a tool's name and arguments that fit its schema.

    hermes (Qwen 2.5, Qwen 3)   text <tool_call>\\n{"name": "add", "arguments": {"a": 2}}\\n</tool_call>, several
    llama3                      {"name": "add", "parameters": {"a": 2}}, the whole turn
    generic                     {"tool": "add", "arguments": {"a": 2}} or {"answer": "..."}, for models whose template
                                does not tell of tools: the prompt does

``detect`` finds a model's format by what its template makes of a conversation with calls. Promises: ``read`` never
raises, and ``read(write(content, calls))`` gives the same calls.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from sglite.lang.messages import Message, ToolCall, ToolSpec
from sglite.lang.tool_rules import Answer, Rules, anywhere, at_start, thoughtful, union
from sglite.lang.tool_text import Found, begins_call, call_at, cut_call

Render = Callable[[Sequence[Message], Sequence[ToolSpec]], str | None]
Thinks = Literal["no", "writes", "opened"]
"""Whether the model thinks between ``<think>`` and ``</think>``; "opened": the prompt has the first of them."""
THINK = ("<think>", "</think>")
CALL = ("<tool_call>", "</tool_call>")
PYTHON_TAG = "<|python_tag|>"


@dataclass(frozen=True)
class Call:
    """A call as it was written; ``whole``: its arguments are JSON."""

    name: str
    arguments: str
    whole: bool = True


@dataclass(frozen=True)
class Turn:
    """A turn that was read: what is said, called and thought."""

    content: str
    calls: tuple[Call, ...] = ()
    reasoning: str = ""


@dataclass(frozen=True)
class ToolFormat(ABC):
    """See the module. ``several``: the template takes more than one call in a turn."""

    triggers: ClassVar[tuple[str, ...]] = ()
    """How calls begin."""
    several: bool = True
    thinks: Thinks = "no"

    @abstractmethod
    def split(self, text: str) -> tuple[str, tuple[Call, ...]]:
        """Content and calls of a turn without its thinking."""

    @abstractmethod
    def written(self, call: Call) -> str:
        """A call as the template writes it."""

    @abstractmethod
    def rules(self, tools: Sequence[ToolSpec], choice: str, several: bool, answer: Answer) -> Rules:
        """What a turn may be, as arguments of ``gen``. ``choice``: "auto", "none", "required" or a tool's name."""

    def note(self, tools: Sequence[ToolSpec]) -> str:
        """What the prompt has to say of the tools because the template does not."""
        return ""

    def read(self, text: str) -> Turn:
        """A whole turn, or the beginning of one."""
        reasoning, rest = self._thought(text)
        content, calls = self.split(rest)
        return Turn(content, calls, reasoning)

    def shown(self, text: str) -> str:
        """What may be shown of the beginning of a turn: content that stays content whatever follows. White space
        at its end waits for what follows it."""
        return self._sure(self.read(text).content)

    def _sure(self, content: str) -> str:
        marks = (*self.triggers, *(THINK if self.thinks != "no" else ()))
        longest = max(map(len, marks), default=0)
        for length in range(min(longest, len(content)), 0, -1):
            if any(mark.startswith(content[-length:]) for mark in marks):
                return content[:-length].rstrip()
        return content.rstrip()

    def write(self, content: str, calls: Sequence[Call]) -> str:
        """A turn of ``content`` and ``calls``."""
        return "\n".join([*([content] if content else []), *map(self.written, calls)])

    def _thought(self, text: str) -> tuple[str, str]:
        before, closed, after = text.partition(THINK[1])
        opened = self.thinks == "opened" or (self.thinks == "writes" and text.lstrip().startswith(THINK[0]))
        if not opened:
            return "", text
        return before.replace(THINK[0], "", 1).strip("\n"), after.lstrip("\n") if closed else ""


@dataclass(frozen=True)
class Hermes(ToolFormat):
    """Calls between tags, anywhere in the turn."""

    triggers: ClassVar[tuple[str, ...]] = (CALL[0],)

    def split(self, text: str) -> tuple[str, tuple[Call, ...]]:
        """See ToolFormat. A tag that does not close ends with the text."""
        return self._split(text)

    def shown(self, text: str) -> str:
        """See ToolFormat. A closing tag in a call that is not whole yet may stand in a string of its arguments: what
        follows it waits for the end."""
        return self._sure(self._split(self._thought(text)[1], growing=True)[0])

    def _split(self, text: str, growing: bool = False) -> tuple[str, tuple[Call, ...]]:
        said, calls, at = [], [], 0
        while (start := text.find(CALL[0], at)) >= 0:
            said.append(text[at:start].rstrip())
            inside = start + len(CALL[0])
            found = call_at(text, inside)
            if found is None and growing:
                calls.append(_call(cut_call(text, inside, len(text))))
                at = len(text)
                break
            close = text.find(CALL[1], inside if found is None else found.end)
            end = len(text) if close < 0 else close
            if found is None or text[found.end : end].strip():
                found = cut_call(text, inside, end)
            calls.append(_call(found))
            at = end + len(CALL[1])
        if not calls:
            return text, ()
        said.append(text[at:].rstrip())
        first, *more = said
        return "\n".join(part for part in (first, *(part.lstrip() for part in more)) if part), tuple(calls)

    def written(self, call: Call) -> str:
        """See ToolFormat."""
        return f'{CALL[0]}\n{{"name": {_text(call.name)}, "arguments": {call.arguments}}}\n{CALL[1]}'

    def rules(self, tools: Sequence[ToolSpec], choice: str, several: bool, answer: Answer) -> Rules:
        """See ToolFormat."""
        begins = [(f'{CALL[0]}\n{{"name": {_text(tool.name)}, "arguments": ', tool) for tool in tools]
        form = anywhere(begins, f"}}\n{CALL[1]}", CALL[0], choice, several and self.several, answer)
        return thoughtful(form, self.thinks, choice)


@dataclass(frozen=True)
class Llama3(ToolFormat):
    """A call is the whole turn."""

    triggers: ClassVar[tuple[str, ...]] = ('{"name": "', PYTHON_TAG)

    def split(self, text: str) -> tuple[str, tuple[Call, ...]]:
        """See ToolFormat. Calls stand at the beginning, or after the model's tag for them."""
        said, tag, rest = text.partition(PYTHON_TAG)
        if not tag:
            said, rest = "", text
        calls: list[Call] = []
        at = 0
        while (found := call_at(rest, at, needs_arguments=True)) is not None:
            calls.append(_call(found))
            at = found.end
            at += len(rest[at:]) - len(rest[at:].lstrip(" \n;,"))
        left = rest[at:]
        if begins_call(left) or (tag and left.strip() and not calls):
            calls.append(_call(cut_call(rest, at, len(rest))))
            left = ""
        if not calls:
            return text, ()
        return "\n".join(part for part in (said.rstrip(), left.rstrip()) if part), tuple(calls)

    def shown(self, text: str) -> str:
        """See ToolFormat. What begins like a call is none only when it has ended as something else."""
        before, _, _ = text.partition(PYTHON_TAG)
        return "" if self._thought(before)[1].lstrip().startswith('{"name"') else super().shown(before)

    def written(self, call: Call) -> str:
        """See ToolFormat."""
        return f'{{"name": {_text(call.name)}, "parameters": {call.arguments}}}'

    def write(self, content: str, calls: Sequence[Call]) -> str:
        """See ToolFormat."""
        said = f"{content}{PYTHON_TAG}" if content and calls else content
        return said + "; ".join(map(self.written, calls))

    def rules(self, tools: Sequence[ToolSpec], choice: str, several: bool, answer: Answer) -> Rules:
        """See ToolFormat."""
        begins = [(f'{{"name": {_text(tool.name)}, "parameters": ', tool) for tool in tools]
        form = at_start(begins, "}", '{"name": "', PYTHON_TAG, choice, several and self.several, answer)
        return thoughtful(form, self.thinks, choice)


@dataclass(frozen=True)
class Generic(ToolFormat):
    """One JSON object: a call or the answer. The prompt tells of the tools."""

    several: bool = False

    def split(self, text: str) -> tuple[str, tuple[Call, ...]]:
        """See ToolFormat. What is neither is an answer as it stands."""
        found = call_at(text, 0)
        if found is not None:
            return "", (_call(found),)
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            if text.lstrip().startswith('{"tool"'):
                return "", (_call(cut_call(text, 0, len(text))),)
            return text, ()
        if not isinstance(value, dict) or set(value) != {"answer"}:
            return text, ()
        answer = value["answer"]
        return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False), ()

    def shown(self, text: str) -> str:
        """Nothing before it is whole: JSON has to be read to the end."""
        return ""

    def written(self, call: Call) -> str:
        """See ToolFormat."""
        return f'{{"tool": {_text(call.name)}, "arguments": {call.arguments}}}'

    def write(self, content: str, calls: Sequence[Call]) -> str:
        """See ToolFormat; what is said beside a call has no place."""
        return self.written(calls[0]) if calls else json.dumps({"answer": content}, ensure_ascii=False)

    def rules(self, tools: Sequence[ToolSpec], choice: str, several: bool, answer: Answer) -> Rules:
        """See ToolFormat."""
        schema = union(tools, choice, answer)
        if self.thinks == "opened":
            return thoughtful({"type": "json_schema", "json_schema": schema}, self.thinks, choice)
        return {"json_schema": schema}

    def note(self, tools: Sequence[ToolSpec]) -> str:
        """See ToolFormat."""
        lines = [json.dumps(tool.to_dict()["function"], ensure_ascii=False) for tool in tools]
        return (
            "You can call these tools:\n" + "\n".join(lines) + "\n\nWrite one JSON object and nothing else: "
            '{"tool": <name>, "arguments": {...}} to call a tool, whose result you will be told, or {"answer": ...} '
            "to answer."
        )


def named_tool_format(name: str) -> ToolFormat:
    """A format by its name; ValueError for an unknown one."""
    formats: dict[str, ToolFormat] = {"hermes": Hermes(), "llama3": Llama3(), "generic": Generic()}
    if name not in formats:
        raise ValueError(f"format={name!r}: there are {', '.join(formats)}")
    return formats[name]


_PROBE = ToolSpec("probe_tool", "Probes.", {"type": "object", "properties": {"probe_key": {"type": "string"}}})
_ARGUMENTS = '{"probe_key": "probe_value"}'
_USER: Message = {"role": "user", "content": "probe_user"}


def detect(render: Render) -> ToolFormat:
    """The format of the model behind ``render``: a back end's ``render``, which may block."""
    thinks = _thinks(render)
    one = _rendered(render, 1)
    for kind in (Hermes(thinks=thinks), Llama3(thinks=thinks)):
        if one is not None and kind.written(Call(_PROBE.name, _ARGUMENTS)) in one:
            return replace(kind, several=_rendered(render, 2) is not None)
    return Generic(thinks=thinks)


def _rendered(render: Render, num_calls: int) -> str | None:
    """What a template makes of so many calls; None where it refuses them or does not tell of tools."""
    calls = [ToolCall(f"call{i:05d}", _PROBE.name, _ARGUMENTS).to_dict() for i in range(num_calls)]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "name": _PROBE.name, "content": "probe_result"} for call in calls
    ]
    turn: Message = {"role": "assistant", "content": "", "tool_calls": calls}
    try:
        text = render([_USER, turn, *results], [_PROBE])
    except ValueError:
        return None
    if text is None or "probe_result" not in text:
        return None
    # all of them before the first result: a renderer may have dealt them out over several turns
    return text if text.partition("probe_result")[0].count(_PROBE.name) > num_calls else None


def _thinks(render: Render) -> Thinks:
    try:
        opened = render([_USER], ()) or ""
        turn: Message = {"role": "assistant", "content": "probe_answer", "reasoning_content": "probe_thought"}
        told = render([_USER, turn], ()) or ""
    except ValueError:
        return "no"
    if opened.rstrip().endswith(THINK[0]):
        return "opened"
    return "writes" if THINK[0] in told and "probe_thought" in told else "no"


def _call(found: Found) -> Call:
    return Call(found.name, found.arguments, found.whole)


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
