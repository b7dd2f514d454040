"""Chat templates: messages to the text a model was trained on.

Templates are programs that come with a checkpoint. They run in `template_sandbox`, which bounds what they
may do, and they see plain JSON values only. Rendering follows the published convention (Jinja with
trim_blocks, lstrip_blocks and loop controls; `tojson`, `raise_exception`, `strftime_now`), so results equal
those of the reference libraries.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Template
from jinja2.exceptions import TemplateError as JinjaError

from sglite.runtime.text.calls import CallStyle, style_of, styled
from sglite.runtime.text.default_templates import default_template
from sglite.runtime.text.folder import TokenizerFiles, read_json, read_text
from sglite.runtime.text.template_sandbox import MAX_TEXT, BoundedSandbox, TemplateOverrun
from sglite.runtime.text.turns import TemplateError, TurnTable

__all__ = ["ChatTemplate", "TemplateError", "TemplateTooCostly"]

MAX_TEMPLATE_CHARS = 1 << 20
MAX_DEPTH = 64
_MARK = "qzcontentzq"
_REASONING = ("reasoning_content", "reasoning", "thinking")
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "lookup",
        "description": "Looks it up.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string", "description": "What."}}},
    },
}


class TemplateTooCostly(TemplateError):
    """A template that exceeds the bounds of `template_sandbox`."""

    final = True


class ChatTemplate:
    """One template, or several by name ("default", "tool_use", ...). Safe to use from several threads."""

    def __init__(
        self,
        source: str | Mapping[str, str],
        bos: str | None = None,
        eos: str | None = None,
        *,
        special: Mapping[str, str] | None = None,
    ) -> None:
        """Compile `source`; `bos`, `eos` and `special` are the tokens it may name (`bos_token`, ...).

        Raises `TemplateError` when a template is too large or does not compile.
        """
        sources = {"default": source} if isinstance(source, str) else dict(source)
        if not sources:
            raise TemplateError("no chat template was given; pass its text")
        tokens = {**(special or {}), "bos_token": bos, "eos_token": eos}
        self.source: dict[str, str] = sources
        self._tokens = {name: text for name, text in tokens.items() if text is not None}
        self._sandbox = BoundedSandbox()
        self._templates = {name: self._compile(name, text) for name, text in sources.items()}
        self._turns = TurnTable(self._render_styled)
        self._styles: dict[bool, CallStyle] = {}

    @classmethod
    def load(cls, folder: str | Path, file: str | Path | None = None) -> ChatTemplate | None:
        """The chat template of a checkpoint folder, or None when it has none.

        `chat_template.jinja` (and `additional_chat_templates/*.jinja`) come before `chat_template.json`, and
        that before `tokenizer_config.json`; `file`, where given, before all of them.
        Raises `TemplateError`, or `TokenizerError` for a broken file.
        """
        path = Path(folder)
        files = TokenizerFiles.read(path)
        sources = _read_sources(path, files) if file is None else {"default": _read_given(Path(file))}
        if not sources:
            return None
        named = {name: files.token(name) for name in ("unk_token", "pad_token")}
        special = {name: text for name, text in named.items() if text is not None}
        return cls(sources, files.token("bos_token"), files.token("eos_token"), special=special)

    def with_source(self, source: str) -> ChatTemplate:
        """Another template with the same special tokens. Raises `TemplateError`."""
        return ChatTemplate(source, self._tokens.get("bos_token"), self._tokens.get("eos_token"), special=self._tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt text. `kwargs` are further template variables (`enable_thinking`, ...).

        Arguments of earlier tool calls may be objects or JSON text; the template gets what it takes, see `calls`.
        Raises `TemplateError` when the template refuses the messages, fails or exceeds its bounds, or a message
        is not plain JSON.
        """
        prepared = [
            self._content(_prepare(message, f"messages[{i}]"), f"messages[{i}].content")
            for i, message in enumerate(messages)
        ]
        return self._render_styled(
            prepared,
            tools=_plain(tools, "tools") if tools else None,
            documents=_plain(documents, "documents") if documents else None,
            add_generation_prompt=add_generation_prompt,
            **{name: _plain(value, name) for name, value in kwargs.items()},
        )

    def turn(self, role: str, *, first: bool) -> tuple[str, str]:
        """(prefix, suffix): the text around the content of one turn of `role`.

        `first`: the turn opens the conversation, so the prefix holds everything the template puts before it
        (BOS, a default system text). Rendering a conversation equals joining its turns for every template
        whose turns do not depend on what comes later. Raises `TemplateError` naming the role and why there
        is no such text.
        """
        return self._turns.turn(role, first=first)

    @property
    def default_system(self) -> str | None:
        """The system text the template inserts when the first message is not a system message; None: none."""
        return self._turns.default_system()

    @property
    def generation_prefix(self) -> str:
        """What `add_generation_prompt` appends: the opening of the assistant's turn."""
        return self._turns.generation_prefix()

    @cached_property
    def takes_parts(self) -> bool:
        """Whether the template reads content given as a list of parts (`{"type": "text", "text": ...}`)."""
        return self._shows([{"type": "text", "text": _MARK}])

    @cached_property
    def _takes_text(self) -> bool:
        return self._shows(_MARK)

    def _shows(self, content: Any) -> bool:
        try:
            text = self._render_plain([{"role": "user", "content": content}])
        except TemplateTooCostly:
            raise  # so would the real messages; do not pay twice
        except TemplateError:
            return False
        return _MARK in text and "'type'" not in text and '"type"' not in text

    def _content(self, message: dict[str, Any], where: str) -> dict[str, Any]:
        """`message` with its content in the form the template takes. Parts of text join with a line break.

        Parts that say more than a text stay as they are for a template that shows neither form alone.
        """
        content = message.get("content")
        if isinstance(content, list) and not self.takes_parts and (self._takes_text or not _says_more(content)):
            return {**message, "content": "\n".join(_text_of(part, f"{where}[{i}]") for i, part in enumerate(content))}
        if isinstance(content, str) and not self._takes_text and self.takes_parts:
            return {**message, "content": [{"type": "text", "text": content}]}
        return message

    def call_style(self, with_tools: bool) -> CallStyle:
        """How the template wants earlier calls, in a conversation with tools or without."""
        if with_tools not in self._styles:
            tools = [_PROBE_TOOL] if with_tools else None
            self._styles[with_tools] = style_of(lambda messages: self._render_plain(messages, tools=tools))
        return self._styles[with_tools]

    def _render_styled(self, messages: list[dict[str, Any]], **variables: Any) -> str:
        if any(message.get("tool_calls") for message in messages):
            messages = styled(messages, self.call_style(bool(variables.get("tools"))))
        return self._render_plain(messages, **variables)

    def _compile(self, name: str, source: str) -> Template:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise TemplateError(
                f"chat template {name!r} has {len(source)} characters; {MAX_TEMPLATE_CHARS} are allowed"
            )
        try:
            return self._sandbox.load(source)
        except (JinjaError, SyntaxError, ValueError, TypeError, RecursionError, MemoryError, OverflowError) as error:
            line = getattr(error, "lineno", None)
            where = f" at line {line}" if line else ""
            raise TemplateError(f"chat template {name!r} does not compile{where}: {_reason(error)}") from None

    def _choose(self, tools: Any) -> Template:
        for name in (["tool_use"] if tools else []) + ["default"]:
            if name in self._templates:
                return self._templates[name]
        if len(self._templates) == 1:
            return next(iter(self._templates.values()))
        raise TemplateError(f"no template is named 'default'; the names are {', '.join(sorted(self._templates))}")

    def _render_plain(self, messages: list[dict[str, Any]], **variables: Any) -> str:
        values = {"tools": None, "documents": None, "add_generation_prompt": False, **self._tokens, **variables}
        template = self._choose(values["tools"])
        parts: list[str] = []
        size = 0
        try:
            with self._sandbox.metered():
                for part in _pieces(template, {"messages": messages, **values}):
                    size += len(part)
                    if size > MAX_TEXT:
                        raise TemplateError(f"the chat template renders more than {MAX_TEXT} characters; send less")
                    parts.append(part)
        except TemplateError:
            raise
        except TemplateOverrun as error:
            raise TemplateTooCostly(f"the chat template failed: {_reason(error)}") from None
        except Exception as error:  # a template can raise whatever its expressions raise
            raise TemplateError(f"the chat template failed: {_reason(error)}") from None
        return "".join(parts)


