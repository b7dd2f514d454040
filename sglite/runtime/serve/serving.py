"""What every route works with, and what a route is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sglite.runtime.engine.engine import Engine
from sglite.runtime.observe.observer import Observer
from sglite.runtime.parse.detect import Formats, formats_of
from sglite.runtime.serve.in_flight import InFlight
from sglite.runtime.serve.models import Models
from sglite.runtime.serve.observed import observer_of
from sglite.runtime.serve.options import ServeOptions
from sglite.runtime.serve.sampling_defaults import checked_defaults, with_defaults

Handler = Callable[[Request], Awaitable[Response]]


class Access(Enum):
    """Who may call a route once keys are set."""

    OPEN = "open"
    """Anybody: says nothing about the model or its users."""
    NORMAL = "normal"
    """Who has the API key, or the admin key."""
    CAREFUL = "careful"
    """Who has the admin key where one is set, else who has the API key: it costs others time, not correctness."""
    ADMIN = "admin"
    """Who has the admin key; closed where none is set."""


@dataclass(frozen=True)
class Route:
    """A path, its methods, who answers and who may ask."""

    path: str
    methods: tuple[str, ...]
    handler: Handler
    access: Access = Access.NORMAL
    body: dict[str, Any] | None = None
    """JSON Schema of the request's body, for ``/openapi.json``."""


@dataclass(frozen=True, kw_only=True)
class Serving:
    """One server's parts."""

    engine: Engine
    options: ServeOptions
    in_flight: InFlight
    observer: Observer
    models: Models
    formats: Formats
    sampling_defaults: dict[str, float]

    @cached_property
    def shown_special(self) -> dict[tuple[bool, bool], tuple[int, ...]]:
        """Ids of special tokens that parsers have to see: of turns with calls or without, with thoughts or without."""
        tokenizer = self.engine.tokenizer
        if tokenizer is None:
            return {}
        return {
            (tools, thinks): Formats(
                tools=self.formats.tools if tools else None, reasoning=self.formats.reasoning if thinks else None
            ).shown_special(tokenizer)
            for tools in (False, True)
            for thinks in (False, True)
        }

    def sampling(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The sampling parameters of a request to an API of somebody else's, with the defaults of this server."""
        return with_defaults(self.sampling_defaults, asked)

    @cached_property
    def capacity(self) -> int:
        """Tokens of the longest sequence, prompt and output together."""
        return min(self.engine.config.context_length, self.engine.config.max_total_tokens)

    @classmethod
    def of(cls, engine: Engine, options: ServeOptions) -> Serving:
        """Settles what the options leave to the checkpoint. ``ConfigError`` for what does not fit it."""
        names = options.tool_call_parser, options.reasoning_parser
        models = Models(engine.model_path, options.served_model_name)
        observer, config = observer_of(options, models.name), engine.config
        limit = config.max_running + engine.args.max_queued_requests
        return cls(
            engine=engine,
            options=options,
            in_flight=InFlight(limit, observer, min(config.context_length, config.max_total_tokens)),
            observer=observer,
            models=models,
            formats=formats_of(engine.chat_template, engine.tokenizer, *names),
            sampling_defaults=defaults_of(engine, options),
        )


def defaults_of(engine: Engine, options: ServeOptions) -> dict[str, float]:
    """Sampling parameters of requests that say nothing of them. ``ConfigError`` for what cannot be applied."""
    return checked_defaults(engine.recommended_sampling) if options.sampling_defaults == "model" else {}
