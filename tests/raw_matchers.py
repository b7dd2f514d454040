"""A plain `RawMatcher` over a small machine that reads bytes: what token matchers are tried on."""

from __future__ import annotations

import zlib
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from token_texts import trained

from sglite.constrained import bitmask
from sglite.constrained.matcher import ForcedText, Masked
from sglite.constrained.vocab import Vocabulary

VOCAB = trained("qwen")
EOS = VOCAB.eos_ids[0]


def row(matcher: Masked) -> bytes:
    """The mask, written over something else."""
    mask = np.full(VOCAB.words, 0x5A5A5A5A, dtype=np.int32)
    matcher.fill(mask)
    return mask.tobytes()


def allowed(matcher: Masked) -> list[int]:
    """The ids that the mask allows."""
    return bitmask.to_ids(np.frombuffer(row(matcher), dtype=np.int32)).tolist()


def pick(seed: int, position: int, ids: list[int]) -> int:
    """What a model with random logits likes best; they depend on the position alone."""
    return max(ids, key=lambda i: zlib.crc32(b"%d %d %d" % (seed, position, i)))


def ids_of(text: str) -> list[int]:
    """A token for every character."""
    return [i for char in text for i in VOCAB.encode(char)]


class Machine(Protocol):
    """Bytes in, states out. A state from which nothing can follow any more is given only by a value checked late."""

    start: Any
    keyed: bool

    def step(self, state: Any, byte: int) -> Any:
        """The next state, None when the byte is not allowed."""

    def accepting(self, state: Any) -> bool: ...

    def shortest(self, state: Any) -> bytes | None: ...

    def value_start(self, state: Any) -> int | None:
        """Bytes before the value in progress that may still be taken back."""


