"""The text of one stream, and the turns in it.

Pure bookkeeping: pieces of text in order, finished turns as messages, the open turn, open captures. A fork copies it.
"""

from __future__ import annotations

from sglite.lang.formats import ChatFormat
from sglite.lang.messages import Message


class Transcript:
    """Every method that writes text returns it, so that the caller can pass it on to the back end."""

    def __init__(self, chat_format: ChatFormat) -> None:
        self._format = chat_format
        self._pieces: list[str] = []
        self._messages: list[Message] = []
        self._role: str | None = None
        self._suffix = ""
        self._turn_start = 0
        self._captures: list[tuple[str, int]] = []

    def copy(self) -> Transcript:
        """An independent transcript that goes on from here; captures stay with this one."""
        twin = Transcript(self._format)
        twin._pieces = list(self._pieces)
        twin._messages = [dict(message) for message in self._messages]
        twin._role, twin._suffix, twin._turn_start = self._role, self._suffix, self._turn_start
        return twin

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(self._pieces)

    @property
    def messages(self) -> list[Message]:
        """The finished turns."""
        return [dict(message) for message in self._messages]

    @property
    def num_pieces(self) -> int:
        """How many pieces there are; a mark for ``text_from``."""
        return len(self._pieces)

    def text_from(self, piece: int) -> str:
        """The text since there were ``piece`` pieces."""
        return "".join(self._pieces[piece:])

    def add(self, text: str) -> str:
        """Appends text."""
        self._pieces.append(text)
        return text

    def begin_turn(self, role: str) -> str:
        """Opens a turn, after the format's default system turn where a conversation would start without one."""
        start = ""
        if not self._messages and role != "system" and self._format.default_system is not None:
            start = self.begin_turn("system") + self.add(self._format.default_system) + self.end_turn()
        prefix, self._suffix = self._format.turn(role, first=not self._messages)
        self.add(prefix)
        self._role, self._turn_start = role, len(self._pieces)
        return start + prefix

    def end_turn(self) -> str:
        """Closes the open turn: its text becomes a message."""
        assert self._role is not None, "the program closes only turns it opened"
        content = self.text_from(self._turn_start).lstrip()
        self._messages.append({"role": self._role, "content": content})
        self._role = None
        return self.add(self._suffix)

    def begin_capture(self, name: str) -> None:
        """From here on, text is part of ``name``."""
        self._captures.append((name, len(self._pieces)))

    def end_capture(self, name: str) -> str:
        """The text since the innermost open capture of ``name``."""
        index = max(i for i, (known, _) in enumerate(self._captures) if known == name)
        return self.text_from(self._captures.pop(index)[1])
