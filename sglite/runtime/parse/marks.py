"""Marks in a stream: where one begins, and what may still become one.

Promises: the places found do not depend on how the text was cut; what is held back is never longer than a mark.
"""

from __future__ import annotations

import re


class Marks:
    """A set of marks to look for; immutable, shared by every stream."""

    def __init__(self, *marks: str) -> None:
        """Raises ``ValueError`` for an empty mark, and for one that another begins with: which one is meant would
        depend on what comes later."""
        for mark in marks:
            if not mark or any(other != mark and other.startswith(mark) for other in marks):
                raise ValueError(f"the mark {mark!r} is empty or begins another one of {marks}")
        self.marks = marks
        self._pattern = re.compile("|".join(map(re.escape, marks)) or r"(?!)")
        self._longest = max(map(len, marks), default=0)
        self._heads = frozenset(mark[0] for mark in marks)

    def find(self, text: str, at: int = 0) -> tuple[int, str | None]:
        """The first mark in ``text[at:]``.

        ``(i, mark)``: it begins at ``i``. ``(i, None)``: there is none so far, but ``text[i:]`` may begin one; ``i`` is
        ``len(text)`` where it may not.
        """
        held = self._held(text, at)
        found = self._pattern.search(text, at)
        if found is not None and found.start() <= held:
            return found.start(), found.group()
        return held, None

    def _held(self, text: str, at: int) -> int:
        """The first place from which the rest of ``text`` is the beginning of a mark, but not a whole one."""
        for i in range(max(at, len(text) - self._longest + 1), len(text)):
            if text[i] in self._heads:
                rest = text[i:]
                if any(len(rest) < len(mark) and mark.startswith(rest) for mark in self.marks):
                    return i
        return len(text)
