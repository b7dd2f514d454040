"""``POST /v1/completions``: prompts as text or ids, one or many, with echo and log probabilities."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from sglite.runtime.engine.presenter import Progress
from sglite.runtime.serve.body import read_object
from sglite.runtime.serve.context_length import check_characters, check_length
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.fields import Fields, ignored_header, spelled
from sglite.runtime.serve.generations import Row, Started, start
from sglite.runtime.serve.openai.logprobs import (
    logprob_options,
    prompt_rows,
    read_given,
    read_prompt_logprobs,
    text_rows,
)
from sglite.runtime.serve.openai.sampling import (
    IGNORED,
    MAX_TOP_LOGPROBS,
    NAMES,
    read_constraint,
    read_options,
    read_rid,
    read_sampling,
    read_thinking_budget,
    stop_reason,
)
from sglite.runtime.serve.openai.stream_options import read_stream
from sglite.runtime.serve.openai.usage import cached_details, computed_with, last_fields, usage_of
from sglite.runtime.serve.responses import json_response, sse, unless_gone
from sglite.runtime.serve.serving import Route, Serving
from sglite.runtime.serve.streaming import stream as streamed
from sglite.runtime.serve.truncation import read_truncation

MAX_BATCH = 2048
DEFAULT_MAX_TOKENS = 16
MAX_TOKENS = 2**31 - 1
_LONG_TEXT = 20_000
_REFUSED = {
    "suffix": "this model does not fill in between",
    "session_params": "sessions are a matter of /generate",
    "image_data": "this model takes text only",
}
_SPELLED = spelled({**NAMES, "max_new_tokens": "max_tokens", "top_logprobs_num": "logprobs"})


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A completion request, read. ``prompts``: text, or none where ids came."""

    rows: list[Row]
    prompts: list[str]
    name: str
    echo: bool
    logprobs: int | None
    given_logprobs: int | None
    prompt_logprobs: int | None
    tokens_as_ids: bool
    stream: bool
    include_usage: bool
    usage_always: bool
    return_ids: bool
    return_meta: bool
    return_cached: bool
    ignored: list[str]

    @property
    def width(self) -> int:
        """Choices of each prompt."""
        return self.rows[0].width


class Completions:
    """The route."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def routes(self) -> list[Route]:
        """See the module."""
        return [Route("/v1/completions", ("POST",), self.complete)]

    async def complete(self, request: Request) -> Response:
        """Texts that go on from the prompts."""
        return await self.answer(request, await read_object(request))

    async def answer(self, request: Request, body: Mapping[str, Any]) -> Response:
        """The answer to a body that was read."""
        ask = await read_completion(self._serving, body)
        with _SPELLED:
            started = await start(self._serving.engine, self._serving.in_flight, ask.rows)
        return await respond(self._serving, request, ask, started, _Answer(self._serving, ask, started))


class Answer(Protocol):
    """What becomes of generations."""

    def whole(self, outcomes: list[Progress]) -> dict[str, Any]:
        """All of it."""
        ...

    def chunks(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events."""
        ...


async def respond(serving: Serving, request: Request, ask: Ask, started: Started, answer: Answer) -> Response:
    """``answer``, streamed or whole, as the request wants it."""
    if ask.stream:
        response: Response = streamed(answer.chunks(), started.end, keep_alive_s=serving.options.keep_alive_s)
    else:
        try:
            response = json_response(answer.whole(await unless_gone(request, started.outcomes())))
        finally:
            started.end()
    response.headers.update(ignored_header(ask.ignored))
    return response


