"""What a recorded run consists of: every request with all that decided its answer, and what came back.

    Recording  version, how turns are spelled, [Rendering], [Record]
    Record     kind, node, name, prompt or messages, media, params  ->  outputs and chunks, or scores, or an error

As JSON it is read back by any sglite of the same ``VERSION`` and refused by others. It has the program's prompts and
outputs in it, but nothing of how the back end was reached: no address, no key. Messages of errors, which may quote
them, are cleaned.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import msgspec

from sglite.lang.backends.base import Conversation, GenCall, Output
from sglite.lang.choices import ChoiceScores
from sglite.lang.errors import BackendError, Unsupported
from sglite.lang.ir import Media, Sampling
from sglite.lang.messages import Message, ToolCall, ToolSpec

FORMAT = "sglite recording"
VERSION = 1
_MAX_BYTES = 1 << 30
_SECRETS = (
    re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}"),
    re.compile(r"(?i)\b(api[-_ ]?key|token|password|secret)\b[\"']?\s*[:=]\s*[\"']?[^\s\"',;&]{4,}"),
    re.compile(r"\bsk-[\w*.-]{6,}"),
    re.compile(r"(?<=://)[^/\s@]+@"),
)
_SECRET_NAMES = ("_KEY", "_TOKEN", "_SECRET", "_PASSWORD")
_ERRORS: dict[str, type[Exception]] = {"Unsupported": Unsupported, "ValueError": ValueError}


class _Struct(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    pass


class RecordedOutput(_Struct):
    """An ``Output``; within a stream, what there was of it."""

    text: str
    meta: dict[str, Any] = {}
    tool_calls: list[dict[str, str]] = []

    @staticmethod
    def of(output: Output) -> RecordedOutput:
        """``output`` as JSON has it."""
        calls = [{"id": call.id, "name": call.name, "arguments": call.arguments} for call in output.tool_calls]
        return RecordedOutput(text=output.text, meta=plain(output.meta), tool_calls=calls)

    def output(self) -> Output:
        """The output; its meta info may be changed."""
        return Output(self.text, plain(self.meta), tuple(ToolCall(**call) for call in self.tool_calls))


class RecordedScores(_Struct):
    """A ``ChoiceScores``."""

    inputs: list[Any]
    outputs: list[Any]
    alone: list[Any] | None = None
    cost: dict[str, int] = {}

    @staticmethod
    def of(scores: ChoiceScores) -> RecordedScores:
        """``scores`` as JSON has it."""
        return RecordedScores(
            inputs=plain(scores.input_token_logprobs),
            outputs=plain(scores.output_token_logprobs),
            alone=plain(scores.unconditional_token_logprobs),
            cost=plain(scores.cost),
        )

    def scores(self) -> ChoiceScores:
        """The scores."""
        return ChoiceScores(plain(self.inputs), plain(self.outputs), plain(self.alone), plain(self.cost))


class RecordedError(_Struct):
    """An exception of a request."""

    type: str
    message: str

    @staticmethod
    def of(error: BaseException) -> RecordedError:
        """``error``, its message without secrets."""
        return RecordedError(type=type(error).__name__, message=without_secrets(str(error)))

    def exception(self) -> Exception:
        """ValueError, Unsupported, or else BackendError."""
        return _ERRORS.get(self.type, BackendError)(self.message)


class Record(_Struct):
    """One request. ``messages``: instead of ``prompt`` where the back end takes messages; what of the open turn there
    was is the last of them. ``media``: digests of the images and videos before it.

    ``chunks``: the outputs as they grew, if they were streamed, without the last. ``unfinished``: it was given up.
    """

    kind: Literal["gen", "select"]
    node: str = ""
    name: str | None = None
    prompt: str = ""
    messages: list[Message] | None = None
    media: list[str] = []
    params: dict[str, Any] = {}
    outputs: list[RecordedOutput] = []
    chunks: list[list[RecordedOutput]] = []
    scores: RecordedScores | None = None
    error: RecordedError | None = None
    unfinished: bool = False

    @property
    def text(self) -> str:
        """All that the model was told, as one text."""
        if self.messages is None:
            return self.prompt
        return "\n".join(json.dumps(message, ensure_ascii=False, sort_keys=True) for message in self.messages)

    def key(self, *, strict: bool) -> str:
        """Equal for requests that get the same answers; ``strict``: and have the same place and seed."""
        params = {name: value for name, value in self.params.items() if strict or name != "seed"}
        key = [self.kind, self.name, self.text, self.media, params, self.node if strict else ""]
        return json.dumps(key, sort_keys=True)

    def __str__(self) -> str:
        place = f" at {self.node}" if self.node else ""
        name = "" if self.name is None else f" {self.name!r}"
        return f"{self.kind}{name}{place}"


class RecordedTurn(_Struct):
    """How a turn is spelled, or why it has no spelling."""

    role: str
    first: bool
    prefix: str = ""
    suffix: str = ""
    error: str | None = None


class Rendering(_Struct):
    """What the model's template made of a conversation."""

    messages: list[Message]
    tools: list[dict[str, Any]]
    text: str | None = None
    error: str | None = None


