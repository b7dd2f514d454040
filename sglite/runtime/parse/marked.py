"""Calls between marks of their own, framed by marks that only frame: what DeepSeek's and Kimi's formats share."""

from __future__ import annotations

from abc import abstractmethod

from sglite.runtime.parse.call_object import read_arguments
from sglite.runtime.parse.machine import Machine, Reading
from sglite.runtime.parse.marks import Marks


class MarkedTurn(Machine):
    """Content in which one mark opens a call. The other marks are dropped wherever they stand: no reader is to see one.

    The head of a call that the turn ends in is dropped; a head that another mark ends is content, it opens no call.
    """

    def __init__(self, opening: str, *others: str) -> None:
        super().__init__()
        self._opening = opening
        self._marks = Marks(opening, *others)

    @abstractmethod
    def _call(self) -> Reading[None]:
        """Reads a call behind its opening mark."""

    def _turn(self) -> Reading[None]:
        mark = yield from self.content_until(self._marks)
        if mark is not None:
            self.mark()
        if mark == self._opening:
            yield from self._call()

    def head(self, end: str) -> Reading[str | None]:
        """The text up to ``end``, which is taken; None when another mark or the end of the turn came first."""
        pieces: list[str] = []
        mark = yield from self.until(Marks(end, *self._marks.marks), pieces.append)
        if mark == end:
            return "".join(pieces).strip()
        if mark is not None:
            self.content("".join(pieces))
            self.mark()
        return None

    def body(self, end: str) -> Reading[bool]:
        """The arguments of the call that has begun, up to ``end``. Whether they are whole; none at all are."""
        yield from self.skip_space()
        if (yield from self.starts(end)):
            self.arguments("{}")
        elif not (yield from read_arguments(self, self.arguments)):
            yield from self.until(Marks(end), self.arguments)
            return False
        self.end_call()
        return True
