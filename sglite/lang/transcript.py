"""The text of one stream, and the turns in it.

Pure bookkeeping: pieces of text in order, finished turns as messages, the open turn, open captures. A fork copies it.
It is also the ``Conversation`` that back ends asked by messages read.
"""

from __future__ import annotations

from sglite.lang.formats import ChatFormat
from sglite.lang.history import GENERATED
from sglite.lang.messages import Message, ToolSpec


class Outline:
    """The turns of a stream as far as the text around them depends on them: what comes next can be spelled."""

    def __init__(self, chat_format: ChatFormat, begun: bool, suffix: str, dangling: str) -> None:
        self._format = chat_format
        self._begun = begun
        self._suffix = suffix
        self._dangling = dangling

    def begin_turn(self, role: str) -> str:
        """Text that opens a turn, after the format's default system turn where a conversation would start without."""
        start, self._dangling = self._dangling, ""
        if not self._begun and role != "system" and self._format.default_system is not None:
            start += self.begin_turn("system") + self._format.default_system + self.end_turn()
        prefix, self._suffix = self._format.turn(role, first=not self._begun)
        return start + prefix

    def end_turn(self) -> str:
        """Text that closes the open turn."""
        self._begun = True
        return self._suffix


class Transcript:
    """Every method that writes text returns it, so that the caller can pass it on to the back end."""

    def __init__(self, chat_format: ChatFormat) -> None:
        self._format = chat_format
        self._pieces: list[str] = []
        self._chars = 0
        self._messages: list[Message] = []
        self._role: str | None = None
        self._suffix = ""
        self._dangling = ""
        """What closes the turn of a reply that ends the text: written by whatever follows it."""
        self._turn_start = 0
        self._templated = False
        self._captures: list[tuple[str, int]] = []
        self._places: list[tuple[int, int, object]] = []
        """Pieces, characters and the back end's mark where an assistant's turn was opened by a template."""
        self._asked: tuple[ToolSpec, ...] = ()
        """The tools that the template's text tells of."""
        self.tools: tuple[ToolSpec, ...] = ()
        self.tool_choice = "auto"

    def copy(self, *, captures: bool = False) -> Transcript:
        """An independent transcript that goes on from here; open captures stay with this one unless asked for."""
        twin = Transcript(self._format)
        twin._pieces, twin._chars = list(self._pieces), self._chars
        twin._messages = [dict(message) for message in self._messages]
        twin._role, twin._suffix, twin._turn_start = self._role, self._suffix, self._turn_start
        twin._dangling, twin._templated, twin._asked = self._dangling, self._templated, self._asked
        twin.tools, twin.tool_choice = self.tools, self.tool_choice
        if captures:
            twin._captures, twin._places = list(self._captures), list(self._places)
        return twin

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(self._pieces)

    @property
    def num_chars(self) -> int:
        """Its length."""
        return self._chars

    @property
    def messages(self) -> list[Message]:
        """The finished turns."""
        return [dict(message) for message in self._messages]

    @property
    def role(self) -> str | None:
        """Whose turn is open."""
        return self._role

    @property
    def open_text(self) -> str:
        """The text of the open turn, or what follows the last one."""
        return self.text_from(self._turn_start)

    @property
    def num_pieces(self) -> int:
        """How many pieces there are; a mark for ``text_from``."""
        return len(self._pieces)

    def text_from(self, piece: int) -> str:
        """The text since there were ``piece`` pieces."""
        return "".join(self._pieces[piece:])

    def outline(self) -> Outline:
        """What the text of coming turns depends on."""
        return Outline(self._format, bool(self._messages), self._suffix, self._dangling)

    def add(self, text: str) -> str:
        """Appends text."""
        self._pieces.append(text)
        self._chars += len(text)
        return text

    # --- turns ---

    def begin_turn(self, role: str) -> str:
        """Opens a turn, after the format's default system turn where a conversation would start without one."""
        start, self._dangling = self.add(self._dangling) if self._dangling else "", ""
        if not self._messages and role != "system" and self._format.default_system is not None:
            start += self.begin_turn("system") + self.add(self._format.default_system) + self.end_turn()
        prefix, self._suffix = self._format.turn(role, first=not self._messages)
        self.add(prefix)
        self._role, self._turn_start = role, len(self._pieces)
        return start + prefix

    def end_turn(self) -> str:
        """Closes the open turn: its text becomes a message."""
        assert self._role is not None, "the program closes only turns it opened"
        content = self.text_from(self._turn_start).lstrip()
        return self._close({"role": self._role, "content": content})

    def _close(self, message: Message) -> str:
        self._messages.append(message)
        self._role = None
        self.add(self._suffix)
        self._turn_start = len(self._pieces)
        return self._suffix

    def tell(self, message: Message) -> str:
        """A finished turn given as data; its text is the next ``ask``'s to write where a template does that."""
        if self._templated:
            self._messages.append(dict(message))
            return ""
        text = self.begin_turn(str(message["role"])) + self.add(str(message.get("content") or ""))
        return text + self._close(dict(message))

    @property
    def templated(self) -> bool:
        """Whether a template writes the turns that programs ask for."""
        return self._templated

    def ask(self, text: str, tools: tuple[ToolSpec, ...] = ()) -> str:
        """``text``, written by a template that tells of ``tools``, ends with the opening of the assistant's turn."""
        self._templated, self._dangling, self._asked = True, "", tools
        self.add(text)
        self._role, self._turn_start = "assistant", len(self._pieces)
        return text

    def reply(self, message: Message) -> str:
        """Closes the assistant's turn that ``ask`` or ``begin_turn`` opened; it comes to ``message``.

        The tools stay told, since earlier turns may call them, but are not offered to what is not asked for with them.
        """
        self.tool_choice = "none"
        if not self._templated:
            return self._close(dict(message))
        self._messages.append({**message, GENERATED: (self._chars, self._asked)})
        self._role = None
        self._dangling = self._format.turn("assistant", first=False)[1]
        return ""

    # --- going back ---

    def place(self, mark: object) -> None:
        """This place can be come back to: the back end calls it ``mark``."""
        self._places.append((len(self._pieces), self._chars, mark))

    def rewind(self, chars: int) -> tuple[int, object] | None:
        """Drops text behind the last place within the first ``chars`` characters; where that is, and its mark.

        None, and no text is left, when there is no such place.
        """
        while self._places and self._places[-1][1] > chars:
            self._places.pop()
        pieces, length, mark = self._places[-1] if self._places else (0, 0, None)
        del self._pieces[pieces:]
        self._chars = length
        return (length, mark) if self._places else None

    # --- captures ---

    def begin_capture(self, name: str) -> None:
        """From here on, text is part of ``name``."""
        self._captures.append((name, len(self._pieces)))

    def end_capture(self, name: str) -> str:
        """The text since the innermost open capture of ``name``."""
        index = max(i for i, (known, _) in enumerate(self._captures) if known == name)
        return self.text_from(self._captures.pop(index)[1])
