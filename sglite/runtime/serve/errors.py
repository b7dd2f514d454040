"""What a client is told when something cannot be done: a status, and one JSON shape for every route.

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}

The message is what matters to a person; ``param`` names the field, ``code`` is for programs.
"""

from __future__ import annotations

from typing import Any

from sglite.runtime.engine.generation import EngineError
from sglite.runtime.sample.params import InvalidParameter

_TYPES = {401: "authentication_error", 404: "not_found_error", 410: "not_found_error", 429: "overloaded_error"}
MAX_MESSAGE = 2_000


class Refused(Exception):
    """A request that is answered with an error. ``retry_after``: seconds after which another try makes sense."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "internal_error")
        error = {"message": str(self)[:MAX_MESSAGE], "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def headers(self) -> dict[str, str]:
        """The headers that belong to it."""
        found = {"Retry-After": str(self.retry_after)} if self.retry_after is not None else {}
        return {**found, "WWW-Authenticate": "Bearer"} if self.status == 401 else found


def refusal(error: Exception) -> Refused:
    """What a client is told about ``error``: what it may have got wrong by name, what we got wrong without detail."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, InvalidParameter):
        return Refused(400, str(error), param=str(error.field))
    if isinstance(error, ValueError):
        return Refused(400, str(error))
    if isinstance(error, (EngineError, RuntimeError)):
        return Refused(500, str(error))
    return Refused(500, f"internal error ({type(error).__name__}); the server's log has more")
