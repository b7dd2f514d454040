"""``POST /generate``, SGLang's native route: one prompt or a batch, as text or ids, whole or as a stream.

A field that is not known is refused by name; so is one that is known and cannot be honoured, unless its value asks
for nothing. A streamed request is answered once its first output is there, so that what is wrong with it is a 400 and
not an event; one that takes long to begin is answered before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sglite.runtime.engine.admission import pick
from sglite.runtime.serve.body import read_object
from sglite.runtime.serve.context_length import check_characters, check_length
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.fields import ignored_header
from sglite.runtime.serve.generations import Row, Started, start
from sglite.runtime.serve.native_fields import (
    EXTRAS,
    OPTIONS,
    check_fields,
    check_ids,
    checked,
    is_constrained,
    switch,
    take_sampling,
)
from sglite.runtime.serve.native_schema import GENERATE, VERTEX
from sglite.runtime.serve.responses import json_response, sse, unless_gone
from sglite.runtime.serve.serving import Route, Serving
from sglite.runtime.serve.sessions import Sessions, Turn, read_params
from sglite.runtime.serve.streaming import stream as streamed

MAX_BATCH = 2048
"""Prompts of one request."""
_LONG_TEXT = 20_000
"""Encoding more characters than this takes long enough to be done beside the loop."""


@dataclass(frozen=True, kw_only=True)
class _Ask:
    """A request, read. ``intervals``: tokens an event of each row has at least, but for the first and the last;
    ``thought_end``: what ends a thought, where its tokens are to be counted; ``prompt_ids``: outputs say their
    prompt's."""

    rows: list[Row]
    intervals: list[int]
    many: bool
    turn: Turn | None = None
    thought_end: tuple[int, ...] = ()
    prompt_ids: bool = False

    def told(self, event: dict[str, Any], row: Row) -> dict[str, Any]:
        """``event`` of an output of ``row``, with what was asked for beside it."""
        if self.thought_end:
            event["meta_info"]["reasoning_tokens"] = _num_thought(event["output_ids"], self.thought_end)
        return {**event, "prompt_token_ids": row.input_ids} if self.prompt_ids else event


