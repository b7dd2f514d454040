"""``sglite chat [MODEL | --url URL]``: a conversation in the terminal, with any server that speaks OpenAI's chat API.

Answers go to standard output; everything else (prompts, notes, thinking, costs) to standard error, so that a pipe gets
the answers alone. Ctrl-C stops an answer, Ctrl-D ends.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from sglite.cli_parser import Parser, after_dashes
from sglite.cli_server import server

if TYPE_CHECKING:
    from sglite.cli_chat_session import Session

_PROMPT = ">>> "
_SETTINGS = ("temperature", "max_tokens", "seed")
"""Flags that are fields of every request."""


def chat(argv: Sequence[str]) -> int:
    """The command; 1 if an answer failed and nobody was there to see it."""
    words, flags = after_dashes(argv)
    given = _parser().read(words)
    with server(given.url, given.model, flags) as url:
        from sglite.cli_chat_session import Session
        from sglite.cli_chat_wire import ChatServer

        with ChatServer(url, given.api_key or os.environ.get("SGLITE_API_KEY"), given.served_model) as wire:
            settings = {name: value for name, value in vars(given).items() if name in _SETTINGS and value is not None}
            return _converse(Session(wire, given.system, settings))


def _parser() -> Parser:
    parser = Parser(
        prog="sglite chat",
        usage="sglite chat [MODEL | --url URL] [FLAGS] [-- FLAGS OF sglite serve]",
        description="Talk to a model: one that is loaded for it, or a server's. /help shows the commands.",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="folder or hub name; default: the bundled model")
    parser.add_argument("--url", help="a running server: sglite's, or another that speaks OpenAI's chat API")
    parser.add_argument("--api-key", metavar="KEY", help="for --url; default: $SGLITE_API_KEY")
    parser.add_argument("--served-model", metavar="NAME", help="which of the server's models; default: its first")
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    parser.add_argument("--temperature", type=float, metavar="FLOAT", help="default: the server's")
    parser.add_argument("--max-tokens", type=int, metavar="INT", help="of an answer; default: the server's")
    parser.add_argument("--seed", type=int, metavar="INT", help="of sampling; default: the server's")
    return parser


def _converse(session: Session) -> int:
    alone = not sys.stdin.isatty()
    if not alone:
        _with_history()
        print(f"{session.model} at {session.url}. /help shows the commands, Ctrl-D ends.", file=sys.stderr)
    failed = False
    while True:
        line = _line(sys.stdin, alone)
        if line is None:
            return int(failed and alone)
        if line.strip() and not session.take(line):
            failed = True
        if session.ended:
            return int(failed and alone)


def _line(source: TextIO, alone: bool) -> str | None:
    """What the user says next; None: nothing more. On a terminal Ctrl-C forgets the line."""
    if alone:
        return source.readline() or None
    while True:
        try:
            return input(_PROMPT)
        except EOFError:
            print(file=sys.stderr)
            return None
        except KeyboardInterrupt:
            print("\nCtrl-D ends", file=sys.stderr)


def _with_history() -> None:
    """Lines can be edited and called back where the platform can."""
    try:
        import readline  # noqa: F401
    except ImportError:
        return
