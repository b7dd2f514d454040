"""Text that is read from left to right, with errors that name the place."""

from __future__ import annotations

import re
from typing import NoReturn

from sglite.constrained.limits import Limits
from sglite.constrained.spec import ConstraintError, ConstraintRefused


class Source:
    """A grammar's text and a position in it, for a reader of some notation. ``keyword``: what a refusal names;
    ``space``: what stands between signs and means nothing, possibly empty."""

    keyword = ""
    space = re.compile("")

    def __init__(self, text: str, limits: Limits) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self._limits = limits

    def _space(self) -> None:
        """Behind what means nothing."""
        found = self.space.match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _take(self, text: str) -> bool:
        """Whether ``text`` is next; goes behind it and the space there."""
        if not self._text.startswith(text, self._at):
            return False
        self._at += len(text)
        self._space()
        return True

    def _enter(self, start: int) -> None:
        """One level deeper; who enters leaves by ``_depth``."""
        self._depth += 1
        if self._depth > self._limits.max_depth:
            self.refuse(f"nesting deeper than {self._limits.max_depth}", start)

    def _check_counts(self, low: int, high: int | None, written: str) -> None:
        """Those of a repetition."""
        if high is not None and high < low:
            self.broken(f"the range {written} is the wrong way round")
        if max(low, high or 0) > self._limits.max_repeat:
            self.refuse(f"a repetition of {max(low, high or 0)}, more than {self._limits.max_repeat},", self._at)

    def _place(self, at: int | None) -> str:
        before = self._text[: self._at if at is None else at]
        return f"line {before.count(chr(10)) + 1} column {len(before) - before.rfind(chr(10))}"

    def broken(self, what: str, at: int | None = None) -> NoReturn:
        """Raises the error of something at a place; ``None``: here."""
        raise ConstraintError(f"grammar, {self._place(at)}: {what}")

    def refuse(self, what: str, at: int) -> NoReturn:
        """Raises the refusal of something at a place."""
        told = f"grammar, {self._place(at)}: {what} is not enforced; write it another way"
        raise ConstraintRefused(told, keyword=self.keyword)
