"""The native engine: a grammar becomes a pushdown automaton that is made deterministic while it runs (`csrc/machine`).

What it promises is what `engines.reference` does, bit for bit; it differs in speed alone. Calls release the GIL. What
a `Guard` asks is answered here: the library hands out the text of a value, and is called again with the answer.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from sglite.constrained import bitmask
from sglite.constrained.charset import EVERY
from sglite.constrained.engines.native_calls import MAX_LEAF_STATES, MAX_LEAF_WORK, MAX_STATES, library, new_program
from sglite.constrained.engines.stream import serialise
from sglite.constrained.grammar import Chars, Check, Grammar, JsonString, Repeat
from sglite.constrained.jump_forward import StableTokens
from sglite.constrained.matcher import ForcedText
from sglite.constrained.spec import ConstraintError
from sglite.constrained.token_matcher import Shared, TokenMatcher
from sglite.constrained.vocab import Vocabulary

_PENDING = -1
_NONE = -3
_FORCED_BYTES = 1024
_COUNTED = 1000  # characters, a limit beyond which the engine counts
_LARGE = 10_000  # numbers of a stream
_AHEAD = 4  # tokens
_ROOM = 1 << 20  # bytes
_MAX_ROUNDS = 10_000  # of questions about values, within one call


class NativeEngine:
    """Compiles grammars for one vocabulary. Safe to use from several threads.

    A program that has come upon `max_states` states forgets them and finds them again; what it says stays the same.
    """

    name = "native"

    def __init__(self, vocab: Vocabulary, max_states: int = MAX_STATES) -> None:
        self.vocab = vocab
        self.tokens = StableTokens(vocab)
        self._max_states = max_states
        self._lib = library()
        pieces = [vocab.content(i) or b"" for i in range(vocab.size)]
        offsets = np.zeros(vocab.size + 1, dtype=np.int64)
        np.cumsum([len(piece) for piece in pieces], out=offsets[1:])
        eos = np.array(vocab.eos_ids, dtype=np.int32)
        self._handle = self._lib.sg_vocab_new(
            b"".join(pieces),
            offsets.ctypes.data,
            vocab.size,
            eos.ctypes.data,
            len(eos),
            MAX_LEAF_STATES,
            MAX_LEAF_WORK,
        )

        self._warm()

    def _warm(self) -> None:
        """Look at the vocabulary from inside a string once, instead of when the first request is in one."""
        quote = next((i for i, piece in enumerate(self.vocab.token_bytes) if piece == b'"'), None)
        if quote is None:
            return
        mask = np.empty(self.vocab.words, dtype=np.int32)
        for high in (None, _COUNTED):
            text = JsonString(Repeat(Chars(EVERY), 0, high))
            matcher = self.compile(Grammar({"root": text})).raw_matcher()
            for _ in range(2):
                matcher.fill(mask)
                matcher.accept(quote)

    def compile(self, grammar: Grammar) -> NativeProgram:
        """Compile a grammar. ConstraintRefused when it is beyond the engine's limits."""
        return self.compile_stream(np.frombuffer(serialise(grammar), np.int32), grammar.checks)

    def compile_stream(self, stream: NDArray[np.int32], checks: tuple[Check, ...]) -> NativeProgram:
        """The same for a grammar that has been written down (`serialise`)."""
        handle = new_program(self._lib, self._handle, stream.ctypes.data, len(stream), self._max_states)
        program = NativeProgram(self, handle, checks)
        if len(stream) > _LARGE and not checks:  # what is checked is Python, which low priority would hold up
            program.look_ahead()
        return program

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            self._lib.sg_vocab_free(self._handle)


class NativeProgram:
    """A compiled grammar, shared by requests."""

    def __init__(self, engine: NativeEngine, handle: int, checks: tuple[Check, ...]) -> None:
        self.engine = engine
        self.vocab = engine.vocab
        self.checks = checks
        self._lib = engine._lib
        self._handle = handle
        self._shared = Shared(engine.tokens)

    @property
    def nbytes(self) -> int:
        """Approximate memory, growing with use up to a bound."""
        return int(self._lib.sg_program_nbytes(self._handle))

    def raw_matcher(self) -> NativeMatcher:
        return NativeMatcher(self, self._lib.sg_matcher_new(self._handle))

    def look_ahead(self) -> None:
        """Make the masks of one text's beginning, and what they are made from: else a step would wait for that."""
        matcher, mask = self.raw_matcher(), np.empty(self.vocab.words, dtype=np.int32)
        with contextlib.suppress(ConstraintError):  # whoever comes there is told
            for _ in range(_AHEAD):
                matcher.fill(mask, _ROOM)  # another way through the vocabulary, of texts that have to end in time
                matcher.fill(mask)
                allowed = bitmask.to_ids(mask)
                if not len(allowed) or not matcher.accept(int(allowed[0])):
                    return

    def matcher(self, jump_forward: bool = True, close_at: int | None = None) -> TokenMatcher:
        return TokenMatcher(self.raw_matcher(), self.vocab, jump_forward, close_at, self._shared)

    def __del__(self) -> None:
        self._lib.sg_program_free(self._handle)