class Recording(_Struct):
    """See the module."""

    format: str
    version: int
    calls_tools: bool
    by_messages: bool
    requests: list[Record]
    default_system: str | None = None
    stop: list[str] = []
    turns: list[RecordedTurn] = []
    renderings: list[Rendering] = []
    media: dict[str, str] = {}
    """What stands for an image or a video in the text, by digest."""


class Place:
    """What a sequence has in it, as far as a request's record tells."""

    def __init__(self, text: str = "", media: tuple[str, ...] = ()) -> None:
        self.text = text
        self.media = media

    def copy(self) -> Place:
        """The same place, which goes its own way."""
        return Place(self.text, self.media)

    def gen(self, call: GenCall, *, by_messages: bool) -> Record:
        """The record of a request for text, as yet without answer."""
        given = {f.name: getattr(call.sampling, f.name) for f in fields(Sampling)}
        params = {name: value for name, value in given.items() if value is not None}
        if call.tools:
            params |= {"tools": [tool.to_dict() for tool in call.tools], "tool_choice": call.tool_choice}
        return self._record("gen", call.name, params, call.hints.node, call.conversation if by_messages else None)

    def select(
        self,
        name: str | None,
        choices: Sequence[str],
        unconditional: bool,
        conversation: Conversation | None,
        node: str,
        *,
        by_messages: bool,
    ) -> Record:
        """The record of a request for scores, as yet without answer."""
        params = {"choices": list(choices), "unconditional": unconditional}
        return self._record("select", name, params, node, conversation if by_messages else None)

    def _record(
        self,
        kind: Literal["gen", "select"],
        name: str | None,
        params: dict[str, Any],
        node: str,
        conversation: Conversation | None,
    ) -> Record:
        record = Record(kind=kind, node=node, name=name, media=list(self.media), params=plain(params))
        if conversation is None:
            record.prompt = self.text
        else:
            turn = {"role": conversation.role, "content": conversation.open_text, "open": True}
            record.messages = plain([*conversation.messages, turn])
        return record


def plain(value: Any) -> Any:
    """A copy of ``value`` of JSON's types; what JSON does not know becomes its ``str``."""
    return json.loads(json.dumps(value, default=str))


def media_digest(media: Media) -> str:
    """What stands for an image or a video in a recording."""
    digest = hashlib.sha256(media.data.encode()).hexdigest()[:32]
    return f"{media.kind} {digest} {media.num_frames or ''}".rstrip()


def tools_as_data(tools: Sequence[ToolSpec]) -> list[dict[str, Any]]:
    """Tools as a ``Rendering`` has them."""
    return [plain(tool.to_dict()) for tool in tools]


def without_secrets(text: str) -> str:
    """``text`` without what looks like a credential, and without the values of environment variables that hold one."""
    for name, value in os.environ.items():
        if name.upper().endswith(_SECRET_NAMES) and len(value) >= 8:
            text = text.replace(value, "[secret]")
    for pattern in _SECRETS:
        text = pattern.sub("[secret]", text)
    return text


def read_recording(source: dict[str, Any] | str | os.PathLike[str]) -> Recording:
    """A recording from ``Recorder.dump`` or from the file of ``Recorder.save``.

    ValueError for one that is of another version, or damaged.
    """
    where = "the recording"
    data: Any = source
    if not isinstance(source, dict):
        path, where = Path(source), str(source)
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"{where}: {path.stat().st_size} bytes are no recording; at most {_MAX_BYTES} are read")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{where} is no recording: {error}; make one with Recorder.save") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"{where} is no recording; make one with Recorder.dump or Recorder.save")
    if data.get("version") != VERSION:
        raise ValueError(f"{where} has version {data.get('version')!r}; this sglite reads {VERSION}: record it again")
    try:
        return msgspec.convert(data, Recording)
    except msgspec.ValidationError as error:
        raise ValueError(f"{where} is damaged: {error}; record it again") from None
