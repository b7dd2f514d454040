"""``tools`` and ``tool_choice``, in the form of the chat layer."""

from __future__ import annotations

from typing import Any

from sglite.runtime.parse.base import Tool
from sglite.runtime.serve.anthropic.blocks_in import wrong
from sglite.runtime.serve.chat.call import ToolChoice
from sglite.runtime.serve.fields import Fields
from sglite.runtime.serve.openai.messages import MAX_TOOLS, function_tool

_READ = frozenset({"type", "name", "description", "input_schema", "strict", "cache_control"})


def read_tools(fields: Fields, ignored: list[str]) -> tuple[tuple[Tool, ...], list[dict[str, Any]]]:
    """The tools, and as templates read them; adds to ``ignored`` what of them has no effect."""
    given = fields.objects("tools") or []
    if len(given) > MAX_TOOLS:
        raise wrong("tools", f"has {len(given)} entries; give at most {MAX_TOOLS}")
    tools = tuple(_tool(tool, f"tools[{index}]") for index, tool in enumerate(given))
    names = [tool.name for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise wrong("tools", f"has two called {twice!a}")
    idle = dict.fromkeys(f"tools.{name}" for tool in given for name in tool if name not in _READ)
    ignored.extend(idle)
    return tools, [_as_template_reads(tool) for tool in tools]


def _tool(tool: dict[str, Any], where: str) -> Tool:
    kind = tool.get("type")
    if kind not in (None, "custom"):
        rule = f"{str(kind)[:60]!a} is not offered: no tools run here, and none are known by name; give an input_schema"
        raise wrong(f"{where}.type", rule)
    if not isinstance(tool.get("input_schema"), dict):
        raise wrong(f"{where}.input_schema", "must be a JSON schema, an object")
    function = {name: tool.get(name) for name in ("name", "description", "strict")}
    return function_tool({**function, "parameters": tool["input_schema"]}, where)


def _as_template_reads(tool: Tool) -> dict[str, Any]:
    parameters = tool.parameters or {"type": "object", "properties": {}}
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


def read_choice(fields: Fields, tools: tuple[Tool, ...]) -> tuple[ToolChoice, bool]:
    """Which tools are to be called, and whether several at once."""
    value = fields.object("tool_choice")
    if value is None:
        return ToolChoice("auto" if tools else "none"), True
    own = Fields(value, "tool_choice.")
    kind = own.one_of("type", ("auto", "any", "tool", "none"))
    if kind is None:
        raise own.wrong("type", "must be auto, any, tool or none")
    parallel = not own.flag("disable_parallel_tool_use")
    if kind in ("any", "tool") and not tools:
        raise wrong("tool_choice", f"of type {kind} needs tools")
    if kind == "tool":
        name = own.text("name")
        if name not in [tool.name for tool in tools]:
            raise own.wrong("name", "is none of the tools")
        return ToolChoice("required", name), parallel
    if kind == "any":
        return ToolChoice("required"), parallel
    return ToolChoice("auto" if kind == "auto" and tools else "none"), parallel
