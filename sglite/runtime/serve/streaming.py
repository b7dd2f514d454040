"""Streamed answers: a bad request is refused before they begin, a silent one is kept alive, a failed one says so.

The answer begins with its first line, so that what is wrong with a request is an HTTP error and not an event; one that
takes long to begin is answered before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from starlette.requests import Request

from sglite.runtime.serve.errors import Refused, refusal
from sglite.runtime.serve.responses import NDJSON, SSE, EventStream, ndjson, sse, unless_gone

FIRST_LINE_SECONDS = 2.0
"""How long an answer waits for its first line."""


@dataclass(frozen=True)
class Wire:
    """How a stream is spelled: its media type, how it ends, what is said when nothing happens or all went wrong."""

    media_type: str
    failed: Callable[[Refused], bytes]
    last: bytes = b""
    idle: bytes = b""


OPENAI = Wire(SSE, lambda refused: sse(refused.body()), b"data: [DONE]\n\n", b": keep-alive\n\n")
"""Server-sent events that end with ``[DONE]``."""
LINES = Wire(NDJSON, lambda refused: ndjson(refused.body()))
"""One JSON object a line."""


async def stream(
    request: Request,
    lines: AsyncGenerator[bytes, None],
    end: Callable[[], None],
    wire: Wire = OPENAI,
    keep_alive_s: float = 15.0,
) -> EventStream:
    """An answer made of ``lines``. ``end`` is called when it is over, complete or not, begun or not.

    Raises what the first line fails with, where that comes soon.
    """
    first = asyncio.ensure_future(anext(lines))
    try:
        await unless_gone(request, asyncio.wait({first}, timeout=FIRST_LINE_SECONDS))
        if first.done() and not isinstance(first.exception(), StopAsyncIteration):
            first.result()
    except BaseException:
        first.cancel()
        end()
        raise
    return EventStream(_all(first, lines, wire, keep_alive_s), end, wire.media_type)


async def _all(
    first: asyncio.Future[bytes], lines: AsyncGenerator[bytes, None], wire: Wire, keep_alive_s: float
) -> AsyncGenerator[bytes, None]:
    waiting = first
    try:
        while True:
            done, _ = await asyncio.wait({waiting}, timeout=keep_alive_s if wire.idle else None)
            if not done:
                yield wire.idle
                continue
            try:
                line = waiting.result()
            except StopAsyncIteration:
                break
            except Exception as error:
                yield wire.failed(refusal(error))
                break
            yield line
            waiting = asyncio.ensure_future(anext(lines))
        if wire.last:
            yield wire.last
    finally:
        waiting.cancel()
        await asyncio.wait({waiting})
        await lines.aclose()
