"""The calls of the native library, and the first of them: from a grammar's stream to a program."""

from __future__ import annotations

import ctypes
from array import array
from typing import Any

from sglite.constrained.engines.native_build import load
from sglite.constrained.spec import ConstraintRefused

MAX_LEAF_STATES = 60_000
MAX_LEAF_WORK = 40_000_000
MAX_STATES = 400_000
OUT_OF_MEMORY = "out of memory while it was compiled; simplify it"
_ERROR_BYTES = 400


def library() -> Any:
    """The library, its functions declared. Raises NativeUnavailable."""
    return _declare(load())


def new_program(lib: Any, vocab: int, address: int, length: int, max_states: int = MAX_STATES) -> int:
    """A program of the grammar that so many int32 at `address` describe. Raises ConstraintRefused."""
    error = ctypes.create_string_buffer(_ERROR_BYTES)
    handle: int | None = lib.sg_program_new(vocab, address, length, max_states, error, _ERROR_BYTES)
    if not handle:
        raise ConstraintRefused(error.value.decode("utf-8", "replace"))
    return handle


class Trial:
    """Compiles for nobody: what a program is depends on its vocabulary only once it runs. It remembers leaves."""

    def __init__(self) -> None:
        self._lib = library()
        offsets, eos = (ctypes.c_int64 * 2)(), (ctypes.c_int32 * 1)()
        self._vocab = self._lib.sg_vocab_new(b"", offsets, 1, eos, 1, MAX_LEAF_STATES, MAX_LEAF_WORK)

    def compile(self, stream: array[int]) -> None:
        """Raises ConstraintRefused where the engine would."""
        self._lib.sg_program_free(new_program(self._lib, self._vocab, *stream.buffer_info()))

    def __del__(self) -> None:
        if hasattr(self, "_vocab"):
            self._lib.sg_vocab_free(self._vocab)


def _declare(lib: ctypes.CDLL) -> Any:
    pointer, int32, int64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "sg_vocab_new": (pointer, [ctypes.c_char_p, pointer, int32, pointer, int32, int64, int64]),
        "sg_vocab_free": (None, [pointer]),
        "sg_program_new": (pointer, [pointer, pointer, int64, int64, ctypes.c_char_p, int32]),
        "sg_program_free": (None, [pointer]),
        "sg_program_nbytes": (int64, [pointer]),
        "sg_matcher_new": (pointer, [pointer]),
        "sg_matcher_fork": (pointer, [pointer]),
        "sg_matcher_free": (None, [pointer]),
        "sg_matcher_failure": (ctypes.c_char_p, [pointer]),
        "sg_matcher_fill": (int32, [pointer, pointer, int64]),
        "sg_matcher_accept": (int32, [pointer, int32]),
        "sg_matcher_rollback": (int32, [pointer, int32]),
        "sg_matcher_flags": (int32, [pointer]),
        "sg_matcher_forced": (int32, [pointer, pointer, int32, pointer, pointer]),
        "sg_matcher_shortest": (int64, [pointer, pointer, int64]),
        "sg_matcher_held": (int32, [pointer]),
        "sg_matcher_state_key": (int64, [pointer]),
        "sg_matcher_accepted": (int32, [pointer]),
        "sg_matcher_text": (int64, [pointer, pointer]),
        "sg_queries": (int32, [pointer]),
        "sg_query": (int32, [pointer, int32, pointer, pointer]),
        "sg_answer": (None, [pointer, int32, int32]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype = result
        function.argtypes = arguments
    return lib
