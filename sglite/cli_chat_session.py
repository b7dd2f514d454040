"""A conversation: its history, its commands, and how an answer is shown."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from sglite.cli_chat_wire import ChatFailed, ChatServer

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]")
"""What a terminal would take as a command, and no text needs."""
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


class Session:
    """Takes lines. ``settings``: fields of the requests (temperature, ...)."""

    def __init__(
        self, server: ChatServer, system: str | None = None, settings: Mapping[str, Any] | None = None
    ) -> None:
        self._server = server
        self._system = system
        self._settings = dict(settings or {})
        self._turns: list[dict[str, str]] = []
        self._schema: dict[str, Any] | None = None
        self._shows = sys.stdout.isatty()
        self.ended = False
        self._commands: dict[str, tuple[str, Callable[[str], None]]] = {
            "/help": ("shows this", self._help),
            "/system": ("TEXT: sets the system message and begins anew; without TEXT: shows it", self._set_system),
            "/reset": ("forgets the conversation", self._reset),
            "/save": ("FILE: writes the conversation as JSON, in the form of the API", self._save),
            "/json": ("SCHEMA or FILE: answers are JSON of that schema; off: they are free again", self._set_schema),
            "/set": ("NAME VALUE: sets temperature, max_tokens, ...; NAME alone: unsets it", self._set),
            "/exit": ("ends, as Ctrl-D does", self._exit),
        }

    @property
    def model(self) -> str:
        """The model's name."""
        return self._server.model

    @property
    def url(self) -> str:
        """The server."""
        return self._server.url

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as the API takes it."""
        system = [] if self._system is None else [{"role": "system", "content": self._system}]
        return [*system, *self._turns]

    def take(self, line: str) -> bool:
        """A command, or what the user says and the model answers; whether that went well."""
        text = line.rstrip("\r\n")
        name, _, rest = text.strip().partition(" ")
        try:
            if name in self._commands:
                self._commands[name][1](rest.strip())
            elif name.startswith("/") and "/" not in name[1:]:
                raise ValueError(f"there is no command {name}; /help shows them")
            else:
                self._answer(text)
        except (ValueError, OSError) as error:
            self._say(f"error: {error}")
            return False
        return True

    def _answer(self, text: str) -> None:
        """Asks and shows. A turn that fails leaves no trace in the history; one that is stopped leaves what came."""
        fields = dict(self._settings)
        if self._schema is not None:
            schema = {"name": "answer", "schema": self._schema, "strict": True}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        said, usage, finish = [], None, None
        start, first = time.perf_counter(), None
        thinking = False
        try:
            with closing(self._server.answer([*self.messages, {"role": "user", "content": text}], fields)) as pieces:
                for piece in pieces:
                    usage, finish = piece.usage or usage, piece.finish or finish
                    if first is None and (piece.content or piece.reasoning):
                        first = time.perf_counter() - start
                    if piece.reasoning and self._shows:
                        self._write(("" if thinking else _colour(_DIM)) + _harmless(piece.reasoning))
                        thinking = True
                    if piece.content:
                        self._write((_colour(_PLAIN) + "\n" if thinking else "") + self._shown(piece.content))
                        thinking = False
                        said.append(piece.content)
        except KeyboardInterrupt:
            finish = "stopped"
        except ChatFailed:
            self._write(_colour(_PLAIN) + "\n" if said or thinking else "")
            raise
        self._write((_colour(_PLAIN) if thinking else "") + "\n")
        self._turns += [{"role": "user", "content": text}, {"role": "assistant", "content": "".join(said)}]
        if self._shows:
            self._say(_colour(_DIM) + _costs(usage, finish, first, time.perf_counter() - start) + _colour(_PLAIN))
        elif finish in ("stopped", "length"):
            self._say(f"note: the answer is not complete ({finish})")

    def _shown(self, text: str) -> str:
        return _harmless(text) if self._shows else text

    def _help(self, rest: str) -> None:
        self._say("\n".join(f"{name:<8} {said}" for name, (said, _) in self._commands.items()))

    def _set_system(self, rest: str) -> None:
        if not rest:
            self._say(self._system or "there is no system message")
            return
        self._system, self._turns = rest, []

    def _reset(self, rest: str) -> None:
        self._turns = []

    def _save(self, rest: str) -> None:
        if not rest:
            raise ValueError("/save needs a file's name")
        text = json.dumps({"model": self.model, "messages": self.messages}, ensure_ascii=False, indent=2)
        Path(rest).write_text(text + "\n", encoding="utf-8")
        self._say(f"written to {rest}")

    def _set_schema(self, rest: str) -> None:
        if rest == "off":
            self._schema = None
            return
        if not rest:
            raise ValueError("/json needs a schema, a file that has one, or off")
        text = rest if rest.lstrip().startswith("{") else Path(rest).read_text(encoding="utf-8")
        try:
            schema = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the schema is no JSON: {error}") from None
        if not isinstance(schema, dict):
            raise ValueError("the schema must be a JSON object")
        self._schema = schema

    def _set(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        if not name:
            shown = ", ".join(f"{key}={json.dumps(value)}" for key, value in self._settings.items())
            self._say(shown or "nothing is set")
        elif name in ("messages", "model", "stream", "stream_options", "response_format"):
            raise ValueError(f"{name} is the conversation's own and cannot be set")
        elif not value:
            self._settings.pop(name, None)
        else:
            try:
                self._settings[name] = json.loads(value)
            except (ValueError, RecursionError):
                self._settings[name] = value

    def _exit(self, rest: str) -> None:
        self.ended = True

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def _harmless(text: str) -> str:
    """Text that a terminal shows and does not obey."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def _colour(code: str) -> str:
    return code if sys.stdout.isatty() and not os.environ.get("NO_COLOR") else ""


def _costs(usage: Mapping[str, Any] | None, finish: str | None, first: float | None, seconds: float) -> str:
    """One line: tokens, times."""
    parts = [] if finish in (None, "stop") else [str(finish)]
    if usage is not None:
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        count = usage.get("completion_tokens", 0)
        parts += [f"prompt {usage.get('prompt_tokens', 0)} ({cached} cached)", f"answer {count}"]
        forced = (usage.get("sglite") or {}).get("forced_tokens")
        if forced:
            parts.append(f"{forced} of them forced")
        if first is not None and seconds > first and count > 1:
            parts.append(f"{(count - 1) / (seconds - first):.1f} tokens/s")
    if first is not None:
        parts.append(f"first after {first * 1000:.0f} ms")
    return f"[{', '.join(parts)}]"
