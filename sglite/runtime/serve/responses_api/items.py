"""Items of a conversation, as the Responses API has them, to messages: what templates read.

reasoning, message, function_call, custom_tool_call ...   one assistant's message
function_call_output, custom_tool_call_output             a tool's message
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from sglite.runtime.serve.chat.custom import text_arguments
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.openai.messages import checked
from sglite.runtime.serve.responses_api.tools import flat_name

MAX_ITEMS = 20_000
Message = dict[str, Any]


def messages_of(items: Sequence[Any], where: str = "input") -> list[Message]:
    """Messages in OpenAI's chat form. ``Refused`` names the item that is wrong or not known."""
    if len(items) > MAX_ITEMS:
        raise Refused(400, f"{where} has {len(items)} items; send at most {MAX_ITEMS}", param=where)
    found: list[Message] = []
    for index, item in enumerate(items):
        _add(found, item, f"{where}[{index}]")
    return [_settled(message) for message in found]


def _add(found: list[Message], item: Any, where: str) -> None:
    if not isinstance(item, dict):
        raise Refused(400, f"{where} must be an object", param=where)
    kind = item.get("type", "message")
    if kind == "message":
        message = checked({"role": item.get("role"), "content": item.get("content")}, where)
        if message["role"] == "assistant":
            _said(found, _text(message["content"]))
        else:
            found.append(message)
    elif kind == "reasoning":
        found.append({"role": "assistant", "content": "", "reasoning_content": _thought(item), "tool_calls": []})
    elif kind == "function_call":
        _assistant(found)["tool_calls"].append(_call(item, where))
    elif kind == "custom_tool_call":
        _assistant(found)["tool_calls"].append(_custom_call(item, where))
    elif kind in ("function_call_output", "custom_tool_call_output"):
        found.append(_output(item, where))
    else:
        told = f"{where}.type {str(kind)[:40]!r} is not supported; send messages, function calls and their outputs"
        raise Refused(400, told, param=where)


def _assistant(found: list[Message]) -> Message:
    """The assistant's message that is being put together, or a new one."""
    if not found or found[-1]["role"] != "assistant":
        found.append({"role": "assistant", "content": "", "tool_calls": []})
    return found[-1]


def _said(found: list[Message], text: str) -> None:
    """What the assistant has said: of a turn that has only thought so far, or a turn of its own."""
    last = _assistant(found)
    if last["content"] or last["tool_calls"]:
        last = {"role": "assistant", "content": "", "tool_calls": []}
        found.append(last)
    last["content"] = text


def goes_on(items: Sequence[Any]) -> bool:
    """Whether the last item is a message of the assistant's that is not whole, as vLLM's clients send one to have it
    continued."""
    last = items[-1] if items and isinstance(items[-1], dict) else {}
    begun = last.get("type", "message") == "message" and last.get("role") == "assistant"
    return begun and last.get("status") in ("in_progress", "incomplete")


def _settled(message: Message) -> Message:
    if message["role"] == "assistant" and not message.get("tool_calls"):
        message.pop("tool_calls", None)
    return message


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _thought(item: dict[str, Any]) -> str:
    parts = item.get("content") or item.get("summary") or []
    texts = [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return "\n".join(text for text in texts if isinstance(text, str))


def _call(item: dict[str, Any], where: str) -> dict[str, Any]:
    name, arguments, call_id = item.get("name"), item.get("arguments"), item.get("call_id")
    if not isinstance(name, str) or not isinstance(arguments, str) or not isinstance(call_id, str):
        raise Refused(400, f"{where} must have name, arguments (JSON text) and call_id", param=where)
    return _called(item, where, call_id, name, arguments or "{}")


def _custom_call(item: dict[str, Any], where: str) -> dict[str, Any]:
    name, text, call_id = item.get("name"), item.get("input"), item.get("call_id")
    if not isinstance(name, str) or not isinstance(text, str) or not isinstance(call_id, str):
        raise Refused(400, f"{where} must have name, input (text) and call_id", param=where)
    return _called(item, where, call_id, name, text_arguments(text))


def _called(item: dict[str, Any], where: str, call_id: str, name: str, arguments: str) -> dict[str, Any]:
    namespace = item.get("namespace")
    if namespace is not None and not isinstance(namespace, str):
        raise Refused(400, f"{where}.namespace must be text", param=f"{where}.namespace")
    function = {"name": flat_name(name, namespace), "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def _output(item: dict[str, Any], where: str) -> Message:
    output, call_id = item.get("output"), item.get("call_id")
    if not isinstance(call_id, str):
        raise Refused(400, f"{where}.call_id must name the call", param=f"{where}.call_id")
    if isinstance(output, (dict, int, float, bool)):
        output = msgspec.json.encode(output).decode()
    message = checked({"role": "tool", "content": output}, where)
    return {**message, "tool_call_id": call_id, "content": _text(message["content"])}
