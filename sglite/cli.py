"""The command line: ``sglite COMMAND ...``. Each command's code is imported when it is used.

Errors of users are one line on standard error and exit code 2.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence

from sglite.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; its exit code."""
    parser = argparse.ArgumentParser(prog="sglite", description="Programs around language models, and their runtime.")
    parser.add_argument("--version", action="version", version=f"sglite {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_serve(commands)
    if importlib.util.find_spec("sglite.cli_graph") is not None:
        from sglite.cli_graph import add_commands

        add_commands(commands)
    given = parser.parse_args(argv)
    try:
        return int(given.run(given) or 0)
    except ValueError as error:
        print(f"sglite {given.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from sglite.runtime.serve.flags import add_flags

    parser = commands.add_parser("serve", help="serve a model over HTTP", allow_abbrev=False)
    add_flags(parser)
    parser.set_defaults(run=_serve)


def _serve(given: argparse.Namespace) -> None:
    import logging

    from sglite.runtime.serve.flags import read_flags

    args, options = read_flags(given)
    try:
        from sglite.runtime.serve.launch import serve
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("sglite"):
            raise
        raise ValueError(f"the package {error.name!r} is not installed; pip install 'sglite[runtime]'") from None
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    serve(args, options)
