"""Questions about regular nodes that the native library answers, once it is loaded for the engine's sake."""

from __future__ import annotations

import ctypes
from typing import Any

from sglite.constrained.engines.native_build import loaded
from sglite.constrained.engines.stream import serialise
from sglite.constrained.fsm_terms import TooLarge
from sglite.constrained.grammar import Grammar, Node

_MAX_STATES = 60_000
_MAX_WORK = 10_000_000


def is_empty(node: Node) -> bool | None:
    """Whether a regular node has no text; None while there is no library. Raises TooLarge."""
    library = loaded()
    if library is None:
        return None
    answer = _asked(library.sg_expr_is_empty, node, _MAX_STATES, _MAX_WORK)
    if answer < 0:
        raise TooLarge("too complex to tell whether any text matches; lower the counts or simplify the patterns")
    return bool(answer)


def fits(node: Node, max_states: int, max_work: int) -> bool | None:
    """Whether the JSON strings of a regular node are an automaton of at most so many states, made in so many steps;
    None while there is no library."""
    library = loaded()
    return None if library is None else bool(_asked(library.sg_expr_fits, node, max_states, max_work))


def _asked(function: Any, node: Node, max_states: int, max_work: int) -> int:
    address, length = (stream := serialise(Grammar({"root": node}))).buffer_info()
    answer = function(
        ctypes.c_void_p(address), ctypes.c_int64(length), ctypes.c_int64(max_states), ctypes.c_int64(max_work)
    )
    del stream  # it has to live until here
    return int(answer)
