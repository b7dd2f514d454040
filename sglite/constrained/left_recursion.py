"""Rules that begin with themselves, rewritten to repetitions: an engine that reads from left to right would not end.

`sum ::= sum "+" term | term` becomes `sum ::= term ("+" term)*`, the same texts. Only a rule that begins with itself
directly is rewritten; a longer way round is named, for its author to untie.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import NoReturn

from sglite.constrained.grammar import EMPTY, NOTHING, Alt, Node, Ref, Repeat, Seq, Text, alt, repeat, seq

_MAX_DEPTH = 64


class LeftRecursion(Exception):
    """The rules of a cycle in which each may begin with the next one, and why it was not rewritten."""

    def __init__(self, cycle: list[str], why: str) -> None:
        names = cycle if len(cycle) < 9 else [*cycle[:4], "...", *cycle[-3:]]
        super().__init__(f"{' -> '.join(name[:40] for name in names)}: {why}")
        self.cycle = cycle
        self.why = why


def rewrite(rules: Mapping[str, Node]) -> dict[str, Node]:
    """The same language without left recursion. Nodes are those of EBNF: Text, Chars, Seq, Alt, Repeat, Ref."""
    empty = _nullable_rules(rules)
    found = dict(rules)
    for name in rules:
        if name in _corners(found[name], empty):
            found[name] = _Split(name, empty).rewritten(found[name])
    cycle = _cycle({name: list(dict.fromkeys(_corners(node, empty))) for name, node in found.items()})
    if cycle is not None:
        raise LeftRecursion(cycle, "the rule begins with itself by way of others; write it as a repetition")
    return found


class _Split:
    """One rule, as what follows itself and what does not begin with itself."""

    def __init__(self, name: str, empty: frozenset[str]) -> None:
        self._name = name
        self._empty = empty
        self._depth = 0

    def rewritten(self, node: Node) -> Node:
        after, start = self._split(node)
        return seq(start, repeat(alt(part for part in after if part != EMPTY), 0, None))

    def _split(self, node: Node) -> tuple[list[Node], Node]:
        """The texts of `node` are those of the rule followed by one of the first, and those of the second."""
        if node == Ref(self._name):
            return [EMPTY], NOTHING
        if self._name not in _corners(node, self._empty):
            return [], node
        if isinstance(node, Alt):
            parts = [self._split(item) for item in node.items]
            return [after for found, _ in parts for after in found], _either([start for _, start in parts])
        if isinstance(node, Repeat):
            return self._split_repeat(node)
        assert isinstance(node, Seq)
        rest = seq(*node.items[1:])
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise LeftRecursion([self._name, self._name], f"more than {_MAX_DEPTH} parts it may begin with itself in")
        after, start = self._split(node.items[0])
        after = [seq(part, rest) for part in after]
        if self._name not in _corners(rest, self._empty) or not _nullable(start, self._empty):
            return after, seq(start, rest)
        more, other = self._split(rest)
        return after + more, _either([seq(self._not_empty(start), rest), other])

    def _split_repeat(self, node: Repeat) -> tuple[list[Node], Node]:
        if _nullable(node.item, self._empty) and node.high != 1:
            self._hidden()
        high = None if node.high is None else node.high - 1
        after, start = self._split(node.item)
        more = repeat(node.item, max(node.low - 1, 0), high)
        starts = [EMPTY, seq(start, more)] if node.low == 0 else [seq(start, more)]
        return [seq(part, more) for part in after], _either(starts)

    def _not_empty(self, node: Node) -> Node:
        if isinstance(node, Alt):
            return _either([self._not_empty(item) for item in node.items])
        if isinstance(node, Repeat) and not _nullable(node.item, self._empty):
            return repeat(node.item, max(node.low, 1), node.high)
        if node == EMPTY:
            return NOTHING
        if _nullable(node, self._empty):
            self._hidden()
        return node

    def _hidden(self) -> NoReturn:
        why = "the rule may begin with itself after a part that can be empty; write that part out"
        raise LeftRecursion([self._name, self._name], why)


def _either(nodes: list[Node]) -> Node:
    return alt(node for node in nodes if node != NOTHING)


def _nullable(node: Node, empty: Set[str]) -> bool:
    if isinstance(node, Text):
        return not node.text
    if isinstance(node, Seq):
        return all(_nullable(item, empty) for item in node.items)
    if isinstance(node, Alt):
        return any(_nullable(item, empty) for item in node.items)
    if isinstance(node, Repeat):
        return node.low == 0 or _nullable(node.item, empty)
    return isinstance(node, Ref) and node.name in empty


def _nullable_rules(rules: Mapping[str, Node]) -> frozenset[str]:
    users: dict[str, list[str]] = {}
    every = frozenset(rules)
    for name, node in rules.items():
        for used in set(_corners(node, every)):
            users.setdefault(used, []).append(name)
    found: set[str] = set()
    waiting = list(rules)
    while waiting:
        name = waiting.pop()
        if name not in found and _nullable(rules[name], found):
            found.add(name)
            waiting += users.get(name, [])
    return frozenset(found)


def _corners(node: Node, empty: frozenset[str]) -> Iterator[str]:
    """The rules that a text of the node may begin with."""
    if isinstance(node, Ref):
        yield node.name
    elif isinstance(node, Alt):
        for item in node.items:
            yield from _corners(item, empty)
    elif isinstance(node, Repeat):
        yield from _corners(node.item, empty)
    elif isinstance(node, Seq):
        for item in node.items:
            yield from _corners(item, empty)
            if not _nullable(item, empty):
                break


def _cycle(edges: Mapping[str, list[str]]) -> list[str] | None:
    """Some way from a rule back to itself. Iterative: a grammar may be one long chain of rules."""
    done: set[str] = set()
    for root in edges:
        path: list[str] = []
        inside: set[str] = set()
        waiting: list[tuple[str, int]] = [(root, 0)]
        while waiting:
            name, at = waiting.pop()
            if at == 0:
                if name in inside:
                    return [*path[path.index(name) :], name]
                if name in done:
                    continue
                path.append(name)
                inside.add(name)
            if at < len(edges[name]):
                waiting += [(name, at + 1), (edges[name][at], 0)]
            else:
                path.pop()
                inside.discard(name)
                done.add(name)
    return None
