"""Messages and tools of a chat request, checked: what is wrong with one is said with its place."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from sglite.runtime.parse.base import Tool
from sglite.runtime.serve.chat.call import ToolChoice
from sglite.runtime.serve.chat.custom import text_arguments, text_parameters
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.fields import Fields

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
MAX_MESSAGES = 16_384
MAX_TOOLS = 1024
_THOUGHTS = frozenset({"thinking", "reasoning"})
"""Parts of an assistant's message."""
_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
_MEDIA = {
    "image_url": "images", "input_image": "images", "image": "images", "video_url": "videos", "audio_url": "audio",
    "input_audio": "audio", "file": "files", "input_file": "files",
}  # fmt: skip
_OF_TEMPLATE = (
    "add_generation_prompt", "continue_final_message", "chat_template", "chat_template_kwargs", "documents",
)  # fmt: skip
_MAX_NAME = 256
NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
"""Of a function that is declared without any."""


def read_input_ids(fields: Fields) -> list[int] | None:
    """A prompt that is tokens already, in SGLang's word or vLLM's, where there is one."""
    given = [(name, ids) for name in ("input_ids", "prompt_token_ids") if (ids := fields.items(name)) is not None]
    if not given:
        return None
    [(name, found), *more] = given
    if more:
        raise fields.wrong(name, f"and {more[0][0]} say the same thing; give one")
    if not found or not all(type(token) is int for token in found):
        raise Refused(400, f"{name} must be a list of token ids, at least one", param=name)
    for option in _OF_TEMPLATE if name == "prompt_token_ids" else ():
        if fields.raw(option) is not None:
            raise fields.wrong(option, "is for a template, and prompt_token_ids is used without one; leave it out")
    return found


def read_messages(fields: Fields) -> list[dict[str, Any]]:
    """``messages``, at least one."""
    found = fields.objects("messages")
    if not found:
        raise Refused(400, "messages must be a list of at least one message", param="messages")
    if len(found) > MAX_MESSAGES:
        raise Refused(400, f"messages has {len(found)} entries; give at most {MAX_MESSAGES}", param="messages")
    return [checked(message, f"messages[{index}]") for index, message in enumerate(found)]


def checked(message: dict[str, Any], where: str) -> dict[str, Any]:
    """One message."""
    given = message.get("role")
    role = given.lower() if isinstance(given, str) else ""
    if role not in ROLES:
        shown = repr(given[:40]) if isinstance(given, str) else "no text"
        told = f"{where}.role must be one of {', '.join(sorted(ROLES))}, got {shown}"
        raise Refused(400, told, param=f"{where}.role")
    made = message.get("tool_calls")
    if made is None and message.get("function_call") is not None:  # as calls were spelled before there were tools
        made = [{"function": message["function_call"]}]
    calls = _calls(made, f"{where}.tool_calls")
    content = message.get("content")
    if content is None and role != "assistant":
        raise Refused(400, f"{where}.content is missing", param=f"{where}.content")
    found = {name: value for name, value in message.items() if value is not None and name != "function_call"}
    found["role"] = role
    if role == "assistant" and isinstance(content, list):
        content = _with_thoughts(content, found, f"{where}.content")
    elif role in ("tool", "function") and isinstance(content, list) and not all(map(_is_part, content)):
        content = json.dumps(content, ensure_ascii=False)
    found["content"] = "" if content is None else _content(content, f"{where}.content")
    if calls:
        found["tool_calls"] = calls
    else:
        found.pop("tool_calls", None)
    for name in ("name", "tool_call_id"):
        if name in found and not isinstance(found[name], str):
            raise Refused(400, f"{where}.{name} must be text", param=f"{where}.{name}")
    if role == "function":
        found["role"] = "tool"
    return found


def _with_thoughts(content: list[Any], message: dict[str, Any], where: str) -> list[Any]:
    """The parts that are no thoughts; thoughts go where templates look for them."""
    thoughts, others = [], []
    for index, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") not in _THOUGHTS:
            others.append(part)
            continue
        thought = part.get("thinking", part.get("text"))
        if not isinstance(thought, str):
            raise Refused(400, f"{where}[{index}] must have its thought as text in thinking or text", param=where)
        thoughts.append(thought)
    if thoughts:
        message.setdefault("reasoning_content", "".join(thoughts))
    return others


