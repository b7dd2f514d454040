"""Healing the border between a text and the gen after it.

A text that ends inside a word or a URL ends in tokens that the model would not have written there ("http:" and "//"
where it knows "://"). Healing takes the last of them back and has the model write on from there, held to their text by
a constraint, so it comes to the tokens it would have gone through. The output does not repeat that text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from sglite.lang.backends.base import GenCall, Output

_TOKENS = 2
"""At most so many are taken back."""
_CHARS = 64
_ANYTHING = r"[\s\S]*"

Encode = Callable[[str], list[int]]


def border(
    text: str, ids: list[int], encode: Encode, *, least: int, limit: int, stops: tuple[str, ...]
) -> tuple[int, str]:
    """How many of ``ids``, the tokens of ``text``, to take back, and their text; (0, "") where nothing is to heal.

    ``least``: tokens that have to stay. ``limit``: only so many characters at the end may be touched. ``stops``: texts
    that must not be written again.
    """
    for count in range(min(_TOKENS, len(ids) - least), 0, -1):
        kept = ids[:-count]
        for length in range(1, min(_CHARS, limit, len(text)) + 1):
            tail = text[len(text) - length :]
            if encode(text[: len(text) - length]) == kept and not any(stop in tail for stop in stops):
                return count, tail
    return 0, ""


def held_to(call: GenCall, tail: str, count: int) -> GenCall:
    """The request whose output begins with ``tail``, which takes ``count`` tokens at most."""
    sampling = call.sampling
    regex = re.escape(tail) + (_ANYTHING if sampling.regex is None else f"(?:{sampling.regex})")
    limit = sampling.max_new_tokens
    longer = limit if limit is None or limit < 0 else limit + count
    return replace(call, heal=False, sampling=replace(sampling, regex=regex, max_new_tokens=longer))


def without(outputs: tuple[Output, ...], tail: str) -> tuple[Output, ...]:
    """Outputs as far as they go beyond ``tail``."""
    return tuple(replace(output, text=output.text[len(tail) :]) for output in outputs)
