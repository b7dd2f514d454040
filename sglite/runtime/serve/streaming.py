"""Streamed answers: a bad request is refused before they begin, a silent one is kept alive, a failed one says so.

The answer begins with its first line, so that what is wrong with a request is an HTTP error and not an event; one that
takes long to begin is answered before.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from sglite.runtime.serve.errors import OLLAMA, Refused, refusal
from sglite.runtime.serve.responses import NDJSON, SSE, EventStream, ndjson, sse

FIRST_LINE_SECONDS = 2.0
"""How long an answer waits for its first line."""


@dataclass(frozen=True)
class Wire:
    """How a stream is spelled: its media type, how it ends, what is said when nothing happens or all went wrong."""

    media_type: str
    failed: Callable[[Refused], bytes]
    last: bytes = b""
    idle: bytes = b""


OPENAI = Wire(SSE, lambda refused: sse(refused.event()), b"data: [DONE]\n\n", b": keep-alive\n\n")
"""Server-sent events that end with ``[DONE]``."""
LINES = Wire(NDJSON, lambda refused: ndjson(refused.body(OLLAMA)))
"""One JSON object a line."""


def stream(
    lines: AsyncGenerator[bytes, None],
    end: Callable[[], None],
    wire: Wire = OPENAI,
    keep_alive_s: float = 15.0,
) -> EventStream:
    """An answer made of ``lines``. ``end`` is called when it is over, complete or not.

    What the first line fails with, where that comes soon, it raises when it is called.
    """
    return EventStream(
        lines,
        end,
        wire.media_type,
        failed=lambda error: wire.failed(refusal(error)),
        last=wire.last,
        idle=wire.idle,
        idle_s=keep_alive_s,
        first_s=FIRST_LINE_SECONDS,
    )
