"""``/v1/responses``: create (whole, streamed or in the background), get, delete, cancel, list the input."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sglite.runtime.serve.body import read_object
from sglite.runtime.serve.chat.call import ChatDelta
from sglite.runtime.serve.chat.plan import plan
from sglite.runtime.serve.chat.run import ChatRun, begin
from sglite.runtime.serve.errors import Refused, refusal
from sglite.runtime.serve.fields import ignored_header, spelled
from sglite.runtime.serve.openai.logprobs import chat_rows
from sglite.runtime.serve.openai.usage import usage_of
from sglite.runtime.serve.responses import SSE, json_response, unless_gone
from sglite.runtime.serve.responses_api.ask import Ask, read_ask
from sglite.runtime.serve.responses_api.listing import page
from sglite.runtime.serve.responses_api.output import RESPONSE, Output, new_id
from sglite.runtime.serve.responses_api.store import UNFINISHED, Kept, Store
from sglite.runtime.serve.serving import Route, Serving
from sglite.runtime.serve.streaming import Wire, stream

_NAMES = {"max_new_tokens": "max_output_tokens", "top_logprobs_num": "top_logprobs"}


class Responses:
    """The routes."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._store = Store()

    def routes(self) -> list[Route]:
        """See the module."""
        one = "/v1/responses/{name}"
        return [
            Route("/v1/responses", ("POST",), self.create),
            Route("/v1/responses/input_tokens", ("POST",), self.count),
            Route(one, ("GET",), self.get),
            Route(one, ("DELETE",), self.delete),
            Route(f"{one}/cancel", ("POST",), self.cancel),
            Route(f"{one}/input_items", ("GET",), self.input_items),
        ]

    def close(self) -> None:
        """Ends what runs in the background."""
        self._store.close()

    async def create(self, request: Request) -> Response:
        """A response."""
        ask = read_ask(self._serving, self._store, await read_object(request))
        with spelled(_NAMES):
            run = await begin(self._serving, ask.call)
        making = _Making(self._serving, self._store, ask, run)
        if ask.background:
            kept = making.keep()
            kept.task = asyncio.ensure_future(making.in_background(kept))
            response = json_response(copy.copy(making.response))
        elif ask.stream:
            wire = Wire(SSE, making.failed, idle=b": keep-alive\n\n")
            response = stream(making.events(), run.end, wire, self._serving.options.keep_alive_s)
        else:
            try:
                response = json_response(await unless_gone(request, making.whole()))
            finally:
                run.end()
        response.headers.update(ignored_header(ask.ignored))
        return response

    async def count(self, request: Request) -> Response:
        """How many tokens the input of a request has."""
        ask = read_ask(self._serving, self._store, await read_object(request))
        found = await plan(self._serving, ask.call)
        return json_response({"object": "response.input_tokens", "input_tokens": len(found.row.input_ids)})

    async def get(self, request: Request) -> Response:
        """A response that was kept."""
        if request.query_params.get("stream", "false") != "false":
            raise Refused(400, "stream: a response that was kept is given whole; ask without it", param="stream")
        return json_response(self._kept(request).response)

    async def delete(self, request: Request) -> Response:
        """Forgets one, and ends it if it is being made."""
        kept = self._kept(request)
        if kept.task is not None:
            kept.task.cancel()
        self._store.drop(kept.response["id"])
        return json_response({"id": kept.response["id"], "object": "response", "deleted": True})

    async def cancel(self, request: Request) -> Response:
        """Ends one that is being made in the background; one that has ended stays as it is."""
        kept = self._kept(request)
        if not kept.response["background"]:
            raise Refused(400, "Cannot cancel a synchronous response. Close its connection instead.")
        if kept.task is not None and not kept.task.done():
            kept.task.cancel()
            await asyncio.wait({kept.task})
        return json_response(kept.response)

    async def input_items(self, request: Request) -> Response:
        """The conversation that a response answered."""
        kept = self._kept(request)
        made = len(kept.response["output"])
        items = kept.items[: len(kept.items) - made] if kept.response["status"] not in UNFINISHED else kept.items
        listed = [{"id": f"item_{index}", **item} for index, item in enumerate(items)]
        return json_response(page(listed, request.query_params))

    def _kept(self, request: Request) -> Kept:
        name = str(request.path_params["name"])
        found = self._store.get(name)
        if found is None:
            raise Refused(404, f"Response with id {name[:80]!r} not found.", code="response_not_found")
        return found


