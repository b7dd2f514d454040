"""``POST /v1/chat/completions``."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sglite.runtime.engine.presenter import Progress
from sglite.runtime.serve.body import read_object
from sglite.runtime.serve.chat.call import ChatCall, ChatDelta, ChatTurn
from sglite.runtime.serve.chat.run import ChatRun, begin
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.fields import Fields, ignored_header, spelled
from sglite.runtime.serve.openai.effort import read_effort
from sglite.runtime.serve.openai.logprobs import (
    chat_rows,
    logprob_options,
    prompt_rows,
    read_given,
    read_logprobs,
    read_prompt_logprobs,
)
from sglite.runtime.serve.openai.messages import last_turn, read_choice, read_input_ids, read_messages, read_tools
from sglite.runtime.serve.openai.sampling import (
    IGNORED,
    NAMES,
    read_constraint,
    read_options,
    read_rid,
    read_sampling,
    read_thinking_budget,
    stop_reason,
)
from sglite.runtime.serve.openai.stream_options import read_steps, read_stream
from sglite.runtime.serve.openai.usage import cached_details, computed_with, last_fields, usage_of, usage_of_one
from sglite.runtime.serve.responses import json_response, sse, unless_gone
from sglite.runtime.serve.serving import Route, Serving
from sglite.runtime.serve.streaming import stream as streamed
from sglite.runtime.serve.truncation import read_truncation

MAX_TOKENS = 2**31 - 1
SPELLED = spelled({**NAMES, "max_new_tokens": "max_tokens", "top_logprobs_num": "top_logprobs"})
"""Native names of parameters that have another one here."""
_REMEMBERED = 256
_SHORT_BYTES = 1024
"""Of a request without its messages, that it is remembered."""
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
    """A chat request, read. ``name``: what the answer calls the model; ``ignored``: fields without effect."""

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
    ignored: list[str]


class Chat:
    """The route."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._lately: dict[bytes, Ask] = {}
        """What was asked for beside the messages, as it came and as it was read: mostly what was asked for before."""

    def routes(self) -> list[Route]:
        """See the module."""
        return [Route("/v1/chat/completions", ("POST",), self.complete)]

    async def complete(self, request: Request) -> Response:
        """One conversation, one or several turns to choose from."""
        return await self.answer(request, await read_object(request))

    async def answer(self, request: Request, body: Mapping[str, Any]) -> Response:
        """The answer to a body that was read."""
        ask = self._read(body)
        with SPELLED:
            run = await begin(self._serving, ask.call)
        answer = Answer(self._serving, ask, run)
        if ask.stream:
            response: Response = streamed(answer.chunks(), run.end, keep_alive_s=self._serving.options.keep_alive_s)
        else:
            try:
                response = json_response(answer.whole(await unless_gone(request, run.turns())))
            finally:
                run.end()
        if ask.ignored:
            response.headers.update(ignored_header(ask.ignored))
        return response

    def _read(self, body: Mapping[str, Any]) -> Ask:
        """``read_chat``, with what is beside the messages read once."""
        try:
            key = msgspec.msgpack.encode({**body, "messages": bool(body.get("messages"))})
        except OverflowError:  # an integer that is out of any range
            return read_chat(self._serving, body)
        known = self._lately.get(key)
        if known is not None:
            return msgspec.structs.replace(known, call=known.call.about(read_messages(Fields(body))))
        ask = read_chat(self._serving, body)
        if len(key) <= _SHORT_BYTES and ask.call.messages and ask.call.rid is None:
            if len(self._lately) >= _REMEMBERED:
                self._lately.clear()
            self._lately[key] = msgspec.structs.replace(ask, call=ask.call.about([]))
        return ask


def read_chat(serving: Serving, body: Mapping[str, Any]) -> Ask:
    """The request in our words. ``Refused`` names the field that is wrong."""
    fields = Fields(body)
    fields.refuse(_REFUSED)
    name = serving.models.check(fields.raw("model"))
    input_ids = read_input_ids(fields)
    messages = [] if input_ids is not None and not body.get("messages") else read_messages(fields)
    tools, tool_dicts = read_tools(fields)
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


