"""``POST /generate``, SGLang's native route: one prompt or a batch, as text or ids, whole or as a stream.

A field that is not known is refused by name; so is one that is known and cannot be honoured, unless its value asks
for nothing. A streamed request is answered once its first output is there, so that what is wrong with it is a 400 and
not an event; one that takes long to begin is answered before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sglite.runtime.engine.admission import pick
from sglite.runtime.engine.engine import Engine
from sglite.runtime.engine.generation import Generation
from sglite.runtime.sample.params import SamplingParams
from sglite.runtime.serve.body import check_names, read_object
from sglite.runtime.serve.errors import Refused, refusal
from sglite.runtime.serve.in_flight import InFlight
from sglite.runtime.serve.merge import Merged
from sglite.runtime.serve.responses import EventStream, json_response, sse, unless_gone

MAX_BATCH = 2048
"""Prompts of one request."""
FIRST_EVENT_SECONDS = 2.0
"""How long a stream's headers wait for its first output."""
_LONG_TEXT = 20_000
"""Encoding more characters than this takes long enough to be done beside the loop."""
_BREATH = 16
"""Requests of a batch that are submitted before others get a turn on the loop."""

_SWITCHES = ("return_logprob", "return_text_in_logprobs")
_COUNTS = ("logprob_start_len", "top_logprobs_num")
_OPTIONS = (
    *_SWITCHES, *_COUNTS, "token_ids_logprob", "priority", "cache_salt", "extra_key", "timeout_s", "queue_timeout_s",
    "constraint_after", "reasoning_budget",
)  # fmt: skip
_UNSUPPORTED = frozenset({
    "image_data", "video_data", "audio_data", "modalities", "input_embeds", "session_params", "lora_path", "lora_id",
    "return_hidden_states", "return_routed_experts", "custom_logit_processor", "bootstrap_host", "bootstrap_port",
    "bootstrap_room", "data_parallel_rank", "routed_dp_rank", "background",
})  # fmt: skip
_FIELDS = frozenset({"text", "input_ids", "sampling_params", "stream", "rid", *_OPTIONS})
_ELSEWHERE = {name: f"{name} belongs into sampling_params" for name in SamplingParams.__struct_fields__}


@dataclass(frozen=True)
class Row:
    """One prompt of a request, checked as far as the engine does not."""

    input_ids: list[int]
    sampling: dict[str, Any]
    options: dict[str, Any]
    rid: str | None


