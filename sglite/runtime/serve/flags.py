"""The command line of ``serve``: one flag for every field of ``EngineArgs``, and those of the server itself."""

from __future__ import annotations

import argparse
import os
import types
import typing
from dataclasses import fields
from typing import Any, Literal

from sglite.runtime.config import LOG_LEVELS, ConfigError, EngineArgs
from sglite.runtime.serve.options import ServeOptions

KEY_VARIABLE = "SGLITE_API_KEY"
"""Environment variable that holds the API key where no flag gives one; the flag shows in process lists."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of ``sglite serve``."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help="folder or hub name; default: the bundled model")
    server = parser.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    server.add_argument("--port", type=_port, default=30000, help="0: any free one, which is printed (default: 30000)")
    server.add_argument("--api-key", help=f"asked of every caller; better given as ${KEY_VARIABLE}")
    server.add_argument("--parent-pid", type=int, help="end when this process, the parent, has ended")
    engine = parser.add_argument_group("engine")
    hints = typing.get_type_hints(EngineArgs)
    for item in fields(EngineArgs):
        names = ["--" + item.name.replace("_", "-")] + (["--model"] if item.name == "model_path" else [])
        kwargs = _kind(item.name, hints[item.name])
        shown = "the model's or none" if item.default is None else item.default
        engine.add_argument(*names, dest=item.name, default=None, help=f"(default: {shown})", **kwargs)


def read_flags(given: argparse.Namespace) -> tuple[EngineArgs, ServeOptions]:
    """What the flags say. ``ConfigError`` names what cannot be."""
    values = {item.name: getattr(given, item.name) for item in fields(EngineArgs)}
    if given.model is not None:
        if values["model_path"] not in (None, given.model):
            raise ConfigError(f"two models are named, {given.model} and {values['model_path']}; give one")
        values["model_path"] = given.model
    args = EngineArgs.of({name: value for name, value in values.items() if value is not None})
    if args.skip_tokenizer_init:
        raise ConfigError("--skip-tokenizer-init: the server's routes take and give text; leave it out")
    key = given.api_key if given.api_key is not None else os.environ.get(KEY_VARIABLE)
    if key == "":
        raise ConfigError("--api-key is empty; give one or leave it out")
    return args, ServeOptions(host=given.host, port=given.port, api_key=key, parent=given.parent_pid)


def _kind(name: str, hint: Any) -> dict[str, Any]:
    """argparse's words for a field's type."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(hint) is Literal:
        return {"choices": typing.get_args(hint)}
    if name == "log_level":
        return {"choices": LOG_LEVELS}
    return {"type": hint, "metavar": hint.__name__.upper()}


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; give 0 to 65535")
    return int(text)