class Native:
    """The route. ``generate`` is its handler."""

    def __init__(self, serving: Serving, sessions: Sessions) -> None:
        self._serving = serving
        self._engine = serving.engine
        self._sessions = sessions

    def routes(self) -> list[Route]:
        """See the module."""
        return [
            Route("/generate", ("POST", "PUT"), self.generate, body=GENERATE),
            Route("/vertex_generate", ("POST",), self.vertex, body=VERTEX),
        ]

    async def generate(self, request: Request) -> Response:
        """Text from the model."""
        body = await read_object(request)
        stream = switch("stream", body.pop("stream", None))
        ignored = check_fields(body)
        response = await self._answer(request, await self._read(body), stream)
        response.headers.update(ignored_header(ignored))
        return response

    async def vertex(self, request: Request) -> Response:
        """``{"instances": [{"text"}, ...], "parameters"}`` -> ``{"predictions"}``, for Vertex AI."""
        body = await read_object(request)
        instances, parameters = body.pop("instances", None), body.pop("parameters", None) or {}
        if body or not isinstance(instances, list) or not isinstance(parameters, dict) or "stream" in parameters:
            raise Refused(400, 'send {"instances": [...], "parameters": {...}}; nothing is streamed here')
        if not instances:
            return json_response({"predictions": []})
        kinds = {tuple(one) if isinstance(one, dict) else None for one in instances}
        if kinds not in ({("text",)}, {("input_ids",)}):
            message = 'instances must all be {"text": ...} or all be {"input_ids": ...}'
            raise Refused(400, message, param="instances")
        (name,) = instances[0]
        given = {**parameters, name: [one[name] for one in instances]}
        check_fields(given)
        rows = await self._results(request, await self._read(given))
        return json_response({"predictions": rows})

    async def _answer(self, request: Request, ask: _Ask, stream: bool) -> Response:
        if not stream:
            results = await self._results(request, ask)
            return json_response(results if ask.many else results[0])
        started = await self._start(ask)

        def end() -> None:
            started.end()
            if ask.turn is not None:
                ask.turn.ended()

        lines = _events(started, ask)
        return streamed(lines, end, keep_alive_s=self._serving.options.keep_alive_s)

    async def _results(self, request: Request, ask: _Ask) -> list[dict[str, Any]]:
        started = await self._start(ask)
        try:
            events = await unless_gone(request, started.results())
        finally:
            started.end()
            if ask.turn is not None:
                ask.turn.ended()
        return [ask.told(event, row) for event, row in zip(events, _owners(started, ask), strict=True)]

    async def _start(self, ask: _Ask) -> Started:
        try:
            started = await start(self._engine, self._serving.in_flight, ask.rows)
        except BaseException:
            if ask.turn is not None:
                ask.turn.drop()
            raise
        if ask.turn is not None:
            ask.turn.began(started.generations[0])
        return started

    # --- reading ----------------------------------------------------------------------------------------------

    async def _read(self, body: dict[str, Any]) -> _Ask:
        """The prompts with what belongs to each."""
        params = read_params(body.get("session_params"))
        self._serving.models.check(body.get("model"))
        thinks, prompt_ids = (switch(name, body.get(name)) for name in EXTRAS)
        closing = self._closing() if thinks else ""
        prompts, many = await self._prompts(body.get("text"), body.get("input_ids"), params is None)
        names = _names(body.get("rid"), len(prompts), many)
        options = {name: body.get(name) for name in OPTIONS}
        rows, intervals = [], []
        for index, ids in enumerate(prompts):
            of = {name: pick(value, index, len(prompts), name, many) for name, value in options.items()}
            sampling, interval = take_sampling(
                pick(body.get("sampling_params"), index, len(prompts), "sampling_params", many)
            )
            given = {name: checked(name, value) for name, value in of.items() if value is not None}
            if closing and is_constrained(sampling):
                given.setdefault("constraint_after", closing)
            rows.append(Row(input_ids=ids, sampling=sampling, options=given, rid=names[index]))
            intervals.append(interval)
        ask = _Ask(rows=rows, intervals=intervals, many=many or rows[0].width != 1, prompt_ids=prompt_ids)
        if closing and self._engine.tokenizer is not None:
            ask = replace(ask, thought_end=tuple(self._engine.tokenizer.encode(closing)))
        if params is None:
            return ask
        if ask.many:
            raise Refused(400, "a session goes on with one prompt and one output (n=1)", param="session_params")
        bos = self._engine.tokenizer.bos_token_id if self._engine.tokenizer is not None else None
        turn = await self._sessions.begin(params, rows[0].rid, rows[0].input_ids, bos)
        row = Row(input_ids=turn.input_ids, sampling=rows[0].sampling, options=rows[0].options, rid=turn.rid)
        return replace(ask, rows=[row], turn=turn)

    def _closing(self) -> str:
        """What ends a thought of the served model. ``Refused`` where that is not known."""
        form = self._serving.formats.reasoning
        if form is None or not form.answer_follows or self._engine.tokenizer is None:
            message = (
                f"require_reasoning: what ends a thought of {self._serving.models.name} is not known; start the server "
                "with --reasoning-parser, or give constraint_after"
            )
            raise Refused(400, message, param="require_reasoning")
        return form.closing

    async def _prompts(self, text: Any, input_ids: Any, some: bool) -> tuple[list[list[int]], bool]:
        """Prompts as ids, and whether they came as a batch. ``some``: none may be empty."""
        if (text is None) == (input_ids is None):
            raise Refused(400, "give either text or input_ids, and not both", param="text")
        name, value = ("text", text) if text is not None else ("input_ids", input_ids)
        many = isinstance(value, list) and (text is not None or (bool(value) and isinstance(value[0], list)))
        prompts: list[Any] = value if many else [value]
        if not 0 < len(prompts) <= MAX_BATCH:
            raise Refused(400, f"{name} has {len(prompts)} prompts; send 1 to {MAX_BATCH}", param=name)
        for index, prompt in enumerate(prompts):
            where = f"{name}[{index}]" if many else name
            if text is None:
                if isinstance(prompt, list) and len(prompt) > self._serving.capacity:
                    check_length(self._serving, len(prompt), None, where)
                check_ids(where, prompt)
            elif not isinstance(prompt, str):
                raise Refused(400, f"{where} must be text", param=name)
        if text is None:
            return prompts, many
        if self._engine.tokenizer is None:
            raise Refused(400, "this server has no tokenizer and takes input_ids only", param="text")
        tokenizer = self._engine.tokenizer
        check_characters(self._serving, prompts, "text")

        def encode() -> list[list[int]]:
            return [tokenizer.encode(prompt, add_bos=True) for prompt in prompts]

        long = sum(map(len, prompts)) > _LONG_TEXT
        encoded = await asyncio.to_thread(encode) if long else encode()
        if some and not all(encoded):
            raise Refused(400, "text is empty, and this model begins its texts with no token; send some", param="text")
        return encoded, many


def _names(rid: Any, count: int, many: bool) -> list[str | None]:
    """One name a prompt; one for a batch is what all their names begin with."""
    if many and isinstance(rid, list) and len(rid) != count:
        raise Refused(400, f"rid has {len(rid)} entries for {count} prompts; give one each", param="rid")
    given = rid if many and isinstance(rid, list) else [rid] * count
    if not all(one is None or isinstance(one, str) for one in given):
        raise Refused(400, "rid must be text", param="rid")
    if many and isinstance(rid, str) and rid:
        return [f"{rid}_{index}" for index in range(count)]
    return [one or None for one in given]


def _owners(started: Started, ask: _Ask) -> list[Row]:
    """The row of each output."""
    return [row for row, width in zip(ask.rows, started.widths, strict=True) for _ in range(width)]


def _num_thought(ids: list[int], end: tuple[int, ...]) -> int:
    """Tokens of a thought, its end included; all of them, where it has not ended."""
    for at, token in enumerate(ids):
        if token == end[0] and tuple(ids[at : at + len(end)]) == end:
            return at + len(end)
    return len(ids)


async def _events(started: Started, ask: _Ask) -> AsyncGenerator[bytes, None]:
    """Each output's events by its place among all: ``index``, for more than one."""
    intervals = [step for step, width in zip(ask.intervals, started.widths, strict=True) for _ in range(width)]
    shown: dict[int, int] = {}
    owners = _owners(started, ask)
    async for index, progress in started.news():
        length, over = progress.num_tokens, progress.finish_reason is not None
        if not over and length < shown.get(index, 0) + intervals[index] and index in shown:
            continue
        shown[index] = length
        event = ask.told(progress.event(), owners[index])
        yield sse({**event, "index": index} if ask.many else event)
