"""What one may ask of a server besides text: flush, abort, pause and go on, its load and its weights.

And the routes of SGLang's that this server cannot carry out, each with what to do instead: they refuse, and say so.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sglite.runtime.serve.auth import require_careful
from sglite.runtime.serve.body import check_names, read_object
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.fields import Fields, ignored_header
from sglite.runtime.serve.native_schema import ABORT, CONTINUE, PAUSE
from sglite.runtime.serve.responses import json_response, unless_gone
from sglite.runtime.serve.serving import Access, Handler, Route, Serving
from sglite.runtime.serve.weights import WeightRoutes
from sglite.version import __version__

PAUSE_MODES = ("abort", "retract", "in_place")
MAX_FLUSH_WAIT = 600.0
_POLL_SECONDS = 0.02
_MAX_NAME = 300
_SECTIONS = {"core", "memory", "queues", "spec", "lora", "disagg", "all"}
_NO_GROUP = "weights come from a folder (/update_weights_from_disk) or in a body (/update_weights_from_tensor)"
_ADAPTERS = "this server has no adapters; merge the adapter into a checkpoint and serve that"
_FIXED = "configuration is settled when the server starts (/server_info shows it); start it with other flags"
_NO_MEMORY = "a server holds its memory until it ends; stop it"
_NO_PROFILE = "use a profiler of the machine's own (py-spy, perf, nsys) on the server's process"

_WRITE, _EITHER = ("POST",), ("GET", "POST")
_REFUSED: tuple[tuple[str, tuple[str, ...], Access, str], ...] = (
    ("/update_weights_from_distributed", _WRITE, Access.ADMIN, _NO_GROUP),
    ("/update_weights_from_ipc", _WRITE, Access.ADMIN, _NO_GROUP),
    ("/init_weights_update_group", _WRITE, Access.ADMIN, _NO_GROUP),
    ("/destroy_weights_update_group", _WRITE, Access.ADMIN, _NO_GROUP),
    ("/load_lora_adapter", _WRITE, Access.ADMIN, _ADAPTERS),
    ("/unload_lora_adapter", _WRITE, Access.ADMIN, _ADAPTERS),
    ("/v1/load_lora_adapter", _WRITE, Access.ADMIN, _ADAPTERS),
    ("/v1/unload_lora_adapter", _WRITE, Access.ADMIN, _ADAPTERS),
    ("/set_internal_state", ("POST", "PUT"), Access.ADMIN, _FIXED),
    ("/release_memory_occupation", _EITHER, Access.ADMIN, _NO_MEMORY),
    ("/resume_memory_occupation", _EITHER, Access.ADMIN, _NO_MEMORY),
    ("/start_profile", _EITHER, Access.ADMIN, _NO_PROFILE),
    ("/stop_profile", _EITHER, Access.ADMIN, _NO_PROFILE),
)
"""Path, methods, who may ask, what to do instead."""


class Admin:
    """Handlers of the routes."""

    def __init__(self, serving: Serving) -> None:
        self._engine = serving.engine
        self._in_flight = serving.in_flight
        self._weights = WeightRoutes(serving)

    def routes(self) -> list[Route]:
        """See the module."""
        return [
            Route("/flush_cache", _EITHER, self.flush_cache, Access.CAREFUL),
            Route("/abort_request", _WRITE, self.abort, body=ABORT),
            Route("/pause_generation", _WRITE, self.pause, Access.ADMIN, PAUSE),
            Route("/continue_generation", _WRITE, self.resume, Access.ADMIN, CONTINUE),
            Route("/v1/loads", ("GET",), self.loads),
            Route("/get_load", ("GET",), self.load),
            *self._weights.routes(),
            *(Route(path, methods, _refuser(path, why), access) for path, methods, access, why in _REFUSED),
        ]

    async def flush_cache(self, request: Request) -> Response:
        """Forgets cached prefixes that no request uses; ``?timeout=``: waits so long for all requests to end before."""
        seconds = _seconds(request.query_params.get("timeout"))
        if seconds is not None:
            await unless_gone(request, self._quiet(seconds))
        return json_response({"success": await asyncio.to_thread(self._engine.flush_cache)})

    async def _quiet(self, seconds: float) -> None:
        """Every request has ended. ``Refused`` if some have not after so many seconds."""
        end = time.monotonic() + seconds
        while len(self._in_flight):
            if time.monotonic() >= end:
                message = f"{len(self._in_flight)} requests are still open after {seconds:g} s; nothing was flushed"
                raise Refused(400, message, param="timeout", code="busy")
            await asyncio.sleep(_POLL_SECONDS)

    async def abort(self, request: Request) -> Response:
        """``{"rid": name}`` or ``{"abort_all": true}``; says how many requests that ended.

        A name is a request's, one of its outputs' (``meta_info.id``), or what those of a batch begin with.
        """
        body = await read_object(request)
        check_names(body, ("rid", "abort_all", "abort_message"), "/abort_request", {})
        fields = Fields(body)
        rid, everything = fields.text("rid", _MAX_NAME) or None, fields.flag("abort_all")
        fields.text("abort_message")
        if (rid is None) == (not everything):
            raise Refused(400, 'send either {"rid": "name"} or {"abort_all": true}', param="rid")
        if everything:
            require_careful(request)
        count = self._in_flight.abort(rid)
        if rid is not None and not count and self._in_flight.has_output(rid):
            self._engine.abort(rid)
            count = 1
        response = json_response({"aborted": count})
        response.headers.update(ignored_header(["abort_message"] if body.get("abort_message") else []))
        return response

    async def pause(self, request: Request) -> Response:
        """Stops computing. ``abort``: requests end; ``retract``: they wait without memory; ``in_place``: with it."""
        body = await read_object(request)
        check_names(body, ("mode",), "/pause_generation", {})
        mode: Any = Fields(body).one_of("mode", PAUSE_MODES) or "abort"
        await asyncio.to_thread(self._engine.pause, mode)
        return json_response({"message": "Generation paused successfully.", "status": "ok"})

    async def resume(self, request: Request) -> Response:
        """Goes on computing."""
        body = await read_object(request)
        check_names(body, ("torch_empty_cache",), "/continue_generation", {})
        Fields(body).flag("torch_empty_cache")
        await asyncio.to_thread(self._engine.resume)
        response = json_response({"message": "Generation continued successfully.", "status": "ok"})
        response.headers.update(ignored_header(body.keys() & {"torch_empty_cache"}))
        return response

    # --- load -------------------------------------------------------------------------------------------------

    async def load(self, request: Request) -> Response:
        """``/get_load``: requests and tokens of the one engine there is."""
        one = await self._load()
        requests = one["num_running_reqs"] + one["num_waiting_reqs"]
        counts = {"num_reqs": requests, "num_waiting_reqs": one["num_waiting_reqs"]}
        return json_response([{"dp_rank": 0, **counts, "num_tokens": one["num_used_tokens"]}])

    async def loads(self, request: Request) -> Response:
        """``?include=core,queues,memory`` and ``?dp_rank=0``: the load of each engine, of which there is one."""
        query = request.query_params
        wanted = {part.strip() for part in query.get("include", "all").split(",")} - {""}
        if wanted - _SECTIONS:
            message = (
                f"include must be among {', '.join(sorted(_SECTIONS))}, got {sorted(wanted - _SECTIONS)[0][:40]!r}"
            )
            raise Refused(400, message, param="include")
        if query.get("format", "json") != "json":
            raise Refused(400, "format must be json; /metrics has Prometheus's", param="format")
        if query.get("dp_rank", "0") != "0":
            raise Refused(400, "dp_rank must be 0: there is one engine", param="dp_rank")
        one = await self._load()
        sections = {"queues": one.pop("queues"), "memory": one.pop("memory")}
        shown = {name: value for name, value in sections.items() if name in wanted or "all" in wanted}
        core = one if wanted & {"core", "all"} else {}
        found = {"dp_rank": 0, "timestamp": time.time(), **core, **shown}
        return json_response({"timestamp": time.time(), "version": __version__, "loads": [found]})

    async def _load(self) -> dict[str, Any]:
        info = await asyncio.to_thread(self._engine.get_server_info)
        page, pages, totals = self._engine.config.page_size, info["pages"], info["totals"]
        used = page * (pages["total"] - info["available_pages"])
        most, running = info["max_total_num_tokens"], info["num_running"]
        prompt = totals["prompt_tokens"]
        return {
            "num_running_reqs": running,
            "num_waiting_reqs": info["num_waiting"],
            "num_used_tokens": used,
            "max_total_num_tokens": most,
            "token_usage": used / most,
            "cache_hit_rate": totals["cached_tokens"] / prompt if prompt else 0.0,
            "utilization": running / self._engine.config.max_running,
            "max_running_requests": self._engine.config.max_running,
            "queues": {"waiting": info["num_waiting"], "grammar": info["num_compiling"]},
            "memory": {"weight_gb": info["weight_bytes"] / 1e9, "token_capacity": most},
        }


def _refuser(path: str, why: str) -> Handler:
    """A handler that says what to do instead. What was sent is not looked at."""

    async def refuse(request: Request) -> Response:
        """Not supported; the answer says what to do instead."""
        raise Refused(400, f"{path} is not supported: {why}", code="not_supported")

    return refuse


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= MAX_FLUSH_WAIT:
        raise Refused(400, f"timeout must be seconds in [0, {MAX_FLUSH_WAIT:g}], got {text[:40]!r}", param="timeout")
    return seconds
