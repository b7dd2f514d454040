"""Lookaround, word boundaries and anchors become a regular node of the whole text.

A pattern is taken apart into *lines*: alternatives, each a sequence of plain nodes and of conditions on the positions
between them. A condition is then worked into what it looks at:

    "a" Near(ahead, [b-z]) [a-z]{2,}     ->   "a" [b-z] [a-z]+
    Side(ahead, Not(foo any*)) [a-z]+    ->   And([a-z]+, Not(foo any*))        at the end of the text
    [a-z]+ Side(behind, Not(any* ing))   ->   And([a-z]+, Not(any* ing))        at its beginning

A condition reaches so many characters; it stops at a node, or nodes, of at least as many. What is left, where
conditions cross or stand in a repetition, is given to `regex_automaton` with as much around it as they can see.
"""

from __future__ import annotations

from sglite.constrained import charset
from sglite.constrained.budget import Budget
from sglite.constrained.grammar import EMPTY, NOTHING, And, Node, Not, alt, seq
from sglite.constrained.regex_automaton import ANY, build
from sglite.constrained.regex_groups import Refuse, atomic
from sglite.constrained.regex_near import restrict, single
from sglite.constrained.regex_tree import (
    Around,
    Atomic,
    Cat,
    Many,
    Near,
    Or,
    Side,
    Tree,
    bounds,
    cat,
    children,
    either,
    many,
    nullable,
    plain,
)
from sglite.constrained.regex_written import written

Line = tuple[Tree, ...]

_MAX_LINES = 512


class TooManyLines(Exception):
    """The alternatives multiply; the automaton is the better way."""


