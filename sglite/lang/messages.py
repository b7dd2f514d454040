"""Conversations as data: messages, the tools a model may call, and its calls. Shapes are the OpenAI chat API's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
"""``{"role": ..., "content": ...}``; an assistant's may have ``tool_calls`` and ``reasoning_content``, a tool's has
``tool_call_id`` and ``name``."""


@dataclass(frozen=True)
class ToolSpec:
    """A tool as a model is told of it. ``parameters``: JSON Schema of an object, one property an argument."""

    name: str
    description: str
    parameters: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The entry of ``tools`` in the OpenAI chat API."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}

    def __hash__(self) -> int:
        return hash((self.name, self.description))


@dataclass(frozen=True)
class ToolCall:
    """A model's wish to call ``name``. ``arguments``: JSON text as the model wrote it, valid or not."""

    id: str
    name: str
    arguments: str

    def to_dict(self) -> dict[str, Any]:
        """The entry of ``tool_calls`` in an assistant's message."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}
