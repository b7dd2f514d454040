"""The assistant's turns of a tool loop as a back end gives them: with calls apart, or written into the text."""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sglite.lang.backends.base import Backend
from sglite.lang.messages import Message, ToolCall, ToolSpec
from sglite.lang.tool_formats import Generic, ToolFormat, detect, named_tool_format
from sglite.lang.tool_rules import Answer, Rules

if TYPE_CHECKING:
    from sglite.lang.typed import TypeSpec

_ONE_CALL = " (Only the first of your {} calls was made. Call one tool at a time.)"


@dataclass(frozen=True)
class Reply:
    """A turn that has ended. ``value``: what a typed gen read from it; ``cut``: a token limit ended it; ``remark``:
    what the model is told beside its calls' results."""

    content: str
    calls: tuple[ToolCall, ...]
    message: Message
    value: Any = None
    reasoning: str = ""
    tokens: int = 0
    cut: bool = False
    remark: str = ""


class Turns(ABC):
    """How turns are asked for, read and answered. ``told``: the tools that the prompt or the request tells of;
    ``note``, ``preface``: text that does it instead, in the prompt or as a turn before the first."""

    told: tuple[ToolSpec, ...] = ()
    note = ""
    preface = ""

    @abstractmethod
    def rules(self, choice: str, several: bool, retries: int) -> Rules:
        """Arguments of the turn's gen."""

    @abstractmethod
    def read(self, value: Any, raw: str, meta: dict[str, Any], call_id: str) -> Reply:
        """A turn that has ended; its calls get ids that begin with ``call_id``, where they have none."""

    @abstractmethod
    def value(self, reply: Reply) -> Any:
        """What an answer says. ValueError if it is not of the loop's type."""

    @abstractmethod
    def shown(self, text: str) -> str:
        """What may be shown of the beginning of a turn."""

    @abstractmethod
    def content(self, text: str) -> str:
        """What is said in a whole turn."""

    def result(self, call: ToolCall, content: str) -> Message:
        """The message that tells of a call's result."""
        return {"role": "tool", "tool_call_id": call.id, "name": call.name, "content": content}


async def turns_of(backend: Backend, format: Any, type: Any, specs: tuple[ToolSpec, ...]) -> Turns:
    """How ``backend`` takes turns; ``format``: a name or a format, None: found out."""
    spec: TypeSpec | None = None
    if type is not str:
        from sglite.lang.typed import type_spec

        spec = type_spec(type)
    if backend.calls_tools and format is None:
        return NativeTurns(spec, specs)
    if isinstance(format, str):
        format = named_tool_format(format)
    if backend.tool_format is None:
        backend.tool_format = await asyncio.to_thread(_found_out, backend)
    templated, found = backend.tool_format
    return WrittenTurns(format or found, spec, specs, templated=templated)


def _found_out(backend: Backend) -> tuple[bool, ToolFormat]:
    """Whether a template writes the turns, and how calls are written. May block."""
    if backend.render([{"role": "user", "content": "x"}], ()) is None:
        return False, Generic()
    return True, detect(backend.render)


class NativeTurns(Turns):
    """The back end calls tools itself."""

    def __init__(self, spec: TypeSpec | None, specs: tuple[ToolSpec, ...]) -> None:
        self.told = specs
        self._spec = spec

    def rules(self, choice: str, several: bool, retries: int) -> Rules:
        """See Turns. An answer of a type is read, and asked for again, as that of any typed gen."""
        return {"type": None} if self._spec is None else {"type": self._spec, "retries": retries}

    def read(self, value: Any, raw: str, meta: dict[str, Any], call_id: str) -> Reply:
        """See Turns."""
        calls = tuple(
            ToolCall(call["id"] or f"{call_id}_{i}", call["function"]["name"], call["function"]["arguments"])
            for i, call in enumerate(meta.get("tool_calls") or ())
        )
        reasoning = str(meta.get("reasoning_content") or "")
        message = _message(raw, calls, reasoning)
        return Reply(raw, calls, message, value, reasoning, _tokens(meta), _is_cut(meta))

    def value(self, reply: Reply) -> Any:
        """See Turns."""
        return reply.value

    def shown(self, text: str) -> str:
        """See Turns."""
        return text

    content = shown


class WrittenTurns(Turns):
    """The model writes calls into its text."""

    def __init__(
        self, format: ToolFormat, spec: TypeSpec | None, specs: tuple[ToolSpec, ...], *, templated: bool
    ) -> None:
        note = format.note(specs)
        self.told = () if note else specs
        self.note, self.preface = (note, "") if templated else ("", note)
        self._format = format
        self._spec = spec
        self._specs = specs
        self._answer = Answer() if spec is None else Answer(spec.regex, spec.json_schema)

    def rules(self, choice: str, several: bool, retries: int) -> Rules:
        """See Turns."""
        return {"type": None, **self._format.rules(self._specs, choice, several, self._answer)}

    def read(self, value: Any, raw: str, meta: dict[str, Any], call_id: str) -> Reply:
        """See Turns. Where a call is no JSON, templates could not write it: the turn is then kept as its text."""
        turn = self._format.read(raw)
        kept = turn.calls if self._format.several else turn.calls[:1]
        calls = tuple(ToolCall(f"{call_id}_{i}", call.name, call.arguments) for i, call in enumerate(kept))
        if self._format.note(self._specs) or not all(_is_json(call.arguments) for call in kept):
            message = _message(raw, (), "")
        else:
            message = _message(turn.content, calls, turn.reasoning)
        remark = _ONE_CALL.format(len(turn.calls)) if len(kept) < len(turn.calls) else ""
        return Reply(turn.content, calls, message, value, turn.reasoning, _tokens(meta), _is_cut(meta), remark)

    def value(self, reply: Reply) -> Any:
        """See Turns."""
        if self._spec is None:
            return reply.content
        return self._spec.parse(reply.content)

    def shown(self, text: str) -> str:
        """See Turns."""
        return self._format.shown(text)

    def content(self, text: str) -> str:
        """See Turns."""
        return self._format.read(text).content

    def result(self, call: ToolCall, content: str) -> Message:
        """See Turns. Templates that do not tell of tools have no turn for their results."""
        if self._format.note(self._specs):
            return {"role": "user", "content": f"Result of {call.name}: {content}"}
        return super().result(call, content)


def _message(content: str, calls: Sequence[ToolCall], reasoning: str) -> Message:
    message: Message = {"role": "assistant", "content": content}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [call.to_dict() for call in calls]
    return message


def _tokens(meta: dict[str, Any]) -> int:
    count = meta.get("completion_tokens")
    return int(count) if isinstance(count, (int, float)) else 0


def _is_cut(meta: dict[str, Any]) -> bool:
    reason = meta.get("finish_reason")
    return isinstance(reason, dict) and reason.get("type") == "length"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
