"""The text around each turn of a chat, found by rendering.

A chat template is a program, but a language that opens and closes roles one at a time needs the pieces. They
are read off renderings of conversations whose contents are known marks:

    <bos> system-open  MARK  system-close user-open  MARK  user-close assistant-open  MARK  ...
    '----prefix------'      '---suffix---''-prefix-'

Where one turn ends and the next begins is where the shorter conversation's rendering ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Render = Callable[..., str]
_MARKS = ("qzaopenaqz", "qzbturnbqz", "qzccallcqz", "qzdlastdqz")


class TemplateError(ValueError):
    """A chat template that is broken, refuses its input, or cannot give what was asked of it."""

    final = False
    """Whether asking in another form is not worth it."""


class TurnTable:
    """Affixes of turns for one template. `render(messages, **variables)` must raise `TemplateError` on refusal."""

    def __init__(self, render: Render) -> None:
        self._render = render
        self._known: dict[tuple[str, bool], tuple[str, str]] = {}

    def turn(self, role: str, *, first: bool) -> tuple[str, str]:
        """(prefix, suffix) around the content of a turn. Raises `TemplateError` with the role and the reason."""
        key = (role, first)
        if key not in self._known:
            try:
                self._known[key] = self._first(role) if first else self._following(role)
            except TemplateError as error:
                place = "first" if first else "later"
                raise TemplateError(f"no text around a {place} {role!r} turn can be derived: {error}") from None
        return self._known[key]

    def generation_prefix(self) -> str:
        """What add_generation_prompt appends after a user turn."""
        messages = [_message("user", 0)]
        plain, opened = self._render(messages), self._render(messages, add_generation_prompt=True)
        if not opened.startswith(plain):
            raise TemplateError("add_generation_prompt rewrites the conversation instead of extending it")
        return opened[len(plain) :]

    def default_system(self) -> str | None:
        """Text inserted before a conversation that does not begin with a system message."""
        bare = self._render([_message("user", 1)])
        try:
            prefix, _ = self.turn("system", first=True)
            told = self._render([_message("system", 0), _message("user", 1)])
        except TemplateError:
            return None
        rest = told[told.index(_MARKS[0]) + len(_MARKS[0]) :]
        if not bare.startswith(prefix) or not bare.endswith(rest) or len(bare) <= len(prefix) + len(rest):
            return None
        return bare[len(prefix) : len(bare) - len(rest)]

    def _first(self, role: str) -> tuple[str, str]:
        if role == "system":
            before, between, _ = self._split([_message("system", 0), _message("user", 1)])
            opening, _ = self._following("user")
            if not between.endswith(opening):
                raise TemplateError("the template folds the system text into the user's turn")
            return before, between[: len(between) - len(opening)]
        before, after = self._split([_message(role, 0)])
        return before, after

    def _following(self, role: str) -> tuple[str, str]:
        """A later turn. The assistant is looked at in mid-conversation: templates dress up its last turn."""
        earlier = [_message("user", 0)]
        if role == "tool":
            earlier.append(_call(1))
        elif role != "assistant":
            earlier.append(_message("assistant", 1))
        later = [_message("user", 3)] if role == "assistant" else []
        turn = _message(role, 2)
        if role == "tool":
            turn |= {"name": "lookup", "tool_call_id": "call00001"}
        before, with_turn = self._render(earlier), self._render([*earlier, turn])
        if not later and with_turn.startswith(before):
            opening, suffix = self._cut(with_turn[len(before) :], turn)
            return opening, suffix
        return self._between(earlier, turn, later)

    def _between(
        self, earlier: list[dict[str, Any]], turn: dict[str, Any], later: list[dict[str, Any]]
    ) -> tuple[str, str]:
        """The same where a turn is rendered differently once others follow it: by what stands between the marks."""
        pieces = self._split([*earlier, turn, *later])
        *_, closing = self._split(earlier)
        opening, suffix = pieces[len(earlier)], pieces[len(earlier) + 1]
        if not opening.startswith(closing):
            raise TemplateError("the turn before it changes when it is added")
        if later:
            *_, suffix = self._split([*earlier, turn])
            if not pieces[len(earlier) + 1].startswith(suffix):
                raise TemplateError("its own end changes when a turn is added")
        return opening[len(closing) :], suffix

    def _split(self, messages: list[dict[str, Any]]) -> list[str]:
        """The rendering cut at the marks: one piece more than there are marks."""
        rest = self._render(messages)
        pieces: list[str] = []
        for message in messages:
            before, rest = self._cut(rest, message)
            pieces.append(before)
        return [*pieces, rest]

    def _cut(self, text: str, message: dict[str, Any]) -> tuple[str, str]:
        mark = message["content"]
        if text.count(mark) != 1:
            raise TemplateError(f"the content of {message['role']!r} is rendered {text.count(mark)} times, not once")
        before, after = text.split(mark)
        return before, after


def _message(role: str, mark: int) -> dict[str, Any]:
    return {"role": role, "content": _MARKS[mark]}


def _call(mark: int) -> dict[str, Any]:
    """An assistant's turn that ends in a tool call, so that a tool's turn may follow."""
    arguments = {"query": "x"}
    call = {"type": "function", "id": "call00001", "function": {"name": "lookup", "arguments": arguments}}
    return {"role": "assistant", "content": _MARKS[mark], "tool_calls": [call]}