def last_turn(messages: list[dict[str, Any]]) -> str:
    """Text of a last message that the assistant has begun; none: the last is somebody else's."""
    content = messages[-1]["content"] if messages and messages[-1]["role"] == "assistant" else ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _content(content: Any, where: str) -> Any:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Refused(400, f"{where} must be text or a list of parts", param=where)
    return [_part(part, f"{where}[{index}]") for index, part in enumerate(content)]


def _is_part(part: Any) -> bool:
    return isinstance(part, str) or (isinstance(part, dict) and isinstance(part.get("type"), str))


def _part(part: Any, where: str) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise Refused(400, f"{where} must be an object with a type", param=where)
    if kind in _TEXT_PARTS:
        if not isinstance(part.get("text"), str):
            raise Refused(400, f"{where}.text must be text", param=f"{where}.text")
        return {**part, "type": "text"}  # templates read more: languages of a translation, say
    if kind == "refusal" and isinstance(part.get("refusal"), str):
        return {"type": "text", "text": part["refusal"]}
    if kind in _MEDIA:
        raise Refused(400, f"{where}: this model takes text only, no {_MEDIA[kind]}; leave the part out", param=where)
    raise Refused(400, f"{where}.type {kind[:40]!r} is not known; send parts of type text", param=f"{where}.type")


def _calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if calls is None:
        return []
    if not isinstance(calls, list):
        raise Refused(400, f"{where} must be a list", param=where)
    found = []
    for index, call in enumerate(calls):
        if isinstance(call, dict) and call.get("type") == "custom":
            found.append(_custom_call(call, f"{where}[{index}]"))
            continue
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Refused(400, f"{where}[{index}] must have a function with a name", param=where)
        if not isinstance(function.get("arguments", ""), (str, dict)):
            raise Refused(400, f"{where}[{index}].function.arguments must be JSON text", param=where)
        arguments = function.get("arguments") or {}
        found.append({"type": "function", **call, "function": {**function, "arguments": arguments}})
    return found


