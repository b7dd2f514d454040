"""Bounds on what a caller may ask to be compiled. Everything a caller sends is bounded before work is done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """`max_bytes` of constraint text, nesting `max_depth`, a quantifier's largest count `max_repeat` in a pattern or an
    EBNF grammar, and `max_places` of a schema: subschemas visited while its alternatives are multiplied out. Engines
    that multiply nested counts out bound a grammar further: `max_nodes` as it is written down, `max_weight` after."""

    max_bytes: int = 256 * 1024
    max_depth: int = 48
    max_repeat: int = 65_536
    max_weight: int = 2_000_000
    max_nodes: int = 200_000
    max_places: int = 50_000
