"""Which formats a checkpoint's model writes, found in its chat template and its vocabulary.

A format of calls is known by what stands in the template and confirmed by what the template makes of a call: the format
that reads the very same call out of it is the model's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from sglite.runtime.parse.base import (
    CallArguments,
    CallEnd,
    CallStart,
    ReasoningFormat,
    Tool,
    ToolFormat,
    TurnParser,
)
from sglite.runtime.parse.machine import PlainTurn
from sglite.runtime.parse.registry import TOOL_FORMATS, reasoning_format, tool_format
from sglite.runtime.text.chat_template import ChatTemplate, TemplateError
from sglite.runtime.text.tokenizer import Tokenizer

__all__ = ["Formats", "formats_of"]

# What stands in the templates that write a format. Where there is only "tool_calls", the confirmation decides.
_EVIDENCE: Mapping[str, tuple[str, ...]] = {
    "hermes": ("<tool_call>",),
    "qwen3_coder": ("<tool_call>", "<function="),
    "glm45": ("<tool_call>", "<arg_key>"),
    "deepseekv3": ("<｜tool▁calls▁begin｜>", "```json"),
    "deepseekv31": ("<｜tool▁calls▁begin｜>",),
    "deepseekv32": ("｜DSML｜",),
    "deepseekv4": ("｜DSML｜",),
    "deepseekv41": ("｜DSML｜",),
    "kimi_k2": ("<|tool_calls_section_begin|>",),
    "mistral_named": ("[TOOL_CALLS]", "[ARGS]"),
    "mistral": ("[TOOL_CALLS]",),
    "gpt-oss": ("<|channel|>", "commentary"),
    "pythonic": ("tool_calls",),
    "llama3": ("tool_calls",),
}
_WEAK = "tool_calls"
_CITY = {"city": "Oslo"}
_PROBE = Tool("get_weather", {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})
_ID = "abcdefghi"  # nine letters: templates of Mistral take no other


class Formats(msgspec.Struct, frozen=True):
    """``None``: the model has no such format, or none that is known."""

    tools: ToolFormat | None = None
    reasoning: ReasoningFormat | None = None

    def turn_parser(self, tools: Sequence[Tool], opened: bool) -> TurnParser:
        """A machine for one turn. Without ``tools`` there are no calls, whatever the text looks like. ``opened``: what
        ``reasoning.opened_by`` says of the prompt."""
        rest = self.tools.parser(tools) if self.tools is not None and tools else PlainTurn()
        return rest if self.reasoning is None else self.reasoning.parser(opened, rest)

    def content(self, form: dict[str, Any], opened: bool) -> dict[str, Any]:
        """A structural tag's format: a turn without calls, whose content is ``form``, with or without thinking."""
        if self.reasoning is None:
            return form
        return self.reasoning.tag(opened, self.reasoning.answer(form))

    def calls(self, tools: Sequence[Tool], *, several: bool, opened: bool) -> dict[str, Any]:
        """A structural tag's format: a turn of one call or more, with or without thinking before it."""
        return self._behind_thinking(self._calling().calls(tools, several=several), opened)

    def free(self, tools: Sequence[Tool], *, several: bool, opened: bool) -> dict[str, Any]:
        """A structural tag's format: a turn of any text in which calls are held to the tools."""
        return self._behind_thinking(self._calling().free(tools, several=several), opened)

    def shown_special(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Ids of special tokens that the machine has to see."""
        marks = [mark for form in (self.tools, self.reasoning) if form is not None for mark in form.marks]
        ids = (tokenizer.id_of(mark) for mark in marks)
        return tuple(dict.fromkeys(i for i in ids if i is not None and i in tokenizer.special_token_ids))

    def describe(self) -> str:
        """One line for people."""
        tools = "none" if self.tools is None else self.tools.name
        reasoning = "none" if self.reasoning is None else self.reasoning.name
        return f"tool calls {tools}, reasoning {reasoning}"

    def _calling(self) -> ToolFormat:
        if self.tools is None:
            raise ValueError("this model has no known format of tool calls; name one with tool_call_parser")
        return self.tools

    def _behind_thinking(self, rest: dict[str, Any], opened: bool) -> dict[str, Any]:
        return rest if self.reasoning is None else self.reasoning.tag(opened, rest)


def formats_of(
    template: ChatTemplate | None, tokenizer: Tokenizer | None, tool_name: str = "auto", reasoning_name: str = "auto"
) -> Formats:
    """The formats called so; ``auto``: what the checkpoint shows, ``none``: none.

    Raises ``ConfigError`` for an unknown name, with the known ones.
    """
    source = "" if template is None else "".join(template.source.values())
    tools: ToolFormat | None = None
    if tool_name == "auto":
        tools = None if template is None else _tools_of(template, source)
    elif tool_name != "none":
        tools = _variant(tool_format(tool_name), source, tokenizer)
    reasoning: ReasoningFormat | None = None
    if reasoning_name == "auto":
        name = _reasoning_in(source, tools)
        reasoning = None if name is None else reasoning_format(name)
    elif reasoning_name != "none":
        reasoning = reasoning_format(reasoning_name)
    return Formats(tools, reasoning)


def _variant(form: ToolFormat, source: str, tokenizer: Tokenizer | None) -> ToolFormat:
    """Mistral's models all have one name for two formats; the vocabulary tells them apart."""
    named = "[ARGS]" in source or (tokenizer is not None and tokenizer.id_of("[ARGS]") is not None)
    return tool_format("mistral_named") if form.name == "mistral" and named else form


def _tools_of(template: ChatTemplate, source: str) -> ToolFormat | None:
    likely = [form for form in TOOL_FORMATS if all(text in source for text in _EVIDENCE[form.name])]
    turn = _written_turn(template)
    for form in likely:
        if turn is not None and _reads(form, turn):
            return form
    if turn is not None and _PROBE.name in turn:
        return None  # it writes calls, in a format of its own
    # A template that cannot be rendered so may still be told by marks that no other one has.
    sure = [form for form in likely if _WEAK not in _EVIDENCE[form.name]]
    return max(sure, key=lambda form: len(_EVIDENCE[form.name]), default=None)


def _written_turn(template: ChatTemplate) -> str | None:
    """What the template makes of a turn with one call, its opening left out where it is that of an empty turn."""
    function = {"name": _PROBE.name, "description": "Weather of a city.", "parameters": _PROBE.parameters}
    tools = [{"type": "function", "function": function}]
    user = {"role": "user", "content": "Hello"}
    call = {"id": _ID, "type": "function", "function": {"name": _PROBE.name, "arguments": _CITY}}
    try:
        whole = template.render([user, {"role": "assistant", "content": "", "tool_calls": [call]}], tools=tools)
        for opened in (True, False):
            before = template.render([user], tools=tools, add_generation_prompt=opened)
            if whole.startswith(before):
                return whole[len(before) :]
    except TemplateError:
        pass
    return None


def _reads(form: ToolFormat, turn: str) -> bool:
    parser = form.parser([_PROBE])
    events = [*parser.feed(turn), *parser.finish()]
    started = [event.name for event in events if isinstance(event, CallStart)]
    if started != [_PROBE.name] or not any(isinstance(event, CallEnd) for event in events):
        return False
    written = "".join(event.text for event in events if isinstance(event, CallArguments))
    return bool(json.loads(written) == _CITY)


def _reasoning_in(source: str, tools: ToolFormat | None) -> str | None:
    if "<|channel|>" in source and "analysis" in source:
        return "gpt-oss"
    if "◁think▷" in source:
        return "kimi"
    if "[THINK]" in source:
        return "mistral"
    if "<think>" in source or "</think>" in source:
        return "kimi_k2" if tools is not None and tools.name == "kimi_k2" else "deepseek-r1"
    return None