def _pieces(template: Template, values: dict[str, Any]) -> Iterator[str]:
    """As `Template.generate`, but what it makes is gone afterwards without a collection: macros know the context that
    they were made in, which knows them."""
    context = template.new_context(values)
    try:
        yield from template.root_render_func(context)
    finally:
        context.vars.clear()
        context.parent.clear()


def _read_given(file: Path) -> str:
    if not file.is_file():
        raise TemplateError(f"chat_template={str(file)!r} is no file; give the path of a Jinja template")
    return read_text(file)


def _read_sources(path: Path, files: TokenizerFiles) -> dict[str, str]:
    named = {extra.stem: read_text(extra) for extra in sorted(path.glob("additional_chat_templates/*.jinja"))}
    if (path / "chat_template.jinja").is_file():
        return {**named, "default": read_text(path / "chat_template.jinja")}
    stored = read_json(path / "chat_template.json").get("chat_template")
    if stored is None:
        stored = files.tokenizer_config.get("chat_template")
    if isinstance(stored, str):
        return {**named, "default": stored}
    if isinstance(stored, list):
        try:
            return {**named, **{str(entry["name"]): str(entry["template"]) for entry in stored}}
        except (TypeError, KeyError):
            raise TemplateError(f"{path}: chat_template is a list without name and template; repair the file") from None
    if stored is not None:
        raise TemplateError(f"{path}: chat_template is a {type(stored).__name__}; a text or a list was expected")
    known = default_template(files)
    return named if known is None else {"default": known, **named}


