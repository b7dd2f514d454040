"""``POST /program``, ``/program/renew`` and ``/program/close``; see ``docs/program-protocol.md``."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sglite.runtime.serve.body import MAX_BODY, read_bytes
from sglite.runtime.serve.program_nodes import CloseBody, RenewBody, read_as, read_call
from sglite.runtime.serve.programs import Programs
from sglite.runtime.serve.responses import NDJSON, EventStream, json_response
from sglite.runtime.serve.serving import Route

_LARGE = 2**20


class ProgramRoute:
    """The handlers."""

    def __init__(self, programs: Programs) -> None:
        self._programs = programs

    def routes(self) -> list[Route]:
        """See the module."""
        return [
            Route("/program", ("POST",), self.run),
            Route("/program/renew", ("POST",), self.renew),
            Route("/program/close", ("POST",), self.close),
        ]

    async def run(self, request: Request) -> Response:
        """Answers as soon as the nodes are queued: a client that sends its next call then keeps their order."""
        data = await read_bytes(request, MAX_BODY)
        body = await asyncio.to_thread(read_call, data) if len(data) > _LARGE else read_call(data)
        call, session = self._programs.accept(body)
        return EventStream(call.lines(), lambda: self._programs.left(call, session), NDJSON)

    async def renew(self, request: Request) -> Response:
        """``{"programs": [...]}`` -> ``{"unknown": [...]}``: which of them have no session here (any more)."""
        body = read_as(RenewBody, await read_bytes(request, MAX_BODY), "/program/renew")
        found: dict[str, Any] = {"unknown": self._programs.renew(body.programs)}
        return json_response(found)

    async def close(self, request: Request) -> Response:
        """``{"programs": {name: [sequence, ...]}}`` -> ``{"closed": n}``: ends them at once, with what they do."""
        body = read_as(CloseBody, await read_bytes(request, MAX_BODY), "/program/close")
        return json_response({"closed": sum(self._programs.drop(name, seqs) for name, seqs in body.programs.items())})