class Answer:
    """One answer, whole or in chunks."""

    def __init__(self, serving: Serving, ask: Ask, run: ChatRun) -> None:
        self._serving = serving
        self._ask = ask
        self._run = run
        rid = run.started.rids[0]
        self._head = {
            "id": rid if ask.call.rid else f"chatcmpl-{rid}",
            "created": int(time.time()),
            "model": ask.name,
        }
        self._frame = {**self._head, "object": "chat.completion.chunk", "system_fingerprint": None}
        self._thinks = serving.formats.reasoning is not None
        self._echoed = last_turn(ask.call.messages) if ask.echo else ""
        self._latest: dict[int, ChatDelta] = {}
        self._shown_rows: dict[int, int] = {}
        self._shown_ids: dict[int, int] = {}
        self._shown: set[int] = set()
        self._held: dict[int, str] = {}
        """Reasoning that is shown when it is whole."""

    # --- whole ------------------------------------------------------------------------------------------------

    def whole(self, turns: list[ChatTurn]) -> dict[str, Any]:
        """The completion."""
        reasoning = sum(turn.reasoning_tokens for turn in turns)
        if len(turns) == 1:
            usage = usage_of_one(turns[0].progress, reasoning)
        else:
            usage = usage_of([turn.event for turn in turns], [len(turns)], reasoning)
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [self._choice(index, turn) for index, turn in enumerate(turns)],
            "usage": usage,
            "service_tier": None,
            "system_fingerprint": None,
            **computed_with(turns[0].progress),
            "prompt_logprobs": self._prompt_rows(turns[0]),
            "prompt_token_ids": self._run.prompt_ids if self._ask.return_ids else None,
            **(cached_details(usage) if self._ask.return_cached else {}),
        }

    def _prompt_rows(self, turn: ChatTurn) -> list[dict[str, Any] | None] | None:
        wanted, tokenizer = self._ask.prompt_logprobs, self._serving.engine.tokenizer
        if wanted is None or tokenizer is None:
            return None
        meta = turn.event["meta_info"]
        return prompt_rows(tokenizer, meta["input_token_logprobs"], meta.get("input_top_logprobs", []), wanted)

    def _choice(self, index: int, turn: ChatTurn) -> dict[str, Any]:
        reasoning = (turn.reasoning or None) if self._ask.show_reasoning else None
        message: dict[str, Any] = {
            "role": "assistant",
            "content": self._echoed + turn.content or (None if turn.calls else ""),
            "reasoning_content": reasoning,
            "reasoning": reasoning,
            "refusal": None,
            "tool_calls": [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in turn.calls
            ]
            or None,
        }
        return {
            "index": index,
            "message": message,
            "logprobs": self._rows(index, turn.progress),
            "finish_reason": turn.finish,
            "token_ids": None,
            **self._extras(index, turn),
        }

    def _extras(self, index: int, news: ChatDelta | ChatTurn) -> dict[str, Any]:
        """What OpenAI's shape does not have."""
        reason = news.progress.finish_reason
        found: dict[str, Any] = {}
        if reason is not None:
            found["matched_stop"] = None if news.finish == "tool_calls" else reason.matched
            found["stop_reason"] = stop_reason(reason.matched, self._ask.call.sampling)
        if self._ask.return_ids:
            found["token_ids"] = news.progress.ids(self._shown_ids.get(index, 0))
            self._shown_ids[index] = news.progress.num_tokens
        if isinstance(news, ChatTurn) and (self._ask.return_ids or self._ask.return_prompt_ids):
            found["prompt_token_ids"] = self._run.prompt_ids
        if self._ask.return_meta and reason is not None:
            found["meta_info"] = news.event["meta_info"]
        return found

    def _rows(self, index: int, progress: Progress) -> dict[str, Any] | None:
        """Log probabilities that were not shown yet."""
        tokenizer = self._serving.engine.tokenizer
        if self._ask.logprobs is None or progress.layout is None or tokenizer is None:
            return None
        shown = self._shown_rows.get(index, 0)
        rows, tops = progress.logprobs(shown)
        self._shown_rows[index] = progress.num_rows
        tops = [None if top is None else top[: self._ask.logprobs] for top in tops]
        if self._ask.given_logprobs:
            tops = progress.given_logprobs(shown)
        return {"content": chat_rows(tokenizer, rows, tops, as_ids=self._ask.tokens_as_ids), "refusal": None}

    # --- in chunks --------------------------------------------------------------------------------------------

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events: the role first, then news, then why it ended; last, if asked for, the usage."""
        async for delta in self._run.deltas():
            begun = delta.index in self._latest
            role = b"" if begun else self._begun(delta.index)
            self._latest[delta.index] = delta
            news = self._news(delta)
            if news:
                self._shown.add(delta.index)
            elif self._counts(delta.index):
                news = [self._chunk(delta.index, {})]
            if found := role + b"".join(news):
                yield found
        if self._ask.include_usage or self._ask.return_cached:
            last = last_fields(self._usage(), self._ask.include_usage, self._ask.return_cached)
            if last:
                yield sse({**self._frame, "choices": [], **last})

    def _begun(self, index: int) -> bytes:
        role = self._chunk(index, {"role": "assistant", "content": ""})
        return role + (self._chunk(index, {"content": self._echoed}) if self._echoed else b"")

    def _counts(self, index: int) -> bool:
        """A step that shows nothing has a chunk with the usage."""
        steps = self._ask.usage_steps if self._ask.usage_always else "off"
        return steps == "all" or (steps == "first_token" and index not in self._shown)

    def _news(self, delta: ChatDelta) -> list[bytes]:
        """Why it ended comes with the last text, and behind calls."""
        found, calls = [], bool(delta.calls)
        rows = self._rows(delta.index, delta.progress)
        rows = rows if rows and rows["content"] else None
        extras = self._extras(delta.index, delta) if self._ask.return_ids or delta.finish else {}
        told: dict[str, Any] = {"content": delta.content} if delta.content else {}
        reasoning = self._reasoning(delta)
        if reasoning:
            told |= {"reasoning_content": reasoning, "reasoning": reasoning}
        ids = {"token_ids": extras.pop("token_ids")} if extras.get("token_ids") else {}
        if rows or ids:
            told = told or {"content": ""}
        if calls and (told or rows or ids):
            found.append(self._chunk(delta.index, told, rows, **ids))
        elif not calls and (told or rows or ids or delta.finish is not None):
            found.append(self._chunk(delta.index, told, rows, delta.finish, **extras, **ids))
        for call in delta.calls:
            entry: dict[str, Any] = {"index": call.index, "function": {"arguments": call.arguments}}
            if call.name is not None:
                entry |= {"id": call.id, "type": "function"}
                entry["function"] = {"name": call.name, "arguments": ""}
            found.append(self._chunk(delta.index, {"tool_calls": [entry]}))
        if calls and delta.finish is not None:
            found.append(self._chunk(delta.index, {}, None, delta.finish, **extras))
        return found

    def _reasoning(self, delta: ChatDelta) -> str:
        """What of the reasoning is to be shown now: what is new, or all of it once it has ended."""
        if not self._ask.show_reasoning:
            return ""
        if self._ask.stream_reasoning:
            return delta.reasoning
        held = self._held.pop(delta.index, "") + delta.reasoning
        if delta.content or delta.calls or delta.finish is not None:
            return held
        self._held[delta.index] = held
        return ""

    def _chunk(
        self, index: int, delta: dict[str, Any], rows: Any = None, finish: str | None = None, **extras: Any
    ) -> bytes:
        # clients of SGLang's read the first without looking for it, those of vLLM's the second where it is
        told = {"reasoning_content": None, **delta} if self._thinks else delta
        choice = {"index": index, "delta": told, "logprobs": rows, "finish_reason": finish, **extras}
        chunk = {**self._frame, "choices": [choice]}
        if self._ask.return_ids and not self._latest:
            chunk["prompt_token_ids"] = self._run.prompt_ids
        if self._ask.usage_always:
            chunk["usage"] = self._usage()
        elif self._ask.include_usage:
            chunk["usage"] = None
        return sse(chunk)

    def _usage(self) -> dict[str, Any]:
        latest = [self._latest[index] for index in sorted(self._latest)]
        if not latest:
            size = len(self._run.prompt_ids)
            return {"prompt_tokens": size, "completion_tokens": 0, "total_tokens": size}
        reasoning = sum(self._run.reasoning_tokens(index) for index in self._latest)
        if len(latest) == 1:
            return usage_of_one(latest[0].progress, reasoning)
        return usage_of([delta.event for delta in latest], [len(latest)], reasoning)
