"""What a client is told when something cannot be done: a status, and the JSON shape that the route's clients know.

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}, "object": "error", "message": ..., ...}
    {"type": "error", "error": {"type": ..., "message": ...}}              Anthropic's routes
    {"error": ...}                                                         Ollama's

The message is what matters to a person; ``param`` names the field, ``code`` is for programs. SGLang's own clients look
for the same beside ``error``, where ``type`` is the status in words and ``code`` its number. An error within a stream,
or beside other fields, is ``error`` alone.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from sglite.runtime.engine.generation import EngineError, RequestRefused
from sglite.runtime.sample.params import InvalidParameter

_TYPES = {401: "authentication_error", 404: "not_found_error", 410: "not_found_error", 429: "overloaded_error"}
_ANTHROPIC_TYPES = {
    403: "permission_error", 413: "request_too_large", 429: "rate_limit_error", 500: "api_error", 501: "api_error",
    503: "overloaded_error", 504: "timeout_error",
}  # fmt: skip
_ENGINE_STATUS = {"constraint_unsatisfied": 400, "queue_full": 429, "engine_dead": 503}
"""By the code of an engine's failure: what the request asked for, or that another try elsewhere makes sense."""
_RETRY_SECONDS = 1
MAX_MESSAGE = 2_000
OLLAMA = "/api/"
"""What the paths of Ollama's routes begin with."""


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

    def body(self, path: str = "") -> dict[str, Any]:
        """The JSON body, as clients of ``path`` expect it."""
        message = str(self)[:MAX_MESSAGE]
        if path.startswith(OLLAMA):
            return {"error": message}
        if path.startswith("/v1/messages"):
            return {
                "type": "error",
                "error": {"type": _ANTHROPIC_TYPES.get(self.status, self._type), "message": message},
            }
        flat = {"message": message, "type": _status_name(self.status), "param": self.param, "code": self.status}
        return {"object": "error", **flat, **self.event()}

    def event(self) -> dict[str, Any]:
        """The error among other things: in a stream, or in an answer that says more."""
        message = str(self)[:MAX_MESSAGE]
        return {"error": {"message": message, "type": self._type, "param": self.param, "code": self.code}}

    @property
    def _type(self) -> str:
        return _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "internal_error")

    def headers(self) -> dict[str, str]:
        """The headers that belong to it."""
        found = {"Retry-After": str(self.retry_after)} if self.retry_after is not None else {}
        return {**found, "WWW-Authenticate": "Bearer"} if self.status == 401 else found


def _status_name(status: int) -> str:
    """As SGLang and vLLM call it: ``BadRequestError`` of 400."""
    try:
        words = HTTPStatus(status).phrase.replace("Error", "")
    except ValueError:
        words = "Unknown"
    return words.replace(" ", "") + "Error"


def refusal(error: Exception) -> Refused:
    """What a client is told about ``error``: what it may have got wrong by name, what we got wrong without detail."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, InvalidParameter):
        return Refused(400, str(error), param=str(error.field))
    if isinstance(error, (EngineError, RequestRefused)) and error.code in _ENGINE_STATUS:
        status = _ENGINE_STATUS[error.code]
        return Refused(status, str(error), code=error.code, retry_after=None if status == 400 else _RETRY_SECONDS)
    if isinstance(error, ValueError):
        return Refused(400, str(error))
    if isinstance(error, RuntimeError):
        return Refused(500, str(error))
    return Refused(500, f"internal error ({type(error).__name__}); the server's log has more")
