"""Requests of ``/api/chat`` and ``/api/generate``, read: what to run, and how to answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sglite.runtime.parse.detect import Formats
from sglite.runtime.serve.chat.call import ChatCall, ToolChoice
from sglite.runtime.serve.chat.plan import Plan
from sglite.runtime.serve.chat.run import ChatRun, begin
from sglite.runtime.serve.context_length import check_characters, check_length
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.fields import Fields, spelled
from sglite.runtime.serve.generations import Row, start
from sglite.runtime.serve.ollama.messages import (
    read_format,
    read_messages,
    read_ollama_tools,
    read_think,
    refuse_images,
)
from sglite.runtime.serve.ollama.names import read_model
from sglite.runtime.serve.ollama.options import NAMES, read_options
from sglite.runtime.serve.openai.sampling import MAX_TOP_LOGPROBS
from sglite.runtime.serve.serving import Serving

_LONG_TEXT = 20_000
_AT_ONCE = (0, "0", "0s", "0m", "0h")
_REFUSED = {
    "suffix": "this model does not fill in between",
    "template": "Ollama's templates are not read; the checkpoint's own is used, or none with raw",
    "context": "it is deprecated; send the conversation to /api/chat",
    "width": "this model writes text only",
    "height": "this model writes text only",
    "steps": "this model writes text only",
}


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request, read. ``call``: ``None`` where nothing is to be written. ``raw``: a prompt that no template changes.
    ``unload``: the client wants the model gone, which it can never be."""

    name: str
    stream: bool
    call: ChatCall | None
    raw: str | None = None
    unload: bool = False
    ignored: list[str]

    async def begin(self, serving: Serving) -> ChatRun:
        """What was asked for, under way; ``end`` it in any case. ``Refused`` or ``ValueError``: what cannot be run."""
        assert self.call is not None
        with spelled(NAMES):
            return await (begin(serving, self.call) if self.raw is None else _begin_raw(serving, self.call, self.raw))


def read_chat(serving: Serving, body: Mapping[str, Any]) -> Ask:
    """A request of ``/api/chat``. ``Refused`` names the field that is wrong."""
    fields = Fields(body)
    name = read_model(fields, serving.models)
    messages = read_messages(fields)
    tools, tool_dicts = read_ollama_tools(fields, serving, name)
    thinking = read_think(fields, serving, name)
    sampling, idle = read_options(fields)
    call = ChatCall(
        messages=messages,
        tools=tools,
        tool_dicts=tool_dicts,
        choice=ToolChoice("auto" if tools else "none"),
        constraint=read_format(fields),
        constraint_field="format",
        sampling=sampling,
        options=_logprobs(fields),
        template_kwargs=thinking,
        continue_final=bool(messages) and messages[-1]["role"] == "assistant" and bool(messages[-1]["content"]),
        cut_to_room=True,
    )
    return _ask(fields, name, call if messages else None, idle)


def read_generate(serving: Serving, body: Mapping[str, Any]) -> Ask:
    """A request of ``/api/generate``. ``Refused`` names the field that is wrong."""
    fields = Fields(body)
    name = read_model(fields, serving.models)
    fields.refuse(_REFUSED)
    refuse_images(fields)
    prompt, system = fields.text("prompt") or "", fields.text("system")
    raw = fields.flag("raw") or (serving.engine.chat_template is None and not system)
    thinking = read_think(fields, serving, name)
    sampling, idle = read_options(fields)
    messages = [{"role": "system", "content": system}] if system else []
    call = ChatCall(
        messages=[*messages, {"role": "user", "content": prompt}],
        choice=ToolChoice("none"),
        constraint=read_format(fields),
        constraint_field="format",
        sampling=sampling,
        options=_logprobs(fields),
        template_kwargs=thinking,
        cut_to_room=True,
    )
    return _ask(fields, name, call if prompt else None, idle, prompt if raw else None)


def _ask(fields: Fields, name: str, call: ChatCall | None, idle: list[str], raw: str | None = None) -> Ask:
    stay = fields.raw("keep_alive")
    stream = fields.flag("stream", True)
    kept = [] if stay is None else ["keep_alive"]
    ignored = [*kept, *idle, *fields.unread()]
    return Ask(name=name, stream=stream, call=call, raw=raw, unload=stay in _AT_ONCE, ignored=ignored)


def _logprobs(fields: Fields) -> dict[str, Any]:
    wanted, top = fields.flag("logprobs"), fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if top and not wanted:
        raise fields.wrong("top_logprobs", "needs logprobs=true")
    return {"return_logprob": True, "top_logprobs_num": top or 0} if wanted else {}


async def _begin_raw(serving: Serving, call: ChatCall, prompt: str) -> ChatRun:
    """The prompt as it stands, and all of the output as text."""
    tokenizer = serving.engine.tokenizer
    if tokenizer is None:
        raise Refused(400, "this server has no tokenizer; use /generate with input_ids")
    check_characters(serving, [prompt], "prompt")
    if len(prompt) > _LONG_TEXT:
        ids = await asyncio.to_thread(tokenizer.encode, prompt, add_bos=True)
    else:
        ids = tokenizer.encode(prompt, add_bos=True)
    sampling = dict(call.sampling)
    if (sampling["max_new_tokens"] or 0) > serving.capacity - len(ids):
        sampling["max_new_tokens"] = None
    check_length(serving, len(ids), sampling["max_new_tokens"], "prompt", ("options.num_predict",))
    if call.constraint is not None:
        sampling["on_limit"] = "try_close"
    row = Row(input_ids=ids, sampling=sampling, options={**call.options, "constraint": call.constraint})
    planned = Plan(row=row, tokenizer=tokenizer, formats=Formats(), tools=(), opened=False)
    return ChatRun(call, planned, await start(serving.engine, serving.in_flight, [row]))
