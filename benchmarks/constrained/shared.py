"""Where the shared harness is, and the vocabulary everything is measured with.

The harness, its data and the tool calls are a folder beside the project, not part of it: ``--shared`` or
``SGLITE_BENCH_SHARED`` names it, ``../shared/bench/constrained`` is the default. The vocabulary (151,643 ranks and
specials, masks of 151,936 bits) ships inside the package ``dashscope``: ``pip install --no-deps dashscope``.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import importlib.util
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglite.constrained.compiler import ConstraintCompiler
from sglite.constrained.vocab import Vocabulary

PROJECT = Path(__file__).resolve().parents[2]
VARIABLE = "SGLITE_BENCH_SHARED"
DEFAULT = PROJECT.parent / "shared" / "bench" / "constrained"


@dataclass(frozen=True)
class Shared:
    """The shared folder, checked."""

    folder: Path
    engine: str = ""
    """Name of sglite's engine; empty: the first that loads."""

    def words(self) -> Any:
        """The harness's own ``Vocab``."""
        self._on_path()
        return importlib.import_module("vocab").Vocab()

    def vocabulary(self) -> Vocabulary:
        """The same for sglite."""
        words = self.words()
        return Vocabulary(words.bytes, (words.eos,), words.encode, words.size)

    def compiler(self, vocab: Vocabulary, cache_entries: int = 64) -> ConstraintCompiler:
        """A compiler over the engine under test."""
        self._on_path()
        from benchmarks.constrained.sglite_engine import load_engine

        return ConstraintCompiler(vocab, cache_entries=cache_entries, engine=load_engine(self.engine, vocab))

    def split(self, name: str) -> list[dict[str, Any]]:
        """Items of ``data/NAME.jsonl.gz``."""
        return _lines(self.folder / "data" / f"{name}.jsonl.gz")

    def tools(self, limit: int = 0) -> list[dict[str, Any]]:
        """Tool schemas and gold calls; empty without the file."""
        path = self.folder.parent / "tools" / "bfcl.jsonl.gz"
        return _lines(path)[: limit or None] if path.exists() else []

    def _on_path(self) -> None:
        if str(self.folder) not in sys.path:
            sys.path.insert(0, str(self.folder))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the folder is, and which engine."""
    parser.add_argument("--shared", type=Path, help=f"the harness's folder; else {VARIABLE}, else beside the project")
    parser.add_argument("--engine", default=os.environ.get("SGLITE_CONSTRAINT_ENGINE", ""), help="native or xgrammar")


def load_shared(arguments: argparse.Namespace) -> Shared:
    """Check folder and vocabulary; ends the program in one line when one is missing."""
    folder = Path(arguments.shared or os.environ.get(VARIABLE) or DEFAULT)
    if not (folder / "harness.py").exists():
        sys.exit(f"no harness in {folder}; name its folder with --shared or {VARIABLE}")
    if importlib.util.find_spec("dashscope") is None and "QWEN_TIKTOKEN" not in os.environ:
        sys.exit("no vocabulary: pip install --no-deps dashscope, or name a copy of qwen.tiktoken in QWEN_TIKTOKEN")
    return Shared(folder.resolve(), arguments.engine)


def _lines(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]