class Lowering:
    """Lowers the parts of one pattern. `refuse` is called with what cannot be."""

    def __init__(self, budget: Budget, refuse: Refuse) -> None:
        self._budget = budget
        self._refuse = refuse

    def whole(self, tree: Tree) -> Node:
        """The texts that the tree matches from their first to their last character."""
        ready = self._conditions(tree)
        node = plain(ready)
        if node is not None:
            return node
        try:
            return alt(self._finished(line) for line in self._lines(ready, True, True))
        except TooManyLines:
            return written(build(ready, self._budget), self._budget)

    # lookaround to conditions

    def _conditions(self, tree: Tree) -> Tree:
        """The same with every Around and Atomic turned into conditions."""
        self._budget.spend()
        if isinstance(tree, Atomic):
            return self._conditions(atomic(Atomic(self._conditions(tree.item), tree.other), self._refuse))
        if isinstance(tree, Around):
            return self._around(tree, self._conditions(tree.item))
        if isinstance(tree, Cat):
            return cat(self._conditions(item) for item in tree.items)
        if isinstance(tree, Or):
            return either(self._conditions(item) for item in tree.items)
        return many(self._conditions(tree.item), tree.low, tree.high) if isinstance(tree, Many) else tree

    def _around(self, tree: Around, item: Tree) -> Tree:
        node = plain(item)
        near = None if node is None else single(node)
        if near is not None:
            there = Near(tree.ahead, near, False)
            return _opposite(there) if tree.negative else there
        reach = _reach_of_match(item, tree.ahead)
        whole = cat([item, ANY]) if tree.ahead else cat([ANY, item])
        try:
            lines = self._lines(whole, not tree.ahead, tree.ahead)
        except TooManyLines:
            self._refuse("lookaround with so many alternatives")
        seen: dict[tuple[Near | Side, ...], list[Node]] = {}  # by what stands at the place of the look itself
        for line in lines:
            conditions, node = self._looked(line, tree)
            seen.setdefault(conditions, []).append(node)
        found = [[*conditions, Side(tree.ahead, alt(nodes), reach)] for conditions, nodes in seen.items()]
        if not tree.negative:
            return either(cat(parts) for parts in found)
        # none of them: of each, one of its conditions does not hold
        return cat(either(_opposite(part) for part in parts) for parts in found)

    def _looked(self, line: Line, tree: Around) -> tuple[tuple[Near | Side, ...], Node]:
        """The conditions at the place of a look, and the texts that it looks for."""
        nodes = [node for part in line if (node := plain(part)) is not None]
        others = [part for part in line if plain(part) is None]
        outside = line[: len(others)] if tree.ahead else line[len(line) - len(others) :]
        conditions = [part for part in outside if isinstance(part, Near | Side) and part.ahead != tree.ahead]
        if len(conditions) != len(others):
            self._refuse("lookaround that looks past its own text")
        return tuple(conditions), seq(*nodes)

    # lines

    def _lines(self, tree: Tree, at_start: bool, at_end: bool) -> list[Line]:
        """The alternatives of a tree, with every condition that can be worked in worked in.

        `at_start` and `at_end` tell whether the text begins and ends with it; where it does not, conditions that look
        out of it are left at that end.
        """
        found: list[Line] = []
        for line in self._apart(tree):
            found += self._worked(line, at_start, at_end)
            if len(found) > _MAX_LINES:
                raise TooManyLines
        return found

    def _apart(self, tree: Tree) -> list[Line]:
        if isinstance(tree, Or):
            return self._bounded([line for item in tree.items for line in self._apart(item)])
        if isinstance(tree, Cat):
            lines: list[Line] = [()]
            for item in tree.items:
                parts = self._apart(item)
                if len(lines) * len(parts) > _MAX_LINES:
                    raise TooManyLines
                lines = [line + part for line in lines for part in parts]
            return lines
        if not isinstance(tree, Many):
            return [(tree,)]
        inner = self._lines(tree.item, False, False)
        again = many(either(cat(line) for line in inner), tree.low, tree.high)
        if isinstance(again, Many) and (tree.low, tree.high) == (0, 1):
            return self._bounded([(EMPTY,), *inner])
        return [(again,)]

    def _bounded(self, lines: list[Line]) -> list[Line]:
        self._budget.spend(len(lines))
        if len(lines) > _MAX_LINES:
            raise TooManyLines
        return lines

    def _worked(self, line: Line, at_start: bool, at_end: bool) -> list[Line]:
        lines = [line]
        for ahead, closed in ((True, at_end), (False, at_start)):
            lines = [other for one in lines for other in self._near(one, ahead, closed)]
            self._bounded(lines)
        done = [self._sides(_combined(_merged(one)), at_start, at_end) for one in lines if NOTHING not in one]
        return [one for one in done if NOTHING not in one]

    def _near(self, line: Line, ahead: bool, closed: bool) -> list[Line]:
        """Work in the looks at the next character (or the one before), which may split a line in several."""
        lines, done = [_facing(line, ahead)], []
        while lines:
            self._budget.spend()
            parts = lines.pop()
            at = next((i for i in reversed(range(len(parts))) if _is_near(parts, i, ahead, closed)), None)
            if at is None:
                done.append(_facing(parts, ahead))
            else:
                lines += _near_step(parts, at, ahead)
            self._bounded(lines)
        return done

    def _sides(self, line: Line, at_start: bool, at_end: bool) -> Line:
        """Work in the looks at a side, nearest to its end first."""
        changed = True
        while changed:
            self._budget.spend(len(line) + 1)
            before = line
            line = _merged(_absorb(line, True, at_end))
            line = _merged(_facing(_absorb(_facing(line, False), False, at_start), False))
            changed = line != before
        return self._stuck(line, at_start, at_end)

    def _stuck(self, line: Line, at_start: bool, at_end: bool) -> Line:
        """Give what is left to the automaton, with the plain parts around it that its conditions can see."""
        looking = [i for i, part in enumerate(line) if plain(part) is None]
        if not looking:
            return line
        start = _window(_facing(line, False), len(line) - 1 - looking[0], False, at_start)
        end = _window(line, looking[-1], True, at_end)
        if start is None or end is None:
            return line
        first = len(line) - 1 - start
        node = written(build(cat(line[first : end + 1]), self._budget), self._budget)
        return _merged((*line[:first], node, *line[end + 1 :]))

    def _finished(self, line: Line) -> Node:
        node = plain(cat(line))
        if node is None:
            self._refuse("lookaround of this shape")
        return node


def _facing(line: Line, ahead: bool) -> Line:
    return line if ahead else line[::-1]


def _merged(line: Line) -> Line:
    tree = cat(line)
    return tree.items if isinstance(tree, Cat) else (tree,)


