"""Lists written as plain text: items with a separator between them, which code may loop and fork over."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sglite.lang.typed import TypeSpec, type_spec

_MAX_ITEMS = 10_000


@dataclass(frozen=True)
class RepeatedSpec(TypeSpec):
    """``item`` reads each part of the text between separators."""

    item: TypeSpec | None = None
    sep: str = "\n"

    def parse(self, text: str) -> list[Any]:
        """The list; ValueError where an item is none."""
        if self.regex is not None and re.fullmatch(self.regex, text) is None:
            raise ValueError(f"{text[:60]!r} is no list of items separated by {self.sep!r}")
        return [part if self.item is None else self.item.parse(part) for part in text.split(self.sep)]

    def partial(self, text: str) -> list[Any]:
        """The items that are whole: all but the last one."""
        return [part if self.item is None else self.item.parse(part) for part in text.split(self.sep)[:-1]]


def repeated_spec(item: Any, sep: str, least: int, most: int | None) -> RepeatedSpec:
    """``least`` to ``most`` (None: any number) of ``item`` with ``sep`` between them.

    ValueError for bounds that no list satisfies, or items that may hold the separator.
    """
    if not sep:
        raise ValueError("repeat(sep=''): without a separator nobody can tell items apart; give one")
    if type(least) is not int or least < 1 or (most is not None and (type(most) is not int or most < least)):
        raise ValueError(f"repeat(min={least!r}, max={most!r}): give 1 <= min <= max")
    if max(least, most or 0) > _MAX_ITEMS:
        raise ValueError(f"repeat(min={least}, max={most}): at most {_MAX_ITEMS} items")
    spec, pattern = _item(item, sep)
    bounds = f"{{{least - 1},{'' if most is None else most - 1}}}"
    regex = f"(?:{pattern})(?:{re.escape(sep)}(?:{pattern})){bounds}"
    return RepeatedSpec(list, regex, None, spec, sep)


def _item(item: Any, sep: str) -> tuple[TypeSpec | None, str]:
    """How an item is read, and the pattern of its text."""
    if item is str:
        barred = "".join(dict.fromkeys(re.escape(character) for character in (sep[0], "\n")))
        return None, f"[^{barred}]+"
    if isinstance(item, re.Pattern):
        return None, str(item.pattern)
    spec = type_spec(item)
    if spec.regex is None:
        raise ValueError(
            f"repeat(item={item!r}): its values have no one-line spelling; use gen(type=list[...]) instead"
        )
    return spec, spec.regex