async def read_completion(serving: Serving, body: Mapping[str, Any]) -> Ask:
    """The request in our words. ``Refused`` names the field that is wrong."""
    fields = Fields(body)
    fields.refuse(_REFUSED)
    name = serving.models.check(fields.raw("model"))
    echo, logprobs = fields.flag("echo"), _logprobs(fields)
    texts, prompts = await _prompts(serving, fields)
    limit = fields.integer("max_tokens", 0, MAX_TOKENS)
    truncation = read_truncation(serving, fields, DEFAULT_MAX_TOKENS if limit is None else limit)
    if truncation is not None and any(len(ids) > truncation.keep for ids in prompts):
        assert serving.engine.tokenizer is not None
        prompts = [truncation.cut(ids) for ids in prompts]
        texts = [serving.engine.tokenizer.decode(ids, skip_special_tokens=False) for ids in prompts]
    stream, include, always = read_stream(fields)
    of_prompt, given_ids = read_prompt_logprobs(fields, stream), read_given(fields, logprobs)
    if given_ids is not None and echo:
        raise fields.wrong("logprob_token_ids", "goes without echo")
    constraint = read_constraint(fields)
    sampling = serving.sampling(read_sampling(fields))
    if read_thinking_budget(fields) is not None:
        raise fields.wrong("thinking_token_budget", "is for /v1/chat/completions, which knows what thinking is")
    sampling["max_new_tokens"] = DEFAULT_MAX_TOKENS if limit is None else limit
    options = {**read_options(fields), **logprob_options(logprobs, of_prompt, given_ids, echo and logprobs is not None)}
    for ids in prompts:
        check_length(serving, len(ids), limit, "prompt")
    if limit is None:
        room = serving.capacity - max(len(ids) for ids in prompts)
        sampling["max_new_tokens"] = max(1, min(DEFAULT_MAX_TOKENS, room))
    if constraint is not None:
        options["constraint"] = constraint
        sampling.setdefault("on_limit", "try_close")
    rid = read_rid(fields)
    rids = [rid] if len(prompts) == 1 else [None if rid is None else f"{rid}-{i}" for i in range(len(prompts))]
    fields.given(IGNORED)
    given = [one for one in IGNORED if body.get(one) not in (None, False, {}, "")]
    return Ask(
        rows=[
            Row(input_ids=ids, sampling=sampling, options=options, rid=own)
            for ids, own in zip(prompts, rids, strict=True)
        ],
        prompts=texts,
        name=name,
        echo=echo,
        logprobs=logprobs,
        given_logprobs=None if given_ids is None else len(given_ids),
        prompt_logprobs=of_prompt,
        tokens_as_ids=fields.flag("return_tokens_as_token_ids"),
        stream=stream,
        include_usage=include,
        usage_always=always,
        return_ids=fields.flag("return_token_ids"),
        return_meta=fields.flag("return_meta_info"),
        return_cached=fields.flag("return_cached_tokens_details"),
        ignored=[*given, *fields.unread()],
    )


async def _prompts(serving: Serving, fields: Fields) -> tuple[list[str], list[list[int]]]:
    """Prompts as text and as ids. Text, ids, or a list of either."""
    value, tokenizer = fields.raw("prompt"), serving.engine.tokenizer
    if tokenizer is None:
        raise Refused(400, "this server has no tokenizer; use /generate with input_ids")
    add_bos = fields.flag("add_special_tokens", True)
    if isinstance(value, str) or (isinstance(value, list) and value and all(type(one) is int for one in value)):
        value = [value]
    if not isinstance(value, list) or not 0 < len(value) <= MAX_BATCH:
        raise fields.wrong("prompt", f"must be text, token ids, or a list of 1 to {MAX_BATCH} of either")
    if all(isinstance(text, str) for text in value):
        check_characters(serving, value, "prompt")

        def encode() -> list[list[int]]:
            return [tokenizer.encode(text, add_bos=add_bos) for text in value]

        ids = await asyncio.to_thread(encode) if sum(map(len, value)) > _LONG_TEXT else encode()
        if not all(ids):
            raise Refused(400, "prompt is empty, and this model begins its texts with no token", param="prompt")
        return value, ids
    good = all(isinstance(ids, list) and ids and all(type(token) is int for token in ids) for ids in value)
    if not good:
        raise fields.wrong("prompt", "must be text, token ids, or a list of either, not a mixture or an empty list")
    _check_ids(value, serving)
    return [tokenizer.decode(ids, skip_special_tokens=False) for ids in value], value


def _check_ids(prompts: list[list[int]], serving: Serving) -> None:
    size = serving.engine.config.vocab_size
    bad = next((token for ids in prompts for token in ids if not 0 <= token < size), None)
    if bad is not None:
        shown = bad if abs(bad) < 10**20 else "an integer of many digits"
        raise Refused(
            400, f"prompt has token id {shown}, which is out of vocabulary: ids are in [0, {size - 1}]", param="prompt"
        )


def _logprobs(fields: Fields) -> int | None:
    """How many likeliest tokens are shown beside each; also as chats ask for the token's own alone."""
    value = fields.raw("logprobs")
    if isinstance(value, bool):
        return 1 if value else None
    return fields.integer("logprobs", 0, MAX_TOP_LOGPROBS)


