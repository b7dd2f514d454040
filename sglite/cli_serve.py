"""``sglite serve``, which ``python -m sglite.launch_server`` is too."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from sglite.cli_parser import Parser, UsageError, dashed
from sglite.runtime.config import ConfigError
from sglite.runtime.serve.flag_advice import NOTES, instead
from sglite.runtime.serve.flag_config import read_config
from sglite.runtime.serve.flag_table import GROUPS
from sglite.runtime.serve.flag_values import Settled, describe, notes, settle
from sglite.runtime.serve.flags import add_flags

_EPILOG = f"""--help all shows every flag, --help GROUP those of a group: {", ".join(GROUPS)}.
Flags count before $SGLITE_API_KEY and $SGLITE_ADMIN_KEY, those before --config FILE. SGLang's and vLLM's names of flags
work where they mean the same."""


def serve(argv: Sequence[str]) -> int:
    """Serves until told to stop. ValueError, in one line, for what cannot be served."""
    words = dashed(argv)
    shown = _help_asked(words)
    if shown is not None:
        serve_parser(shown).print_help()
        return 0
    parser = serve_parser()
    given = parser.read(words)
    settled, said = read_values(parser, given, words)
    if given.print_config:
        print(describe(settled))
        return 0
    for line in said:
        print(f"sglite serve: note: {line}", file=sys.stderr)
    _launch(settled)
    return 0


def serve_parser(shown: str = "common") -> Parser:
    """Reads the flags; ``shown``: which of them its help has, ``common``, ``all`` or a group's name."""
    parser = Parser(
        prog="sglite serve",
        usage="sglite serve [MODEL] [FLAGS]",
        description="Serve a model over HTTP: the OpenAI, Anthropic, Ollama and SGLang APIs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        unknown=instead,
    )
    add_flags(parser, shown)
    about = parser.add_argument_group("about flags")
    about.add_argument("--config", metavar="FILE", help="YAML or JSON file with flags: their names without dashes")
    about.add_argument("--print-config", action="store_true", help="show every value and where it comes from, then end")
    about.add_argument("-h", "--help", action="store_true", help="this; --help all: every flag")
    return parser


def read_values(parser: Parser, given: argparse.Namespace, words: Sequence[str]) -> tuple[Settled, list[str]]:
    """What counts of flags, environment and file, and what there is to say about it. ValueError for what cannot be."""
    file = None
    if given.config is not None:
        try:
            file = parser.read(read_config(given.config))
        except UsageError as error:
            raise ConfigError(f"--config {given.config}: {error}") from None
    settled = settle(given, file, given.config or "", os.environ)
    said = notes(given) + ([] if file is None else notes(file))
    used = {word.partition("=")[0] for word in words}
    return settled, said + [f"{name} {text}" for name, text in NOTES.items() if name in used]


def _help_asked(words: Sequence[str]) -> str | None:
    """Which help is asked for: ``common``, ``all`` or a group's name; ``None``: none."""
    for index, word in enumerate(words):
        if word == "--":
            return None
        name, equals, group = word.partition("=")
        if word == "--help-all":
            return "all"
        if name not in ("-h", "--help"):
            continue
        following = words[index + 1] if index + 1 < len(words) and not words[index + 1].startswith("-") else ""
        wanted = group if equals else following
        if not wanted:
            return "common"
        if wanted not in ("all", *GROUPS):
            raise UsageError(
                f"--help {wanted}: there is no such group; all shows everything, or give {', '.join(GROUPS)}"
            )
        return wanted
    return None


def _launch(settled: Settled) -> None:
    try:
        from sglite.runtime.observe.logs import set_up_logging
        from sglite.runtime.serve import launch
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("sglite"):
            raise
        raise ValueError(f"the package {error.name!r} is not installed; pip install 'sglite[runtime]'") from None
    set_up_logging(settled.options.log_format, settled.options.log_requests)
    launch.serve(settled.args, settled.options)
