"""What an Ollama request says besides its options, in the words of the chat layer."""

from __future__ import annotations

from typing import Any

from sglite.constrained.spec import ConstraintSpec
from sglite.runtime.parse.base import Tool
from sglite.runtime.serve.chat.thinking import thinking_kwargs
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.fields import Fields
from sglite.runtime.serve.openai.messages import checked, read_tools
from sglite.runtime.serve.openai.sampling import schema_format
from sglite.runtime.serve.serving import Serving

_EFFORTS = ("low", "medium", "high", "max")
_TEXT_ONLY = "this model takes text only; leave images out"


def read_messages(fields: Fields) -> list[dict[str, Any]]:
    """``messages`` in OpenAI's form; none: the client only wants the model loaded."""
    found: list[dict[str, Any]] = []
    open_calls: list[dict[str, Any]] = []
    for index, message in enumerate(fields.objects("messages") or []):
        where = f"messages[{index}]"
        if message.get("images"):
            raise Refused(400, f"{where}.images: {_TEXT_ONLY}", param=f"{where}.images")
        plain = {name: value for name, value in message.items() if name not in ("images", "tool_name")}
        if plain.get("role") == "assistant":
            plain.setdefault("content", "")
            plain["tool_calls"] = open_calls = _calls(plain.get("tool_calls"), where)
            open_calls = list(open_calls)
        elif plain.get("role") == "tool":
            plain |= _answered(message, open_calls, where)
        found.append(checked(plain, where))
    return found


def _calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """Calls with ids, which Ollama's older clients have no room for."""
    if calls is None:
        return []
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise Refused(400, f"{where}.tool_calls must be a list of objects", param=f"{where}.tool_calls")
    return [{**call, "id": call.get("id") or f"call_{where[9:-1]}_{index}"} for index, call in enumerate(calls)]


def _answered(message: dict[str, Any], calls: list[dict[str, Any]], where: str) -> dict[str, Any]:
    """Which of the calls before it a tool's message answers: the one it names, else the next one."""
    name = message.get("tool_name") or message.get("name")
    if name is not None and not isinstance(name, str):
        raise Refused(400, f"{where}.tool_name must be text", param=f"{where}.tool_name")
    given = message.get("tool_call_id")
    fits = [
        call for call in calls
        if (call["id"] == given if given else name in (None, (call.get("function") or {}).get("name")))
    ]  # fmt: skip
    if not fits:
        return {} if name is None else {"name": name}
    calls.remove(fits[0])
    return {"tool_call_id": fits[0]["id"], "name": name or (fits[0].get("function") or {}).get("name")}


def read_ollama_tools(fields: Fields, serving: Serving, name: str) -> tuple[tuple[Tool, ...], list[dict[str, Any]]]:
    """``tools``, where the model can call any."""
    given = fields.objects("tools")
    if given and serving.formats.tools is None:
        message = f"{name[:200]!a} does not support tools; the server may be told how it calls: --tool-call-parser"
        raise Refused(400, message, param="tools")
    return read_tools(Fields({"tools": [_with_plain_types(tool) for tool in given or []]}))


def _with_plain_types(tool: dict[str, Any]) -> dict[str, Any]:
    """The Python client writes the types of a union as one text, ``"integer, string"``; JSON Schema has lists."""
    function = tool.get("function")
    parameters = function.get("parameters") if isinstance(function, dict) else None
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    if not isinstance(properties, dict):
        return tool
    plain = {name: _plain_type(schema) for name, schema in properties.items()}
    return {**tool, "function": {**function, "parameters": {**parameters, "properties": plain}}}  # type: ignore[dict-item]


def _plain_type(schema: Any) -> Any:
    kind = schema.get("type") if isinstance(schema, dict) else None
    if not isinstance(kind, str) or "," not in kind:
        return schema
    return {**schema, "type": sorted(one.strip() for one in kind.split(","))}


def read_format(fields: Fields) -> ConstraintSpec | None:
    """``format``: ``json``, or a JSON schema; both are enforced."""
    value = fields.raw("format")
    if value is None or value == "":
        return None
    if value == "json":
        return ConstraintSpec.json_object()
    if not isinstance(value, dict):
        raise fields.wrong("format", "must be 'json' or a JSON schema, an object")
    return schema_format({"schema": value}, "format")


def read_think(fields: Fields, serving: Serving, name: str) -> dict[str, Any]:
    """``think``, as variables of the chat template."""
    value = fields.raw("think")
    if value is None or value == "":
        return {}
    if not isinstance(value, bool) and value not in _EFFORTS:
        raise fields.wrong("think", f"must be true, false or one of {', '.join(_EFFORTS)}")
    if value and serving.formats.reasoning is None:
        raise Refused(400, f"{name[:200]!a} does not support thinking; leave think out", param="think")
    return thinking_kwargs(bool(value), value if isinstance(value, str) else None)


def refuse_images(fields: Fields) -> None:
    """``images`` of ``/api/generate``."""
    if fields.raw("images"):
        raise Refused(400, f"images: {_TEXT_ONLY}", param="images")
