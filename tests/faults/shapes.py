"""What every answer looks like, whatever was asked."""

from __future__ import annotations

from typing import Any

from faults.wire import Reply

BY_DESIGN = 501
"""Status of what a server of this kind does not do at all."""


def wrong_with(path: str, reply: Reply) -> str | None:
    """Why an answer is none that the server may give; ``None``: it may."""
    if reply.status == 0:
        return f"no answer: {reply.body!r}"
    if reply.status >= 500 and reply.status != BY_DESIGN:
        return f"{reply.status}: {reply.body[:300]!r}"
    try:
        if reply.status >= 400:
            return None if is_error(path, reply.json()) else f"{reply.status} of another shape: {reply.body[:300]!r}"
        if reply.streamed:
            return _stream_fault(path, reply)
        if reply.body and reply.headers.get("content-type", "").startswith("application/json"):
            reply.json()
    except ValueError as error:
        return f"{reply.status}, no JSON ({error}): {reply.body[:300]!r}"
    return None


def is_error(path: str, body: Any) -> bool:
    """Whether it is an error as clients of ``path`` know it."""
    if not isinstance(body, dict):
        return False
    error = body.get("error")
    if path.startswith("/api/"):
        return isinstance(error, str) and bool(error) and set(body) == {"error"}
    if path.startswith("/v1/messages"):
        return body.get("type") == "error" and isinstance(error, dict) and bool(error.get("message"))
    return isinstance(error, dict) and set(error) == {"message", "type", "param", "code"} and bool(error["message"])


def _stream_fault(path: str, reply: Reply) -> str | None:
    """An error within a stream that tells of a failure of the server's."""
    for event in reply.events():
        error = event.get("error") if isinstance(event, dict) else None
        if isinstance(error, dict) and error.get("type") in ("internal_error", "api_error"):
            return f"an error in the stream: {error}"
    return None