class _Making:
    """One response being made."""

    def __init__(self, serving: Serving, store: Store, ask: Ask, run: ChatRun) -> None:
        self._serving = serving
        self._store = store
        self._ask = ask
        self._run = run
        self._output = Output(ask.declared)
        self._rows = 0
        self._number = 0
        self.response: dict[str, Any] = {
            "id": new_id(RESPONSE),
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "status": "queued" if ask.background else "in_progress",
            "error": None,
            "incomplete_details": None,
            **ask.echo,
            "output": [],
            "usage": None,
        }

    # --- whole ------------------------------------------------------------------------------------------------

    async def whole(self) -> dict[str, Any]:
        """The response, once it is there."""
        async for delta in self._run.deltas():
            self.response["status"] = "in_progress"
            for _ in self._take(delta):
                pass
        return self.response

    def keep(self) -> Kept:
        """Has the response as it is now kept."""
        kept = Kept(self.response, [*self._ask.items, *self.response["output"]])
        self._store.put(kept)
        return kept

    async def in_background(self, kept: Kept) -> None:
        """Makes it for those who ask later."""
        try:
            await self.whole()
        except asyncio.CancelledError:
            self.response["status"] = "cancelled"
        except Exception as error:
            self._fail(refusal(error))
        finally:
            self._run.end()
            if self._store.get(self.response["id"]) is kept:  # nobody has deleted it
                self._store.put(Kept(self.response, [*self._ask.items, *self.response["output"]], kept.task))

    # --- in events --------------------------------------------------------------------------------------------

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events, numbered."""
        begun = False
        async for delta in self._run.deltas():
            if not begun:
                begun = True
                yield self._event({"type": "response.created", "response": self.response})
                yield self._event({"type": "response.in_progress", "response": self.response})
            for event in self._take(delta):
                yield self._event(event)
        kind = "response.completed" if self.response["status"] == "completed" else "response.incomplete"
        yield self._event({"type": kind, "response": self.response})

    def failed(self, refused: Refused) -> bytes:
        """The last event when all went wrong."""
        self._fail(refused)
        return self._event({"type": "response.failed", "response": self.response})

    def _event(self, event: dict[str, Any]) -> bytes:
        numbered = {**event, "sequence_number": self._number}
        self._number += 1
        return f"event: {event['type']}\ndata: ".encode() + msgspec.json.encode(numbered) + b"\n\n"

    # --- both -------------------------------------------------------------------------------------------------

    def _take(self, delta: ChatDelta) -> list[dict[str, Any]]:
        """The events of what ``delta`` adds; the state of their items is that of their moment."""
        found = [copy.deepcopy(event) for event in self._output.add(delta, self._new_rows(delta.event))]
        if delta.finish is not None:
            cut = delta.finish == "length"
            found += [copy.deepcopy(e) for e in self._output.close("incomplete" if cut else "completed")]
            self._end(delta, cut)
        return found

    def _end(self, delta: ChatDelta, cut: bool) -> None:
        usage = usage_of([delta.event], [1], self._run.reasoning_tokens(0))
        self.response |= {
            "status": "incomplete" if cut else "cancelled" if delta.finish == "abort" else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "completed_at": int(time.time()),
            "output": self._output.items,
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": {**usage["prompt_tokens_details"], "cache_write_tokens": 0},
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": usage["completion_tokens_details"],
                "total_tokens": usage["total_tokens"],
                "sglite": usage["sglite"],
            },
        }
        if self._ask.store and not self._ask.background:
            self.keep()

    def _fail(self, refused: Refused) -> None:
        error = {"code": refused.code or "server_error", "message": str(refused)}
        self.response |= {"status": "failed", "error": error, "output": self._output.items}

    def _new_rows(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        """Log probabilities that were not shown yet."""
        rows = event["meta_info"].get("output_token_logprobs", [])
        tokenizer = self._serving.engine.tokenizer
        if not rows or tokenizer is None:
            return []
        at, self._rows = self._rows, len(rows)
        return chat_rows(tokenizer, rows[at:], event["meta_info"].get("output_top_logprobs", [])[at:])
