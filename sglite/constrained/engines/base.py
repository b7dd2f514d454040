"""What an engine is to a compiler, and which one it gets."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sglite.constrained.grammar import Check, Grammar
from sglite.constrained.matcher import Matcher, RawMatcher
from sglite.constrained.spec import ConstraintRefused
from sglite.constrained.vocab import Vocabulary

ENGINES = ("auto", "native", "xgrammar", "reference")


class Program(Protocol):
    """What an engine makes of a grammar; shared by requests."""

    @property
    def nbytes(self) -> int:
        """Approximate memory; it may grow with use."""

    def raw_matcher(self) -> RawMatcher:
        """A new matcher of bytes and masks alone. ConstraintRefused from an engine that has none."""

    def matcher(self, jump_forward: bool = True, close_at: int | None = None) -> Matcher:
        """A new matcher at the start of the text.

        `jump_forward` tells whether `forced` finds anything; the masks are the same without. With `close_at` the text
        is complete within so many tokens; ValueError when no text is.
        """


class Engine(Protocol):
    """Compiles a grammar. Called from several threads, with nothing locked."""

    def compile(self, grammar: Grammar) -> Program: ...


@runtime_checkable
class StreamEngine(Engine, Protocol):
    """One that takes a grammar written down (`stream`), too."""

    def compile_stream(self, stream: NDArray[np.int32], checks: tuple[Check, ...]) -> Program:
        """`compile` of the grammar that was written, whose checks are these."""


def load(name: str, vocab: Vocabulary) -> Engine:
    """The engine of that name, ready to compile; "auto" is the native one, or xgrammar where that cannot be built.

    Raises ValueError for an unknown name and ConstraintRefused when the engine is not to be had here.
    """
    if name not in ENGINES:
        raise ValueError(f"the constraint engine {name!r} is not one of {', '.join(ENGINES)}")
    try:
        if name == "reference":
            from sglite.constrained.engines.reference import ReferenceEngine

            return ReferenceEngine(vocab)
        native = None if name == "xgrammar" else _native(vocab, optional=name == "auto")
        return native or _xgrammar(vocab)
    except ImportError as error:
        raise ConstraintRefused(f"no constraint engine: {error}; install sglite[runtime]") from None


def _native(vocab: Vocabulary, optional: bool) -> Engine | None:
    from sglite.constrained.engines.native import NativeEngine
    from sglite.constrained.engines.native_build import NativeUnavailable

    try:
        return NativeEngine(vocab)
    except NativeUnavailable as error:
        if optional:
            return None
        raise ConstraintRefused(f"the native constraint engine is not to be had: {error}") from None


def _xgrammar(vocab: Vocabulary) -> Engine:
    from sglite.constrained.engines.xgrammar import XGrammarEngine

    return XGrammarEngine(vocab)
