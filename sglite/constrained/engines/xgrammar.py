"""xgrammar as the engine: a normalised grammar, written in its EBNF, becomes masks.

Only the EBNF reader, the Earley matcher and the mask precomputation of xgrammar are used. Its own readers of JSON
Schema and regular expressions are not, because they pass over what they do not know. The library imports torch
and transformers, so it is imported when the first engine is made.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglite.constrained import bitmask
from sglite.constrained.charset import Ranges, size
from sglite.constrained.grammar import Alt, Chars, Grammar, Limited, Node, Ref, Repeat, Seq, Text
from sglite.constrained.matcher import forced_by_mask
from sglite.constrained.spec import ConstraintError
from sglite.constrained.vocab import Vocabulary

# Copies of a character class up to which a counted one is written out: any class, and one of few characters, such as
# hexadecimal digits, that only a few tokens can follow.
_UNROLLED = 4
_UNROLLED_FEW = 64
_FEW = 22


class XGrammarEngine:
    """Compiles grammars for one vocabulary. Safe to use from several threads; compiling releases the GIL."""

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
        """Compile a normalised grammar. ConstraintError when the engine will not read it."""
        return self._program(self._compiler.compile_grammar, to_ebnf(grammar))

    def compile_tags(self, tag_json: str) -> XGrammarProgram:
        """Compile a structural tag in the engine's own JSON form."""
        return self._program(self._compiler.compile_structural_tag, tag_json)

    def _program(self, compile_text: Any, text: str) -> XGrammarProgram:
        try:
            compiled = compile_text(text)
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

    def matcher(self) -> XGrammarMatcher:
        return XGrammarMatcher(self.vocab, self._make())


class XGrammarMatcher:
    """`Matcher` over an xgrammar matcher."""

    def __init__(self, vocab: Vocabulary, handle: Any, accepted: int = 0, ended: bool = False) -> None:
        self._vocab = vocab
        self._handle = handle
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
        return XGrammarMatcher(self._vocab, self._handle.fork(), self._accepted, self._ended)

    def forced(self, limit: int = 64) -> list[int]:
        return forced_by_mask(self, self._vocab.eos_ids, self._vocab.words, limit)

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


def to_ebnf(grammar: Grammar) -> str:
    """A normalised grammar in the engine's EBNF (the GBNF of llama.cpp, with `max_chars`). Rules are renamed."""
    return _Writer(grammar).write()


class _Writer:
    """Spells nodes the way the engine is fast at.

    It computes a mask in advance for every state that a rule unrolls to, each a walk over the whole vocabulary: a
    counted character class is therefore written as a star under a limit, not as its copies.
    """

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._names = {name: "root" if name == grammar.root else f"r{i}" for i, name in enumerate(grammar.rules)}
        self._limited: dict[Limited, str] = {}
        self._lines: list[str] = []

    def write(self) -> str:
        for name, node in self._grammar.rules.items():
            self._lines.append(f"{self._names[name]} ::= {self._node(node)}")
        return "\n".join(self._lines)

    def _node(self, node: Node) -> str:
        if isinstance(node, Text):
            return '"' + "".join(_escape(ord(c)) for c in node.text) + '"'
        if isinstance(node, Chars):
            return _write_class(node.ranges)
        if isinstance(node, Seq):
            return " ".join(self._node(item) for item in node.items)
        if isinstance(node, Alt):
            return "(" + " | ".join(self._node(item) for item in node.items) + ")"
        if isinstance(node, Ref):
            return self._names[node.name]
        if isinstance(node, Limited):
            return self._limit(node)
        return self._repeat(node)

    def _repeat(self, node: Repeat) -> str:
        if (
            isinstance(node.item, Chars)
            and node.high is not None
            and self._costly(node.item.ranges, node.high - node.low)
        ):
            head = f"{self._node(node.item)}{{{node.low},{node.low}}} " if node.low else ""
            return head + self._limit(Limited(Repeat(node.item, 0, None), node.high - node.low))
        short = {(0, 1): "?", (0, None): "*", (1, None): "+"}
        high = "" if node.high is None else node.high
        return f"({self._node(node.item)}){short.get((node.low, node.high)) or f'{{{node.low},{high}}}'}"

    def _costly(self, ranges: Ranges, copies: int) -> bool:
        return copies > _UNROLLED and (size(ranges) > _FEW or copies > _UNROLLED_FEW)

    def _limit(self, node: Limited) -> str:
        if node not in self._limited:
            self._limited[node] = f"l{len(self._limited)}"
            self._lines.append(f"{self._limited[node]}[max_chars={node.most}] ::= {self._node(node.item)}")
        return self._limited[node]


def _write_class(ranges: Ranges) -> str:
    parts = (_escape(low) if low == high else f"{_escape(low)}-{_escape(high)}" for low, high in ranges)
    return "[" + "".join(parts) + "]"


def _escape(code: int) -> str:
    char = chr(code)
    return char if char.isascii() and char.isalnum() else f"\\U{code:08X}"
