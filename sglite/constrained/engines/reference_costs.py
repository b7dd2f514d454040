"""Fewest bytes to a member of the grammar, by what the grammar says alone: `Unique` and `Guard` are not asked.

A special token counts as ``SPECIAL_COST`` bytes: completions are written as text, so ways without one are nearer.
"""

from __future__ import annotations

from sglite.constrained.engines.reference_frames import Configs, Frame, Rules, Stack
from sglite.constrained.grammar import Alt, Guard, Node, Ref, Repeat, Scope, Seq, Shuffle, Special, Unique

FAR = 1 << 50
SPECIAL_COST = 1 << 20


class Costs:
    """The costs of a grammar's nodes and of configurations."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._of_rule = dict.fromkeys(rules.grammar.rules, FAR)
        self._known: dict[int, int] = {}  # by the identity of a node, once the rules are known
        changed = True
        while changed:
            changed = False
            for name, node in rules.grammar.rules.items():
                cost = self._node(node)
                if cost < self._of_rule[name]:
                    self._of_rule[name], changed = cost, True

    def of(self, configs: Configs) -> int:
        """Fewest bytes with which a text in these configurations can be completed."""
        least = FAR
        for config in configs:
            if config is None:
                return 0
            here = SPECIAL_COST if config.state is None else self._rules.leaf(config.leaf).distance(config.state)
            least = min(least, here + self._stack(config.stack))
        return least

    def _stack(self, stack: Stack) -> int:
        cost = 0
        while stack is not None:
            frame, stack = stack
            cost += self._frame(frame)
        return min(cost, FAR)

    def _frame(self, frame: Frame) -> int:
        node = frame.node
        if not frame.inside:
            if id(node) not in self._known:
                self._known[id(node)] = self._node(node)
            return self._known[id(node)]
        if isinstance(node, Repeat):
            return min(max(node.low - frame.count, 0) * self._node(node.item), FAR)
        return self._shuffle(node, frame.count, frame.used) if isinstance(node, Shuffle) else 0

    def _node(self, node: Node) -> int:
        if self._rules.is_leaf(node):
            leaf = self._rules.leaf(node)
            return FAR if leaf.start is None else leaf.distance(leaf.start)
        if isinstance(node, Special):
            return SPECIAL_COST
        if isinstance(node, Ref):
            return self._of_rule[node.name]
        if isinstance(node, Seq):
            return min(sum(self._node(item) for item in node.items), FAR)
        if isinstance(node, Alt):
            return min((self._node(item) for item in node.items), default=FAR)
        if isinstance(node, Repeat):
            return min(node.low * self._node(node.item), FAR) if node.low else 0
        if isinstance(node, Shuffle):
            return self._shuffle(node, 0, frozenset())
        return self._node(node.item) if isinstance(node, Scope | Unique | Guard) else FAR

    def _shuffle(self, node: Shuffle, count: int, used: frozenset[int]) -> int:
        """The required entries that are missing, and the cheapest others up to the fewest allowed."""
        free = [self._node(item) for i, item in enumerate(node.items) if i not in used | node.required]
        chosen = [self._node(node.items[i]) for i in node.required - used]
        more = max(node.low - count - len(chosen), 0)
        if node.rest is not None:
            free += [self._node(node.rest)] * more
        if len(free) < more:
            return FAR
        chosen += sorted(free)[:more]
        separators = len(chosen) - (count == 0 and bool(chosen))
        return min(sum(chosen) + separators * self._node(node.separator), FAR)
