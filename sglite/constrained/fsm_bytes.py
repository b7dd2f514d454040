"""ByteFsm: the bytes of a regular language, in UTF-8 or as JSON strings, worked out one byte at a time.

The plain specification of what the native automata do: a state is a state of the character automaton and the bytes of
the character that has begun. It is as slow as it is simple, and builds what is asked for only.
"""

from __future__ import annotations

from sglite.constrained.fsm_table import Fsm

_SHORT = {'"': 0x22, "\\": 0x5C, "/": 0x2F, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9}
_OPEN = (-1, b"")  # before the opening quote
_CLOSED = (-2, b"")  # after the closing quote


class ByteFsm:
    """The texts of `table` as UTF-8, or, with `json`, the JSON strings that spell them, quotes included.

    A JSON string spells a character as itself (from U+0020, but for the quote and the backslash), with its short
    escape, or, below U+0020, as \\u00XX. Where the language treats all characters alike, every \\uXXXX is a spelling
    too, a surrogate pair being one character.
    """

    def __init__(self, table: Fsm, json: bool = False) -> None:
        self._table = table
        self._json = json
        self._any_escape = json and table.alike()
        self._states: list[tuple[int, bytes]] = []
        self._numbers: dict[tuple[int, bytes], int] = {}
        self._steps: dict[tuple[int, int], int] = {}
        self.start = self._number(_OPEN if json else (0, b""))

    def step(self, state: int, byte: int) -> int:
        """The state after one more byte; -1 when no text goes on like that."""
        found = self._steps.get((state, byte))
        if found is None:
            following = self._follow(*self._states[state], byte)
            found = self._steps[state, byte] = -1 if following is None else self._number(following)
        return found

    def accepting(self, state: int) -> bool:
        """Whether the text may end here."""
        at = self._states[state]
        return at == _CLOSED if self._json else not at[1] and self._table.accepting[at[0]]

    def kind(self, state: int) -> tuple[int, int]:
        """The state of the character automaton (below 0 outside the quotes), and how much of a character has begun."""
        at, begun = self._states[state]
        return at, len(begun)

    def matches(self, data: bytes) -> bool:
        """Whether `data` is the whole of a text."""
        state = self.start
        for byte in data:
            state = self.step(state, byte)
            if state < 0:
                return False
        return self.accepting(state)

    def _number(self, at: tuple[int, bytes]) -> int:
        found = self._numbers.setdefault(at, len(self._states))
        if found == len(self._states):
            self._states.append(at)
        return found

    def _follow(self, state: int, begun: bytes, byte: int) -> tuple[int, bytes] | None:
        if state < 0:
            return (0, b"") if (state, byte) == (_OPEN[0], 0x22) and not self._table.is_empty() else None
        if self._json and not begun and (byte == 0x22 or byte < 0x20):
            return _CLOSED if byte == 0x22 and self._table.accepting[state] else None
        begun += bytes((byte,))
        if self._json and begun[0] == 0x5C:
            characters, whole = self._escaped(begun)
        else:
            characters, whole = _decoded(begun)
        if whole:
            after = self._table.step(state, chr(characters[0][0])) if characters else -1
            return (after, b"") if after >= 0 else None
        return (state, begun) if any(self._leads_on(state, *each) for each in characters) else None

    def _leads_on(self, state: int, first: int, last: int) -> bool:
        return any(low <= last and high >= first for low, high, _ in self._table.ranges(state))

    def _escaped(self, begun: bytes) -> tuple[list[tuple[int, int]], bool]:
        """The characters whose escape begins like that, and whether the escape is complete."""
        name = begun[1:2].decode("latin-1")
        if len(begun) == 1:
            if self._any_escape:
                return [(0, 0x10FFFF)], False
            return [(0, 0x1F), *((code, code) for code in _SHORT.values() if code != 0x2F)], False
        if name != "u":
            known = name in _SHORT and (name != "/" or self._any_escape)  # what can stand for itself does, elsewhere
            return ([(_SHORT[name], _SHORT[name])] if known else []), True
        first = _hexadecimal(begun[2:6])
        if first is None or not self._any_escape:
            controls = [] if first is None or first[0] > 0x1F else [(first[0], min(first[1], 0x1F))]
            return controls, len(begun) == 6
        if len(begun) < 6 or not 0xD800 <= first[0] <= 0xDFFF:
            return _units(*first), len(begun) == 6
        if first[0] >= 0xDC00 or not b"\\u".startswith(begun[6:8]):
            return [], False
        second = _hexadecimal(begun[8:12])
        if second is None or second[1] < 0xDC00 or second[0] > 0xDFFF:
            return [], False
        base = 0x10000 + (first[0] - 0xD800 << 10)
        low, high = max(second[0], 0xDC00), min(second[1], 0xDFFF)
        return [(base + low - 0xDC00, base + high - 0xDC00)], len(begun) == 12


def _units(first: int, last: int) -> list[tuple[int, int]]:
    """The characters whose spelling in UTF-16 begins with one of these units."""
    found = [(first, min(last, 0xD7FF))] if first <= 0xD7FF else []
    if first <= 0xDBFF and last >= 0xD800:
        low, high = max(first, 0xD800), min(last, 0xDBFF)
        found.append((0x10000 + (low - 0xD800 << 10), 0x10000 + (high - 0xD800 << 10) + 0x3FF))
    return found + ([(max(first, 0xE000), last)] if last >= 0xE000 else [])


def _hexadecimal(digits: bytes) -> tuple[int, int] | None:
    """The numbers of four digits that begin so."""
    text = digits.decode("latin-1")
    if any(char not in "0123456789abcdefABCDEF" for char in text):
        return None
    return int(text.ljust(4, "0"), 16), int(text.ljust(4, "f"), 16)


def _decoded(begun: bytes) -> tuple[list[tuple[int, int]], bool]:
    """The characters whose UTF-8 begins like that, and whether it is complete."""
    lead = begun[0]
    if lead < 0x80:
        return [(lead, lead)], True
    length = 2 if 0xC2 <= lead < 0xE0 else 3 if 0xE0 <= lead < 0xF0 else 4 if 0xF0 <= lead < 0xF5 else 0
    if not length or any(not 0x80 <= byte < 0xC0 for byte in begun[1:]):
        return [], False
    code = lead & (0x7F >> length)
    for byte in begun[1:]:
        code = code << 6 | byte & 0x3F
    missing = 6 * (length - len(begun))
    low = max(code << missing, (0, 0, 0x80, 0x800, 0x10000)[length])
    high = min((code << missing) + (1 << missing) - 1, 0x10FFFF)
    return ([(low, high)] if low <= high else []), length == len(begun)