class Native:
    """The route. ``generate`` is its handler."""

    def __init__(self, engine: Engine, in_flight: InFlight) -> None:
        self._engine = engine
        self._in_flight = in_flight

    async def generate(self, request: Request) -> Response:
        """See the module."""
        body = await read_object(request)
        stream = _switch("stream", body.pop("stream", None))
        rows, many = await self._rows(body)
        started = await self._start(rows)
        many = many or len(started.widths) > 1 or started.widths[0] > 1
        if not stream:
            try:
                events = await unless_gone(request, _all_results(started.generations))
            finally:
                started.end()
            return json_response(events if many else events[0])
        events_of = _stream(started, many)
        first = asyncio.ensure_future(anext(events_of))
        try:
            await unless_gone(request, asyncio.wait({first}, timeout=FIRST_EVENT_SECONDS))
            early = [first.result()] if first.done() else []
        except BaseException:
            first.cancel()
            started.end()
            raise
        return EventStream(_sse_events(early, first, events_of), started.end)

    async def _start(self, rows: list[Row]) -> Started:
        self._in_flight.admit(len(rows))
        started = Started(self._in_flight, [], [], [])
        try:
            for index, row in enumerate(rows):
                rid = self._in_flight.name(row.rid)
                generation = self._engine.submit(row.input_ids, row.sampling, rid=rid, **row.options)
                self._in_flight.add(rid, generation)
                started.rids.append(rid)
                started.generations.append(generation)
                started.widths.append(row.sampling.get("n") or 1)
                if index % _BREATH == _BREATH - 1:
                    await asyncio.sleep(0)
        except BaseException:
            started.end()
            raise
        return started

    async def _rows(self, body: dict[str, Any]) -> tuple[list[Row], bool]:
        """The prompts with what belongs to each, and whether they came as a batch."""
        for name in _UNSUPPORTED & body.keys():
            if body.pop(name) not in (None, False, [], {}):
                raise Refused(400, f"{name} is not supported here: send text or input_ids, without it", param=name)
        check_names(body, _FIELDS, "/generate", _ELSEWHERE)
        prompts, many = await self._prompts(body.get("text"), body.get("input_ids"))
        rid = body.get("rid")
        if many and isinstance(rid, str):
            raise Refused(400, f"rid is one name for {len(prompts)} prompts; give a list, one each", param="rid")
        options = {name: body.get(name) for name in _OPTIONS}
        rows = []
        for index, ids in enumerate(prompts):
            of = {name: pick(value, index, len(prompts), name, many) for name, value in options.items()}
            sampling = pick(body.get("sampling_params"), index, len(prompts), "sampling_params", many)
            if sampling is not None and not isinstance(sampling, dict):
                raise Refused(400, "sampling_params must be an object, or a list of them", param="sampling_params")
            given = {name: _checked(name, value) for name, value in of.items() if value is not None}
            own = pick(rid, index, len(prompts), "rid", many)
            if own is not None and not isinstance(own, str):
                raise Refused(400, "rid must be text", param="rid")
            rows.append(Row(ids, sampling or {}, given, own or None))
        return rows, many

    async def _prompts(self, text: Any, input_ids: Any) -> tuple[list[list[int]], bool]:
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
                _check_ids(where, prompt)
            elif not isinstance(prompt, str):
                raise Refused(400, f"{where} must be text", param=name)
        if text is None:
            return prompts, many
        if self._engine.tokenizer is None:
            raise Refused(400, "this server has no tokenizer and takes input_ids only", param="text")
        tokenizer = self._engine.tokenizer

        def encode() -> list[list[int]]:
            return [tokenizer.encode(prompt, add_bos=True) for prompt in prompts]

        long = sum(map(len, prompts)) > _LONG_TEXT
        encoded = await asyncio.to_thread(encode) if long else encode()
        if not all(encoded):
            raise Refused(400, "text is empty, and this model begins its texts with no token; send some", param="text")
        return encoded, many


@dataclass(frozen=True)
class Started:
    """Generations of one request. ``widths``: how many outputs each has."""

    in_flight: InFlight
    rids: list[str]
    generations: list[Generation]
    widths: list[int]

    def end(self) -> None:
        """Nobody waits any more."""
        for rid in self.rids:
            self.in_flight.discard(rid)


async def _all_results(generations: list[Generation]) -> list[Any]:
    """Final events, flat."""
    found: list[Any] = []
    for generation in generations:
        event = await generation.wait()
        found.extend(event if isinstance(event, list) else [event])
    return found


async def _stream(started: Started, many: bool) -> AsyncGenerator[dict[str, Any], None]:
    """Events as they happen, each output's by its place among all: ``index``, for more than one."""
    starts = [sum(started.widths[:i]) for i in range(len(started.widths))]
    seen: dict[int, tuple[int, bool]] = {}
    async for at, event in Merged(started.generations):
        for offset, part in enumerate(event if isinstance(event, list) else [event]):
            index = starts[at] + offset
            state = (len(part["output_ids"]), part["meta_info"]["finish_reason"] is not None)
            if many and seen.get(index) == state:
                continue  # one of the others has changed
            seen[index] = state
            yield {**part, "index": index} if many else part


async def _sse_events(
    early: list[Any], first: asyncio.Future[Any], rest: AsyncGenerator[Any, None]
) -> AsyncGenerator[bytes, None]:
    try:
        try:
            yield sse(early[0] if early else await first)
            async for event in rest:
                yield sse(event)
        except Exception as error:
            yield sse(refusal(error).body())
        yield b"data: [DONE]\n\n"
    finally:
        first.cancel()


def _switch(name: str, value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    raise Refused(400, f"{name} must be true or false", param=name)


def _checked(name: str, value: Any) -> Any:
    """A value whose type the engine takes for granted."""
    if name in _SWITCHES:
        return _switch(name, value)
    if name in _COUNTS and type(value) is not int:
        raise Refused(400, f"{name} must be an integer", param=name)
    if name == "token_ids_logprob":
        _check_ids(name, value)
    return value


def _check_ids(where: str, value: Any) -> None:
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        raise Refused(400, f"{where} must be a list of token ids", param=where.partition("[")[0])
