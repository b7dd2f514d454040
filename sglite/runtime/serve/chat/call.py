"""A turn that is asked for, and what comes of it, in words that no API owns.

OpenAI chat, responses | Ollama | Anthropic  ->  ChatCall  ->  plan  ->  engine  ->  ChatDelta, ChatTurn  ->  API
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import msgspec

from sglite.constrained.spec import ConstraintSpec
from sglite.runtime.engine.presenter import Progress
from sglite.runtime.parse.base import Tool
from sglite.runtime.serve.truncation import Truncation


@dataclass(frozen=True)
class ToolChoice:
    """Which tools a turn may or must call. ``name``: with ``required``, that one only, once. ``among``: names of the
    ones that it may; none: all."""

    mode: Literal["none", "auto", "required"] = "auto"
    name: str | None = None
    among: tuple[str, ...] = ()


class ChatCall(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asks for.

    ``messages`` are in OpenAI's form and checked. ``tool_dicts``: the tools as templates read them. ``sampling``:
    SGLang's sampling parameters, without a constraint. ``options``: of ``Engine.submit``. ``continue_final``: the last
    message is the beginning of the turn asked for. ``input_ids``: in place of what the template makes of the messages.
    ``cut_to_room``: a limit beyond what the context has room for is cut to that, not refused. ``constraint_field``,
    ``limit_fields``: what the client calls ``constraint`` and the limit of tokens, for messages. ``thinking_budget``:
    most tokens of thinking.
    """

    messages: list[dict[str, Any]]
    tools: tuple[Tool, ...] = ()
    tool_dicts: list[dict[str, Any]] = []
    choice: ToolChoice = ToolChoice()
    parallel: bool = True
    constraint: ConstraintSpec | None = None
    constraint_field: str = ""
    parameters_field: str = "function.parameters"
    limit_fields: tuple[str, ...] = ("max_tokens",)
    sampling: dict[str, Any] = {}
    options: dict[str, Any] = {}
    template_kwargs: dict[str, Any] = {}
    chat_template: str | None = None
    add_generation_prompt: bool = True
    continue_final: bool = False
    separate_reasoning: bool = True
    thinking_budget: int | None = None
    input_ids: list[int] | None = None
    truncation: Truncation | None = None
    cut_to_room: bool = False
    rid: str | None = None

    def about(self, messages: list[dict[str, Any]]) -> ChatCall:
        """The same call with other messages, which are checked."""
        return msgspec.structs.replace(self, messages=messages)

    @property
    def idle_stops(self) -> tuple[str, ...]:
        """Parameters of the sampling without effect: stop strings end texts, and a turn of calls has none. They would
        break a call off."""
        if not self.tools or self.choice.mode != "required":
            return ()
        return tuple(name for name in ("stop", "stop_regex") if self.sampling.get(name))


@dataclass(frozen=True)
class CallDelta:
    """News of call ``index`` of a turn: the first has ``id`` and ``name``, later ones more of the arguments."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


class ChatDelta(msgspec.Struct, kw_only=True, dict=True):
    """News of turn ``index`` of a call. ``progress``: the engine's, so far; ``finish``: why it ended, at its end."""

    index: int
    content: str = ""
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()
    progress: Progress
    finish: str | None = None

    @cached_property
    def event(self) -> dict[str, Any]:
        """The engine's event so far, made when it is asked for."""
        return self.progress.event()


@dataclass(kw_only=True)
class CalledTool:
    """A whole call."""

    id: str
    name: str
    arguments: str = ""


@dataclass(kw_only=True)
class ChatTurn:
    """A whole turn."""

    content: str = ""
    reasoning: str = ""
    calls: list[CalledTool] = field(default_factory=list)
    finish: str = "stop"
    progress: Progress = field(default_factory=Progress)
    reasoning_tokens: int = 0

    @cached_property
    def event(self) -> dict[str, Any]:
        """The engine's last event."""
        return self.progress.event()
