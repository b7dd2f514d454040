"""The reference engine: a grammar executed as its docstrings read, in plain Python. Engines are tested against it.

A configuration is a regular leaf with its state and a stack of what comes after it; the state of a text is the set of
configurations that its bytes lead to, and whether the text may end there. A token is allowed when its bytes lead to a
state that is not dead. Every leaf cuts off what cannot be finished and the grammar is normalised, so from such a state
a member can be reached, but for what `Unique` and `Guard` say: they are asked when a value ends, and a configuration
whose value is wrong is dropped. A value that cannot go on is over, and asked, at its last byte; one that could go on
is asked when a byte that is not its own, or the end of the text, ends it.

Nothing is remembered between steps but leaves, so this is slow: it is for small vocabularies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sglite.constrained import bitmask
from sglite.constrained.engines.reference_costs import Costs
from sglite.constrained.engines.reference_frames import Configs, Frame, Rules, Stack
from sglite.constrained.grammar import Grammar, Guard, Special, Unique, normalise
from sglite.constrained.matcher import ForcedText
from sglite.constrained.token_matcher import TokenMatcher
from sglite.constrained.vocab import Vocabulary

_MAX_SEARCH = 20_000  # states looked at for a shortest completion


class ReferenceEngine:
    """Compiles grammars for one vocabulary."""

    name = "reference"

    def __init__(self, vocab: Vocabulary) -> None:
        self.vocab = vocab

    def compile(self, grammar: Grammar) -> ReferenceProgram:
        """Raises ConstraintRefused for left recursion, and for a regular part with very many states."""
        return ReferenceProgram(self.vocab, Rules(normalise(grammar)))


class ReferenceProgram:
    """A compiled grammar, shared by requests."""

    def __init__(self, vocab: Vocabulary, rules: Rules) -> None:
        self.vocab = vocab
        self.rules = rules
        self.costs = Costs(rules)
        self._keys: dict[Configs, int] = {}

    @property
    def nbytes(self) -> int:
        """Approximate memory."""
        return 1000 * (len(self.rules.leaves) + len(self._keys))

    def raw_matcher(self) -> ReferenceMatcher:
        return ReferenceMatcher(self)

    def matcher(self, jump_forward: bool = True, close_at: int | None = None) -> TokenMatcher:
        return TokenMatcher(self.raw_matcher(), self.vocab, jump_forward=jump_forward, close_at=close_at)

    def key(self, configs: Configs) -> int:
        return self._keys.setdefault(configs, len(self._keys))


@dataclass(frozen=True, slots=True)
class _Step:
    """After a token: where the text stands, how long it is, and whether an end of sequence was taken."""

    configs: Configs
    length: int
    ended: bool = False


@dataclass(slots=True)
class ReferenceMatcher:
    """`RawMatcher` by the book."""

    program: ReferenceProgram
    _text: bytearray = field(default_factory=bytearray)
    _steps: list[_Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self._steps:
            self._steps.append(_Step(self.program.rules.start(), 0))

    def fill(self, mask: NDArray[np.int32], room: int | None = None) -> bool:
        mask.fill(0)
        read: dict[bytes, Configs] = {}
        bitmask.allow(mask, (i for i in range(self.program.vocab.size) if self._allowed(i, room, read)))
        return True

    def _allowed(self, token_id: int, room: int | None, read: dict[bytes, Configs]) -> bool:
        if token_id in self.program.vocab.eos_ids:
            return self.ended or self.accepting
        after = self._after(token_id, read)
        return after is not None and (room is None or self.program.costs.of(after.configs) <= room)

    def _after(self, token_id: int, read: dict[bytes, Configs]) -> _Step | None:
        """The step that a token which is not an end of sequence makes; None when it is not allowed.

        `read` remembers where bytes lead from here, so that tokens with a common beginning share it.
        """
        here = self._steps[-1]
        if here.ended:
            return None
        special = self.program.rules.take_special(here.configs, token_id, bytes(self._text))
        if special:
            return _Step(special, here.length)
        piece = self.program.vocab.content(token_id)
        if piece is None:
            return None
        configs = here.configs
        for i, byte in enumerate(piece):
            begun = piece[: i + 1]
            if begun not in read:
                read[begun] = self.program.rules.take_byte(configs, byte, bytes(self._text) + begun)
            configs = read[begun]
            if not configs:
                return None
        return _Step(configs, here.length + len(piece))

    def accept(self, token_id: int) -> bool:
        if token_id in self.program.vocab.eos_ids:
            if self.ended or not self.accepting:
                return False
            self._steps.append(_Step(self._steps[-1].configs, len(self._text), True))
            return True
        after = self._after(token_id, {}) if 0 <= token_id < self.program.vocab.size else None
        if after is None:
            return False
        if after.length > len(self._text):
            self._text += self.program.vocab.content(token_id) or b""
        self._steps.append(after)
        return True

    def rollback(self, n: int) -> None:
        if not 0 <= n <= self.num_accepted:
            raise ValueError(f"cannot roll back {n} tokens: {self.num_accepted} were accepted")
        del self._steps[len(self._steps) - n :]
        del self._text[self._steps[-1].length :]

    def fork(self) -> ReferenceMatcher:
        return ReferenceMatcher(self.program, bytearray(self._text), list(self._steps))

    def forced_text(self, limit: int = 256) -> ForcedText:
        forced, configs = b"", self._steps[-1].configs
        while not self.ended and len(forced) < limit:
            ways = list(self._ways(configs, forced))
            if (
                len(ways) != 1
                or None in configs
                or any(isinstance(config.leaf, Special) for config in configs if config)
            ):
                break
            forced += bytes([ways[0][0]])
            configs = ways[0][1]
        return ForcedText(forced, tuple(b for b in range(len(forced)) if self._crosses(configs, forced, forced[b:])))

    def _ways(self, configs: Configs, forced: bytes) -> Iterator[tuple[int, Configs]]:
        """The bytes that may follow `forced`, with where they lead."""
        text = bytes(self._text) + forced
        for byte in range(256):
            after = self.program.rules.take_byte(configs, byte, text + bytes([byte]))
            if after:
                yield byte, after

    def _crosses(self, configs: Configs, forced: bytes, tail: bytes) -> bool:
        text = bytes(self._text) + forced
        for token_id in range(self.program.vocab.size):
            piece = self.program.vocab.content(token_id)
            if piece is not None and len(piece) > len(tail) and piece.startswith(tail):
                at, over = configs, piece[len(tail) :]
                for i, byte in enumerate(over):
                    at = self.program.rules.take_byte(at, byte, text + over[: i + 1])
                if at:
                    return True
        return False

    def shortest(self) -> bytes | None:
        costs = self.program.costs
        first = self._steps[-1].configs
        queue: dict[int, list[tuple[bytes, Configs]]] = {costs.of(first): [(b"", first)]}
        seen = {first}
        for _ in range(_MAX_SEARCH):
            if not queue:
                return None
            least = min(queue)
            done, configs = queue[least].pop()
            if not queue[least]:
                del queue[least]
            if None in configs:
                return done
            for byte, after in self._ways(configs, done):
                if after not in seen or self.program.rules.looks_at_text(after):
                    seen.add(after)
                    queue.setdefault(len(done) + 1 + costs.of(after), []).append((done + bytes([byte]), after))
        return None

    def held(self) -> int:
        starts = [start for config in self._steps[-1].configs if config for start in _held_from(config.stack)]
        if self.ended or not starts:
            return 0
        return sum(step.length > min(starts) for step in self._steps)

    @property
    def accepting(self) -> bool:
        return None in self._steps[-1].configs

    @property
    def ended(self) -> bool:
        return self._steps[-1].ended

    @property
    def num_accepted(self) -> int:
        return len(self._steps) - 1

    @property
    def text(self) -> bytes:
        return bytes(self._text)

    @property
    def state_key(self) -> int | None:
        configs = self._steps[-1].configs
        return None if self.ended or self.program.rules.looks_at_text(configs) else self.program.key(configs)


def _held_from(stack: Stack) -> Iterator[int]:
    """Where the values in progress began that may still be taken back."""
    while stack:
        frame: Frame
        frame, stack = stack
        asked = isinstance(frame.node, Guard) or (isinstance(frame.node, Unique) and not frame.node.safe)
        if frame.inside and asked:
            yield frame.start
