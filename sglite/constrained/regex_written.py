"""An automaton written back as a grammar node: states are taken out one by one, their paths joined."""

from __future__ import annotations

from sglite.constrained import charset
from sglite.constrained.budget import Budget
from sglite.constrained.charset import Ranges
from sglite.constrained.grammar import EMPTY, NOTHING, Alt, Chars, Node, Repeat, Seq, alt, repeat, seq
from sglite.constrained.regex_automaton import Automaton
from sglite.constrained.spec import ConstraintRefused

_MAX_STATES = 200
_MAX_NODES = 20_000
_START, _END = -1, -2


def written(automaton: Automaton, budget: Budget) -> Node:
    """A regular node of the same texts. Raises ConstraintRefused when it would be too large."""
    edges, accepting = _smallest(automaton)
    if not edges:
        return NOTHING
    if len(edges) > _MAX_STATES:
        _too_large()
    paths: dict[tuple[int, int], Node] = {(_START, 0): EMPTY}
    for state, targets in enumerate(edges):
        ends: dict[int, list[Ranges]] = {}
        for i, target in targets.items():
            ends.setdefault(target, []).append(automaton.classes[i])
        paths |= {(state, target): Chars(charset.union(*sets)) for target, sets in ends.items()}
        if accepting[state]:
            paths[state, _END] = EMPTY
    left = set(range(len(edges)))
    while left:
        degree = dict.fromkeys(left, (0, 0))
        for source, target in paths:
            if source != target:
                degree[target] = (degree.get(target, (0, 0))[0] + 1, degree.get(target, (0, 0))[1])
                degree[source] = (degree.get(source, (0, 0))[0], degree.get(source, (0, 0))[1] + 1)
        state = min(left, key=lambda s: (degree[s][0] * degree[s][1], s))
        left.discard(state)
        _take_out(paths, state, budget)
    return paths.get((_START, _END), NOTHING)


def _take_out(paths: dict[tuple[int, int], Node], state: int, budget: Budget) -> None:
    loop = repeat(paths.pop((state, state), NOTHING), 0, None)
    into = [(source, paths.pop((source, state))) for source, target in list(paths) if target == state]
    out = [(target, paths.pop((state, target))) for source, target in list(paths) if source == state]
    for source, first in into:
        for target, last in out:
            path = seq(first, loop, last)
            before = paths.get((source, target))
            joined = path if before is None else _join(before, path)
            size = _size(joined)
            budget.spend(size)
            if size > _MAX_NODES:
                _too_large()
            paths[source, target] = joined


def _join(left: Node, right: Node) -> Node:
    if isinstance(left, Chars) and isinstance(right, Chars):
        return Chars(charset.union(left.ranges, right.ranges))
    return alt([left, right])


def _size(node: Node) -> int:
    if isinstance(node, Seq | Alt):
        return 1 + sum(_size(item) for item in node.items)
    return 1 + _size(node.item) if isinstance(node, Repeat) else 1


def _smallest(automaton: Automaton) -> tuple[list[dict[int, int]], list[bool]]:
    """Equal states joined, those that never accept left out; the start is 0. No states when nothing is accepted."""
    count = len(automaton.edges)
    block = [int(accepts) for accepts in automaton.accepting]
    blocks = 0
    while blocks != len(set(block)):
        blocks = len(set(block))
        names: dict[tuple[object, ...], int] = {}
        block = [
            names.setdefault((block[s], *sorted((i, block[t]) for i, t in automaton.edges[s].items())), len(names))
            for s in range(count)
        ]
    alive = {block[s] for s in range(count) if automaton.accepting[s]}
    size = -1
    while size != len(alive):
        size = len(alive)
        alive |= {block[s] for s in range(count) if any(block[t] in alive for t in automaton.edges[s].values())}
    if block[0] not in alive:
        return [], []
    order = [block[0], *sorted(alive - {block[0]})]
    index = {name: i for i, name in enumerate(order)}
    example = {block[s]: s for s in reversed(range(count))}
    edges = [
        {i: index[block[t]] for i, t in automaton.edges[example[name]].items() if block[t] in alive} for name in order
    ]
    return edges, [automaton.accepting[example[name]] for name in order]


def _too_large() -> None:
    raise ConstraintRefused(
        "the lookaround of the regex makes it too large; look at less, or count less", keyword="regex"
    )
