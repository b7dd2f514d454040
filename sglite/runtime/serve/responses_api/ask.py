"""A request of the Responses API, read: to a chat call, and to what the response repeats of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sglite.constrained.spec import ConstraintSpec
from sglite.runtime.serve.chat.call import ChatCall
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.fields import Fields
from sglite.runtime.serve.openai.effort import effort_kwargs
from sglite.runtime.serve.openai.sampling import (
    MAX_TOP_LOGPROBS,
    read_constraint,
    read_options,
    read_rid,
    read_sampling,
    read_thinking_budget,
    response_format,
    schema_format,
)
from sglite.runtime.serve.responses_api.items import goes_on, messages_of
from sglite.runtime.serve.responses_api.output import RESPONSE
from sglite.runtime.serve.responses_api.store import Kept, Store
from sglite.runtime.serve.responses_api.tools import Declared, as_template_reads, read_choice, read_tools
from sglite.runtime.serve.serving import Serving

MAX_TOKENS = 2**31 - 1
_IGNORED = (
    "metadata", "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier",
    "max_tool_calls", "truncation", "stream_options", "context_management",
)  # fmt: skip
_IGNORED_INSIDE = ("reasoning", "summary"), ("text", "verbosity")
_ECHOED = frozenset({"metadata", "user", "safety_identifier", "prompt_cache_key", "service_tier"})
_REFUSED = {
    "conversation": "continue with previous_response_id, or send the items",
    "prompt": "there are no stored prompts; send input",
    "logprob_token_ids": "/v1/chat/completions and /v1/completions tell of them",
    "prompt_logprobs": "/v1/chat/completions and /v1/completions tell them",
    "truncate_prompt_tokens": "/v1/chat/completions and /v1/completions shorten prompts",
    "return_tokens_as_token_ids": "/v1/chat/completions and /v1/completions do so",
}
_INCLUDES = {"message.output_text.logprobs": True, "reasoning.encrypted_content": False}


@dataclass(frozen=True, kw_only=True)
class Ask:
    """See the module. ``items``: the conversation so far, which a response that follows this one begins with;
    ``declared``: the tools by the names that the model knows; ``echo``: fields of the response that repeat the
    request."""

    call: ChatCall
    items: list[Any]
    declared: dict[str, Declared]
    echo: dict[str, Any]
    stream: bool
    background: bool
    store: bool
    logprobs: bool
    ignored: list[str]


def read_ask(serving: Serving, store: Store, body: Mapping[str, Any]) -> Ask:
    """``Refused`` names the field that is wrong."""
    fields = Fields(body)
    fields.refuse(_REFUSED)
    name = serving.models.check(fields.raw("model"))
    before = _before(store, fields)
    own = _items(fields)
    items = [*(() if before is None else before.items), *own]
    instructions = fields.text("instructions")
    messages = messages_of(items)
    if instructions:
        messages.insert(0, {"role": "system", "content": instructions})
    tools, declared = read_tools(fields)
    includes = _includes(fields)
    call = ChatCall(
        messages=messages,
        tools=tools,
        tool_dicts=[as_template_reads(tool) for tool in tools],
        choice=read_choice(fields, tools),
        parallel=fields.flag("parallel_tool_calls", True),
        constraint=_constraint(fields),
        constraint_field="text.format",
        parameters_field="parameters",
        limit_fields=("max_output_tokens",),
        sampling=_sampling(serving, fields),
        options={**read_options(fields), **_logprobs(fields, includes)},
        template_kwargs={**(fields.object("chat_template_kwargs") or {}), **_effort(fields)},
        continue_final=goes_on(own),
        thinking_budget=read_thinking_budget(fields),
        rid=read_rid(fields),
    )
    stream, background = fields.flag("stream"), fields.flag("background")
    keep = fields.flag("store", True)
    if background and not keep:
        raise Refused(400, "background can only be used when `store` is true", param="background")
    if background and stream:
        raise fields.wrong("background", "goes without stream")
    fields.object("metadata")
    fields.one_of("truncation", ("auto", "disabled"))
    given = [one for one in _IGNORED if fields.raw(one) not in (None, {}, "disabled") and one not in _ECHOED]
    given += [
        f"{outer}.{name}" for outer, name in _IGNORED_INSIDE if (fields.object(outer) or {}).get(name) is not None
    ]
    return Ask(
        call=call,
        items=items,
        declared=declared,
        echo=_echo({**body, **_used(call)}, name, keep, background),
        stream=stream,
        background=background,
        store=keep,
        logprobs=_INCLUDES["message.output_text.logprobs"] and "message.output_text.logprobs" in includes,
        ignored=[*given, *call.idle_stops, *fields.unread()],
    )


def _sampling(serving: Serving, fields: Fields) -> dict[str, Any]:
    found = serving.sampling(read_sampling(fields))
    return {**found, "max_new_tokens": fields.integer("max_output_tokens", 1, MAX_TOKENS)}


def _used(call: ChatCall) -> dict[str, Any]:
    """What answers say of sampling, whoever has decided it."""
    return {name: call.sampling[name] for name in ("temperature", "top_p") if name in call.sampling}


def _echo(body: Mapping[str, Any], name: str, keep: bool, background: bool) -> dict[str, Any]:
    def value(field: str, default: Any = None) -> Any:
        return default if body.get(field) is None else body[field]

    return {
        "model": name,
        "background": background,
        "instructions": value("instructions"),
        "max_output_tokens": value("max_output_tokens"),
        "max_tool_calls": None,
        "metadata": value("metadata", {}),
        "parallel_tool_calls": value("parallel_tool_calls", True),
        "previous_response_id": value("previous_response_id"),
        "prompt_cache_key": value("prompt_cache_key"),
        "reasoning": value("reasoning", {"effort": None, "summary": None}),
        "safety_identifier": value("safety_identifier"),
        "service_tier": "default",
        "store": keep,
        "temperature": value("temperature", 1.0),
        "text": value("text", {"format": {"type": "text"}}),
        "tool_choice": value("tool_choice", "auto"),
        "tools": value("tools", []),
        "top_logprobs": value("top_logprobs", 0),
        "top_p": value("top_p", 1.0),
        "truncation": "disabled",
        "user": value("user"),
    }


def _before(store: Store, fields: Fields) -> Kept | None:
    name = fields.text("previous_response_id", 256)
    if name is None:
        return None
    found = store.get(name)
    if found is None:
        message = f"previous_response_id {name[:80]!r} is not kept here (any more); send the conversation as input"
        status = 404 if name.startswith(f"{RESPONSE}_") else 400
        raise Refused(status, message, param="previous_response_id", code="previous_response_not_found")
    if found.response["status"] not in ("completed", "incomplete"):
        message = f"previous_response_id {name[:80]!r} is {found.response['status']}; wait until it is completed"
        raise Refused(400, message, param="previous_response_id")
    return found


def _items(fields: Fields) -> list[Any]:
    value = fields.raw("input")
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise fields.wrong("input", "must be text or a list of items, at least one")
    return value


def _constraint(fields: Fields) -> ConstraintSpec | None:
    text = fields.object("text")
    form = None if text is None else text.get("format")
    if text is not None:
        unknown = sorted(text.keys() - {"format", "verbosity"})
        if unknown:
            raise Refused(400, f"text has no field {unknown[0][:64]!r}", param="text")
    spec: ConstraintSpec | None = None
    if isinstance(form, dict) and form.get("type") == "json_schema":
        spec = schema_format(form, "text.format")
    elif form is not None:
        spec = response_format(form)
    own = read_constraint(fields)
    if spec is not None and own is not None:
        raise Refused(400, "text.format and another constraint both say what the text must be", param="text.format")
    return spec or own


def _includes(fields: Fields) -> list[str]:
    found = fields.items("include") or []
    bad = next((one for one in found if not isinstance(one, str) or one not in _INCLUDES), None)
    if bad is not None:
        known = ", ".join(sorted(_INCLUDES))
        raise Refused(400, f"include has {str(bad)[:60]!r}, which is not offered; known are {known}", param="include")
    return list(found)


def _logprobs(fields: Fields, includes: list[str]) -> dict[str, Any]:
    top = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS) or 0
    if "message.output_text.logprobs" not in includes:
        if top:
            raise fields.wrong("top_logprobs", "needs include=['message.output_text.logprobs']")
        return {}
    return {"return_logprob": True, "top_logprobs_num": top}


def _effort(fields: Fields) -> dict[str, Any]:
    return effort_kwargs(Fields(fields.object("reasoning") or {}, "reasoning."), "effort")
