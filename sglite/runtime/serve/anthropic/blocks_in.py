"""Content blocks of a conversation as clients send them, checked: what is wrong with one is said with its place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sglite.runtime.serve.errors import Refused

_TEXT_ONLY = "this model takes text only"
_REASONS = {
    "image": _TEXT_ONLY,
    "document": f"{_TEXT_ONLY}; send what the document says as text",
    "container_upload": "there are no containers",
    "server_tool_use": "there are no tools that run here",
}


def blocks_of(content: Any, where: str) -> list[dict[str, Any]]:
    """The blocks of ``content``, which may be text."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise wrong(where, "must be text or a list of content blocks")
    for index, block in enumerate(content):
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise wrong(f"{where}[{index}]", "must be an object with a type")
    return content


def texts_of(content: Any, where: str) -> list[str]:
    """The texts of content that may have nothing else."""
    return [text_of(block, f"{where}[{index}]") for index, block in enumerate(blocks_of(content, where))]


def text_of(block: dict[str, Any], where: str) -> str:
    """The text of a block, which must be one of text or what a search has found."""
    if block["type"] != "search_result":
        return _plain(block, where)
    inner, at = blocks_of(block.get("content", []), f"{where}.content"), f"{where}.content"
    said = [block.get("title"), block.get("source"), *(_plain(one, f"{at}[{i}]") for i, one in enumerate(inner))]
    return "\n".join(one for one in said if isinstance(one, str) and one)


def _plain(block: dict[str, Any], where: str) -> str:
    kind = block["type"]
    if kind != "text":
        raise wrong(where, f"of type {kind[:60]!a} is not supported here: {_REASONS.get(kind, _TEXT_ONLY)}")
    if not isinstance(block.get("text"), str):
        raise wrong(f"{where}.text", "must be text")
    return str(block["text"])


def thought_of(block: dict[str, Any], where: str) -> str:
    """What a block of thinking says; nothing, where nobody may read it."""
    if block["type"] == "redacted_thinking":
        return ""
    if not isinstance(block.get("thinking"), str):
        raise wrong(f"{where}.thinking", "must be text")
    return str(block["thinking"])


def call_of(block: dict[str, Any], where: str) -> dict[str, Any]:
    """A call of a tool, in OpenAI's form."""
    for name in ("id", "name"):
        if not isinstance(block.get(name), str) or not block[name]:
            raise wrong(f"{where}.{name}", "must be text")
    if not isinstance(block.get("input"), dict):
        raise wrong(f"{where}.input", "must be an object")
    function = {"name": block["name"], "arguments": block["input"]}
    return {"id": block["id"], "type": "function", "function": function}


def result_of(block: dict[str, Any], where: str) -> dict[str, Any]:
    """What a tool gave, in OpenAI's form, which marks no errors: one is marked in its text."""
    name = block.get("tool_use_id", block.get("id"))  # as clients of SGLang's route call it
    if not isinstance(name, str) or not name:
        raise wrong(f"{where}.tool_use_id", "must be text")
    failed = block.get("is_error")
    if failed is not None and not isinstance(failed, bool):
        raise wrong(f"{where}.is_error", "must be true or false")
    content = block.get("content")
    text = joined([] if content is None else texts_of(content, f"{where}.content"))
    if failed and not text.lower().startswith("error"):
        text = f"Error: {text}"
    return {"role": "tool", "tool_call_id": name, "content": text}


def joined(texts: Iterable[str]) -> str:
    """Texts below each other, without the empty ones."""
    return "\n".join(filter(None, texts))


def wrong(where: str, rule: str) -> Refused:
    """The refusal of what is at ``where``."""
    return Refused(400, f"{where} {rule}", param=where)
