"""sglite as an engine of the shared harness: the very compiler, constraint and matcher that the runtime uses.

    cd <shared>/bench/constrained
    python harness.py --engine <project>/benchmarks/constrained/sglite_engine.py:SgliteEngine --split dev
    python harness.py --engine <project>/benchmarks/constrained/sglite_engine.py:SgliteCompact --split dev --ser compact

The data has valid instances whose properties come in another order than the schema's. They are measured with
``order="any"``, the request that accepts every order; ``SgliteSchemaOrder`` and ``SgliteCompact`` have the default,
which refuses them by policy and forces more tokens. ``SGLITE_CONSTRAINT_ORDER`` chooses for all.

``SGLITE_CONSTRAINT_ENGINE`` names the engine below the matcher (``native``, ``xgrammar``); without it the native one is
measured. The engine is loaded here, once, as a server loads it at its start. No compiled constraint outlives its item.
"""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any

import numpy as np
from engines.base import Engine, Refused, State
from numpy.typing import NDArray

from sglite.constrained.compiler import CompiledConstraint, ConstraintCompiler
from sglite.constrained.spec import ConstraintError, ConstraintRefused, ConstraintSpec, Order, Whitespace
from sglite.constrained.vocab import Vocabulary

ENGINE_VARIABLE = "SGLITE_CONSTRAINT_ENGINE"
ORDER_VARIABLE = "SGLITE_CONSTRAINT_ORDER"
ENGINES = ("native", "xgrammar")


class MatcherState(State):  # type: ignore[misc]
    """One request: a matcher and the row it fills."""

    __slots__ = ("_compiled", "_fed", "_ids", "_matcher", "_raw", "_row", "_vocab")

    def __init__(self, compiled: CompiledConstraint, vocab: Vocabulary) -> None:
        self._compiled = compiled
        self._vocab = vocab
        self._matcher = compiled.matcher()
        self._row = np.empty(vocab.words, dtype=np.int32)
        self._ids: list[int] = []
        self._raw: Any = None
        self._fed = 0

    def mask_raw(self) -> NDArray[np.int32]:
        self._matcher.fill(self._row)
        return self._row

    def mask(self, out: NDArray[np.int32]) -> None:
        self._matcher.fill(out)

    def accept(self, token: int) -> bool:
        taken = self._matcher.accept(token)
        if taken:
            self._ids.append(token)
        return taken

    def is_accepting(self) -> bool:
        return self._matcher.accepting

    def jump_forward(self) -> bytes:
        """The bytes that must follow: those the engine knows of, or those of the forced tokens where it does not say.

        A matcher shows tokens only, so the engine's own is led along the same way.
        """
        program: Any = self._compiled.program
        if not hasattr(program, "raw_matcher"):
            return b"".join(self._vocab.content(token) or b"" for token in self._matcher.forced())
        self._raw = self._raw or program.raw_matcher()
        for token in self._ids[self._fed :]:
            self._raw.accept(token)
        self._fed = len(self._ids)
        forced: bytes = self._raw.forced_text().text
        return forced

    def ff_tokens(self) -> list[int]:
        return self._matcher.forced()

    def rollback(self, n: int) -> bool:
        self._matcher.rollback(n)
        del self._ids[len(self._ids) - n :]
        self._raw, self._fed = None, 0
        return True


class SgliteEngine(Engine):  # type: ignore[misc]
    """sglite with whitespace as ``json.dumps`` writes it. Built with the harness's ``Vocab``."""

    name = "sglite"
    whitespace: Whitespace = "fixed"
    order: Order = "any"

    def __init__(self, vocab: Any, **_: Any) -> None:
        self.order = os.environ.get(ORDER_VARIABLE, self.order)  # type: ignore[assignment]
        self._vocab = Vocabulary(vocab.bytes, (vocab.eos,), vocab.encode, vocab.size)
        engine = load_engine(os.environ.get(ENGINE_VARIABLE, ""), self._vocab)
        # The harness forks its workers from here, and threads do not survive a fork: this compiler has none yet.
        self._compiler = ConstraintCompiler(self._vocab, cache_entries=1, engine=engine)

    def compile(self, schema: Any) -> CompiledConstraint:
        return self._compile(ConstraintSpec.json_schema, schema, whitespace=self.whitespace, order=self.order)

    def compile_regex(self, pattern: str) -> CompiledConstraint:
        return self._compile(ConstraintSpec.regex, pattern)

    def new_state(self, compiled: CompiledConstraint) -> MatcherState:
        return MatcherState(compiled, self._vocab)

    def version(self) -> str:
        return version("sglite")

    def _compile(self, make: Any, value: Any, **options: Any) -> CompiledConstraint:
        """Wait for the compile, so that the process's clock has it, whichever thread did it."""
        try:
            return self._compiler.compile(make(value, **options))
        except (ConstraintError, ConstraintRefused) as error:
            raise Refused(str(error)) from None


class SgliteSchemaOrder(SgliteEngine):
    """sglite by default: properties in the schema's order."""

    order = "schema"


class SgliteCompact(SgliteSchemaOrder):
    """The same without spaces, for ``--ser compact``."""

    whitespace = "compact"


def load_engine(name: str, vocab: Vocabulary) -> Any:
    """The engine called ``name``, loaded; ``""``: the native one, or xgrammar where that cannot be built."""
    if name and name not in ENGINES:
        raise SystemExit(f"{ENGINE_VARIABLE}={name!r} is not one of {', '.join(ENGINES)}")
    if name != "xgrammar":
        from sglite.constrained.engines.native import NativeEngine
        from sglite.constrained.engines.native_build import NativeUnavailable

        try:
            return NativeEngine(vocab)
        except NativeUnavailable:
            if name:
                raise
    from sglite.constrained.engines.xgrammar import XGrammarEngine

    return XGrammarEngine(vocab)
