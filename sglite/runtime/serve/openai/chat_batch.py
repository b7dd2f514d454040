"""``POST /v1/chat/completions/batch``, vLLM's: several conversations in one request, one turn each.

    {"messages": [[...], [...]], ...}  ->  {"choices": [{"index": 0, "message"}, {"index": 1, "message"}], "usage"}

What else the request says holds for every conversation. What is told of a prompt is in its conversation's choice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sglite.runtime.serve.body import read_object
from sglite.runtime.serve.chat.call import ChatTurn
from sglite.runtime.serve.chat.run import ChatRun, begin
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.fields import ignored_header
from sglite.runtime.serve.openai.chat import SPELLED, Answer
from sglite.runtime.serve.openai.chat_ask import Ask, read_chat
from sglite.runtime.serve.openai.usage import usage_of
from sglite.runtime.serve.responses import json_response, unless_gone
from sglite.runtime.serve.serving import Route, Serving

MAX_CONVERSATIONS = 2048
_OF_PROMPTS = ("prompt_token_ids", "prompt_logprobs")


class ChatBatch:
    """The route."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def routes(self) -> list[Route]:
        """See the module."""
        return [Route("/v1/chat/completions/batch", ("POST",), self.complete)]

    async def complete(self, request: Request) -> Response:
        """A turn for each conversation."""
        asks = _read(self._serving, await read_object(request))
        runs: list[ChatRun] = []
        try:
            for ask in asks:
                with SPELLED:
                    runs.append(await begin(self._serving, ask.call))
                await asyncio.sleep(0)  # others get a turn
            found = await unless_gone(request, asyncio.gather(*(run.turns() for run in runs)))
        finally:
            for run in runs:
                run.end()
        response = json_response(self._joined(asks, runs, [turn for (turn,) in found]))
        response.headers.update(ignored_header(asks[0].ignored))
        return response

    def _joined(self, asks: list[Ask], runs: list[ChatRun], turns: list[ChatTurn]) -> dict[str, Any]:
        answers = [
            Answer(self._serving, ask, run).whole([turn]) for ask, run, turn in zip(asks, runs, turns, strict=True)
        ]
        choices = [
            {**answer["choices"][0], "index": index, **{name: answer[name] for name in _OF_PROMPTS}}
            for index, answer in enumerate(answers)
        ]
        thought = sum(turn.reasoning_tokens for turn in turns)
        usage = usage_of([turn.event for turn in turns], [1] * len(turns), thought)
        head = {name: value for name, value in answers[0].items() if name not in _OF_PROMPTS}
        return {**head, "choices": choices, "usage": usage}


def _read(serving: Serving, body: Mapping[str, Any]) -> list[Ask]:
    conversations = body.get("messages")
    if not isinstance(conversations, list) or not 0 < len(conversations) <= MAX_CONVERSATIONS:
        message = f"messages must be a list of 1 to {MAX_CONVERSATIONS} conversations, each a list of messages"
        raise Refused(400, message, param="messages")
    for name, wanted in (("stream", (None, False)), ("n", (None, 1)), ("input_ids", (None,))):
        if body.get(name) not in wanted:
            raise Refused(400, f"{name} is not supported in a batch; send its conversations one by one", param=name)
    rid = body.get("rid") or body.get("request_id")
    asks = []
    for index, one in enumerate(conversations):
        named = {"rid": f"{rid}-{index}", "request_id": None} if isinstance(rid, str) else {}
        try:
            asks.append(read_chat(serving, {**body, "messages": one, **named}))
        except Refused as error:
            if error.param and error.param.startswith("messages"):
                where = error.param.replace("messages", f"messages[{index}]", 1)
                raise Refused(error.status, str(error).replace(error.param, where, 1), param=where) from None
            raise
    return asks