class _Answer:
    """One answer, whole or in chunks."""

    def __init__(self, serving: Serving, ask: Ask, started: Started) -> None:
        assert serving.engine.tokenizer is not None
        self._tokenizer = serving.engine.tokenizer
        self._ask = ask
        self._started = started
        own = ask.rows[0].rid
        self._head = {
            "id": own or f"cmpl-{started.rids[0]}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": ask.name,
            "system_fingerprint": None,
        }
        self._latest: dict[int, Progress] = {}
        self._texts: dict[int, int] = {}
        self._shown_rows: dict[int, int] = {}
        self._shown_ids: dict[int, int] = {}
        self._offsets: dict[int, int] = {}

    def whole(self, outcomes: list[Progress]) -> dict[str, Any]:
        """The completion."""
        choices = [
            {
                "token_ids": None,
                "prompt_token_ids": None,
                **self._choice(index, outcome),
                "prompt_logprobs": self._prompt_rows(outcome),
            }
            for index, outcome in enumerate(outcomes)
        ]
        usage = usage_of([outcome.event() for outcome in outcomes], self._started.widths)
        details = cached_details(usage) if self._ask.return_cached else {}
        weights = computed_with(outcomes[0])
        return {**self._head, "choices": choices, "usage": usage, **weights, **details}

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events."""
        async for index, progress in self._started.news():
            self._latest[index] = progress
            choice = self._choice(index, progress)
            if not any(value for name, value in choice.items() if name != "index"):
                continue
            chunk: dict[str, Any] = {**self._head, "choices": [choice]}
            if self._ask.usage_always:
                chunk["usage"] = self._usage()
            elif self._ask.include_usage:
                chunk["usage"] = None
            yield sse(chunk)
        if self._ask.include_usage or self._ask.return_cached:
            last = last_fields(self._usage(), self._ask.include_usage, self._ask.return_cached)
            if last:
                yield sse({**self._head, "choices": [], **last})

    def _usage(self) -> dict[str, Any]:
        """Of what has been heard of so far."""
        width, seen = self._ask.width, sorted(self._latest)
        widths = [sum(1 for index in seen if index // width == row) for row in range(len(self._ask.rows))]
        return usage_of([self._latest[index].event() for index in seen], [one for one in widths if one])

    def _choice(self, index: int, progress: Progress) -> dict[str, Any]:
        """What ``progress`` adds to a choice: all of it, the first time."""
        prompt = self._ask.prompts[index // self._ask.width] if self._ask.echo else ""
        begun = self._texts.get(index)
        text = progress.text[begun or 0 :]
        self._texts[index] = len(progress.text)
        reason = progress.finish_reason
        rows = self._rows(index, progress, begun is None)
        found: dict[str, Any] = {
            "index": index,
            "text": prompt + text if begun is None else text,
            "logprobs": rows,
            "finish_reason": None if reason is None else reason.type,
            "matched_stop": None if reason is None else reason.matched,
            "stop_reason": None if reason is None else stop_reason(reason.matched, self._ask.rows[0].sampling),
        }
        if self._ask.return_ids:
            found["token_ids"] = progress.ids(self._shown_ids.get(index, 0))
            self._shown_ids[index] = progress.num_tokens
            if begun is None:
                found["prompt_token_ids"] = self._ask.rows[index // self._ask.width].input_ids
        if self._ask.return_meta and reason is not None:
            found["meta_info"] = progress.event()["meta_info"]
        return found

    def _prompt_rows(self, outcome: Progress) -> list[dict[str, Any] | None] | None:
        if self._ask.prompt_logprobs is None:
            return None
        meta = outcome.event()["meta_info"]
        rows, tops = meta["input_token_logprobs"], meta.get("input_top_logprobs", [])
        return prompt_rows(self._tokenizer, rows, tops, self._ask.prompt_logprobs)

    def _rows(self, index: int, progress: Progress, first: bool) -> dict[str, Any] | None:
        """Log probabilities that were not shown yet; the prompt's come first where it is echoed."""
        if self._ask.logprobs is None:
            return None
        shown = self._shown_rows.get(index, 0)
        rows, tops = progress.logprobs(shown)
        self._shown_rows[index] = progress.num_rows
        if first and self._ask.echo:
            meta = progress.event()["meta_info"]
            rows = [*meta["input_token_logprobs"], *rows]
            tops = [*meta.get("input_top_logprobs", []), *tops]
        offset, top = self._offsets.get(index, 0), self._ask.logprobs
        if self._ask.given_logprobs is not None:
            tops, top = progress.given_logprobs(shown), self._ask.given_logprobs
        found = text_rows(self._tokenizer, rows, tops, offset, top=top, as_ids=self._ask.tokens_as_ids)
        self._offsets[index] = offset + sum(len(self._tokenizer.token_text(row[1])) for row in rows)
        return found if rows else None
