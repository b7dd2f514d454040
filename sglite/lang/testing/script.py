"""The answers of a ``Mock``: which is next, and which are left."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sglite.lang.testing.answers import MockError, MockRequest
from sglite.lang.testing.rules import shown

AnswerFunction = Callable[[MockRequest], Any]
Answers = Mapping[Any, Any] | Sequence[Any] | AnswerFunction
"""By name, in order of arrival, or made up."""

_TAIL = 60
"""Characters of a prompt that a message shows."""


class _Entry:
    """The answers for one name, or for all."""

    def __init__(self, given: Any, *, ordered: bool) -> None:
        self.queue = deque(given) if ordered else None
        self.given = given
        self.used = callable(given)

    def take(self, count: int) -> Any:
        """The next ``count`` answers, or a function that makes them; None if there are not so many."""
        self.used = True
        if self.queue is None:
            return self.given if callable(self.given) else [self.given] * count
        return [self.queue.popleft() for _ in range(count)] if len(self.queue) >= count else None

    def left(self) -> list[Any]:
        """What was not asked for."""
        if self.queue is not None:
            return list(self.queue)
        return [] if self.used else [self.given]


class Script:
    """See the module. TypeError for answers that are neither mapping, list nor function."""

    def __init__(self, answers: Answers) -> None:
        self._by_name: dict[str | None, _Entry] = {}
        self._for_all: _Entry | None = None
        if isinstance(answers, Mapping):
            self._by_name = {
                name: _Entry(given, ordered=isinstance(given, (list, tuple))) for name, given in answers.items()
            }
        elif isinstance(answers, (list, tuple, deque)):
            self._for_all = _Entry(answers, ordered=True)
        elif callable(answers):
            self._for_all = _Entry(answers, ordered=False)
        else:
            kind = type(answers).__name__
            raise TypeError(f"Mock({shown(answers)}): a {kind} is no script; give a dict, a list or a function")

    def take(self, request: MockRequest, count: int) -> Any:
        """``count`` answers to ``request``, or a function that makes them; MockError if there are none."""
        entry = self._by_name.get(request.name, self._for_all)
        after = f"after {request.prompt[-_TAIL:]!r}"
        if entry is None:
            known = ", ".join(repr(name) for name in self._by_name) or "nothing"
            raise MockError(f"the Mock has no answer for {request.label} {after}; it has answers for {known}")
        answers = entry.take(count)
        if answers is None:
            left = f"; {count} are wanted, {len(entry.left())} are left" if count > 1 else ""
            raise MockError(f"the Mock has no answer left for {request.label} {after}{left}")
        return answers

    def left(self) -> list[str]:
        """The answers that were not asked for, by name."""
        lines = [f"{name!r}: {shown_all(entry.left())}" for name, entry in self._by_name.items() if entry.left()]
        if self._for_all is not None and self._for_all.left():
            lines.append(shown_all(self._for_all.left()))
        return lines


def shown_all(values: list[Any]) -> str:
    """The first of ``values``, and how many more there are."""
    more = f" and {len(values) - 5} more" if len(values) > 5 else ""
    return ", ".join(shown(value) for value in values[:5]) + more
