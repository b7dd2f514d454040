"""A chat request of OpenAI's, read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from sglite.runtime.serve.chat.call import ChatCall
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.fields import Fields
from sglite.runtime.serve.openai.effort import read_effort
from sglite.runtime.serve.openai.logprobs import (
    logprob_options,
    read_given,
    read_logprobs,
    read_prompt_logprobs,
)
from sglite.runtime.serve.openai.messages import custom_names, read_choice, read_input_ids, read_messages, read_tools
from sglite.runtime.serve.openai.sampling import (
    IGNORED,
    read_constraint,
    read_options,
    read_rid,
    read_sampling,
    read_thinking_budget,
)
from sglite.runtime.serve.openai.stream_options import read_steps, read_stream
from sglite.runtime.serve.serving import Serving
from sglite.runtime.serve.truncation import read_truncation

MAX_TOKENS = 2**31 - 1
_REFUSED = {
    "functions": "it was replaced by tools",
    "function_call": "it was replaced by tool_choice",
    "audio": "this model writes text only",
    "prediction": "predicted outputs are not used",
    "web_search_options": "there is no web search",
    "image_data": "this model takes text only",
    "session_params": "sessions are a matter of /generate",
    "mm_processor_kwargs": "this model takes text only",
}


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A chat request, read. ``name``: what the answer calls the model; ``custom``: names of tools whose input is a
    text; ``ignored``: fields without effect."""

    call: ChatCall
    name: str
    stream: bool
    include_usage: bool
    usage_always: bool
    usage_steps: str
    return_meta: bool
    return_ids: bool
    return_prompt_ids: bool
    return_cached: bool
    stream_reasoning: bool
    show_reasoning: bool
    echo: bool
    logprobs: int | None
    given_logprobs: bool
    prompt_logprobs: int | None
    tokens_as_ids: bool
    custom: frozenset[str]
    ignored: list[str]


def read_chat(serving: Serving, body: Mapping[str, Any]) -> Ask:
    """The request in our words. ``Refused`` names the field that is wrong."""
    fields = Fields(body)
    fields.refuse(_REFUSED)
    name = serving.models.check(fields.raw("model"))
    input_ids = read_input_ids(fields)
    messages = [] if input_ids is not None and not body.get("messages") else read_messages(fields)
    tools, tool_dicts = read_tools(fields, custom=True)
    choice = read_choice(fields, tools)
    stream, include, always = read_stream(fields)
    logprobs, of_prompt, limit = read_logprobs(fields), read_prompt_logprobs(fields, stream), _max_tokens(fields)
    given_ids = read_given(fields, logprobs)
    thinking, idle = read_effort(fields)
    call = ChatCall(
        messages=messages,
        tools=tools,
        tool_dicts=tool_dicts,
        choice=choice,
        parallel=fields.flag("parallel_tool_calls", True),
        constraint=read_constraint(fields),
        constraint_field="response_format",
        limit_fields=("max_tokens", "max_completion_tokens"),
        sampling={**serving.sampling(read_sampling(fields)), "max_new_tokens": limit},
        options={**read_options(fields), **logprob_options(logprobs, of_prompt, given_ids)},
        template_kwargs={**thinking, **_template_kwargs(fields)},
        chat_template=fields.text("chat_template"),
        add_generation_prompt=fields.flag("add_generation_prompt", True),
        continue_final=fields.flag("continue_final_message"),
        separate_reasoning=fields.flag("separate_reasoning", True),
        thinking_budget=read_thinking_budget(fields),
        input_ids=input_ids,
        truncation=read_truncation(serving, fields, limit),
        rid=read_rid(fields),
    )
    if call.continue_final and fields.raw("add_generation_prompt"):
        raise fields.wrong("add_generation_prompt", "begins a turn and continue_final_message goes on with the last")
    if fields.raw("modalities") not in (None, ["text"]):
        raise fields.wrong("modalities", "must be ['text']: this model writes text only")
    fields.one_of("verbosity", ("low", "medium", "high"))
    fields.given(IGNORED)
    given = [one for one in (*IGNORED, "verbosity") if body.get(one) not in (None, False, {}, "")]
    return Ask(
        call=call,
        name=name,
        stream=stream,
        include_usage=include,
        usage_always=always,
        usage_steps=read_steps(fields),
        return_meta=fields.flag("return_meta_info"),
        return_ids=fields.flag("return_token_ids"),
        return_prompt_ids=_prompt_ids(fields, stream),
        return_cached=fields.flag("return_cached_tokens_details"),
        stream_reasoning=fields.flag("stream_reasoning", True),
        show_reasoning=fields.flag("include_reasoning", True),
        echo=fields.flag("echo"),
        logprobs=logprobs,
        given_logprobs=given_ids is not None,
        prompt_logprobs=of_prompt,
        tokens_as_ids=fields.flag("return_tokens_as_token_ids"),
        custom=custom_names(fields),
        ignored=[*given, *idle, *call.idle_stops, *fields.unread()],
    )


def _prompt_ids(fields: Fields, stream: bool) -> bool:
    wanted = fields.flag("return_prompt_token_ids")
    if wanted and stream:
        message = "return_prompt_token_ids is not supported with streaming; use return_token_ids, or stream=false"
        raise Refused(400, message, param="return_prompt_token_ids")
    return wanted


def _max_tokens(fields: Fields) -> int | None:
    """The limit; the older and the newer name may both be there if they agree."""
    old, new = (fields.integer(name, 1, MAX_TOKENS) for name in ("max_tokens", "max_completion_tokens"))
    if old is not None and new is not None and old != new:
        raise fields.wrong("max_tokens", f"and max_completion_tokens={new} differ; give one")
    return new if old is None else old


def _template_kwargs(fields: Fields) -> dict[str, Any]:
    found = dict(fields.object("chat_template_kwargs") or {})
    documents = fields.objects("documents")
    if documents:
        found["documents"] = documents
    own = {"messages", "tools", "add_generation_prompt", "chat_template", "conversation", "tokenize", "return_dict"}
    clash = sorted(own & found.keys())
    if clash:
        message = f"chat_template_kwargs must not have {', '.join(clash)}; use the fields of the request"
        raise Refused(400, message, param="chat_template_kwargs")
    return found
