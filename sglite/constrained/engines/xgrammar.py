"""xgrammar as the engine: a grammar, normalised and written in its EBNF, becomes masks.

Only the EBNF reader, the Earley matcher and the mask precomputation of xgrammar are used. Its own readers of JSON
Schema and regular expressions are not, because they pass over what they do not know. It serves where the native
engine cannot be built, and has less: no checks at run time, no forced text beyond single tokens, no budget; what
needs them is refused. The library imports torch and transformers, so it is imported when the first engine is made.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglite.constrained import bitmask
from sglite.constrained.engines.xgrammar_ebnf import to_ebnf
from sglite.constrained.grammar import Grammar, check_expanded, normalise
from sglite.constrained.limits import Limits
from sglite.constrained.matcher import RawMatcher, forced_by_mask, run_follows_each
from sglite.constrained.spec import ConstraintError, ConstraintRefused
from sglite.constrained.vocab import Vocabulary


class XGrammarEngine:
    """Compiles grammars for one vocabulary. Safe to use from several threads; compiling releases the GIL."""

    name = "xgrammar"

    def __init__(self, vocab: Vocabulary) -> None:
        import xgrammar

        self._xgrammar: Any = xgrammar
        self.vocab = vocab
        pieces = [vocab.content(i) or b"" for i in range(vocab.size)]
        info = xgrammar.TokenizerInfo(
            pieces, xgrammar.VocabType.RAW, vocab_size=vocab.size, stop_token_ids=list(vocab.eos_ids)
        )
        self._compiler: Any = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)

    def compile(self, grammar: Grammar) -> XGrammarProgram:
        """Compile a grammar. ConstraintRefused for what it cannot say, ConstraintError when it fails."""
        grammar = normalise(grammar)
        check_expanded(grammar, Limits())
        text = to_ebnf(grammar)
        try:
            compiled = self._compiler.compile_grammar(text)
        except (RuntimeError, ValueError, TypeError) as error:
            last = str(error).strip().splitlines()[-1]
            raise ConstraintError(f"the engine could not read the grammar: {last}") from None
        return XGrammarProgram(self.vocab, compiled, functools.partial(self._xgrammar.GrammarMatcher, compiled))


class XGrammarProgram:
    """A compiled grammar, shared by requests."""

    def __init__(self, vocab: Vocabulary, compiled: Any, make: functools.partial[Any]) -> None:
        self.vocab = vocab
        self.nbytes = int(compiled.memory_size_bytes)
        self._make = make

    def raw_matcher(self) -> RawMatcher:
        raise ConstraintRefused("the xgrammar engine cannot end a text within a budget; use the native engine")

    def matcher(self, jump_forward: bool = True, close_at: int | None = None) -> XGrammarMatcher:
        """As `Program.matcher`. ConstraintRefused with `close_at`."""
        if close_at is not None:
            self.raw_matcher()
        return XGrammarMatcher(self.vocab, self._make(), jump_forward)


class XGrammarMatcher:
    """`Matcher` over an xgrammar matcher. A token is forced where the mask has one bit."""

    def __init__(
        self, vocab: Vocabulary, handle: Any, jump_forward: bool = True, accepted: int = 0, ended: bool = False
    ) -> None:
        self._vocab = vocab
        self._handle = handle
        self._jump = jump_forward
        self._accepted = accepted  # tokens taken, the end of sequence included
        self._ended = ended  # an end of sequence was taken; it is the last token then
        self._mask: tuple[bool, NDArray[np.int32]] | None = None  # what `fill` found here; forced, finished and the
        # sampler all ask at the same place

    def fill(self, mask: NDArray[np.int32]) -> bool:
        if mask.shape != (self._vocab.words,) or mask.dtype != np.int32 or not mask.flags.c_contiguous:
            raise ValueError(f"the mask is int32 [{self._vocab.words}] contiguous, got {mask.dtype} {mask.shape}")
        if self._mask is None:
            self._mask = self._find(mask), mask.copy()
        restricted, known = self._mask
        mask[:] = known
        return restricted

    def _find(self, mask: NDArray[np.int32]) -> bool:
        if self._ended:
            mask.fill(0)
            bitmask.allow(mask, self._vocab.eos_ids)
            return True
        # the engine writes the row only when it has something to say
        mask.fill(-1)
        if not self._handle.fill_next_token_bitmask(mask.reshape(1, -1), 0):
            return False
        bitmask.clear_padding(mask, self._vocab.size)
        return True

    def accept(self, token_id: int) -> bool:
        if self._ended:
            return False
        if token_id in self._vocab.eos_ids:
            if not self.accepting:
                return False
            self._ended = True
        elif self._vocab.content(token_id) is None or not self._handle.accept_token(token_id):
            return False
        self._accepted += 1
        self._mask = None
        return True

    def accept_run(self, ids: Sequence[int]) -> int:
        for taken, token_id in enumerate(ids):
            if not self.accept(token_id):
                return taken
        return len(ids)

    def rollback(self, n: int) -> None:
        if not 0 <= n <= self._accepted:
            raise ValueError(f"cannot roll back {n} tokens: {self._accepted} were accepted")
        self._accepted -= n
        if n:
            self._mask = None
        if n and self._ended:  # the end of sequence never reached the engine
            self._ended = False
            n -= 1
        if n:
            self._handle.rollback(n)

    def fork(self) -> XGrammarMatcher:
        return XGrammarMatcher(self._vocab, self._handle.fork(), self._jump, self._accepted, self._ended)

    def forced(self, limit: int = 64) -> list[int]:
        return forced_by_mask(self, self._vocab.eos_ids, self._vocab.words, limit) if self._jump else []

    def run_follows(self, mask: NDArray[np.int32]) -> bool:
        return run_follows_each(self, mask)

    def retreat(self) -> int:
        return 0  # no value is checked when it ends

    def charge(self, n: int) -> None:
        """Nothing: there is no budget."""

    @property
    def held(self) -> int:
        return 0

    @property
    def stuck(self) -> bool:
        return self.error is not None

    @property
    def closed_from(self) -> int | None:
        return None

    @property
    def accepting(self) -> bool:
        return bool(self._handle.is_completed())

    @property
    def finished(self) -> bool:
        return self._ended or (self.accepting and not self._text_follows())

    @property
    def error(self) -> str | None:
        if self._ended or self.accepting or self._text_follows():
            return None
        return "no token of the vocabulary can continue the text; the constraint needs bytes the vocabulary lacks"

    def _text_follows(self) -> bool:
        mask = np.empty(self._vocab.words, dtype=np.int32)
        self.fill(mask)
        bitmask.forbid(mask, self._vocab.eos_ids)
        return bool(mask.any())
