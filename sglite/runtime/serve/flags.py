"""The flags of ``serve``: one for every field of ``EngineArgs`` and ``ServeOptions``, under SGLang's names and vLLM's.

A field's flag is its name with dashes; ``flag_table`` says more about it. No flag has a default of its own: what is not
given is absent, so that ``flag_values`` can tell where each value comes from.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

from sglite.runtime.config import (
    ATTENTION_BACKENDS,
    CPU_KERNELS,
    DEVICES,
    GRAMMAR_BACKENDS,
    LOG_LEVELS,
    POLICIES,
    EngineArgs,
)
from sglite.runtime.serve.flag_advice import ACCEPTED
from sglite.runtime.serve.flag_table import ALIASES, AT_LOAD, COMMON, GROUPS, HELP, OFF
from sglite.runtime.serve.options import ServeOptions

_CHOICES = {
    "log_level": LOG_LEVELS,
    "log_format": ("text", "json"),
    "schedule_policy": POLICIES,
    "grammar_backend": GRAMMAR_BACKENDS,
    "cpu_kernels": CPU_KERNELS,
    "device": DEVICES,
    "attention_backend": ATTENTION_BACKENDS,
}
_SUFFIXES = {"k": 1000, "K": 1024, "m": 1000**2, "M": 1024**2}


@dataclass(frozen=True)
class Flag:
    """A field on the command line. ``hint``: its type, without ``None``."""

    field: str
    hint: Any
    default: Any
    group: str
    help: str

    @property
    def name(self) -> str:
        """``--max-total-tokens``."""
        return "--" + self.field.replace("_", "-")

    @property
    def aliases(self) -> tuple[str, ...]:
        """Other spellings."""
        return ALIASES.get(self.field, ())


@functools.cache
def serve_flags() -> tuple[Flag, ...]:
    """Every flag that stands for a field, by group."""
    found = []
    for owner in (ServeOptions, EngineArgs):
        hints = typing.get_type_hints(owner)
        for item in fields(owner):
            group, text = HELP.get(item.name, ("more", ""))
            found.append(Flag(item.name, _without_none(hints[item.name]), item.default, group, text))
    order = list(GROUPS)
    return tuple(sorted(found, key=lambda flag: order.index(flag.group)))


def add_flags(parser: argparse.ArgumentParser, shown: str = "common") -> None:
    """Adds MODEL and the flags. ``shown``: the group that help is given for, ``common`` or ``all``."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help="folder or hub name; default: the bundled model")
    titles = {**{name: f"{name}: {said}" for name, said in GROUPS.items()}, "common": "flags"}
    groups: dict[str, Any] = {}
    for flag in sorted(
        serve_flags(), key=lambda flag: COMMON.index(flag.field) if flag.field in COMMON else len(COMMON)
    ):
        if shown == "common":
            title, is_shown = "common", flag.field in COMMON
        else:
            title, is_shown = flag.group, shown in ("all", flag.group)
        if title not in groups:
            groups[title] = parser.add_argument_group(titles[title])
        _add(groups[title], flag, is_shown, aliases_shown=shown != "common")
    for name, field in OFF.items():
        parser.add_argument(name, dest=field, action="store_true", default=None, help=argparse.SUPPRESS)
    for name in ACCEPTED:
        parser.add_argument(name, dest="_accepted", action="append_const", const=name, help=argparse.SUPPRESS)


def _add(group: Any, flag: Flag, is_shown: bool, aliases_shown: bool) -> None:
    kind = _kind(flag)
    said = flag.help if "default:" in flag.help else f"{flag.help} (default: {_default(flag)})"
    if aliases_shown and flag.aliases:
        said += f"; also {', '.join(flag.aliases)}"
    shown = said.replace("%", "%%") if is_shown else argparse.SUPPRESS
    group.add_argument(flag.name, dest=flag.field, default=None, help=shown, **kind)
    if flag.aliases:
        group.add_argument(*flag.aliases, dest=flag.field, default=None, help=argparse.SUPPRESS, **kind)


def _default(flag: Flag) -> str:
    if flag.default is None:
        return "the model's" if AT_LOAD.get(flag.field) == "model" else "none"
    if isinstance(flag.default, bool):
        return "on" if flag.default else "off"
    return ", ".join(flag.default) or "none" if isinstance(flag.default, tuple) else str(flag.default)


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    return hint


def _kind(flag: Flag) -> dict[str, Any]:
    """argparse's words for a flag's type."""
    if flag.hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(flag.hint) is Literal:
        return {"choices": typing.get_args(flag.hint)}
    if flag.field in _CHOICES:
        return {"choices": _CHOICES[flag.field]}
    if typing.get_origin(flag.hint) is tuple:
        return {"type": _texts, "action": "extend", "metavar": "NAME[,NAME]"}
    special: dict[str, tuple[Callable[[str], Any], str]] = {
        "port": (_port, "PORT"), "metrics_prefix": (_prefix, "NAME"), "api_key": (_text, "KEY"),
        "admin_key": (_text, "KEY"), "otlp_traces_endpoint": (_url, "URL"),
    }  # fmt: skip
    if flag.field in special:
        read, shown = special[flag.field]
        return {"type": read, "metavar": shown}
    if flag.hint is float and flag.field.endswith("_s"):
        return {"type": _seconds, "metavar": "SECONDS"}
    read = {int: _integer, float: _number}.get(flag.hint, _text)
    return {"type": read, "metavar": {int: "INT", float: "FLOAT"}.get(flag.hint, "TEXT")}


def _text(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("is empty; give one or leave it out")
    return text


def _texts(text: str) -> list[str]:
    """Names with commas between; a JSON list too, as vLLM takes it."""
    if text.startswith("["):
        try:
            names = json.loads(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no JSON list") from None
    else:
        names = [name.strip() for name in text.split(",")]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name; write A,B")
    return [str(name) for name in names]


def _integer(text: str) -> int:
    """A whole number; ``k`` and ``m`` are powers of 1000, ``K`` and ``M`` of 1024, as with SGLang and vLLM."""
    digits, factor = (text[:-1], _SUFFIXES[text[-1]]) if text[-1:] in _SUFFIXES else (text, 1)
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", digits):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(digits) * factor


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if value != value or value in (float("inf"), float("-inf")):
        raise argparse.ArgumentTypeError(f"{text!r} is no finite number")
    return value


def _seconds(text: str) -> float:
    value = _number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is less than no time; give seconds")
    return value


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; give 0 to 65535")
    return int(text)


def _prefix(text: str) -> str:
    if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} cannot begin the name of a metric; give letters, digits and _")
    return text


def _url(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s/]+\S*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no URL; write http://host:4318/v1/traces")
    return text
