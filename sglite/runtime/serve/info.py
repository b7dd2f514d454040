"""What the server says about itself and its model."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from functools import cached_property
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sglite.runtime.engine.engine import Engine
from sglite.runtime.serve.body import check_names, read_object
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.native_schema import RENDER
from sglite.runtime.serve.programs import PROGRAM_VERSION, Programs
from sglite.runtime.serve.responses import json_response
from sglite.runtime.serve.serving import Route, Serving
from sglite.runtime.serve.sessions import Sessions
from sglite.runtime.text.chat_template import TemplateError
from sglite.version import __version__

_ROLES = ("system", "user", "assistant", "tool")
_RENDER_FIELDS = ("messages", "tools", "add_generation_prompt", "chat_template_kwargs")
_SECRETS = ("api_key", "admin_key")


class Info:
    """Handlers of the routes about server and model."""

    def __init__(self, serving: Serving, programs: Programs, sessions: Sessions) -> None:
        self._serving = serving
        self._engine = serving.engine
        self._in_flight = serving.in_flight
        self._programs = programs
        self._sessions = sessions

    def routes(self) -> list[Route]:
        """What this module answers."""
        read, write = ("GET",), ("POST",)
        return [
            Route("/model_info", read, self.model),
            Route("/get_model_info", read, self.model),
            Route("/server_info", read, self.server),
            Route("/get_server_info", read, self.server),
            Route("/version", read, self.version),
            Route("/load", read, self.load),
            Route("/render", write, self.render, body=RENDER),
        ]

    @cached_property
    def _model(self) -> dict[str, Any]:
        engine = self._engine
        return {
            "tokenizer_path": engine.args.tokenizer_path or engine.model_path,
            "is_generation": engine.config.generates,
            "is_embedding": not isinstance(engine.pooling, str),
            "has_image_understanding": False,
            "has_audio_understanding": False,
            "preferred_sampling_params": None,
            **engine.family,
            "context_length": engine.config.context_length,
            "vocab_size": engine.config.vocab_size,
            "chat_format": None if engine.tokenizer is None else chat_format(engine),
            "renders": engine.chat_template is not None,
            "program_version": None if engine.tokenizer is None else PROGRAM_VERSION,
        }

    async def model(self, request: Request) -> Response:
        """``/model_info``, ``/get_model_info``. ``chat_format``: see ``chat_format``."""
        weights = self._engine.weights
        return json_response({**self._model, "model_path": weights.path, "weight_version": weights.version.name})

    async def server(self, request: Request) -> Response:
        """``/server_info``: configuration, counters of engine and server, present load; never a key."""
        found = await asyncio.to_thread(self._engine.get_server_info)
        options, formats = asdict(self._serving.options), self._serving.formats
        own = {
            "tokenizer_path": self._model["tokenizer_path"],
            "tp_size": 1,
            "dp_size": 1,
            "internal_states": [self._state(found["weight_bytes"])],
            "served_model_names": list(self._serving.models.names),
            "tool_call_parser": None if formats.tools is None else formats.tools.name,
            "reasoning_parser": None if formats.reasoning is None else formats.reasoning.name,
            "sampling_defaults": self._serving.sampling_defaults,
            "options": {name: value for name, value in options.items() if name not in _SECRETS},
            "keys": [name for name in _SECRETS if options[name] is not None],
            "program_version": self._model["program_version"],
            "programs": self._programs.counts(),
            "sessions": self._sessions.counts(),
            "num_open_requests": len(self._in_flight),
            "http_requests": dict(self._in_flight.calls),
        }
        return json_response({**found, **own})

    def _state(self, weight_bytes: int) -> dict[str, Any]:
        """What SGLang's benchmarks read of an engine."""
        observer, config = self._serving.observer, self._engine.config
        with observer.lock:
            throughput = observer.tally.throughput(observer.clock())
        return {
            "last_gen_throughput": throughput,
            "effective_max_running_requests_per_dp": config.max_running,
            "memory_usage": {"weight": weight_bytes / 1e9, "token_capacity": config.max_total_tokens},
        }

    async def version(self, request: Request) -> Response:
        """sglite's, in vLLM's shape."""
        return json_response({"version": __version__})

    async def load(self, request: Request) -> Response:
        """How many requests are open, in vLLM's shape."""
        return json_response({"server_load": len(self._in_flight)})

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