class NativeMatcher:
    """`RawMatcher` over the library."""

    def __init__(self, program: NativeProgram, handle: int) -> None:
        self._program = program
        self._lib = program._lib
        self._handle = handle
        self._words = program.vocab.words
        self._known_flags: int | None = None
        """Of the state as it is."""

    def fill(self, mask: NDArray[np.int32], room: int | None = None) -> bool:
        if mask.shape != (self._words,) or mask.dtype != np.int32 or not mask.flags.c_contiguous:
            raise ValueError(f"the mask is int32 [{self._words}] contiguous, got {mask.dtype} {mask.shape}")
        address, bytes_left = mask.ctypes.data, -1 if room is None else room
        result = self._lib.sg_matcher_fill(self._handle, address, bytes_left)
        if result < 0:
            result = self._ask(lambda: self._lib.sg_matcher_fill(self._handle, address, bytes_left))
        return bool(result)

    def accept(self, token_id: int) -> bool:
        self._known_flags = None
        result = self._lib.sg_matcher_accept(self._handle, token_id)
        if result < 0:
            result = self._ask(lambda: self._lib.sg_matcher_accept(self._handle, token_id))
        return bool(result)

    def rollback(self, n: int) -> None:
        self._known_flags = None
        if n < 0 or not self._ask(lambda: self._lib.sg_matcher_rollback(self._handle, n)):
            raise ValueError(f"cannot roll back {n} tokens: {self.num_accepted} were accepted")

    def fork(self) -> NativeMatcher:
        return NativeMatcher(self._program, self._lib.sg_matcher_fork(self._handle))

    def forced_text(self, limit: int = 256) -> ForcedText:
        limit = min(limit, _FORCED_BYTES)
        out = ctypes.create_string_buffer(limit + 1)
        crossings = (ctypes.c_int32 * (limit + 1))()
        count = ctypes.c_int32()
        length = self._ask(
            lambda: self._lib.sg_matcher_forced(self._handle, out, limit, crossings, ctypes.byref(count))
        )
        return ForcedText(out.raw[:length], tuple(crossings[: count.value])) if length else _NOTHING_FORCED

    def shortest(self) -> bytes | None:
        capacity = 4096
        while True:
            out = ctypes.create_string_buffer(capacity)
            size = capacity
            length = self._ask(lambda: self._lib.sg_matcher_shortest(self._handle, out, size), none=_NONE)  # noqa: B023
            if length == _NONE:
                return None
            if length <= capacity:
                return out.raw[:length]
            capacity = length

    def held(self) -> int:
        result: int = self._lib.sg_matcher_held(self._handle)
        return result if result >= 0 else self._ask(lambda: self._lib.sg_matcher_held(self._handle))

    @property
    def accepting(self) -> bool:
        return bool(self._flags() & 1)

    @property
    def ended(self) -> bool:
        return bool(self._flags() & 2)

    @property
    def num_accepted(self) -> int:
        return int(self._lib.sg_matcher_accepted(self._handle))

    @property
    def text(self) -> bytes:
        pointer = ctypes.c_void_p()
        length = self._lib.sg_matcher_text(self._handle, ctypes.byref(pointer))
        return ctypes.string_at(pointer, length)

    @property
    def state_key(self) -> int | None:
        key = int(self._lib.sg_matcher_state_key(self._handle))
        return None if key < 0 else key

    def __del__(self) -> None:
        self._lib.sg_matcher_free(self._handle)

    def _flags(self) -> int:
        known = self._known_flags
        if known is None:
            known = self._lib.sg_matcher_flags(self._handle)
            if known < 0:
                known = self._ask(lambda: self._lib.sg_matcher_flags(self._handle))
            self._known_flags = known
        return known

    def _ask(self, call: Callable[[], int], none: int = 0) -> int:
        """The result of a call that may want to know whether some values are right before it has one."""
        for _ in range(_MAX_ROUNDS):
            result = call()
            if result >= 0 or result == none:
                return result
            if result != _PENDING:
                raise ConstraintError(self._lib.sg_matcher_failure(self._handle).decode("utf-8", "replace"))
            self._answer()
        raise ConstraintError("a value was asked about without end; report this schema")

    def _answer(self) -> None:
        for index, check, text in list(self._questions()):
            try:
                value = text.decode()
            except UnicodeDecodeError:  # a value that ended inside a character is none
                self._lib.sg_answer(self._handle, index, 0)
                continue
            self._lib.sg_answer(self._handle, index, int(self._program.checks[check](value)))

    def _questions(self) -> Iterator[tuple[int, int, bytes]]:
        pointer, length = ctypes.c_void_p(), ctypes.c_int64()
        for index in range(self._lib.sg_queries(self._handle)):
            check = self._lib.sg_query(self._handle, index, ctypes.byref(pointer), ctypes.byref(length))
            yield index, check, ctypes.string_at(pointer, length.value) if length.value else b""


_NOTHING_FORCED = ForcedText(b"", ())
