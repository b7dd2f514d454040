"""Whatever LiteLLM reaches: some hundred providers behind one call in the OpenAI shape."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from sglite.lang.backends.api import ApiBackend, client_package
from sglite.lang.backends.base import GenCall, Output, Stream
from sglite.lang.backends.chat_stream import ChatStream
from sglite.lang.backends.openai_replies import Replies
from sglite.lang.backends.openai_requests import Dialect, chat_request
from sglite.lang.backends.retrying import RetryPolicy, policy_of
from sglite.lang.ir import Sampling
from sglite.lang.messages import Message

_DIALECT = Dialect(
    "litellm", {"top_k": "top_k"}, advice="leave it out, or give it to LiteLLM(...) as one of its params"
)
_LOCAL_PRICES = "LITELLM_LOCAL_MODEL_COST_MAP"


class LiteLLM(ApiBackend):
    """A model by its LiteLLM name ("provider/model"). Needs ``pip install 'sglite[litellm]'``; the constructor reaches
    no network (LiteLLM's own download of a price list, when it is imported, is switched off).

    ``params``: for every call of ``litellm.acompletion``, as they are (``api_key``, ``api_base``, ``timeout``,
    ``drop_params`` ...). The rest: see ``ApiBackend``.

    What degrades here:

    - a gen has to open the assistant's turn, and is the only one in it unless ``@function(num_api_spec_tokens=...)``
      lets one call write the turn; text outside of turns is not sent.
    - select: decides without scores (``degraded`` in the meta info).
    - temperature, top_p, top_k, penalties, seed, stop, logprobs, json_schema: passed on; LiteLLM refuses what the
      provider lacks, and whether a schema is enforced is the provider's affair.
    - min_p, min_tokens, stop_token_ids, stop_regex, ignore_eos, regex, ebnf: refused here.
    - n: that many requests at once, not streamed.
    - forks share nothing but what the provider caches; ``cache()`` and ``flush_cache()`` do nothing; images as PNG,
      JPEG, GIF or WebP, videos refused.
    """

    provider = "LiteLLM"
    by_messages = True
    calls_tools = True
    n_at_once = False
    decides = Sampling()

    def __init__(
        self,
        model_name: str,
        *,
        chat_template: str | None = None,
        retry: RetryPolicy | None = None,
        max_concurrency: int = 256,
        **params: Any,
    ) -> None:
        super().__init__(model_name, policy_of(retry, params), max_concurrency, chat_template)
        self._package = _import()
        self._params = {**params, "max_retries": 0, "num_retries": 0}

    def _new_client(self) -> Any:
        return self._package

    def open(self, program_id: str) -> Stream:
        """See Backend."""
        return ChatStream(self)

    async def chat(self, messages: list[Message], call: GenCall) -> AsyncGenerator[tuple[Output, ...], None]:
        """The answer of ``litellm.acompletion`` to ``messages``."""
        request = chat_request(call, messages, self.model_name, _DIALECT, f"LiteLLM ({self.model_name})")
        extra = request.body.pop("extra_body", {})
        body = {**self._params, **request.body, **extra}
        replies = Replies(1, request.shape)
        if call.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
            async with aclosing(self.stream(lambda client: client.acompletion(**body))) as events:
                async for event in events:
                    if replies.add(event):
                        yield replies.so_far()
        else:
            replies.add(await self.send(lambda client: client.acompletion(**body)))
        yield replies.complete(self.token_usage)


def _import() -> Any:
    """The package, imported without its download of prices unless the environment says otherwise."""
    unset = _LOCAL_PRICES not in os.environ
    if unset:
        os.environ[_LOCAL_PRICES] = "True"
    try:
        return client_package("litellm", "litellm")
    finally:
        if unset:
            os.environ.pop(_LOCAL_PRICES, None)
