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
from sglite.runtime.serve.gone import watch
from sglite.runtime.serve.responses import NDJSON, SSE, EventStream, ndjson, nobody_there, sse

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
    loop = asyncio.get_running_loop()
    first = loop.create_task(_first(lines))
    gone = watch(request.scope, request.receive)
    try:
        await _either(loop, first, gone)
        if first.done() and not isinstance(first.exception(), StopAsyncIteration):
            first.result()
        elif gone.done():
            raise nobody_there()
    except BaseException:
        first.cancel()
        gone.cancel()
        end()
        raise
    lines = _all(first, lines, wire)
    return EventStream(lines, end, wire.media_type, idle=wire.idle, idle_s=keep_alive_s, gone=gone)


async def _first(lines: AsyncGenerator[bytes, None]) -> bytes:
    return await anext(lines)


async def _either(loop: asyncio.AbstractEventLoop, first: asyncio.Future[bytes], gone: asyncio.Future[None]) -> None:
    """Waits for one of the two, ``FIRST_LINE_SECONDS`` at most."""
    waiting = loop.create_future()

    def wake(_: object = None) -> None:
        if not waiting.done():
            waiting.set_result(None)

    timer = loop.call_later(FIRST_LINE_SECONDS, wake)
    first.add_done_callback(wake)
    gone.add_done_callback(wake)
    try:
        await waiting
    finally:
        timer.cancel()
        first.remove_done_callback(wake)
        gone.remove_done_callback(wake)


async def _all(
    first: asyncio.Future[bytes], rest: AsyncGenerator[bytes, None], wire: Wire
) -> AsyncGenerator[bytes, None]:
    """The lines, and what ends them."""
    try:
        yield await first
        async for line in rest:
            yield line
    except StopAsyncIteration:  # of the first: there is no line
        pass
    except Exception as error:
        yield wire.failed(refusal(error))
    finally:
        await rest.aclose()
    if wire.last:
        yield wire.last
