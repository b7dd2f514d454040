"""What a ``Mock`` may be told to answer, and what it is asked.

"text"                         a text
Person("Ana", 31), 7, [1, 2]   a value: written the way a gen of that type writes it
Call("add", a=2, b=3)          a call of a tool; a list of calls: several at once
Say("Let me see.", [Call(..)]) a text and calls; an output that was cut off; meta info
Invalid("seven")               an answer that breaks the rules of its request, on purpose
Fail("overloaded")             no answer: the request fails
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from sglite.lang.errors import BackendError
from sglite.lang.ir import Sampling
from sglite.lang.messages import Message, ToolCall, ToolSpec

if TYPE_CHECKING:
    from sglite.lang.typed import TypeSpec


class MockError(BackendError):
    """The script does not fit the program: no answer left, or one that the request could not have got."""


@dataclass(frozen=True, init=False)
class Call:
    """A call of tool ``name``, which may itself have an argument called ``name``."""

    name: str
    arguments: dict[str, Any]

    def __init__(self, name: str, /, **arguments: Any) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "arguments", arguments)

    def __repr__(self) -> str:
        return f"Call({', '.join([repr(self.name), *(f'{k}={v!r}' for k, v in self.arguments.items())])})"


@dataclass(frozen=True)
class Say:
    """An answer in full. ``text``: text, or a value. ``calls``: ``Call``s, or ``ToolCall``s as a model wrote them.

    ``finish``: why the output ended; "length" for one that its token limit cut off, whose text need not be complete.
    ``meta``: added to the meta info, ``output_token_logprobs`` for example.
    """

    text: Any = ""
    calls: Sequence[Any] = ()
    finish: Literal["stop", "length"] = "stop"
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Invalid:
    """``answer`` although it breaks the rules of its request: what a program does about it is to be tested."""

    answer: Any


@dataclass(frozen=True)
class Fail:
    """The request fails with ``error``: an exception, or the message of a BackendError. A streamed one first writes
    the text ``after``."""

    error: BaseException | str
    after: str = ""

    def exception(self) -> BaseException:
        """What is raised."""
        return BackendError(self.error) if isinstance(self.error, str) else self.error


@dataclass(frozen=True, kw_only=True)
class MockRequest:
    """A request as a ``Mock`` gets it.

    ``prompt``: the text before it. ``messages``: the finished turns before it. ``choices``: of a select. ``index``:
    which of ``n`` outputs is asked for. ``node``: its name in the run, "0.1/3" for example.
    """

    kind: Literal["gen", "select"]
    name: str | None
    prompt: str
    messages: list[Message] = field(default_factory=list)
    sampling: Sampling = field(default_factory=Sampling)
    choices: tuple[str, ...] = ()
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: str = "auto"
    spec: TypeSpec | None = None
    node: str = ""
    index: int = 0

    @property
    def type(self) -> Any:
        """The type that the text is read as; None for a gen without one."""
        return None if self.spec is None else self.spec.type

    @property
    def label(self) -> str:
        """The variable, or where there is none, the request's place."""
        return f"the unnamed {self.kind} at {self.node or '?'}" if self.name is None else repr(self.name)


def is_call(value: object) -> bool:
    """Whether ``value`` asks for a tool."""
    return isinstance(value.answer if isinstance(value, Invalid) else value, (Call, ToolCall))


def in_full(answer: Any) -> Say:
    """``answer`` with its calls and its text apart."""
    if isinstance(answer, Say):
        return answer
    if is_call(answer):
        return Say("", [answer])
    if isinstance(answer, (list, tuple)) and answer and all(is_call(one) for one in answer):
        return Say("", list(answer))
    return Say(answer)
