"""Tools of the Responses API, as functions with one name each: what models know.

function f                ->  f(...)
custom f                  ->  f(input: text)
namespace n { f, ... }    ->  n__f(...), ...
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sglite.runtime.parse.base import Tool
from sglite.runtime.serve.chat.call import ToolChoice
from sglite.runtime.serve.chat.custom import text_parameters
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.fields import Fields
from sglite.runtime.serve.openai.messages import NO_PARAMETERS, function_tool, named_choice


@dataclass(frozen=True)
class Declared:
    """How the client calls a tool."""

    name: str
    namespace: str | None = None
    custom: bool = False
    """Its input is a text."""

    @property
    def flat(self) -> str:
        """How the model calls it."""
        return flat_name(self.name, self.namespace)

    def named(self) -> dict[str, str]:
        """The fields of a call that say whose it is."""
        return {"name": self.name} | ({} if self.namespace is None else {"namespace": self.namespace})


def flat_name(name: str, namespace: str | None) -> str:
    """One name, for the model."""
    return name if namespace is None else f"{namespace}__{name}"


def read_tools(fields: Fields) -> tuple[tuple[Tool, ...], dict[str, Declared]]:
    """The tools, and by their flat names how the client calls them."""
    tools: list[Tool] = []
    declared: dict[str, Declared] = {}
    for tool, where, namespace in _each(fields):
        found, known = _read(tool, where, namespace)
        if found.name in declared:
            raise Refused(400, f"tools has two functions called {found.name!r}", param="tools")
        tools.append(found)
        declared[found.name] = known
    return tuple(tools), declared


def _each(fields: Fields) -> list[tuple[dict[str, Any], str, str | None]]:
    """Tools with their places and namespaces."""
    found: list[tuple[dict[str, Any], str, str | None]] = []
    for index, tool in enumerate(fields.objects("tools") or []):
        if tool.get("type") != "namespace":
            found.append((tool, f"tools[{index}]", None))
            continue
        own = Fields(tool, f"tools[{index}].")
        name = own.text("name", 256)
        if not name:
            raise own.wrong("name", "must be text: the name of the namespace")
        found += [(one, f"tools[{index}].tools[{at}]", name) for at, one in enumerate(own.objects("tools") or [])]
    return found


def _read(tool: dict[str, Any], where: str, namespace: str | None) -> tuple[Tool, Declared]:
    kind = tool.get("type")
    if kind not in ("function", "custom"):
        told = f"{where}.type {str(kind)[:40]!r} is not offered here; give functions, custom tools or namespaces"
        raise Refused(400, told, param=f"{where}.type")
    grammar = None
    if kind == "custom":
        parameters, grammar = text_parameters(Fields(tool, f"{where}."))
        tool = {**tool, "parameters": parameters, "strict": None}
    declared = Declared(function_tool(tool, where).name, namespace, kind == "custom")
    return replace(function_tool({**tool, "name": declared.flat}, where), grammar=grammar), declared


def as_template_reads(tool: Tool) -> dict[str, Any]:
    """A tool in OpenAI's chat form."""
    own = None if tool.parameters is NO_PARAMETERS else tool.parameters
    parameters = own or {"type": "object", "properties": {}}
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


def read_choice(fields: Fields, tools: tuple[Tool, ...]) -> ToolChoice:
    """``tool_choice``; without tools there is nothing to choose."""
    value, names = fields.raw("tool_choice"), [tool.name for tool in tools]
    if value is None or (value == "auto" and tools):
        return ToolChoice("auto" if tools else "none")
    if value in ("auto", "none"):
        return ToolChoice("none")
    if value == "required":
        if not tools:
            raise Refused(400, "tool_choice 'required' needs tools", param="tool_choice")
        return ToolChoice("required")
    if isinstance(value, str):
        raise fields.wrong("tool_choice", "must be none, auto, required or a function")
    return named_choice(value, names, "tool_choice")
