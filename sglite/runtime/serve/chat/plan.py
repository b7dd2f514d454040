"""From a call to a request: the prompt that the template makes, and the constraint that the turn is kept to.

    turn = [reasoning] ( content | calls )

Content is free or as asked for; calls are free until the model's own trigger and enforced from there (``auto``), or
the whole turn (``required``). Reasoning is free in any case. All of it is one structural tag, so nothing of it depends
on where the model begins what.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec

from sglite.constrained.spec import ConstraintSpec
from sglite.runtime.parse.base import Tool, TurnParser
from sglite.runtime.parse.detect import Formats
from sglite.runtime.parse.grammar import any_text
from sglite.runtime.protocol import ThinkingLimit
from sglite.runtime.serve.chat.call import ChatCall
from sglite.runtime.serve.context_length import check_characters, check_length
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.generations import Row
from sglite.runtime.serve.serving import Serving
from sglite.runtime.text.chat_template import ChatTemplate, TemplateError
from sglite.runtime.text.tokenizer import Tokenizer

_HERE = "qzcontinueqz "
"""Stands where a message goes on. The space at its end shows whether the template trims contents."""
_LONG_TEXT = 20_000
"""Rendering and encoding more characters than this takes long enough to be done beside the loop."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A request that can be submitted, and how its turns are to be read."""

    row: Row
    tokenizer: Tokenizer
    formats: Formats
    tools: tuple[Tool, ...]
    opened: bool

    def parser(self) -> TurnParser:
        """A machine for one of its turns."""
        return self.formats.turn_parser(self.tools, self.opened)


async def plan(serving: Serving, call: ChatCall) -> Plan:
    """Settles a call. ``Refused`` or ``ValueError`` name what cannot be done."""
    tools = () if call.choice.mode == "none" else call.tools
    if tools and serving.formats.tools is None:
        message = (
            f"tools: how {serving.models.name} writes calls is not known, so they cannot be enforced; start the server "
            f"with --tool-call-parser, or send tool_choice='none'"
        )
        raise Refused(400, message, param="tools")
    tokenizer = serving.engine.tokenizer
    if tokenizer is None:
        raise Refused(400, "this server has no tokenizer; use /generate with input_ids")
    prompt, ids = await _prompt(serving, tokenizer, call, bool(tools))
    sampling = dict(call.sampling)
    if call.cut_to_room and (sampling.get("max_new_tokens") or 0) > serving.capacity - len(ids):
        sampling["max_new_tokens"] = None
    check_length(serving, len(ids), sampling.get("max_new_tokens"), "messages", call.limit_fields)
    reasoning = serving.formats.reasoning if call.separate_reasoning else None
    formats = Formats(tools=serving.formats.tools if tools else None, reasoning=reasoning)
    opened = reasoning is not None and reasoning.opened_by(prompt)
    constraint = _constraint(serving.formats, call, tools, prompt)
    options = {**call.options, "constraint": constraint, "thinking": _thinking_limit(serving, tokenizer, call, prompt)}
    if call.constraint is not None or (tools and call.choice.mode == "required"):
        sampling.setdefault("on_limit", "try_close")
    for name in call.idle_stops:
        sampling.pop(name, None)
    if sampling.get("skip_special_tokens", True):
        options["shown_special"] = serving.shown_special[formats.tools is not None, reasoning is not None]
    row = Row(input_ids=ids, sampling=sampling, options=options, rid=call.rid)
    return Plan(row=row, tokenizer=tokenizer, formats=formats, tools=tools, opened=opened)


# --- the prompt -------------------------------------------------------------------------------------------------


async def _prompt(serving: Serving, tokenizer: Tokenizer, call: ChatCall, with_tools: bool) -> tuple[str, list[int]]:
    text, ids = await _whole_prompt(serving, tokenizer, call, with_tools)
    if call.truncation is None or len(ids) <= call.truncation.keep:
        return text, ids
    ids = call.truncation.cut(ids)
    return _ending(tokenizer, ids), ids


def _ending(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids[-64:], skip_special_tokens=False)


async def _whole_prompt(
    serving: Serving, tokenizer: Tokenizer, call: ChatCall, with_tools: bool
) -> tuple[str, list[int]]:
    if call.input_ids is not None:
        return _ending(tokenizer, call.input_ids), call.input_ids
    size = 50 * len(call.messages)
    for message in call.messages:
        size += len(str(message.get("content") or ""))
    if size > _LONG_TEXT:
        text = await asyncio.to_thread(render, serving, call, with_tools)
        check_characters(serving, [text], "messages")
        return text, await asyncio.to_thread(tokenizer.encode, text)
    text = render(serving, call, with_tools)
    return text, tokenizer.encode(text)


def render(serving: Serving, call: ChatCall, with_tools: bool = True) -> str:
    """The prompt's text. ``Refused`` says what the template does not take."""
    template = serving.engine.chat_template
    if call.chat_template is not None:
        template = _request_template(serving, call.chat_template)
    if template is None:
        message = (
            f"{serving.models.name} has no chat template; start the server with --chat-template, or use completions"
        )
        raise Refused(400, message, param="messages")
    messages = [_known_role(message, template) for message in call.messages]
    if call.continue_final:
        messages[-1] = _marked(messages[-1])
    try:
        text = template.render(
            messages,
            tools=call.tool_dicts if with_tools else None,
            add_generation_prompt=call.add_generation_prompt and not call.continue_final,
            **call.template_kwargs,
        )
    except TemplateError as error:
        raise Refused(400, str(error), param="messages") from None
    return _cut_at_mark(text) if call.continue_final else text


