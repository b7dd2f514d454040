"""OpenAI, and every server that speaks its API (vLLM, SGLang, llama.cpp, ...), through the official client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from sglite.lang.backends.api import ApiBackend, client_package
from sglite.lang.backends.base import GenCall, Output, Stream
from sglite.lang.backends.chat_stream import ChatStream
from sglite.lang.backends.completion_stream import CompletionStream, Echo
from sglite.lang.backends.openai_replies import Replies, usage_meta
from sglite.lang.backends.openai_requests import (
    Request,
    chat_request,
    completion_body,
    named_dialect,
    reasons,
    takes_completions,
)
from sglite.lang.backends.retrying import RetryPolicy, policy_of
from sglite.lang.ir import REST_OF_CONTEXT, Sampling
from sglite.lang.messages import Message


class OpenAI(ApiBackend):
    """A model behind OpenAI's API. Needs ``pip install 'sglite[openai]'``; the constructor reaches no network.

    ``is_chat_model``: whether requests go to the chat API; by default all do but those to the completion models
    ("instruct", "davinci", "babbage"). ``is_azure``: the client is Azure's (give ``azure_endpoint``, ``api_version``).
    ``server``: "openai", or "vllm" or "sglang" where such a server is behind ``base_url``, which takes more.
    ``extra_body``: fields for every request, as they are. ``options``: the client's own (``api_key``, ``base_url``,
    ``organization``, ``timeout``, ``default_headers``, ``http_client`` ...). The rest: see ``ApiBackend``.

    What degrades here:

    - chat models: a gen has to open the assistant's turn, and is the only one in it unless
      ``@function(num_api_spec_tokens=...)`` lets one call write the turn; text outside of turns is not sent.
    - select: chat models decide without scores (``degraded`` in the meta info); completion models are scored where
      the server echoes prompts with log probabilities, and decide otherwise.
    - json_schema: enforced where the schema is closed (all properties required, no others) or the server is vLLM or
      SGLang; an open one is asked for, not enforced. Schemas of other things than objects are wrapped for the request.
    - top_k, min_p, min_tokens, stop_token_ids, ignore_eos, regex, ebnf: refused, but for ``server="vllm" | "sglang"``
      (stop_regex: "sglang"). Neutral values are not sent: the server's defaults hold.
    - logprobs: of outputs only, without token ids.
    - reasoning models (o1, o3, gpt-5 ...): no limit of tokens unless one is given, as it counts the reasoning too.
    - forks share nothing but the provider's prompt cache; ``cache()`` and ``flush_cache()`` do nothing; images as
      PNG, JPEG, GIF or WebP, videos refused.
    """

    provider = "OpenAI API"
    n_at_once = True

    def __init__(
        self,
        model_name: str,
        is_chat_model: bool | None = None,
        chat_template: str | None = None,
        is_azure: bool = False,
        *,
        server: str = "openai",
        extra_body: Mapping[str, Any] | None = None,
        retry: RetryPolicy | None = None,
        max_concurrency: int = 256,
        **options: Any,
    ) -> None:
        super().__init__(model_name, policy_of(retry, options), max_concurrency, chat_template)
        package = client_package("openai", "openai")
        self._make = package.AsyncAzureOpenAI if is_azure else package.AsyncOpenAI
        self._options = {**options, "max_retries": 0}
        self._dialect = named_dialect(server)
        self._extra_body = dict(extra_body or {})
        self.is_chat_model = not takes_completions(model_name) if is_chat_model is None else is_chat_model
        self.by_messages = self.calls_tools = self.is_chat_model
        thinks = server == "openai" and reasons(model_name)
        self.decides = Sampling(max_new_tokens=REST_OF_CONTEXT) if thinks else Sampling(temperature=0.0)
        self._new_client()  # a missing key is an error of this line, not of the first request

    def _new_client(self) -> Any:
        return self._make(**self._options)

    def open(self, program_id: str) -> Stream:
        """See Backend."""
        return ChatStream(self) if self.is_chat_model else CompletionStream(self)

    async def chat(self, messages: list[Message], call: GenCall) -> AsyncGenerator[tuple[Output, ...], None]:
        """The answers of the chat API to ``messages``."""
        request = chat_request(call, messages, self.model_name, self._dialect, self._who())
        async with aclosing(self._outputs(request, call, lambda client: client.chat.completions)) as steps:
            async for outputs in steps:
                yield outputs

    async def complete(self, prompt: str, call: GenCall) -> AsyncGenerator[tuple[Output, ...], None]:
        """The answers of the completions API to ``prompt``."""
        request = Request(completion_body(call, prompt, self.model_name, self._dialect, self._who()))
        async with aclosing(self._outputs(request, call, lambda client: client.completions)) as steps:
            async for outputs in steps:
                yield outputs

    async def _outputs(self, request: Request, call: GenCall, api: Any) -> AsyncGenerator[tuple[Output, ...], None]:
        body = self._with_extra(request.body)
        replies = Replies(call.sampling.n or 1, request.shape)
        if call.stream:
            body = {**body, "stream": True, "stream_options": {"include_usage": True}}
            async with aclosing(self.stream(lambda client: api(client).create(**body))) as events:
                async for event in events:
                    if replies.add(event):
                        yield replies.so_far()
        else:
            replies.add(await self.send(lambda client: api(client).create(**body)))
        yield replies.complete(self.token_usage)

    async def echoed(self, prompts: list[str]) -> Echo | None:
        """See CompletionModel."""
        body = self._with_extra({"model": self.model_name, "prompt": prompts, "max_tokens": 0})
        answer = await self.send(lambda client: client.completions.create(**body, echo=True, logprobs=1))
        meta = usage_meta(answer.usage)
        self.token_usage.add(meta)
        told = [choice.logprobs for choice in sorted(answer.choices, key=lambda choice: choice.index)]
        if len(told) != len(prompts) or not all(one is not None and one.tokens for one in told):
            return None
        rows = [[[v, None, t] for v, t in zip(one.token_logprobs, one.tokens, strict=True)] for one in told]
        return Echo(rows, meta)

    def _with_extra(self, body: dict[str, Any]) -> dict[str, Any]:
        if not self._extra_body:
            return body
        return {**body, "extra_body": {**self._extra_body, **body.get("extra_body", {})}}

    def _who(self) -> str:
        return f"{self.provider} ({self.model_name})"
