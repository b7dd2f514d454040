"""What the server says about itself and its model, and the few things one may ask of it besides text."""

from __future__ import annotations

import asyncio
from functools import cached_property
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sglite.runtime.engine.engine import Engine
from sglite.runtime.serve.body import check_names, read_object
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.in_flight import InFlight
from sglite.runtime.serve.programs import PROGRAM_VERSION, Programs
from sglite.runtime.serve.responses import json_response, unless_gone
from sglite.runtime.serve.serving import Access, Route
from sglite.runtime.text.chat_template import TemplateError

_ROLES = ("system", "user", "assistant", "tool")
_CHECK_SECONDS = 30.0
_ABORT_FIELDS = ("rid", "abort_all", "abort_message")
_RENDER_FIELDS = ("messages", "tools", "add_generation_prompt", "chat_template_kwargs")


class Info:
    """Handlers of the routes about server and model."""

    def __init__(self, engine: Engine, in_flight: InFlight, programs: Programs) -> None:
        self._engine = engine
        self._in_flight = in_flight
        self._programs = programs

    def routes(self) -> list[Route]:
        """What this module answers."""
        read, either, write = ("GET",), ("GET", "POST"), ("POST",)
        return [
            Route("/model_info", read, self.model),
            Route("/get_model_info", read, self.model),
            Route("/server_info", read, self.server),
            Route("/get_server_info", read, self.server),
            Route("/flush_cache", either, self.flush_cache, Access.CAREFUL),
            Route("/abort_request", write, self.abort),
            Route("/render", write, self.render),
            Route("/health", read, self.health, Access.OPEN),
            Route("/health_generate", read, self.health_generate),
        ]

    @cached_property
    def _model(self) -> dict[str, Any]:
        engine = self._engine
        return {
            "model_path": engine.model_path,
            "tokenizer_path": engine.args.tokenizer_path or engine.model_path,
            "is_generation": True,
            "has_image_understanding": False,
            "has_audio_understanding": False,
            "preferred_sampling_params": None,
            "weight_version": "default",
            "context_length": engine.config.context_length,
            "vocab_size": engine.config.vocab_size,
            "chat_format": None if engine.tokenizer is None else chat_format(engine),
            "renders": engine.chat_template is not None,
            "program_version": None if engine.tokenizer is None else PROGRAM_VERSION,
        }

    async def model(self, request: Request) -> Response:
        """``/model_info``, ``/get_model_info``. ``chat_format``: see ``chat_format``."""
        return json_response(self._model)

    async def server(self, request: Request) -> Response:
        """``/server_info``, ``/get_server_info``: configuration, counters of engine and server, present load."""
        found = await asyncio.to_thread(self._engine.get_server_info)
        own = {
            "program_version": self._model["program_version"],
            "programs": self._programs.counts(),
            "num_open_requests": len(self._in_flight),
            "http_requests": dict(self._in_flight.calls),
        }
        return json_response({**found, **own})

    async def flush_cache(self, request: Request) -> Response:
        """Forgets cached prefixes that no request uses."""
        return json_response({"success": await asyncio.to_thread(self._engine.flush_cache)})

    async def health(self, request: Request) -> Response:
        """The server answers; costs nothing."""
        return json_response({"status": "ok"})

    async def health_generate(self, request: Request) -> Response:
        """One token from the model; 503 if none comes."""
        generation = self._engine.submit([0], {"max_new_tokens": 1, "temperature": 0.0})
        try:
            await unless_gone(request, asyncio.wait_for(generation.wait(), _CHECK_SECONDS))
        except asyncio.TimeoutError:
            raise Refused(503, f"the engine gave no token within {_CHECK_SECONDS:g} s") from None
        except RuntimeError as error:
            raise Refused(503, str(error)) from None
        finally:
            generation.abort()
        return json_response({"status": "ok"})

    async def abort(self, request: Request) -> Response:
        """``{"rid": name}`` or ``{"abort_all": true}``; says how many requests that ended."""
        body = await read_object(request)
        check_names(body, _ABORT_FIELDS, "/abort_request", {})
        rid, everything = body.get("rid") or None, body.get("abort_all") or False
        if not isinstance(everything, bool) or not isinstance(rid, str | None) or (rid is None) == (not everything):
            raise Refused(400, 'send either {"rid": "name"} or {"abort_all": true}', param="rid")
        return json_response({"aborted": self._in_flight.abort(rid)})

    async def render(self, request: Request) -> Response:
        """``{"messages", "tools", ...}`` -> ``{"prompt"}``: what the checkpoint's chat template makes of them."""
        body = await read_object(request)
        check_names(body, _RENDER_FIELDS, "/render", {})
        template = self._engine.chat_template
        if template is None:
            raise Refused(400, f"{self._engine.model_path} has no chat template")
        messages, tools = body.get("messages"), body.get("tools")
        extra, opened = body.get("chat_template_kwargs") or {}, body.get("add_generation_prompt", True)
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            raise Refused(400, "messages must be a list of objects, at least one", param="messages")
        if not isinstance(tools, list | None) or not all(isinstance(tool, dict) for tool in tools or []):
            raise Refused(400, "tools must be a list of objects", param="tools")
        if not isinstance(extra, dict) or not isinstance(opened, bool):
            raise Refused(400, "chat_template_kwargs must be an object, add_generation_prompt true or false")
        clash = {"messages", "tools", "documents", "add_generation_prompt"} & extra.keys()
        if clash:
            raise Refused(400, f"chat_template_kwargs must not have {sorted(clash)}", param="chat_template_kwargs")

        def text() -> str:
            return template.render(messages, tools=tools, add_generation_prompt=opened, **extra)

        return json_response({"prompt": await asyncio.to_thread(text)})


def chat_format(engine: Engine) -> dict[str, Any]:
    """How the model's turns are spelled.

    ``turns`` and ``first``: role -> [prefix, suffix] of a later turn and of one that opens the conversation;
    ``refused``: why a role has none; ``default_system``: text of the system turn that the template puts before a
    conversation without one; ``stop``: none, since the server knows the tokens that end a turn.
    """
    later: dict[str, list[str]] = {}
    first: dict[str, list[str]] = {}
    refused: dict[str, str] = {}
    for role in _ROLES:
        for opens, table in ((False, later), (True, first)):
            try:
                table[role] = list(engine.turn(role, opens))
            except TemplateError as error:
                refused[role] = str(error)
    default = None if engine.chat_template is None else engine.default_system
    return {"turns": later, "first": first, "refused": refused, "default_system": default, "stop": []}
