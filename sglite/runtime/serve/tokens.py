"""``/tokenize`` and ``/detokenize``, in the shapes of vLLM and SGLang at once.

    {"prompt": text or texts} | {"messages", "tools", ...}  ->  {"tokens", "count", "max_model_len", "token_strs"}
    {"tokens": ids or lists of ids}                         ->  {"prompt", "text"}

Messages become the prompt that ``/v1/chat/completions`` would make of them, so ``count`` is what that would cost.
``token_strs``: the tokens as the vocabulary spells them.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sglite.runtime.serve.body import check_names, read_object
from sglite.runtime.serve.chat.plan import render
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.fields import Fields
from sglite.runtime.serve.native_fields import check_ids
from sglite.runtime.serve.native_schema import DETOKENIZE, TOKENIZE
from sglite.runtime.serve.openai.chat_ask import read_chat
from sglite.runtime.serve.responses import json_response, unless_gone
from sglite.runtime.serve.serving import Route, Serving
from sglite.runtime.text.tokenizer import Tokenizer

MAX_PROMPTS = 2048
MAX_CHARACTERS = 2**22
"""Of all prompts of a request together."""
_LONG = 20_000
"""Characters or ids that take long enough to be worked on beside the loop."""
_CHAT = (
    "messages", "tools", "tool_choice", "add_generation_prompt", "continue_final_message", "chat_template",
    "chat_template_kwargs", "reasoning_effort",
)  # fmt: skip
_ENCODE_FIELDS = ("model", "prompt", "add_special_tokens", "return_token_strs", *_CHAT)
_DECODE_FIELDS = ("model", "tokens", "skip_special_tokens")


class Tokens:
    """The routes."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def routes(self) -> list[Route]:
        """See the module."""
        write = ("POST",)
        encode = [Route(path, write, self.encode, body=TOKENIZE) for path in ("/tokenize", "/v1/tokenize")]
        decode = [Route(path, write, self.decode, body=DETOKENIZE) for path in ("/detokenize", "/v1/detokenize")]
        return [*encode, *decode]

    async def encode(self, request: Request) -> Response:
        """Text or messages -> token ids."""
        body = await read_object(request)
        check_names(body, _ENCODE_FIELDS, "/tokenize", {})
        fields, tokenizer = Fields(body), self._tokenizer()
        self._serving.models.check(fields.raw("model"))
        strings = fields.flag("return_token_strs")
        prompt = body.get("prompt")
        if (prompt is None) == (body.get("messages") is None):
            raise Refused(400, "Exactly one of prompt and messages must be given", param="prompt")
        if prompt is None:
            # A template writes the special tokens itself, so by default none is added.
            texts, bos = [await self._rendered(request, body)], fields.flag("add_special_tokens", False)
        else:
            texts, bos = _texts(prompt), fields.flag("add_special_tokens", True)

        def work() -> list[dict[str, Any]]:
            return [_encoded(tokenizer, text, bos, strings) for text in texts]

        long = sum(map(len, texts)) > _LONG
        found = await unless_gone(request, asyncio.to_thread(work)) if long else work()
        answer: dict[str, Any] = {name: [one[name] for one in found] for name in found[0]}
        if not isinstance(prompt, list):
            answer = found[0]
        answer["max_model_len"] = self._serving.engine.config.context_length
        return json_response(answer)

    async def decode(self, request: Request) -> Response:
        """Token ids -> text. Special tokens are part of ``prompt`` and not of ``text``, unless the request says."""
        body = await read_object(request)
        check_names(body, _DECODE_FIELDS, "/detokenize", {})
        fields, tokenizer = Fields(body), self._tokenizer()
        self._serving.models.check(fields.raw("model"))
        tokens = fields.items("tokens")
        if tokens is None:
            raise Refused(400, "tokens must be a list of token ids", param="tokens")
        many = bool(tokens) and isinstance(tokens[0], list)
        rows = tokens if many else [tokens]
        if len(rows) > MAX_PROMPTS:
            raise Refused(400, f"tokens has {len(rows)} lists; send at most {MAX_PROMPTS}", param="tokens")
        size = self._serving.engine.config.vocab_size
        for index, row in enumerate(rows):
            check_ids(f"tokens[{index}]" if many else "tokens", row)
            bad = next((token for token in row if not 0 <= token < size), None)
            if bad is not None:
                raise Refused(400, f"tokens has an id that is not in [0, {size - 1}]", param="tokens")
        skip = None if fields.raw("skip_special_tokens") is None else fields.flag("skip_special_tokens")

        def work() -> dict[str, list[str]]:
            wanted = {"prompt": skip or False, "text": skip is None or skip}
            return {
                k: [tokenizer.decode(row, skip_special_tokens=without) for row in rows] for k, without in wanted.items()
            }

        long = sum(map(len, rows)) > _LONG
        found = await unless_gone(request, asyncio.to_thread(work)) if long else work()
        return json_response(found if many else {name: texts[0] for name, texts in found.items()})

    def _tokenizer(self) -> Tokenizer:
        tokenizer = self._serving.engine.tokenizer
        if tokenizer is None:
            raise Refused(400, "this server has no tokenizer")
        return tokenizer

    async def _rendered(self, request: Request, body: dict[str, Any]) -> str:
        """The prompt of a chat request with these fields."""
        ask = read_chat(self._serving, {name: body[name] for name in _CHAT if name in body})
        work = asyncio.to_thread(render, self._serving, ask.call, ask.call.choice.mode != "none")
        return await unless_gone(request, work)


def _encoded(tokenizer: Tokenizer, text: str, bos: bool, strings: bool) -> dict[str, Any]:
    ids = tokenizer.encode(text, add_bos=bos)
    return {"tokens": ids, "count": len(ids), "token_strs": [tokenizer.spelling(i) for i in ids] if strings else None}


def _texts(prompt: Any) -> list[str]:
    texts = prompt if isinstance(prompt, list) else [prompt]
    if not 0 < len(texts) <= MAX_PROMPTS or not all(isinstance(text, str) for text in texts):
        raise Refused(400, f"prompt must be text, or a list of 1 to {MAX_PROMPTS} texts", param="prompt")
    size = sum(map(len, texts))
    if size > MAX_CHARACTERS:
        message = f"prompt has {size} characters; send at most {MAX_CHARACTERS} at a time"
        raise Refused(400, message, param="prompt")
    return texts
