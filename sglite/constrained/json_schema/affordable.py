"""String sets cut down to what an engine can afford: the states of their automaton are counted before one is built."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import NamedTuple

from sglite.constrained import fsm, fsm_native
from sglite.constrained.grammar import And, Node
from sglite.constrained.json_schema.strings import StringSet

_MAX_STATES = 50_000  # of bytes
_MAX_NATIVE_STATES = 30_000
_MAX_NATIVE_WORK = 20_000_000
_SEARCHED = 2_000  # states of characters that are counted one by one
_BYTES = 6  # states for a character beyond ASCII: its bytes, and its escapes
_BEYOND_ASCII = "\u4e00"


class _Size(NamedTuple):
    """States of the character automaton, and how many the bytes make of each."""

    states: int
    factor: int


def affordable(strings: StringSet) -> tuple[StringSet, bool]:
    """The set itself and True, or a larger one that takes fewer states and False."""
    if not strings.parts or (len(strings.parts) == 1 and strings.low <= 1 and strings.high is None):
        return strings, True
    if _fits(strings.expr):
        return strings, True
    nodes = [part.node for part in strings.parts]
    sizes = [_size(node) for node in nodes]
    longest = max(strings.low, strings.high or 0) + 1
    factor = max(size.factor for size in sizes)
    states = prod(size.states for size in sizes) * factor
    if states * longest > _MAX_STATES and len(nodes) > 1:
        states = min(states, _size(And(tuple(nodes))).states * factor)
    if states * longest <= _MAX_STATES:
        return strings, True
    if states * (strings.low + 1) <= _MAX_STATES:
        return StringSet(strings.low, None, strings.parts), False
    if states <= _MAX_STATES:
        return StringSet(0, None, strings.parts), False
    kept, taken = [], factor
    for size, i in sorted((size.states, i) for i, size in enumerate(sizes)):
        taken *= size
        if taken <= _MAX_STATES:
            kept.append(i)
    return StringSet(0, None, tuple(strings.parts[i] for i in sorted(kept))), False


@lru_cache(maxsize=256)
def _fits(node: Node) -> bool:
    """Whether the native library, if it is loaded, makes an automaton of it."""
    return bool(fsm_native.fits(node, _MAX_NATIVE_STATES, _MAX_NATIVE_WORK))


@lru_cache(maxsize=256)
def _size(node: Node) -> _Size:
    try:
        table = fsm.compile_expr(node, _SEARCHED)
    except fsm.TooLarge:
        return _Size(_MAX_STATES, _BYTES)
    count = len(table.accepting)
    wide = any(table.step(state, _BEYOND_ASCII) >= 0 for state in range(count))
    return _Size(max(count, 1), _BYTES if wide else 1)
