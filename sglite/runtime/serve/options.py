"""How to serve: everything that is decided about the server, as opposed to its engine, when it starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Flags of ``sglite serve`` that are not the engine's."""

    host: str = "127.0.0.1"
    port: int = 30000
    """0: any free one."""
    parent: int | None = None
    """Process id whose end ends the server."""

    api_key: str | None = None
    """Asked of every caller, but for the open routes."""
    admin_key: str | None = None
    """Opens the admin routes, which are closed without one."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call; ``*``: any."""

    served_model_name: tuple[str, ...] = ()
    """Names that requests may call the model by, the first shown; none: the model's path."""
    tool_call_parser: str = "auto"
    """Name of a tool format; ``auto``: the checkpoint's; ``none``: calls are not read."""
    reasoning_parser: str = "auto"
    """Name of a reasoning format; ``auto``: the checkpoint's; ``none``: thinking is content."""
    sampling_defaults: Literal["model", "openai"] = "model"
    """What requests get that say nothing of a sampling parameter: what the model recommends, or OpenAI's."""
    trust_request_chat_template: bool = False
    """Requests may bring a chat template, which runs in the sandbox."""

    drain_s: float = 30.0
    """How long requests under way may take to end once the server is told to stop."""
    restart_engine: bool = False
    """Start the engine's process again when it dies."""
    heartbeat_timeout_s: float = 30.0
    """An engine that has not been heard of for so long is not healthy."""
    keep_alive_s: float = 15.0
    """A stream in which nothing happens for so long gets a comment, so that nobody on the way closes it."""
    playground: bool = True
    """Serve the playground at ``/``."""

    metrics_prefix: str = "sglite"
    """Of the names of metrics; ``sglang`` fits the dashboards made for it."""
    otlp_traces_endpoint: str | None = None
    """Where traces are sent to (OTLP over HTTP); ``None``: nowhere."""
    log_format: str = "text"
    """``text`` or ``json``."""
    log_requests: bool = False
    """A log line for each request, without its texts."""
