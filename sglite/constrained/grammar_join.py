"""Grammars side by side in one: the rules of each get names of their own."""

from __future__ import annotations

import dataclasses

from sglite.constrained.grammar import (
    Alt,
    Check,
    Grammar,
    Guard,
    Limited,
    Node,
    Ref,
    Repeat,
    Scope,
    Seq,
    Shuffle,
    Unique,
)


class Joined:
    """Rules and checks as they come together. `grammar` is what they have become."""

    def __init__(self) -> None:
        self._rules: dict[str, Node] = {}
        self._checks: list[Check] = []
        self._count = 0

    def add(self, grammar: Grammar) -> Node:
        """Take in all of a grammar; what stands for its root."""
        prefix, first = f"{self._count}.", len(self._checks)
        self._count += 1
        self._checks += grammar.checks
        self._rules |= {prefix + name: _renamed(node, prefix, first) for name, node in grammar.rules.items()}
        return Ref(prefix + grammar.root)

    def rule(self, node: Node) -> Node:
        """A rule of its own for a node that is used in several places."""
        name = f"{self._count}"
        self._count += 1
        self._rules[name] = node
        return Ref(name)

    def grammar(self, root: Node) -> Grammar:
        """One grammar that starts with `root`."""
        return Grammar({"root": root, **self._rules}, "root", tuple(self._checks))


def _renamed(node: Node, prefix: str, first_check: int) -> Node:
    if isinstance(node, Ref):
        return Ref(prefix + node.name)
    if isinstance(node, Seq | Alt):
        return type(node)(tuple(_renamed(item, prefix, first_check) for item in node.items))
    if isinstance(node, Guard):
        return Guard(_renamed(node.item, prefix, first_check), node.check + first_check)
    if isinstance(node, Repeat | Limited | Scope | Unique):
        return dataclasses.replace(node, item=_renamed(node.item, prefix, first_check))
    if isinstance(node, Shuffle):
        rest = None if node.rest is None else _renamed(node.rest, prefix, first_check)
        items = tuple(_renamed(item, prefix, first_check) for item in node.items)
        separator = _renamed(node.separator, prefix, first_check)
        return dataclasses.replace(node, items=items, separator=separator, rest=rest)
    return node  # Text, Chars, Special, and And, Not, JsonString, which hold no Ref
