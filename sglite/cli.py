"""The command line: ``sglite COMMAND ...``. Each command's code is imported when it is used.

Errors of users are one line on standard error and exit code 2.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Sequence

from sglite.version import __version__

COMMANDS = {
    "serve": ("sglite.cli_serve:serve", "serve a model over HTTP"),
    "chat": ("sglite.cli_chat:chat", "talk to a model, here or on a server"),
    "run": ("sglite.cli_graph:run", "run a program and print what it returns, or its text"),
    "graph": ("sglite.cli_graph:graph", "show a program's graph without running it"),
    "bench": ("sglite.cli_bench:bench", "measure a server: serve, prefix, json, tools"),
    "doctor": ("sglite.cli_doctor:doctor", "check this machine: packages, compiler, memory, ports"),
    "version": ("sglite.cli_version:version", "what is installed"),
}
"""Command -> the function that carries it out, given the rest of the command line, and what it does."""
_HELP = ("-h", "--help", "help")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; its exit code: 2 for what the user got wrong, in one line on standard error."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else ""
    if name in _HELP:
        print(overview())
        return 0
    if name in ("--version", "-V"):
        print(f"sglite {__version__}")
        return 0
    if name not in COMMANDS:
        return _failed("sglite", _no_command(name))
    try:
        return _carried_out(name)(words[1:])
    except (ValueError, OSError) as error:
        return _failed(f"sglite {name}", str(error))
    except KeyboardInterrupt:
        return 130


def overview() -> str:
    """What ``sglite --help`` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {said}" for name, (_, said) in COMMANDS.items()]
    head = ["usage: sglite COMMAND ...", "", "Programs around language models, and their runtime.", "", "commands:"]
    return "\n".join([*head, *lines, "", "sglite COMMAND --help says more."])


def _carried_out(name: str) -> Callable[[Sequence[str]], int]:
    module, _, function = COMMANDS[name][0].partition(":")
    carry_out: Callable[[Sequence[str]], int] = getattr(importlib.import_module(module), function)
    return carry_out


def _no_command(name: str) -> str:
    if not name:
        return f"give a command: {', '.join(COMMANDS)}; sglite --help says more"
    near = difflib.get_close_matches(name, COMMANDS, 1, 0.6)
    return f"there is no command {name!r}; " + (
        f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
    )


def _failed(who: str, message: str) -> int:
    print(f"{who}: {' '.join(message.split())}", file=sys.stderr)
    return 2