def _combined(line: Line) -> Line:
    """One look at a side for those that stand at the same position and look the same way."""
    done: list[Tree] = []
    for part in line:
        if isinstance(part, Side):
            for i in reversed(range(len(done))):
                other = done[i]
                if not isinstance(other, Near | Side):
                    break
                if isinstance(other, Side) and other.ahead == part.ahead:
                    far = None if None in (other.reach, part.reach) else max(other.reach or 0, part.reach or 0)
                    part = Side(part.ahead, _intersection(other.node, part.node), far)
                    del done[i]
        done.append(part)
    return tuple(done)


def _is_near(parts: Line, at: int, ahead: bool, closed: bool) -> bool:
    part = parts[at]
    if not isinstance(part, Near) or part.ahead != ahead:
        return False
    return closed if at + 1 == len(parts) else not isinstance(parts[at + 1], Many)


def _near_step(parts: Line, at: int, ahead: bool) -> list[Line]:
    """Work one look into the next part of a line that faces its way, or move it past that."""
    look = parts[at]
    assert isinstance(look, Near)
    before, after = parts[:at], parts[at + 1 :]
    if not look.ranges and not look.edge:
        return []
    if not after:
        return [before] if look.edge else []
    following, rest = after[0], after[1:]
    if isinstance(following, Near) and following.ahead == ahead:
        both: Tree = Near(ahead, charset.intersect(look.ranges, following.ranges), look.edge and following.edge)
        return [(*before, both, *rest)]
    node = plain(following)
    if node is None:  # another condition on the same position
        return [(*before, following, look, *rest)]
    found: list[Line] = []
    if nullable(node):
        found.append((*before, look, *rest))
    here = restrict(node, look.ranges, ahead)
    if here != NOTHING:
        found.append((*before, here, *rest))
    return found


def _absorb(line: Line, ahead: bool, closed: bool) -> Line:
    """Intersect plain parts with the looks at a side that they decide."""
    parts = list(line)
    for at in reversed(range(len(parts))):
        look = parts[at]
        if not isinstance(look, Side) or look.ahead != ahead:
            continue
        beside = at + 1  # conditions in between are on the same position
        while beside < len(parts) and isinstance(parts[beside], Near | Side):
            beside += 1
        if beside == len(parts):
            if closed:
                parts[at] = EMPTY if nullable(look.node) else NOTHING
            continue
        node = plain(parts[beside])
        if node is None:
            continue
        far_enough = look.reach is not None and bounds(node)[0] >= look.reach
        if far_enough or (closed and beside + 1 == len(parts)):
            parts[at], parts[beside] = EMPTY, _intersection(node, look.node)
    return tuple(parts)


def _intersection(node: Node, other: Node) -> Node:
    if ANY in (node, other):
        return other if node == ANY else node
    if node == EMPTY:
        return EMPTY if nullable(other) else NOTHING
    return And((*(node.items if isinstance(node, And) else (node,)), other))


def _opposite(condition: Near | Side) -> Near | Side:
    if isinstance(condition, Near):
        return Near(condition.ahead, charset.complement(condition.ranges), not condition.edge)
    node = condition.node
    return Side(condition.ahead, node.item if isinstance(node, Not) else Not(node), condition.reach)


def _reach(tree: Tree, ahead: bool) -> int | None:
    """How many characters the conditions in a tree can see beyond it."""
    if isinstance(tree, Near):
        return int(tree.ahead == ahead)
    if isinstance(tree, Side):
        return tree.reach if tree.ahead == ahead else 0
    found = [_reach(child, ahead) for child in children(tree)]
    return None if None in found else max((reach for reach in found if reach is not None), default=0)


def _reach_of_match(tree: Tree, ahead: bool) -> int | None:
    high, beyond = bounds(tree)[1], _reach(tree, ahead)
    return None if high is None or beyond is None else high + beyond


def _window(line: Line, at: int, ahead: bool, closed: bool) -> int | None:
    """The last part that the conditions of a line up to `at` can see; None when they see past an open end."""
    needs = [_reach(part, ahead) for part in line]
    left = max((need for need in needs if need is not None), default=0)
    while at + 1 < len(line) and (None in needs or left > 0):
        at += 1
        left -= bounds(line[at])[0]
    return None if not closed and (None in needs or left > 0) else at
