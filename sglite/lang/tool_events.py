"""What a tool loop tells of while it runs, and how it may end without an answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sglite.lang.messages import Message, ToolCall


@dataclass(frozen=True)
class TextDelta:
    """More of what the model says; neither its calls nor its reasoning. In a run that is not streamed: all at once."""

    text: str
    step: int


@dataclass(frozen=True)
class ToolCallEvent:
    """A tool is called with ``arguments``, as they were read."""

    call: ToolCall
    arguments: dict[str, Any]
    step: int


@dataclass(frozen=True)
class ToolResultEvent:
    """A call came back. ``content``: what the model is told; ``value``: what the tool returned; ``error``: why not."""

    call: ToolCall
    content: str
    step: int
    value: Any = None
    error: BaseException | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class RetryEvent:
    """What the model wrote cannot be used: a tool that there is not, arguments that do not fit, an answer of another
    type. It is told ``reason`` and asked again. ``call``: None for an answer."""

    reason: str
    step: int
    call: ToolCall | None = None


@dataclass(frozen=True)
class FinalAnswer:
    """The end. ``text``: the answer as it was written; ``value``: the same as the loop's type."""

    value: Any
    text: str
    step: int
    reasoning: str = field(default="", compare=False)


ToolEvent = TextDelta | ToolCallEvent | ToolResultEvent | RetryEvent | FinalAnswer


class ToolLoopError(RuntimeError):
    """A tool loop ended without an answer. ``messages``: the turns it added, which the program keeps."""

    def __init__(self, message: str, messages: list[Message]) -> None:
        super().__init__(message)
        self.messages = messages


class StepLimitExceeded(ToolLoopError):
    """The model still called tools in the last turn it had."""


class TokenLimitExceeded(ToolLoopError):
    """The model wrote as many tokens as it was given."""


class RetryLimitExceeded(ToolLoopError):
    """The model wrote what cannot be used more often than it may."""


class ToolError(RuntimeError):
    """A tool with ``on_error="raise"`` failed; its exception is the ``__cause__``. ``call``: what the model called."""

    def __init__(self, message: str, call: ToolCall) -> None:
        super().__init__(message)
        self.call = call
