"""A request of ``/v1/messages``, read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sglite.constrained.spec import ConstraintSpec
from sglite.runtime.serve.anthropic.blocks_in import wrong
from sglite.runtime.serve.anthropic.conversation import read_conversation
from sglite.runtime.serve.anthropic.tools import read_choice, read_tools
from sglite.runtime.serve.chat.call import ChatCall
from sglite.runtime.serve.chat.thinking import thinking_kwargs
from sglite.runtime.serve.fields import Fields
from sglite.runtime.serve.openai.sampling import schema_format
from sglite.runtime.serve.serving import Serving

NAMES = {"max_new_tokens": "max_tokens", "stop": "stop_sequences"}
"""Native names of parameters that have another one here."""
MAX_TOKENS = 2**31 - 1
_REFUSED = {
    "mcp_servers": "this server calls no others; run the tools yourself and send their results",
    "prompt": "it belongs to the older completion API; send messages",
}
_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
_THINKING = {"enabled": True, "adaptive": True, "between_tools": True, "disabled": False}


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request, read. ``name``: what the answer calls the model; ``ignored``: what has no effect."""

    call: ChatCall
    name: str
    stream: bool
    ignored: list[str]


def read_ask(serving: Serving, body: Mapping[str, Any], counting: bool = False) -> Ask:
    """The request in our words; with ``counting`` it needs no limit. ``Refused`` names the field that is wrong."""
    fields = Fields(body)
    fields.refuse(_REFUSED)
    if fields.raw("model") in (None, ""):
        raise wrong("model", "is missing")
    name = serving.models.check(fields.raw("model"))
    limit = fields.integer("max_tokens", 0, MAX_TOKENS)
    if limit is None and not counting:
        raise wrong("max_tokens", "is missing: say how many tokens the answer may have")
    messages, ignored = read_conversation(fields)
    tools, tool_dicts = read_tools(fields, ignored)
    choice, parallel = read_choice(fields, tools)
    config = Fields(fields.object("output_config") or {}, "output_config.")
    constraint_field, constraint = _format(fields, config)
    variables, budget = _thinking(serving, fields, config, ignored)
    call = ChatCall(
        messages=messages,
        tools=tools,
        tool_dicts=tool_dicts,
        choice=choice,
        parallel=parallel,
        constraint=constraint,
        constraint_field=constraint_field,
        parameters_field="input_schema",
        sampling={**serving.sampling(_sampling(fields)), "max_new_tokens": limit},
        template_kwargs=variables,
        continue_final=_goes_on(messages),
        cut_to_room=True,
        thinking_budget=budget,
    )
    stream = fields.flag("stream")
    own = [f"output_config.{field}" for field in config.unread()] + ["stop_sequences"] * bool(call.idle_stops)
    return Ask(call=call, name=name, stream=stream, ignored=[*ignored, *own, *fields.unread()])


def _sampling(fields: Fields) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in (("temperature", fields.number("temperature", 0, 1)), ("top_p", fields.number("top_p", 0, 1))):
        if value is not None:
            found[name] = value
    top_k = fields.integer("top_k", 0, MAX_TOKENS)
    if top_k is not None:
        found["top_k"] = top_k
    if found.get("top_p") == 0:  # nothing but the likeliest
        found |= {"top_p": 1.0, "top_k": 1}
    stops = fields.items("stop_sequences")
    if stops:
        found["stop"] = stops
    return found


def _goes_on(messages: list[dict[str, Any]]) -> bool:
    """Whether the answer is to go on from a last message of the assistant's."""
    last = messages[-1]
    if last["role"] != "assistant":
        return False
    if "tool_calls" in last:
        raise wrong("messages", "ends with tool_use blocks; send their tool_result blocks in a message of the user")
    if not last["content"].strip():
        raise wrong("messages", "ends with a message of the assistant without text, from which nothing can go on")
    return True


def _format(fields: Fields, config: Fields) -> tuple[str, ConstraintSpec | None]:
    """``output_config.format``, or ``output_format``, its older place: which of them, and what it asks for."""
    both = {"output_config.format": config.object("format"), "output_format": fields.object("output_format")}
    given = [(where, value) for where, value in both.items() if value is not None]
    if not given:
        return "", None
    if len(given) == 2:
        raise wrong("output_format", "and output_config.format say the same thing; give one")
    where, value = given[0]
    if value.get("type") != "json_schema":
        raise wrong(f"{where}.type", f"must be json_schema, got {str(value.get('type'))[:40]!a}")
    return where, schema_format(value, where)


def _thinking(
    serving: Serving, fields: Fields, config: Fields, ignored: list[str]
) -> tuple[dict[str, Any], int | None]:
    """Variables of the chat template, nothing said is left to the template; and most tokens of thinking."""
    effort = config.one_of("effort", _EFFORTS)
    value = fields.object("thinking")
    wanted: bool | None = None
    budget: int | None = None
    if value is not None:
        own = Fields(value, "thinking.")
        kind = own.one_of("type", _THINKING)
        if kind is None:
            raise own.wrong("type", f"must be one of {', '.join(_THINKING)}")
        budget = own.integer("budget_tokens", 1, MAX_TOKENS)
        wanted = _THINKING[kind]
        if not wanted or serving.formats.reasoning is None:
            ignored += ["thinking"] * bool(wanted) + ["thinking.budget_tokens"] * (budget is not None)
            budget = None
        ignored += [f"thinking.{name}" for name in own.unread()]
    return thinking_kwargs(wanted, None if effort is None else _EFFORTS[effort]), budget
