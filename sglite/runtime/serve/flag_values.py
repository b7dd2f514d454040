"""Which value counts, and where it comes from: flag, then environment, then ``--config`` file, then default."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from sglite.runtime.config import ConfigError, EngineArgs
from sglite.runtime.serve.flag_advice import ACCEPTED
from sglite.runtime.serve.flag_table import AT_LOAD, GROUPS, SECRET, VARIABLES
from sglite.runtime.serve.flags import serve_flags
from sglite.runtime.serve.options import ServeOptions


@dataclass(frozen=True)
class Settled:
    """What to serve, how, and the origin of each value that is no default, by field."""

    args: EngineArgs
    options: ServeOptions
    origins: Mapping[str, str]

    def value(self, field: str) -> Any:
        """Of a field of either."""
        return getattr(self.args if hasattr(self.args, field) else self.options, field)


def settle(
    given: argparse.Namespace,
    file: argparse.Namespace | None = None,
    file_name: str = "",
    environment: Mapping[str, str] | None = None,
) -> Settled:
    """Puts flags (``given``), ``environment`` and ``file`` together. ``ConfigError`` names what cannot be."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    variables = {name: (environment or {}).get(variable) for name, variable in VARIABLES.items()}
    for flag in serve_flags():
        name = flag.field
        found = (
            (getattr(given, name), "flag"),
            (variables.get(name), f"environment {VARIABLES.get(name)}"),
            (None if file is None else getattr(file, name), f"file {file_name}"),
        )
        for value, origin in found:
            if value is not None:
                values[name] = tuple(value) if isinstance(value, list) else value
                origins[name] = origin
                break
    if given.model is not None:
        named = getattr(given, "model_path", None)
        if named not in (None, given.model):
            raise ConfigError(f"two models are named, {given.model} and {named}; give one")
        values["model_path"], origins["model_path"] = given.model, "flag"
    for name in SECRET:
        if values.get(name) == "":
            raise ConfigError(f"{VARIABLES[name]} is empty; set it to a key or unset it")
    own = {item.name for item in fields(ServeOptions)}
    args = EngineArgs.of({name: value for name, value in values.items() if name not in own})
    if args.skip_tokenizer_init:
        raise ConfigError("--skip-tokenizer-init: the server's routes take and give text; leave it out")
    options = ServeOptions(**{name: value for name, value in values.items() if name in own})
    return Settled(args, options, origins)


def notes(given: argparse.Namespace) -> list[str]:
    """A line for each flag that was taken and changes nothing."""
    return [f"{name}: {ACCEPTED[name]}" for name in dict.fromkeys(getattr(given, "_accepted", None) or ())]


def describe(settled: Settled) -> str:
    """Every value with its origin, as a ``--config`` file that gives the same; keys are not shown."""
    lines = []
    for group, said in GROUPS.items():
        found = [flag for flag in serve_flags() if flag.group == group]
        if found:
            lines += ["", f"# {group}: {said}"]
        for flag in found:
            value, origin = settled.value(flag.field), settled.origins.get(flag.field, "default")
            if flag.field in AT_LOAD and origin == "default":
                origin = f"default; decided at load, from the {AT_LOAD[flag.field]}"
            if flag.field in SECRET and value is not None:
                lines.append(f"# {flag.name[2:]}: is set, not shown".ljust(48) + f"# {origin}")
            else:
                shown = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
                lines.append(f"{flag.name[2:]}: {shown}".ljust(48) + f"  # {origin}")
    return "\n".join(lines[1:])
