"""Tools: Python functions that a model may call.

    @sgl.tool(timeout=5.0)
    def weather(city: str, days: int = 1) -> dict[str, str]:
        "The weather in a city."

A ``Tool`` stays what it was: a function that can be called. What a model is told of it comes from its signature and
docstring; what a model writes is checked against the signature before the function is called.
"""

from __future__ import annotations

import functools
import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints, overload

from sglite.lang.messages import ToolSpec

OnToolError = Literal["tell_model", "raise"]
T = TypeVar("T")
CHOICES = ("auto", "none", "required")
"""What ``tool_choice`` may be beside a tool's name."""
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_CONTEXT = "sglite tool context"


ToolContext = Annotated[T, _CONTEXT]
"""Annotation of the argument that ``tool_loop(context=...)`` gives and no model sees: ``ctx: ToolContext[Db]``."""


class AnyTool(ABC):
    """What a tool loop can call.

    ``timeout``: seconds a call may take, None: any time. ``on_error``: whether an exception of the tool is told to the
    model or ends the program. ``context``: the argument that the loop's context is given to.
    """

    spec: ToolSpec
    context: str | None = None

    def __init__(self, timeout: float | None, on_error: OnToolError) -> None:
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout={timeout!r}: give a positive number of seconds, or None for no limit")
        if on_error not in ("tell_model", "raise"):
            raise ValueError(f"on_error={on_error!r}: use 'tell_model' or 'raise'")
        self.timeout = timeout
        self.on_error: OnToolError = on_error

    @property
    def name(self) -> str:
        """The name that the model calls."""
        return self.spec.name

    @abstractmethod
    def arguments(self, text: str) -> dict[str, Any]:
        """The arguments that a model wrote as JSON text. ValueError says all that is wrong, in one line."""

    @property
    @abstractmethod
    def in_thread(self) -> bool:
        """Whether ``invoke`` blocks and has to be called in a thread; else it returns an awaitable."""

    @abstractmethod
    def invoke(self, arguments: dict[str, Any]) -> Any:
        """Calls the tool; what it gives for the model, or an awaitable of that."""


class Tool(AnyTool):
    """A function as a tool; see ``tool``. TypeError for a function whose arguments have no schema."""

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        description: str | None = None,
        timeout: float | None = 30.0,
        on_error: OnToolError = "tell_model",
        context: str | None = None,
    ) -> None:
        from sglite.lang.typed_functions import description_of, signature_schema

        super().__init__(timeout, on_error)
        self.function = function
        self.context = _context_of(function) if context is None else _named(function, context)
        self._hidden = () if self.context is None else (self.context,)
        told = description_of(function) if description is None else description
        name = checked_name(name or getattr(function, "__name__", "") or type(function).__name__)
        self.spec = ToolSpec(name, told, signature_schema(function, self._hidden))
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function itself."""
        return self.function(*args, **kwargs)

    def arguments(self, text: str) -> dict[str, Any]:
        """See AnyTool."""
        from sglite.lang.typed_functions import call_arguments

        return call_arguments(self.function, text, self._hidden)

    @property
    def in_thread(self) -> bool:
        """See AnyTool."""
        function = self.function
        called = getattr(type(function), "__call__", None)  # noqa: B004  (the class's: an object may be async to call)
        return not (inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called))

    def invoke(self, arguments: dict[str, Any]) -> Any:
        """See AnyTool."""
        return self.function(**arguments)

    def __repr__(self) -> str:
        return f"<tool {self.name}{inspect.signature(self.function)}>"


@overload
def tool(function: Callable[..., Any]) -> Tool: ...
@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    timeout: float | None = 30.0,
    on_error: OnToolError = "tell_model",
    context: str | None = None,
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(function: Callable[..., Any] | None = None, **options: Any) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Makes a tool of a sync or async function, typed from its signature; as ``@tool`` or ``@tool(...)``.

    ``name``, ``description``: the function's own if None. ``timeout``: seconds a call may take (30), None: any time; a
    sync function that takes longer is left behind in its thread. ``on_error``: "tell_model" or "raise", of exceptions
    and time-outs; what the model itself does wrong is always told to it. ``context``: the argument that is not the
    model's but ``tool_loop(context=...)``'s; one annotated ``ToolContext[...]`` is found without.
    """
    if function is not None:
        return Tool(function, **options)
    return lambda f: Tool(f, **options)


def as_tools(given: Sequence[Any]) -> dict[str, AnyTool]:
    """Tools by name. TypeError for what is none, ValueError for names that appear twice or an empty list."""
    tools: dict[str, AnyTool] = {}
    for one in given:
        if not isinstance(one, AnyTool) and not callable(one):
            raise TypeError(f"{one!r} is no tool; give functions, or what sgl.tool or mcp_tools made")
        made = one if isinstance(one, AnyTool) else Tool(one)
        if made.name in tools:
            raise ValueError(f"two tools are called {made.name!r}; rename one with @sgl.tool(name=...)")
        tools[made.name] = made
    if not tools:
        raise ValueError("a tool loop without tools; use s.gen(), or give it some")
    return tools


def checked_name(name: str) -> str:
    """A name that chat APIs take too; ValueError otherwise."""
    if not _NAME.fullmatch(name) or name in CHOICES:
        raise ValueError(
            f"{name!r} is no name for a tool: 1 to 64 letters, digits, '_' and '-', not one of {CHOICES}; give name"
        )
    return name


def _named(function: Callable[..., Any], context: str) -> str:
    if context not in inspect.signature(function).parameters:
        raise ValueError(f"context={context!r}: {function!r} has no such argument")
    return context


def _context_of(function: Callable[..., Any]) -> str | None:
    """The argument annotated as ``ToolContext``."""
    try:
        hints = get_type_hints(inspect.unwrap(getattr(function, "func", function)), include_extras=True)
    except (NameError, TypeError):  # names that are not defined here are told when the schema is made
        return None
    return next((name for name, hint in hints.items() if _CONTEXT in get_args(hint)[1:]), None)
