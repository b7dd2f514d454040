"""Texts of grammar nodes, the plain way: whether one is read, and random ones."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping

from sglite.constrained import fsm
from sglite.constrained.compiler import CompiledConstraint
from sglite.constrained.grammar import Alt, Chars, JsonString, Node, Ref, Repeat, Seq, Text


def accepts(compiled: CompiledConstraint, text: str) -> bool:
    """Whether a text is one of a constraint's, over a vocabulary whose first 256 tokens are the bytes."""
    matcher, data = compiled.matcher(), list(text.encode())
    return matcher.accept_run(data) == len(data) and matcher.accepting


def every_word(alphabet: str, most: int) -> list[str]:
    """The words of an alphabet, shortest first, of at most so many letters."""
    return ["".join(word) for n in range(most + 1) for word in itertools.product(alphabet, repeat=n)]


def reads(root: Node, rules: Mapping[str, Node], text: str) -> bool:
    """Whether a text is one of `root`, whose references lead to `rules` without going round on the spot."""
    seen: dict[tuple[int, int], set[int]] = {}

    def ends(node: Node, at: int) -> set[int]:
        key = (id(node), at)
        if key not in seen:
            seen[key] = set()
            seen[key] = found(node, at)
        return seen[key]

    def found(node: Node, at: int) -> set[int]:
        if isinstance(node, Ref):
            return ends(rules[node.name], at)
        if isinstance(node, Alt):
            return {end for item in node.items for end in ends(item, at)}
        if isinstance(node, Seq):
            reached = {at}
            for item in node.items:
                reached = {end for start in reached for end in ends(item, start)}
            return reached
        return {end for end in range(at, len(text) + 1) if _matches(node, text[at:end])}

    return len(text) in ends(root, 0)


def _matches(node: Node, text: str) -> bool:
    if not isinstance(node, JsonString):
        return fsm.matches(node, text)
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, str) and text[0] == '"' == text[-1] and fsm.matches(node.item, value)


def sample(node: Node, rules: Mapping[str, Node], rng: random.Random) -> str:
    """A random text of a node."""
    if isinstance(node, Text):
        return node.text
    if isinstance(node, Chars):
        low, high = rng.choice(node.ranges)
        return chr(rng.randint(low, high))
    if isinstance(node, Seq):
        return "".join(sample(item, rules, rng) for item in node.items)
    if isinstance(node, Alt):
        return sample(rng.choice(node.items), rules, rng)
    if isinstance(node, Repeat):
        most = node.low + rng.choice((0, 1, 3, 40))
        count = rng.randint(node.low, most if node.high is None else min(most, node.high))
        return "".join(sample(node.item, rules, rng) for _ in range(count))
    if isinstance(node, Ref):
        return sample(rules[node.name], rules, rng)
    return walk(node, rng)


def walk(node: Node, rng: random.Random) -> str:
    """A random text of a regular node with And or Not in it: steps of its automaton, then the nearest way out."""
    table = fsm.compile_expr(node)
    text, state = "", 0
    for _ in range(rng.choice((0, 2, 8, 30))):
        ranges = table.ranges(state)
        if not ranges:
            break
        low, high, state = rng.choice(ranges)
        text += chr(rng.randint(low, high))
    before: dict[int, str] = {state: ""}
    waiting = [state]
    for at in waiting:
        if table.accepting[at]:
            return text + before[at]
        for low, _, target in table.ranges(at):
            if target not in before:
                before[target] = before[at] + chr(low)
                waiting.append(target)
    raise AssertionError("an automaton has no dead states")
