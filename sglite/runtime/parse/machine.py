"""A parser of turns written as it is read: a generator that asks for more text where it has to.

    def _turn(self):
        while (yield from self.content_until(_MARKS)):   # hands content on as it comes, stops behind a mark
            yield from self._call()

Every reading step waits until its result no longer depends on what follows, so the events do not depend on how the
text was cut. ``rewind`` goes back to a place kept with ``keep``: for text that looked like a call and is none.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable
from typing import TypeAlias, TypeVar

from sglite.runtime.parse.base import CallArguments, CallEnd, CallStart, Content, Event, Reasoning, TurnParser
from sglite.runtime.parse.json_stream import JsonScanner
from sglite.runtime.parse.marks import Marks

T = TypeVar("T")
Reading: TypeAlias = Generator[None, None, T]
"""A step that reads: it yields when it needs more text, and returns what it found."""

_SPACE = re.compile(r"\s*")


class PlainTurn(TurnParser):
    """All of it is content."""

    def feed(self, text: str) -> list[Event]:
        return [Content(text)] if text else []

    def finish(self) -> list[Event]:
        return []


class Machine(TurnParser):
    """Reads a turn with the generator ``_turn``, which is started anew when it returns before the text ends."""

    def __init__(self) -> None:
        self.calls = 0
        """Calls begun so far; the index of the next one."""
        self._text = ""
        self._at = 0
        self._base = 0  # the place in the turn of the first character of the text
        self._kept: int | None = None
        self._closed = False
        self._events: list[Event] = []
        self._space = ""  # white space that may stand before a mark
        self._shown = False  # there was content other than white space
        self._after_mark = False
        self._run: Reading[None] | None = None

    @abstractmethod
    def _turn(self) -> Reading[None]:
        """Reads from here; must take something, or the end."""

    def feed(self, text: str) -> list[Event]:
        first = self._at if self._kept is None else self._kept - self._base
        self._text = self._text[first:] + text
        self._base += first
        self._at -= first
        return self._advance()

    def finish(self) -> list[Event]:
        self._closed = True
        events = self._advance()
        if self._space and not self._after_mark:
            events.append(Content(self._space))
        return events

    def _advance(self) -> list[Event]:
        while self._run is not None or self._at < len(self._text):
            if self._run is None:
                self._run = self._turn()
            try:
                next(self._run)
            except StopIteration:
                self._run = None
                continue
            if not self._closed:
                break
        events, self._events = self._events, []
        return _merged(events)

    # reading

    def more(self) -> Reading[bool]:
        """Waits until there is a character to read; False at the end of the turn."""
        while self._at == len(self._text):
            if self._closed:
                return False
            yield
        return True

    def peek(self) -> Reading[str]:
        """The next character, not taken; empty at the end."""
        there = yield from self.more()
        return self._text[self._at] if there else ""

    def skip(self, count: int = 1) -> None:
        """Takes characters that are there."""
        self._at += count

    def skip_space(self) -> Reading[None]:
        while (yield from self.more()):
            self._at = _end(_SPACE, self._text, self._at)
            if self._at < len(self._text):
                return

    def starts(self, text: str) -> Reading[bool]:
        """Whether ``text`` comes next; takes it if so. Waits no longer than needed to tell."""
        while True:
            there = self._text[self._at : self._at + len(text)]
            if there == text:
                self._at += len(text)
                return True
            if self._closed or not text.startswith(there):
                return False
            yield

    def until(self, marks: Marks, take: Callable[[str], None]) -> Reading[str | None]:
        """Hands on what comes up to the first mark, as soon as it is certain; takes the mark and returns it. None: the
        turn ended without one."""
        while True:
            end, mark = marks.find(self._text, self._at)
            if mark is None and self._closed:
                end = len(self._text)
            if end > self._at:
                take(self._text[self._at : end])
            self._at = end + len(mark or "")
            if mark is not None or self._closed:
                return mark
            yield

    def matching(self, pattern: re.Pattern[str]) -> Reading[str]:
        """Takes as much as ``pattern`` matches; one that matches every beginning of what it matches."""
        while True:
            end = _end(pattern, self._text, self._at)
            if end < len(self._text) or self._closed:
                found = self._text[self._at : end]
                self._at = end
                return found
            yield

    def json(self, take: Callable[[str], None]) -> Reading[JsonScanner]:
        """Hands on a JSON value as it comes; the scanner tells how it ended."""
        scanner = JsonScanner()
        while True:
            piece, self._at = scanner.feed(self._text, self._at)
            if piece:
                take(piece)
            if scanner.done or scanner.bad:
                return scanner
            if self._closed:
                rest = scanner.close()
                if rest:
                    take(rest)
                return scanner
            yield

    def keep(self) -> int:
        """This place, to go back to. One at a time; a call that begins releases it."""
        self._kept = self._base + self._at
        return self._kept

    def release(self) -> None:
        """The kept place is no longer needed."""
        self._kept = None

    def rewind(self, place: int) -> None:
        """Back to the kept place, which is released."""
        self._at = place - self._base
        self._kept = None

    # telling

    def content(self, text: str) -> None:
        """Content, but for the white space next to marks: before one it is none, behind one it is none unless there was
        content before, from which it keeps what follows apart."""
        text = self._space + text
        body = text.rstrip()
        self._space = text[len(body) :]
        if body:
            self._events.append(Content(body if self._shown or not self._after_mark else body.lstrip()))
            self._shown, self._after_mark = True, False

    def content_until(self, marks: Marks) -> Reading[str | None]:
        """As ``until``, what comes being content. The caller says ``mark`` when the mark is one."""
        return (yield from self.until(marks, self.content))

    @property
    def after_mark(self) -> bool:
        """Nothing but white space has come since a mark."""
        return self._after_mark

    def mark(self) -> None:
        """A mark stands here: white space next to it is no content."""
        self._space = ""
        self._after_mark = True

    def tell(self, events: Iterable[Event]) -> None:
        """Events of another machine, that reads a part of this turn."""
        self._events.extend(events)

    def reasoning(self, text: str) -> None:
        if text:
            self._events.append(Reasoning(text))

    def begin_call(self, name: str, id_: str | None = None) -> int:
        """A call begins; returns its index."""
        index = self.calls
        self.calls += 1
        self.mark()
        self.release()
        self._events.append(CallStart(index, name, id_))
        return index

    def arguments(self, text: str) -> None:
        """More of the arguments of the call that was begun last."""
        if text:
            self._events.append(CallArguments(self.calls - 1, text))

    def end_call(self) -> None:
        """The call that was begun last is whole."""
        self._events.append(CallEnd(self.calls - 1))


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return at if found is None else found.end()


def _merged(events: list[Event]) -> list[Event]:
    """Neighbours that continue each other as one."""
    found: list[Event] = []
    for event in events:
        last = found[-1] if found else None
        if isinstance(event, Content) and isinstance(last, Content):
            found[-1] = Content(last.text + event.text)
        elif isinstance(event, Reasoning) and isinstance(last, Reasoning):
            found[-1] = Reasoning(last.text + event.text)
        elif isinstance(event, CallArguments) and isinstance(last, CallArguments) and last.index == event.index:
            found[-1] = CallArguments(event.index, last.text + event.text)
        else:
            found.append(event)
    return found
