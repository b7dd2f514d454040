"""Whether the server can be used, for whoever routes requests to it; none of it waits for the engine but one.

    /health            the engine runs and was heard of lately: restart the server if not
    /ready             and it would take up a request now: send requests elsewhere if not
    /health_generate   one token comes out of the model

Answers 200 or, with the reason, 503. ``/ping`` and ``/v1/health`` are other names of ``/health``.
"""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from sglite.runtime.engine.generation import Generation
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.responses import json_response, unless_gone
from sglite.runtime.serve.serving import Access, Route, Serving

_CHECK_SECONDS = 30.0


class HealthRoutes:
    """The handlers."""

    def __init__(self, serving: Serving) -> None:
        self._engine = serving.engine
        self._patience_s = serving.options.heartbeat_timeout_s

    def routes(self) -> list[Route]:
        """See the module."""
        read = ("GET",)
        return [
            *(Route(path, read, self.health, Access.OPEN) for path in ("/health", "/v1/health")),
            Route("/ping", ("GET", "POST"), self.health, Access.OPEN),
            Route("/ready", read, self.ready, Access.OPEN),
            Route("/health_generate", read, self.health_generate),
        ]

    async def health(self, request: Request) -> Response:
        """Whether the engine runs and was heard of within ``heartbeat_timeout_s``."""
        return _answer(*self._health())

    async def ready(self, request: Request) -> Response:
        """Whether a request would be taken up now: healthy, not paused, room in the queue."""
        status, reason = self._health()
        statistics = self._engine.load().statistics
        waiting, most = statistics.get("num_waiting", 0), self._engine.args.max_queued_requests
        if not reason and statistics.get("paused", False):
            status, reason = "paused", "generation is paused until /continue_generation"
        elif not reason and waiting >= most:
            status, reason = "full", f"{waiting} requests wait, which is all that may"
        return _answer(status, reason)

    def _health(self) -> tuple[str, str]:
        """A word, and the reason if it is a bad one."""
        health = self._engine.health()
        if health.state != "running":
            return health.state, health.reason
        if health.age_s > self._patience_s:
            return "stalled", f"the engine was last heard of {health.age_s:.1f} s ago"
        return "ok", ""

    async def health_generate(self, request: Request) -> Response:
        """One token from the model, or one vector from a model that makes no text."""
        generation: Generation | None = None
        try:
            pool = None if self._engine.config.generates else "last"
            sampling = {"max_new_tokens": 1 if pool is None else 0, "temperature": 0.0}
            generation = self._engine.submit([0], sampling, pool=pool)
            await unless_gone(request, asyncio.wait_for(generation.wait(), _CHECK_SECONDS))
        except asyncio.TimeoutError:
            raise Refused(503, f"the engine gave no token within {_CHECK_SECONDS:g} s", code="stalled") from None
        except RuntimeError as error:
            raise Refused(503, str(error), code="engine_dead") from None
        finally:
            if generation is not None:
                generation.abort()
        return json_response({"status": "ok"})


def _answer(status: str, reason: str) -> Response:
    return json_response({"status": status, "reason": reason}, 503) if reason else json_response({"status": status})
