"""How commands read their flags: one line for a mistake, the nearest name for an unknown flag, help that is short.

``--max_total_tokens`` is ``--max-total-tokens``. A flag cannot be shortened: what is unique today is not tomorrow.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn


class UsageError(ValueError):
    """A command line that cannot be read."""


def nearest(flag: str, known: Iterable[str]) -> str:
    """One line on a flag that does not exist."""
    near = difflib.get_close_matches(flag, list(known), 1, 0.6)
    return f"there is no flag {flag}" + (f"; did you mean {near[0]}?" if near else "; --help lists them")


class Parser(argparse.ArgumentParser):
    """A command's flags. ``unknown``: says one line on a flag that does not exist, given it and the known ones."""

    def __init__(self, *args: Any, unknown: Callable[[str, Iterable[str]], str] = nearest, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})
        self._unknown = unknown

    def error(self, message: str) -> NoReturn:
        """Raises UsageError."""
        raise UsageError(" ".join(message.split()))

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """The flags' values. UsageError for what cannot be read."""
        given, rest = self.parse_known_args(dashed(argv))
        flags = [word.partition("=")[0] for word in rest if word.startswith("-") and word != "--"]
        if flags:
            # argparse keeps no public list of what it knows
            self.error(self._unknown(flags[0], self._option_string_actions))
        if rest:
            self.error(f"{rest[0]!r} is one argument too many; see {self.prog} --help")
        return given


def dashed(argv: Sequence[str]) -> list[str]:
    """Words with dashes instead of underscores in the names of flags."""
    words = list(argv)
    for index, word in enumerate(words):
        if word == "--":
            break
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            words[index] = name.replace("_", "-") + equals + value
    return words


def after_dashes(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words before and after ``--``: a command's own, and those of the server it starts."""
    words = list(argv)
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]
