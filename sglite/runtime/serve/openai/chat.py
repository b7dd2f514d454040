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
from sglite.runtime.serve.chat.call import CallDelta, CalledTool, ChatDelta, ChatTurn
from sglite.runtime.serve.chat.custom import InputText
from sglite.runtime.serve.chat.run import ChatRun, begin
from sglite.runtime.serve.fields import Fields, ignored_header, spelled
from sglite.runtime.serve.openai.chat_ask import Ask, read_chat
from sglite.runtime.serve.openai.logprobs import (
    chat_rows,
    prompt_rows,
)
from sglite.runtime.serve.openai.messages import last_turn, read_messages
from sglite.runtime.serve.openai.sampling import (
    NAMES,
    stop_reason,
)
from sglite.runtime.serve.openai.usage import cached_details, computed_with, last_fields, usage_of, usage_of_one
from sglite.runtime.serve.responses import json_response, sse, unless_gone
from sglite.runtime.serve.serving import Route, Serving
from sglite.runtime.serve.streaming import stream as streamed

SPELLED = spelled({**NAMES, "max_new_tokens": "max_tokens", "top_logprobs_num": "top_logprobs"})
"""Native names of parameters that have another one here."""
_REMEMBERED = 256
_SHORT_BYTES = 1024
"""Of a request without its messages, that it is remembered."""


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
        self._inputs: dict[tuple[int, int], InputText] = {}
        """Of calls of custom tools."""

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
            "tool_calls": [self._call(call) for call in turn.calls] or None,
        }
        return {
            "index": index,
            "message": message,
            "logprobs": self._rows(index, turn.progress),
            "finish_reason": turn.finish,
            "token_ids": None,
            **self._extras(index, turn),
        }

    def _call(self, call: CalledTool) -> dict[str, Any]:
        if call.name in self._ask.custom:
            custom = {"name": call.name, "input": InputText().feed(call.arguments)}
            return {"id": call.id, "type": "custom", "custom": custom}
        return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}

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
            entry = self._call_news(delta.index, call)
            if entry is not None:
                found.append(self._chunk(delta.index, {"tool_calls": [entry]}))
        if calls and delta.finish is not None:
            found.append(self._chunk(delta.index, {}, None, delta.finish, **extras))
        return found

    def _call_news(self, index: int, call: CallDelta) -> dict[str, Any] | None:
        """None: there is nothing new of the text of a custom tool."""
        place = index, call.index
        if call.name in self._ask.custom:
            self._inputs[place] = InputText()
            return {
                "index": call.index, "id": call.id, "type": "custom", "custom": {"name": call.name, "input": ""},
            }  # fmt: skip
        if place in self._inputs:
            more = self._inputs[place].feed(call.arguments)
            return {"index": call.index, "custom": {"input": more}} if more else None
        if call.name is None:
            return {"index": call.index, "function": {"arguments": call.arguments}}
        function = {"name": call.name, "arguments": ""}
        return {"index": call.index, "function": function, "id": call.id, "type": "function"}

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
