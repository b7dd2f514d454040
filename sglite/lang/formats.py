"""How the turns of a conversation are spelled in text.

A back end says which format its model was trained on. The engine derives it from the model's own chat template; for a
server one names it (``RuntimeEndpoint(url, chat_template_name="chatml")``) unless the server tells.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


class ChatFormat(Protocol):
    """Text around each turn. ``default_system``: content of the system turn that precedes a conversation that has
    none. ``stop``: strings that end an assistant turn, added to every gen."""

    @property
    def default_system(self) -> str | None: ...

    @property
    def stop(self) -> tuple[str, ...]: ...

    def turn(self, role: str, *, first: bool) -> tuple[str, str]:
        """Prefix and suffix of a turn of ``role``; ``first``: nothing precedes it. ValueError for unknown roles."""
        ...


@dataclass(frozen=True)
class TableFormat:
    """A format that is a table of role -> (prefix, suffix)."""

    name: str
    turns: Mapping[str, tuple[str, str]]
    default_system: str | None = None
    stop: tuple[str, ...] = field(default=())

    def turn(self, role: str, *, first: bool) -> tuple[str, str]:
        """See ChatFormat."""
        if role not in self.turns:
            known = ", ".join(self.turns)
            raise ValueError(f"chat format {self.name!r} has no role {role!r}; it has {known}")
        return self.turns[role]

    @staticmethod
    def from_dict(data: Mapping[str, Any], name: str = "server") -> TableFormat:
        """Reads ``{"turns": {role: [prefix, suffix]}, "default_system": str | None, "stop": [...]}``."""
        turns = {str(role): (str(pair[0]), str(pair[1])) for role, pair in data["turns"].items()}
        return TableFormat(name, turns, data.get("default_system"), tuple(data.get("stop") or ()))


def _uniform(name: str, prefix: str, suffix: str, stop: str) -> TableFormat:
    turns = {role: (prefix.format(role=role), suffix) for role in ("system", "user", "assistant", "tool")}
    return TableFormat(name, turns, stop=(stop,))


PLAIN = TableFormat("plain", {role: (f"{role.upper()}: ", "\n") for role in ("system", "user", "assistant", "tool")})
"""Readable turns for models without a format of their own."""


@dataclass(frozen=True)
class UntoldFormat:
    """Plain turns for a server that does not say how its model's turns are spelled; warns when they are used."""

    where: str
    default_system: str | None = None
    stop: tuple[str, ...] = ()

    def turn(self, role: str, *, first: bool) -> tuple[str, str]:
        """See ChatFormat."""
        warnings.warn(
            f"{self.where} does not tell its model's chat format; turns are written as plain text. "
            'Pass chat_template_name (for example "chatml") to say which to use.',
            stacklevel=2,
        )
        return PLAIN.turn(role, first=first)


_CHATML = _uniform("chatml", "<|im_start|>{role}\n", "<|im_end|>\n", "<|im_end|>")

_NAMED = (
    PLAIN,
    _CHATML,
    TableFormat("qwen", _CHATML.turns, "You are a helpful assistant.", _CHATML.stop),
    _uniform("llama-3-instruct", "<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>", "<|eot_id|>"),
    TableFormat(
        "vicuna_v1.1",
        {"system": ("", " "), "user": ("USER:", " "), "assistant": ("ASSISTANT:", "</s>")},
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    ),
    TableFormat(
        "gemma-it",
        {
            "user": ("<start_of_turn>user\n", "<end_of_turn>\n"),
            "assistant": ("<start_of_turn>model\n", "<end_of_turn>\n"),
        },
        stop=("<end_of_turn>",),
    ),
)


def named_format(name: str) -> TableFormat:
    """The format called ``name``; ValueError with the known names otherwise."""
    for known in _NAMED:
        if known.name == name:
            return known
    raise ValueError(f"no chat format is called {name!r}; there are {', '.join(f.name for f in _NAMED)}")
