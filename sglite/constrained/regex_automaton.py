"""Derivatives: what may follow a character, for patterns whose parts look at each other's text.

Where lookaround stands inside a repetition, or looks across another look, no rewriting into a grammar node is at hand.
The pattern is then followed character by character: after each one a tree remains that the rest of the text has to
match, and equal trees are one state (Brzozowski 1964; what is looked for ahead joins the rest by intersection, what is
looked for behind is followed along). The automaton of these states is small for real patterns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sglite.constrained import charset
from sglite.constrained.budget import Budget
from sglite.constrained.charset import Ranges
from sglite.constrained.grammar import EMPTY, NOTHING, Alt, And, Chars, Node, Not, Repeat, Seq, Text, repeat, seq
from sglite.constrained.regex_tree import Both, Cat, Many, Near, Or, Side, Tree, cat, children, nullable, plain
from sglite.constrained.spec import ConstraintRefused

EVERYTHING = Chars(charset.EVERY)
ANY = Repeat(EVERYTHING, 0, None)

_MAX_STATES = 1_000
_MAX_EMPTY_ROUNDS = 64  # of a repetition whose item may match nothing under a condition


@dataclass(frozen=True)
class Automaton:
    """Deterministic states, 0 first. `edges[state]` maps the index of a class in `classes` to the next state; a
    class that is missing ends nowhere."""

    edges: list[dict[int, int]]
    accepting: list[bool]
    classes: list[Ranges]


def build(tree: Tree, budget: Budget) -> Automaton:
    """The automaton of the texts that begin where the tree begins and end where it ends.

    `tree` is made of plain nodes, Cat, Or, Many, Near and Side. Raises ConstraintRefused when it is too large.
    """
    classes = _classes(tree)
    start = _sided(_renamed(tree, classes), len(classes))
    machine = _Machine(budget, len(classes))
    states = {start: 0}
    waiting = [start]
    edges: list[dict[int, int]] = []
    for here in waiting:
        found: dict[int, int] = {}
        for i in range(len(classes)):
            after = machine.step(here, i)
            if after == NOTHING:
                continue
            if after not in states:
                if len(states) >= _MAX_STATES:
                    raise ConstraintRefused(
                        "the lookaround of the regex needs too many states; look at less, or count less",
                        keyword="regex",
                    )
                states[after] = len(states)
                waiting.append(after)
            found[i] = states[after]
        edges.append(found)
    return Automaton(edges, [_ends(here) for here in waiting], classes)


def _renamed(tree: Tree, classes: list[Ranges]) -> Tree:
    """The same with the character `i` for every one of the set `classes[i]`: small sets are quick to compare."""
    known: dict[Ranges, Ranges] = {}

    def small(ranges: Ranges) -> Ranges:
        if ranges not in known:
            inside = [i for i, members in enumerate(classes) if charset.contains(ranges, members[0][0])]
            known[ranges] = charset.make((i, i) for i in inside)
        return known[ranges]

    def text(node: Text) -> Text:
        return Text("".join(chr(small(charset.of(char))[0][0]) for char in node.text))

    def node(item: Node) -> Node:
        if isinstance(item, Text):
            return text(item)
        if isinstance(item, Chars):
            return Chars(small(item.ranges))
        if isinstance(item, Repeat):
            return Repeat(node(item.item), item.low, item.high)
        if isinstance(item, Not):
            return Not(node(item.item))
        assert isinstance(item, Seq | Alt | And), f"a {type(item).__name__} is not regular"
        return type(item)(tuple(node(part) for part in item.items))

    def renamed(part: Tree) -> Tree:
        if isinstance(part, Near):
            return Near(part.ahead, small(part.ranges), part.edge)
        if isinstance(part, Side):
            return Side(part.ahead, node(part.node), part.reach)
        if isinstance(part, Many):
            return Many(renamed(part.item), part.low, part.high)
        if isinstance(part, Cat | Or | Both):
            return type(part)(tuple(renamed(item) for item in part.items))
        whole = plain(part)
        assert whole is not None, f"a {type(part).__name__} was left in the tree"
        return node(whole)

    return renamed(tree)


def _sided(tree: Tree, classes: int) -> Tree:
    """The same with a look at the character before written as one at the whole text before."""
    if isinstance(tree, Near) and not tree.ahead:
        before: list[Node] = [seq(_any(classes), Chars(tree.ranges))] if tree.ranges else []
        return Side(False, Alt((*before, *((EMPTY,) if tree.edge else ()))), 1)
    if isinstance(tree, Cat):
        return cat(_sided(item, classes) for item in tree.items)
    if isinstance(tree, Or):
        return Or(tuple(_sided(item, classes) for item in tree.items))
    return Many(_sided(tree.item, classes), tree.low, tree.high) if isinstance(tree, Many) else tree


def _any(classes: int) -> Node:
    return Repeat(Chars(((0, classes - 1),)), 0, None)


def _ends(tree: Tree) -> bool:
    """Whether the text may end here."""
    if isinstance(tree, Near):
        return tree.edge
    if isinstance(tree, Side):
        return nullable(tree.node)
    if isinstance(tree, Cat | Both):
        return all(_ends(item) for item in tree.items)
    if isinstance(tree, Or):
        return any(_ends(item) for item in tree.items)
    if isinstance(tree, Many):
        return tree.low == 0 or _ends(tree.item)
    node = plain(tree)
    return node is not None and nullable(node)


class _Machine:
    """Takes one character off trees and nodes. Trees that differ in the order of alternatives are made equal."""

    def __init__(self, budget: Budget, classes: int) -> None:
        self._budget = budget
        self._any = _any(classes)
        self._known: dict[tuple[Node, int], Node] = {}
        self._ranks: dict[Tree, int] = {}
        self._seen: dict[int, tuple[Tree, Tree]] = {}  # by identity, during one step: parts and what they pass into

    def step(self, tree: Tree, code: int) -> Tree:
        """What the text has to go on with after the character."""
        self._seen.clear()
        return self._step((tree,), (), code, False)

    def _step(self, items: tuple[Tree, ...], rest: tuple[Tree, ...], code: int, must: bool) -> Tree:
        """The character off `items`, then `rest`; with `must` it has to come off `items`."""
        self._budget.spend()
        if not items:
            return NOTHING if must or not rest else self._step(rest, (), code, False)
        head, tail = items[0], items[1:]
        if isinstance(head, Cat):
            return self._step(head.items + tail, rest, code, must)
        if isinstance(head, Or):
            return self._either([self._step((item, *tail), rest, code, must) for item in head.items])
        if isinstance(head, Both):
            return self._both([self._step((item,), (), code, False) for item in head.items])
        if isinstance(head, Many):
            return self._step_many(head, tail, rest, code, must)
        if isinstance(head, Near):
            return self._step(tail, rest, code, must) if charset.contains(head.ranges, code) else NOTHING
        if isinstance(head, Side):
            if not head.ahead:
                return self._step(tail, rest, code, must) if nullable(head.node) else NOTHING
            ahead = self.derive(head.node, code)
            return self._both([ahead, self._step(tail, rest, code, must)]) if ahead != NOTHING else NOTHING
        node = plain(head)
        assert node is not None, f"a {type(head).__name__} was left in the tree"
        after = cat([self.derive(node, code), *(self._passed(item, code) for item in (*tail, *rest))])
        if not nullable(node):
            return NOTHING if _is_nothing(after) else after
        return self._either([after, self._step(tail, rest, code, must)])

    def _step_many(self, head: Many, tail: tuple[Tree, ...], rest: tuple[Tree, ...], code: int, must: bool) -> Tree:
        fewer = None if head.high is None else head.high - 1
        if head.low > 0:
            if head.low > _MAX_EMPTY_ROUNDS and _ends_somewhere(head.item):
                raise ConstraintRefused("a counted repetition of lookaround is not enforced", keyword="regex")
            again = Many(head.item, head.low - 1, fewer) if fewer != 0 else EMPTY
            return self._step((head.item, again, *tail), rest, code, must)
        # a round in which nothing is matched only adds conditions, so every round takes a character
        more = () if fewer == 0 else (Many(head.item, 0, fewer),)
        taken = self._step((head.item,), (*more, *tail, *rest), code, True)
        return self._either([taken, self._step(tail, rest, code, must)])

    def _passed(self, tree: Tree, code: int) -> Tree:
        """A part that comes later, which has seen the character behind it."""
        if id(tree) not in self._seen:
            self._seen[id(tree)] = tree, self._see(tree, code)
        return self._seen[id(tree)][1]

    def _see(self, tree: Tree, code: int) -> Tree:
        if isinstance(tree, Side) and not tree.ahead:
            return Side(False, self.derive(tree.node, code), tree.reach)
        if isinstance(tree, Cat):
            return cat(self._passed(item, code) for item in tree.items)
        if isinstance(tree, Or):
            return self._either([self._passed(item, code) for item in tree.items])
        return Many(self._passed(tree.item, code), tree.low, tree.high) if isinstance(tree, Many) else tree

    def derive(self, node: Node, code: int) -> Node:
        """The texts of a regular node that begin with the character, without it."""
        key = (node, code)
        found = self._known.get(key)
        if found is None:
            self._budget.spend()
            found = self._known[key] = self._derived(node, code)
        return found

    def _derived(self, node: Node, code: int) -> Node:
        if isinstance(node, Text):
            return Text(node.text[1:]) if node.text and ord(node.text[0]) == code else NOTHING
        if isinstance(node, Chars):
            return EMPTY if charset.contains(node.ranges, code) else NOTHING
        if isinstance(node, Alt):
            return self._alt([self.derive(item, code) for item in node.items])
        if isinstance(node, And):
            return self._and([self.derive(item, code) for item in node.items])
        if isinstance(node, Not):
            return self._not(self.derive(node.item, code))
        if isinstance(node, Repeat):
            low = 0 if nullable(node.item) else max(node.low - 1, 0)
            high = None if node.high is None else node.high - 1
            return seq(self.derive(node.item, code), repeat(node.item, low, high))
        assert isinstance(node, Seq), f"a {type(node).__name__} is not regular"
        head, tail = node.items[0], seq(*node.items[1:])
        after = seq(self.derive(head, code), tail)
        return self._alt([after, self.derive(tail, code)]) if nullable(head) else after

    # one form for what means the same

    def _sorted(self, items: Iterable[Tree]) -> list[Tree]:
        distinct = dict.fromkeys(items)
        self._budget.spend(len(distinct))
        for item in distinct:
            self._ranks.setdefault(item, len(self._ranks))
        return sorted(distinct, key=self._ranks.__getitem__)

    def _alt(self, items: list[Node]) -> Node:
        flat = [part for item in items for part in (item.items if isinstance(item, Alt) else (item,))]
        if self._any in flat:
            return self._any
        found = [node for item in self._sorted(flat) if (node := plain(item)) is not None]
        return found[0] if len(found) == 1 else Alt(tuple(found))

    def _and(self, items: list[Node]) -> Node:
        flat = [part for item in items for part in (item.items if isinstance(item, And) else (item,))]
        if NOTHING in flat:
            return NOTHING
        found = [node for item in self._sorted(flat) if (node := plain(item)) is not None and node != self._any]
        return self._any if not found else found[0] if len(found) == 1 else And(tuple(found))

    def _not(self, node: Node) -> Node:
        if isinstance(node, Not):
            return node.item
        return self._any if node == NOTHING else NOTHING if node == self._any else Not(node)

    def _either(self, items: list[Tree]) -> Tree:
        flat = [part for item in items for part in (item.items if isinstance(item, Or) else (item,))]
        nodes = [node for part in flat if (node := plain(part)) is not None]
        union = self._alt(nodes)
        if union == self._any:
            return self._any
        found = [part for part in self._sorted(part for part in flat if plain(part) is None) if not _is_nothing(part)]
        if not found or union != NOTHING:
            found = [union, *found]
        return found[0] if len(found) == 1 else Or(tuple(found))

    def _both(self, items: list[Tree]) -> Tree:
        flat = [part for item in items for part in (item.items if isinstance(item, Both) else (item,))]
        if NOTHING in flat:
            return NOTHING
        common = self._and([node for part in flat if (node := plain(part)) is not None])
        found = self._sorted([part for part in flat if plain(part) is None])
        if common == NOTHING or not found:
            return common
        found = found if common == self._any else [common, *found]
        return found[0] if len(found) == 1 else Both(tuple(found))


def _is_nothing(tree: Tree) -> bool:
    return tree == NOTHING or (isinstance(tree, Cat) and NOTHING in tree.items)


def _ends_somewhere(tree: Tree) -> bool:
    """Whether a tree may match nothing, conditions left aside."""
    if isinstance(tree, Cat):
        return all(_ends_somewhere(item) for item in tree.items)
    if isinstance(tree, Or):
        return any(_ends_somewhere(item) for item in tree.items)
    return isinstance(tree, Near | Side) or _ends(tree)


def _classes(tree: Tree) -> list[Ranges]:
    """The characters of the alphabet, sorted into sets that nothing in the tree tells apart."""
    sets = _sets(tree)
    points = sorted({end for ranges in sets for low, high in ranges for end in (low, high + 1)})
    index = {point: i for i, point in enumerate(points)}
    marks = [0] * len(points)
    for bit, ranges in enumerate(sets):
        for low, high in ranges:
            for i in range(index[low], index[high + 1]):
                marks[i] |= 1 << bit
    groups: dict[int, list[tuple[int, int]]] = {}
    for i, mark in enumerate(marks):
        if mark:
            groups.setdefault(mark, []).append((points[i], points[i + 1] - 1))
    return [charset.make(ranges) for ranges in groups.values()]


def _sets(tree: Tree) -> list[Ranges]:
    found: dict[Ranges, None] = {charset.EVERY: None}
    waiting: list[Tree] = [tree]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Text):
            found |= {((ord(char), ord(char)),): None for char in part.text}
        elif isinstance(part, Chars | Near):
            found[part.ranges] = None
        elif isinstance(part, Seq | Alt | And):
            waiting += part.items
        elif isinstance(part, Repeat | Not):
            waiting.append(part.item)
        elif isinstance(part, Side):
            waiting.append(part.node)
        else:
            waiting += children(part)
    return list(found)
