"""Questions about regular nodes that the native library answers, once it is loaded for the engine's sake."""

from __future__ import annotations

import ctypes

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
    stream = serialise(Grammar({"root": node}))
    address, length = stream.buffer_info()
    answer = library.sg_expr_is_empty(
        ctypes.c_void_p(address), ctypes.c_int64(length), ctypes.c_int64(_MAX_STATES), ctypes.c_int64(_MAX_WORK)
    )
    if answer < 0:
        raise TooLarge("too complex to tell whether any text matches; lower the counts or simplify the patterns")
    return bool(answer)