def _prepare(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A copy of plain JSON values, tool arguments checked, reasoning under its standard name."""
    plain = _plain(message, where)
    if not isinstance(plain, dict) or not isinstance(plain.get("role"), str):
        raise TemplateError(f"{where}: an object with a role was expected")
    for index, call in enumerate(plain.get("tool_calls") or []):
        function = call.get("function", call) if isinstance(call, dict) else {}
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            _check_arguments(arguments, f"{where}.tool_calls[{index}].function.arguments")
    for name in _REASONING:
        if plain.get(name) is not None:
            return {"thinking": plain[name], **plain, "reasoning_content": plain[name]}
    return plain


def _text_of(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind in ("text", "input_text") and isinstance(part.get("text"), str):
        return str(part["text"])
    raise TemplateError(f"{where}: this model's template takes text only, not {kind!r}; leave the part out")


def _says_more(parts: list[Any]) -> bool:
    return any(isinstance(part, dict) and part.keys() - {"type", "text"} for part in parts)


def _check_arguments(text: str, where: str) -> None:
    try:
        found = json.loads(text) if text.strip() else None
    except (json.JSONDecodeError, RecursionError) as error:
        raise TemplateError(f"{where}: not valid JSON ({error}); send the arguments of the call as JSON") from None
    if found is not None and not isinstance(found, dict):
        raise TemplateError(f"{where} must be a JSON object, got {text.strip()[:40]!r}")


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """A copy made of plain JSON types, so that a template never holds an object with methods of its own."""
    if depth > MAX_DEPTH:
        raise TemplateError(f"{where}: nested deeper than {MAX_DEPTH}; flatten it")
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if type(value) is dict or isinstance(value, Mapping):  # the second takes its time
        return {str(key): _plain(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise TemplateError(f"{where}: a {type(value).__name__} cannot be rendered; send JSON values")


def _reason(error: BaseException) -> str:
    """One line for a message."""
    text = " ".join(str(error).split())
    return text if isinstance(error, JinjaError) and text else f"{type(error).__name__}: {text}"
