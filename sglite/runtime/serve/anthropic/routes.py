"""``POST /v1/messages`` and ``POST /v1/messages/count_tokens``."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sglite.runtime.serve.anthropic.ask import NAMES, Ask, read_ask
from sglite.runtime.serve.anthropic.events import PATH, WIRE, Blocks, content_of, encoded, ending, usage
from sglite.runtime.serve.body import read_object
from sglite.runtime.serve.chat.plan import plan
from sglite.runtime.serve.chat.run import ChatRun, begin
from sglite.runtime.serve.fields import ignored_header, spelled
from sglite.runtime.serve.responses import json_response, unless_gone
from sglite.runtime.serve.serving import Route, Serving
from sglite.runtime.serve.streaming import stream as streamed


class Messages:
    """The routes."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def routes(self) -> list[Route]:
        """See the module."""
        return [Route(PATH, ("POST",), self.create), Route(f"{PATH}/count_tokens", ("POST",), self.count)]

    async def create(self, request: Request) -> Response:
        """The next turn of a conversation."""
        ask = read_ask(self._serving, await read_object(request))
        with spelled(NAMES):
            run = await begin(self._serving, ask.call)
        answer = _Answer(self._serving, ask, run)
        if ask.stream:
            alive = self._serving.options.keep_alive_s
            response: Response = streamed(answer.chunks(), run.end, WIRE, alive)
        else:
            try:
                response = json_response(await unless_gone(request, answer.whole()))
            finally:
                run.end()
        response.headers.update({"request-id": run.started.rids[0], **ignored_header(ask.ignored)})
        return response

    async def count(self, request: Request) -> Response:
        """How many tokens the same request would send to the model."""
        ask = read_ask(self._serving, await read_object(request), counting=True)
        planned = await plan(self._serving, ask.call)
        response = json_response({"input_tokens": len(planned.row.input_ids)})
        response.headers.update(ignored_header(ask.ignored))
        return response


class _Answer:
    """One answer, whole or in events."""

    def __init__(self, serving: Serving, ask: Ask, run: ChatRun) -> None:
        self._run = run
        self._limit = ask.call.sampling["max_new_tokens"]
        self._thinks = serving.formats.reasoning is not None
        self._head = {
            "id": f"msg_{run.started.rids[0]}",
            "type": "message",
            "role": "assistant",
            "model": ask.name,
        }

    async def whole(self) -> dict[str, Any]:
        """The message."""
        turn = (await self._run.turns())[0]
        return {
            **self._head,
            "content": content_of(turn),
            **ending(turn.finish, turn.event, self._limit),
            "usage": self._usage(turn.event),
        }

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events."""
        blocks, begun = Blocks(), False
        async for delta in self._run.deltas():
            if not begun:
                begun = True
                empty: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
                message = {**self._head, **empty, "usage": usage(delta.event, over=False)}
                yield encoded({"type": "message_start", "message": message})
            for event in blocks.add(delta):
                yield encoded(event)
            if delta.finish is not None:
                for event in blocks.close():
                    yield encoded(event)
                why = ending(delta.finish, delta.event, self._limit)
                yield encoded({"type": "message_delta", "delta": why, "usage": self._usage(delta.event)})
                yield encoded({"type": "message_stop"})

    def _usage(self, event: dict[str, Any]) -> dict[str, Any]:
        return usage(event, self._run.reasoning_tokens(0) if self._thinks else None)
