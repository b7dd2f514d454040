"""``POST /generate``, SGLang's native route: one prompt or a batch, as text or ids, whole or as a stream.

A field that is not known is refused by name; so is one that is known and cannot be honoured, unless its value asks
for nothing. A streamed request is answered once its first output is there, so that what is wrong with it is a 400 and
not an event; one that takes long to begin is answered before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sglite.runtime.engine.admission import pick
from sglite.runtime.engine.engine import Engine
from sglite.runtime.sample.params import SamplingParams
from sglite.runtime.serve.body import check_names, read_object
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.generations import Row, Started, start
from sglite.runtime.serve.in_flight import InFlight
from sglite.runtime.serve.responses import json_response, sse, unless_gone
from sglite.runtime.serve.serving import Route
from sglite.runtime.serve.streaming import stream as streamed

MAX_BATCH = 2048
"""Prompts of one request."""
_LONG_TEXT = 20_000
"""Encoding more characters than this takes long enough to be done beside the loop."""

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


class Native:
    """The route. ``generate`` is its handler."""

    def __init__(self, engine: Engine, in_flight: InFlight) -> None:
        self._engine = engine
        self._in_flight = in_flight

    def routes(self) -> list[Route]:
        """See the module."""
        return [Route("/generate", ("POST", "PUT"), self.generate)]

    async def generate(self, request: Request) -> Response:
        """See the module."""
        body = await read_object(request)
        stream = _switch("stream", body.pop("stream", None))
        rows, many = await self._rows(body)
        started = await start(self._engine, self._in_flight, rows)
        many = many or len(started.widths) > 1 or started.widths[0] > 1
        if stream:
            return await streamed(request, _events(started, many), started.end)
        try:
            results = await unless_gone(request, started.results())
        finally:
            started.end()
        return json_response(results if many else results[0])

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
            rows.append(Row(input_ids=ids, sampling=sampling or {}, options=given, rid=own or None))
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


async def _events(started: Started, many: bool) -> AsyncGenerator[bytes, None]:
    """Each output's events by its place among all: ``index``, for more than one."""
    async for index, event in started.events():
        yield sse({**event, "index": index} if many else event)


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
