"""Anthropic's models through the official client."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from sglite.lang.backends.anthropic_messages import MessageReply, system_and_messages, tool_fields
from sglite.lang.backends.api import DEFAULT_LIMIT, ApiBackend, client_package
from sglite.lang.backends.api_params import Asked
from sglite.lang.backends.base import GenCall, Output, Stream
from sglite.lang.backends.chat_stream import ChatStream
from sglite.lang.backends.retrying import RetryPolicy, policy_of
from sglite.lang.backends.schemas import Shape, shape_of
from sglite.lang.ir import Sampling
from sglite.lang.messages import Message

_MOST_TOKENS = (
    (r"claude-(3-(opus|sonnet|haiku)|2|instant)", 4_096),
    (r"claude-3-5", 8_192),
    (r"claude-opus-4(-0|-1|-2025\d+)?(@|-2025|$)", 32_000),
    (r"claude-(3-7|(sonnet|haiku|opus)-4(-0|-5|-2025))", 64_000),
    (r"claude-((sonnet|opus)-4|[a-z]+-5|mythos)", 128_000),
)
"""The most tokens that models write in one message, by name (platform.claude.com, models overview)."""
_MOST_TOKENS_OF_OTHERS = 32_000
_LONG = 16_000
"""A message that may get longer than this is streamed from the API in any case: connections do not wait so long."""


class Anthropic(ApiBackend):
    """A Claude model. Needs ``pip install 'sglite[anthropic]'``; the constructor reaches no network.

    ``max_output_tokens``: the most the model writes, where a gen may have the rest of the context (the API wants a
    number); known for the models up to Claude 5, 32,000 for others. ``thinking``: the API's field of that name.
    ``extra_body``: fields for every request, as they are. ``options``: the client's own (``api_key``, ``base_url``,
    ``timeout``, ``default_headers``, ``http_client`` ...). The rest: see ``ApiBackend``.

    What degrades here:

    - a gen has to open the assistant's turn, and is the only one in it unless ``@function(num_api_spec_tokens=...)``
      lets one call write the turn; text outside of turns is not sent.
    - system turns are sent as one ``system`` text, wherever they stand; the program's own messages stay as they are.
    - select: decides without scores (``degraded`` in the meta info).
    - temperature, top_p, top_k: sent only where they are set, since recent models refuse them.
    - min_p, penalties, min_tokens, seed, logprobs, stop_token_ids, stop_regex, ignore_eos, regex, ebnf: refused.
    - json_schema: the API's structured outputs, which older models refuse.
    - n: that many requests at once, not streamed.
    - forks share nothing but what the provider caches; ``cache()`` and ``flush_cache()`` do nothing; images as PNG,
      JPEG, GIF or WebP, videos refused.
    """

    provider = "Anthropic API"
    by_messages = True
    calls_tools = True
    n_at_once = False
    decides = Sampling()

    def __init__(
        self,
        model_name: str,
        *,
        chat_template: str | None = None,
        max_output_tokens: int | None = None,
        thinking: dict[str, Any] | None = None,
        extra_body: dict[str, Any] | None = None,
        retry: RetryPolicy | None = None,
        max_concurrency: int = 256,
        **options: Any,
    ) -> None:
        super().__init__(model_name, policy_of(retry, options), max_concurrency, chat_template)
        self._make = client_package("anthropic", "anthropic").AsyncAnthropic
        self._options = {**options, "max_retries": 0}
        self._most_tokens = max_output_tokens or most_tokens(model_name)
        self._thinking = thinking
        self._extra_body = dict(extra_body or {})
        self._new_client()  # a bad option is an error of this line, not of the first request

    def _new_client(self) -> Any:
        return self._make(**self._options)

    def open(self, program_id: str) -> Stream:
        """See Backend."""
        return ChatStream(self)

    async def chat(self, messages: list[Message], call: GenCall) -> AsyncGenerator[tuple[Output, ...], None]:
        """The answer of the Messages API to ``messages``."""
        body, shape = self._request(messages, call)
        reply = MessageReply(shape)
        if call.stream or body["max_tokens"] > _LONG:
            body["stream"] = True
            async with aclosing(self.stream(lambda client: client.messages.create(**body))) as events:
                async for event in events:
                    if reply.add_event(event) and call.stream:
                        yield reply.so_far()
        else:
            reply.add_message(await self.send(lambda client: client.messages.create(**body)))
        yield reply.complete(self.token_usage)

    def _request(self, messages: list[Message], call: GenCall) -> tuple[dict[str, Any], Shape | None]:
        asked = Asked(call.sampling)
        system, rest = system_and_messages(messages)
        limit = asked.take_limit(DEFAULT_LIMIT if self._thinking is None else None) or self._most_tokens
        body: dict[str, Any] = {"model": self.model_name, "messages": rest, "max_tokens": limit}
        # By way of extra_body, since clients differ in which of these they still know.
        extra = dict(self._extra_body)
        if system:
            body["system"] = system
        if self._thinking is not None:
            body["thinking"] = self._thinking
        asked.take_into(body, {"stop": "stop_sequences"})
        asked.take_into(extra, {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k"})
        shape = shape_of(asked, call)
        if shape is not None:
            format = {"type": "json_schema", "schema": shape.schema}
            extra["output_config"] = {**extra.get("output_config", {}), "format": format}
        asked.refuse_rest(f"{self.provider} ({self.model_name})")
        if call.tools:
            body |= tool_fields(call.tools, call.tool_choice)
        return ({**body, "extra_body": extra} if extra else body), shape


def most_tokens(model_name: str) -> int:
    """The most tokens that a model writes in one message; a cautious number for names that are not known."""
    base = model_name.rpartition("/")[2].rpartition("anthropic.")[2]
    return next((most for name, most in _MOST_TOKENS if re.match(name, base)), _MOST_TOKENS_OF_OTHERS)