class Trie:
    """The vocabulary by its bytes: ids that end here, and what follows."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.after: dict[int, Trie] = {}

    @classmethod
    @cache
    def of(cls, vocab: Vocabulary) -> Trie:
        root = cls()
        for token_id in range(vocab.size):
            node = root
            for byte in vocab.content(token_id) or b"":
                node = node.after.setdefault(byte, cls())
            if node is not root:
                node.ids.append(token_id)
        return root


class RawBytes:
    """Every question walks the vocabulary byte by byte."""

    def __init__(self, vocab: Vocabulary, machine: Machine) -> None:
        self.vocab, self.machine = vocab, machine
        self.states: list[Any] = [machine.start]
        self.ids: list[int] = []
        self.ended = False

    def fill(self, mask: NDArray[np.int32], room: int | None = None) -> bool:
        mask.fill(0)
        if self.accepting:
            bitmask.allow(mask, self.vocab.eos_ids)
        if not self.ended:
            waiting = [(Trie.of(self.vocab), self.states[-1])]
            while waiting:
                node, state = waiting.pop()
                if node.ids and self._fits(state, room):
                    bitmask.allow(mask, node.ids)
                after = [(n, self.machine.step(state, byte)) for byte, n in node.after.items()]
                waiting += [(n, s) for n, s in after if s is not None]
        return True

    def _fits(self, state: Any, room: int | None) -> bool:
        if room is None:
            return True
        shortest = self.machine.shortest(state)
        return shortest is not None and len(shortest) <= room

    def _after(self, piece: bytes | None) -> Any:
        state = self.states[-1] if piece else None
        for byte in piece or b"":
            state = None if state is None else self.machine.step(state, byte)
        return state

    def accept(self, token_id: int) -> bool:
        if self.ended:
            return False  # nothing follows the end
        state = self.states[-1]
        if token_id in self.vocab.eos_ids:
            if not self.accepting:
                return False
            self.ended = True
        else:
            state = self._after(self.vocab.content(token_id))
            if state is None:
                return False
        self.states.append(state)
        self.ids.append(token_id)
        return True

    def rollback(self, n: int) -> None:
        assert 0 <= n <= len(self.ids)
        if n:
            del self.states[-n:], self.ids[-n:]
            self.ended = False

    def fork(self) -> RawBytes:
        other = RawBytes(self.vocab, self.machine)
        other.states, other.ids, other.ended = self.states.copy(), self.ids.copy(), self.ended
        return other

    def forced_text(self, limit: int = 256) -> ForcedText:
        states, text = [self.states[-1]], b""
        while len(text) < limit and not self.machine.accepting(states[-1]):
            after = [(b, s) for b in range(256) if (s := self.machine.step(states[-1], b)) is not None]
            if len(after) != 1:
                break
            text += bytes([after[0][0]])
            states.append(after[0][1])
        return ForcedText(text, tuple(b for b in range(len(text)) if self._crossed(states[b], text[b:])))

    def _crossed(self, state: Any, rest: bytes) -> bool:
        node: Trie | None = Trie.of(self.vocab)
        for byte in rest:
            node = node.after.get(byte) if node else None
            state = self.machine.step(state, byte)
        waiting = [] if node is None else [(node, state)]
        while waiting:
            node, state = waiting.pop()
            for byte, further in node.after.items():
                after = self.machine.step(state, byte)
                if after is not None and further.ids:
                    return True
                waiting += [(further, after)] if after is not None else []
        return False

    def shortest(self) -> bytes | None:
        return self.machine.shortest(self.states[-1])

    def held(self) -> int:
        start = self.machine.value_start(self.states[-1])
        at, count = len(self.text), 0
        while start is not None and at > start:
            count += 1
            at -= len(self.vocab.content(self.ids[-count]) or b"")
        return count

    @property
    def accepting(self) -> bool:
        return self.machine.accepting(self.states[-1])

    @property
    def num_accepted(self) -> int:
        return len(self.ids)

    @property
    def text(self) -> bytes:
        return b"".join(self.vocab.content(i) or b"" for i in self.ids)

    @property
    def state_key(self) -> int | None:
        return hash(self.states[-1]) if self.machine.keyed and not self.ended else None


@dataclass
class Texts:
    """Exactly these texts. A state is the text so far."""

    texts: list[bytes]
    keyed: bool = True
    start: bytes = b""
    prefixes: set[bytes] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.prefixes = {text[:n] for text in self.texts for n in range(len(text) + 1)}

    def step(self, state: bytes, byte: int) -> bytes | None:
        return after if (after := state + bytes([byte])) in self.prefixes else None

    def accepting(self, state: bytes) -> bool:
        return state in self.texts

    def shortest(self, state: bytes) -> bytes | None:
        return min((t[len(state) :] for t in self.texts if t.startswith(state)), key=len, default=None)

    def value_start(self, state: bytes) -> int | None:
        return None


@dataclass
class Objects:
    """`{"name": "<letters>", "items": [<the same object>, ...]}`: texts of any length, with long forced parts."""

    keyed: bool = True
    start: tuple[str, ...] = ("object",)
    PARTS = {  # noqa: RUF012 - what an item of the stack begins with, and what it becomes then
        "object": [(b'{"name": "', ("letters", "items"))],
        "items": [(b', "items": [', ("first",))],
        "first": [(b"]", ("close",)), (b"{", ("object-", "more"))],
        "object-": [(b'"name": "', ("letters", "items"))],
        "more": [(b", ", ("object", "more")), (b"]", ("close",))],
        "close": [(b"}", ())],
    }

    def step(self, state: Hashable, byte: int) -> Any:
        assert isinstance(state, tuple)
        if not state:
            return None
        top, rest = state[0], state[1:]
        if isinstance(top, bytes):  # the rest of a fixed text
            return None if byte != top[0] else ((top[1:], *rest) if len(top) > 1 else rest)
        if top == "letters":
            return rest if byte == 34 else state if 97 <= byte <= 122 or byte == 32 else None
        for text, after in self.PARTS[top]:
            if byte == text[0]:
                return ((text[1:],) if len(text) > 1 else ()) + after + rest
        return None

    def accepting(self, state: Hashable) -> bool:
        return state == ()

    def shortest(self, state: Any) -> bytes:
        ends = {"letters": b'"', "items": b', "items": []}', "first": b"]}", "more": b"]}", "close": b"}"}
        ends |= {"object": b'{"name": "", "items": []}', "object-": b'"name": "", "items": []}'}
        return b"".join(part if isinstance(part, bytes) else ends[part] for part in state)

    def value_start(self, state: Hashable) -> int | None:
        return None


@dataclass
class Distinct:
    """`[w,w,...]` of `count` of the words, all different, which is seen only when one ends.

    A state is the text so far.
    """

    words: list[bytes]
    count: int
    keyed: bool = False
    start: bytes = b""

    def step(self, state: bytes, byte: int) -> bytes | None:
        after = state + bytes([byte])
        if not state or state.endswith(b"]"):
            return after if after == b"[" else None
        done, now = self._items(state)
        if byte in b",]":
            ends = now in self.words and now not in done and (byte == 44) == (len(done) + 1 < self.count)
            return after if ends else None
        return after if any(word.startswith(now + bytes([byte])) for word in self.words) else None

    def accepting(self, state: bytes) -> bool:
        return state.endswith(b"]")

    def shortest(self, state: bytes) -> bytes | None:
        found = b""
        while not self.accepting(state + found):
            text = state + found
            done, now = self._items(text) if text else ([], b"")
            free = [w for w in self.words if w.startswith(now) and w not in done]
            if text and not free:
                return None
            word = min(free, key=len) if text else b""
            found += word[len(now) :] + (b"[" if not text else b"," if len(done) + 1 < self.count else b"]")
        return found

    def value_start(self, state: bytes) -> int | None:
        if not state or self.accepting(state):
            return None
        return len(state) - len(self._items(state)[1])

    @staticmethod
    def _items(state: bytes) -> tuple[list[bytes], bytes]:
        *done, now = state[1:].split(b",")
        return done, now