def _custom_call(call: dict[str, Any], where: str) -> dict[str, Any]:
    custom = call.get("custom")
    name, text = (custom.get("name"), custom.get("input")) if isinstance(custom, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(text, str):
        raise Refused(400, f"{where}.custom must have a name and an input, a text", param=f"{where}.custom")
    others = {key: value for key, value in call.items() if key != "custom"}
    return {**others, "type": "function", "function": {"name": name, "arguments": text_arguments(text)}}


# --- tools ------------------------------------------------------------------------------------------------------


def read_tools(fields: Fields, *, custom: bool = False) -> tuple[tuple[Tool, ...], list[dict[str, Any]]]:
    """``tools``: checked, and as templates read them. ``custom``: also such as take a text, as functions of it."""
    found = fields.objects("tools") or []
    if len(found) > MAX_TOOLS:
        raise Refused(400, f"tools has {len(found)} entries; give at most {MAX_TOOLS}", param="tools")
    tools = tuple(_tool(tool, f"tools[{index}]", custom) for index, tool in enumerate(found))
    names = [tool.name for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise Refused(400, f"tools has two functions called {twice!r}", param="tools")
    return tools, [_as_template_reads(given, tool) for given, tool in zip(found, tools, strict=True)]


def custom_names(fields: Fields) -> frozenset[str]:
    """Names of those among ``tools`` whose input is a text; they have been checked."""
    return frozenset(tool["custom"]["name"] for tool in fields.objects("tools") or [] if tool.get("type") == "custom")


def _tool(tool: dict[str, Any], where: str, with_custom: bool) -> Tool:
    kind = tool.get("type", "function")
    if kind == "custom" and with_custom:
        given = tool.get("custom")
        own = Fields(given if isinstance(given, dict) else {}, f"{where}.custom.")
        parameters, grammar = text_parameters(own)
        named = {"name": own.raw("name"), "description": own.raw("description"), "parameters": parameters}
        return replace(function_tool(named, f"{where}.custom"), grammar=grammar)
    if kind != "function":
        offered = "functions or custom tools" if with_custom else "functions"
        told = f"{where}.type {str(kind)[:40]!r} is not supported; give {offered}"
        raise Refused(400, told, param=f"{where}.type")
    function = tool.get("function")
    if not isinstance(function, dict):
        raise Refused(400, f"{where}.function must be an object", param=f"{where}.function")
    return function_tool(function, f"{where}.function")


def function_tool(function: dict[str, Any], where: str) -> Tool:
    """``{"name", "description", "parameters", "strict"}``."""
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME or name.splitlines() != [name]:
        told = f"{where}.name must be one line of 1 to {_MAX_NAME} characters"
        raise Refused(400, told, param=f"{where}.name")
    if parameters is not None and not isinstance(parameters, dict):
        raise Refused(400, f"{where}.parameters must be a JSON schema, an object", param=f"{where}.parameters")
    for field, kind in (("description", str), ("strict", bool)):
        if function.get(field) is not None and not isinstance(function[field], kind):
            raise Refused(400, f"{where}.{field} has the wrong type", param=f"{where}.{field}")
    return Tool(
        name=name,
        parameters=NO_PARAMETERS if parameters is None else parameters or None,
        description=function.get("description") or "",
        strict=bool(function.get("strict")),
    )


def _as_template_reads(given: dict[str, Any], tool: Tool) -> dict[str, Any]:
    """Templates know type, name, description and parameters; absent ones as they were meant."""
    said = given["function"] if given.get("type") != "custom" else {"name": tool.name, "parameters": tool.parameters}
    function = {k: v for k, v in said.items() if v is not None and k != "strict"}
    function.setdefault("description", tool.description)
    function.setdefault("parameters", {"type": "object", "properties": {}})
    return {"type": "function", "function": function}


def read_choice(fields: Fields, tools: tuple[Tool, ...]) -> ToolChoice:
    """``tool_choice``; without tools there is nothing to choose."""
    value = fields.raw("tool_choice")
    if value is None:
        return ToolChoice("auto" if tools else "none")
    names = [tool.name for tool in tools]
    if isinstance(value, str):
        if value not in ("none", "auto", "required"):
            raise fields.wrong("tool_choice", "must be none, auto, required or a function")
        if value != "none" and not tools:
            raise Refused(400, f"tool_choice {value!r} needs tools; leave it out", param="tool_choice")
        return ToolChoice(value)  # type: ignore[arg-type]
    return named_choice(value, names, "tool_choice")


def named_choice(value: Any, names: list[str], where: str) -> ToolChoice:
    """``{"type": "function", "function": {"name"}}``, or ``custom`` in place of ``function``, also with the name beside
    the type; or several to choose from: ``{"type": "allowed_tools", "allowed_tools": {"mode", "tools"}}``, also with
    these beside the type."""
    if not isinstance(value, dict) or value.get("type") != "allowed_tools":
        return ToolChoice("required", _name_in(value, names, where))
    allowed = value.get("allowed_tools", value)
    fields = Fields(allowed if isinstance(allowed, dict) else {}, f"{where}.")
    mode, tools = fields.one_of("mode", ("auto", "required")), fields.items("tools")
    if mode is None or not tools:
        raise Refused(400, f"{where} must have a mode, auto or required, and tools, at least one", param=where)
    among = tuple(_name_in(tool, names, f"{where}.tools[{index}]") for index, tool in enumerate(tools))
    return ToolChoice("required" if mode == "required" else "auto", among=among)


def _name_in(value: Any, names: list[str], where: str) -> str:
    function = value.get("function", value.get("custom", value)) if isinstance(value, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise Refused(400, f"{where} must be none, auto, required or name a function", param=where)
    if name not in names:
        raise Refused(400, f"Tool {name[:80]!r} not found in tools list; {where} must name one of them", param=where)
    return name
