"""``/metrics`` for Prometheus, and ``/v1/requests``: what became of the last requests."""

from __future__ import annotations

import asyncio
import re

from starlette.requests import Request
from starlette.responses import Response

from sglite.runtime.engine.engine import Engine
from sglite.runtime.observe.metrics import MEDIA_TYPE, EngineState, Metrics
from sglite.runtime.observe.timeline import details, summary
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.responses import json_response
from sglite.runtime.serve.serving import Access, Route, Serving

_LISTED = 100
_MAX_LISTED = 1000
_ANSWER = re.compile(r"^(chatcmpl-|cmpl-|msg_|resp_)")
"""What the ids of answers put in front of a generation's."""


class ObserveRoutes:
    """The handlers."""

    def __init__(self, serving: Serving) -> None:
        self._observer = serving.observer
        engine, prefix = serving.engine, serving.options.metrics_prefix
        self._metrics = Metrics(
            serving.observer, lambda: engine_state(engine), prefix=prefix, model=serving.models.name
        )

    def routes(self) -> list[Route]:
        """See the module."""
        return [
            Route("/metrics", ("GET",), self.metrics, Access.OPEN),
            Route("/v1/requests", ("GET",), self.requests, Access.CAREFUL),
            Route("/v1/requests/{request_id}", ("GET",), self.request),
        ]

    async def metrics(self, request: Request) -> Response:
        """Counters, gauges and histograms; see ``docs/operators.md``."""
        return Response(await asyncio.to_thread(self._metrics.text), media_type=MEDIA_TYPE)

    async def requests(self, request: Request) -> Response:
        """The last requests that began generations, newest first; ``?limit=``: how many, 100 unless told."""
        given = request.query_params.get("limit", str(_LISTED))
        if not (given.isascii() and given.isdigit() and len(given) <= 4 and 1 <= int(given) <= _MAX_LISTED):
            raise Refused(400, f"limit must be an integer from 1 to {_MAX_LISTED}, got {given[:20]!r}", param="limit")
        now = self._observer.clock()
        with self._observer.lock:
            found = [summary(one, now) for one in self._observer.timeline.recent(int(given))]
        return json_response({"object": "list", "data": found})

    async def request(self, request: Request) -> Response:
        """One of them, by its ``X-Request-Id``, the id of a generation or that of an answer: what happened when."""
        name = request.path_params["request_id"]
        now, bare = self._observer.clock(), _ANSWER.sub("", name)
        with self._observer.lock:
            exchange = self._observer.timeline.find(name) or self._observer.timeline.find(bare)
            found = None if exchange is None else details(exchange, now)
        if found is None:
            message = f"no request {name[:128]!r} is remembered; only the last few thousand are"
            raise Refused(404, message, param="request_id", code="unknown_request")
        return json_response(found)


def engine_state(engine: Engine) -> EngineState:
    """What is known of the engine without asking it."""
    health, load, config = engine.health(), engine.load(), engine.config
    sizes = {
        "page_size": config.page_size,
        "max_total_num_tokens": config.max_total_tokens,
        "context_length": config.context_length,
    }
    return EngineState(
        up=health.state == "running",
        statistics={**load.statistics, **sizes},
        statistics_age_s=load.age_s,
        heartbeat_age_s=health.age_s,
        restarts=health.restarts,
    )