def _request_template(serving: Serving, source: str) -> ChatTemplate:
    if not serving.options.trust_request_chat_template:
        message = "chat_template: requests may not bring one; the server would need --trust-request-chat-template"
        raise Refused(400, message, param="chat_template")
    own = serving.engine.chat_template
    try:
        return ChatTemplate(source) if own is None else own.with_source(source)
    except TemplateError as error:
        raise Refused(400, str(error), param="chat_template") from None


def _known_role(message: dict[str, Any], template: ChatTemplate) -> dict[str, Any]:
    """Templates that do not know developers know the system."""
    if message["role"] == "developer" and not any("developer" in source for source in template.source.values()):
        return {**message, "role": "system"}
    return message


def _marked(message: dict[str, Any]) -> dict[str, Any]:
    """A last message that is to be continued, with a mark behind its content."""
    content = message.get("content")
    if message["role"] != "assistant" or not isinstance(content, str) or not content.strip():
        told = "continue_final_message needs a last message of role assistant with text"
        raise Refused(400, told, param="continue_final_message")
    return {**message, "content": content + _HERE}


def _cut_at_mark(text: str) -> str:
    """``text`` up to the end of the content of its last message, without the space that the template would trim."""
    at = text.rfind(_HERE.strip())
    if at < 0:
        raise Refused(400, "the chat template changes the last message, which cannot be continued", param="messages")
    return text[:at] if text.startswith(_HERE, at) else text[:at].rstrip()


# --- the constraint ---------------------------------------------------------------------------------------------


def _constraint(formats: Formats, call: ChatCall, tools: tuple[Tool, ...], prompt: str) -> ConstraintSpec | None:
    asked = call.constraint
    if not tools and asked is None and call.thinking_budget is None:
        return None
    if _thought_already(formats, prompt):
        formats = Formats(tools=formats.tools)
    if not tools and formats.reasoning is None:
        return asked
    opened = formats.reasoning is not None and formats.reasoning.opened_by(prompt)
    strict = asked.strict if asked is not None else any(tool.strict for tool in tools)
    tag = {"type": "structural_tag", "format": _turn(formats, call, tools, opened)}
    # arguments come in the order that the model likes, unless the same grammar holds a content with an order
    return ConstraintSpec.structural_tag(tag, strict=strict, order="any" if asked is None else asked.order)


def _thought_already(formats: Formats, prompt: str) -> bool:
    """Whether the template has written a whole, empty thought, as it does where thinking is turned off."""
    if formats.reasoning is None:
        return False
    ending = prompt.rstrip()
    return any(ending.endswith(mark) for mark in formats.reasoning.marks) and not formats.reasoning.opened_by(prompt)


def _thinking_limit(serving: Serving, tokenizer: Tokenizer, call: ChatCall, prompt: str) -> ThinkingLimit | None:
    form, budget = serving.formats.reasoning, call.thinking_budget
    if budget is None:
        return None
    if form is None:
        message = (
            "a budget for thinking: how this model marks its thinking is not known; start the server with "
            "--reasoning-parser, or leave the budget out"
        )
        raise Refused(400, message, param="thinking_token_budget")
    if _thought_already(serving.formats, prompt):
        return None
    if not form.opened_by(prompt):
        return ThinkingLimit(begin=form.opening, end=form.closing, tokens=budget)
    begun = prompt.rpartition(form.opening)[2]
    return ThinkingLimit(begin="", end=form.closing, tokens=max(0, budget - len(tokenizer.encode(begun))))


def _turn(formats: Formats, call: ChatCall, tools: tuple[Tool, ...], opened: bool) -> dict[str, Any]:
    """The format of the whole turn."""
    if not tools:
        return formats.content(any_text() if call.constraint is None else _format_of(call.constraint), opened)
    if call.choice.mode == "required":
        several = call.parallel and call.choice.name is None
        return formats.calls(wanted_tools(call), several=several, opened=opened)
    wanted = wanted_tools(call)
    if call.constraint is None:
        return formats.free(wanted, several=call.parallel, opened=opened)
    content = formats.content(_format_of(call.constraint), opened)
    return {"type": "or", "elements": [content, formats.calls(wanted, several=call.parallel, opened=opened)]}


def wanted_tools(call: ChatCall) -> tuple[Tool, ...]:
    """The tools that a turn may call."""
    names = call.choice.among if call.choice.name is None else (call.choice.name,)
    return tuple(tool for tool in call.tools if tool.name in names) if names else call.tools


def _format_of(spec: ConstraintSpec) -> dict[str, Any]:
    """A constraint as part of a structural tag."""
    if spec.kind == "json_schema":
        found: dict[str, Any] = {"type": "json_schema", "json_schema": json.loads(spec.value)}
        return {**found, "any_order": True} if spec.order == "any" else found
    if spec.kind == "regex":
        return {"type": "regex", "pattern": spec.value}
    if spec.kind == "ebnf":
        return {"type": "grammar", "grammar": spec.value}
    if spec.kind == "choice":
        return {"type": "or", "elements": [{"type": "const_string", "value": text} for text in json.loads(spec.value)]}
    tag = json.loads(spec.value)
    if not isinstance(tag, dict) or "format" not in tag:
        message = (
            "a structural tag with 'structures' cannot be combined with tools or reasoning; give one with 'format'"
        )
        raise Refused(400, message, param="response_format")
    return dict(tag["format"])
