"""Configurations of the reference engine: leaves, stacks of frames, and what a byte or a special token does to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Optional, TypeAlias

from sglite.constrained.engines.reference_leaf import Leaf, State
from sglite.constrained.grammar import (
    Alt,
    And,
    Chars,
    Grammar,
    Guard,
    JsonString,
    Node,
    Not,
    Ref,
    Repeat,
    Scope,
    Seq,
    Shuffle,
    Special,
    Text,
    Unique,
    children,
)
from sglite.constrained.json_values import identity, parse
from sglite.constrained.spec import ConstraintRefused

_MAX_CONFIGS = 50_000


@dataclass(frozen=True, slots=True)
class Frame:
    """What to go on with when what is above it ends.

    A node to begin (`inside` False), or one whose body is above: `start` is then the place in the text where it
    began, `count` the repetitions or entries begun, `used` the entries of a shuffle.
    """

    node: Node
    inside: bool = False
    start: int = 0
    count: int = 0
    used: frozenset[int] = frozenset()


Stack: TypeAlias = "tuple[Frame, Stack] | None"


@dataclass(frozen=True, slots=True)
class Config:
    """A leaf, its state (None for a Special, which has none), and what comes after it."""

    leaf: Node
    state: State | None
    stack: Stack


Configs: TypeAlias = frozenset[Optional[Config]]  # noqa: UP045 (an alias is evaluated)
"""None among them: the text may end here. Empty: it is dead."""


class Rules:
    """A grammar ready to be executed."""

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self.leaves: dict[Node, Leaf] = {}
        self._regular: dict[int, bool] = {}
        self.nullable_rules: set[str] = set()
        while True:
            more = {n for n, node in grammar.rules.items() if n not in self.nullable_rules and self.nullable(node)}
            if not more:
                break
            self.nullable_rules |= more
        self._refuse_left_recursion()
        for node in grammar.rules.values():
            self._refuse_empty_leaves(node)

    def start(self) -> Configs:
        return self._closed([((Frame(self.grammar.rules[self.grammar.root]), None), None)], b"")

    def take_byte(self, configs: Configs, byte: int, text: bytes) -> Configs:
        """Where `byte` leads; `text` ends with it."""
        moved: list[tuple[Stack, Config | None]] = []
        for config in configs:
            if config is not None and config.state is not None:
                state = self.leaf(config.leaf).next(config.state, byte)
                if state is not None:
                    moved.append((config.stack, replace(config, state=state)))
        return self._closed(moved, text)

    def take_special(self, configs: Configs, token_id: int, text: bytes) -> Configs:
        """Where a token that stands for itself leads."""
        return self._closed(
            [
                (config.stack, None)
                for config in configs
                if config is not None and isinstance(config.leaf, Special) and token_id in config.leaf.ids
            ],
            text,
        )

    def looks_at_text(self, configs: Configs) -> bool:
        """Whether the text, and not the configurations alone, says what may follow."""
        for config in configs:
            stack = config.stack if config is not None else None
            while stack is not None:
                if isinstance(stack[0].node, Scope | Unique | Guard) and stack[0].inside:
                    return True
                stack = stack[1]
        return False

    def leaf(self, node: Node) -> Leaf:
        found = self.leaves.get(node)
        if found is None:
            found = self.leaves[node] = Leaf(node)
        return found

    def is_leaf(self, node: Node) -> bool:
        """Whether a node is followed byte by byte as one: regular, or a JSON string."""
        key = id(node)
        if key not in self._regular:
            self._regular[key] = isinstance(node, JsonString) or self._is_regular(node)
        return self._regular[key]

    def _is_regular(self, node: Node) -> bool:
        if isinstance(node, Text | Chars):
            return True
        if isinstance(node, Seq | Alt | And):
            return all(self._is_regular(item) for item in node.items)
        return isinstance(node, Repeat | Not) and self._is_regular(node.item)

    def nullable(self, node: Node) -> bool:
        """Whether the empty text is one of the node's, as far as the grammar alone says."""
        if isinstance(node, Ref):
            return node.name in self.nullable_rules
        if isinstance(node, Text):
            return not node.text
        if isinstance(node, Seq | And):
            return all(self.nullable(item) for item in node.items)
        if isinstance(node, Alt):
            return any(self.nullable(item) for item in node.items)
        if isinstance(node, Repeat):
            return node.low == 0 or self.nullable(node.item)
        if isinstance(node, Scope | Unique | Guard):
            return self.nullable(node.item)
        if isinstance(node, Shuffle):
            entries = [*node.items, node.rest] if node.rest is not None else list(node.items)
            needed = max(node.low, len(node.required))
            return needed == 0 or (needed == 1 and any(self.nullable(entry) for entry in entries))
        return isinstance(node, Not) and not self.nullable(node.item)

    # Closure: everything that needs no byte

    def _closed(self, tasks: list[tuple[Stack, Config | None]], text: bytes) -> Configs:
        """The configurations that stacks lead to without a byte. A task with a configuration is a leaf that has just
        moved: where it accepts it may be over, and where it can go on it also stays."""
        found: set[Config | None] = set()
        seen: set[Stack] = set()
        begun: set[Stack] = set()  # repetitions begun here, of what may be empty
        waiting: list[Stack] = []
        for stack, config in tasks:
            if config is None:
                waiting.append(stack)
            else:
                self._arrive(config, found, waiting)
        while waiting:
            stack = waiting.pop()
            if stack in seen:
                continue
            seen.add(stack)
            if len(seen) + len(found) > _MAX_CONFIGS:
                raise ConstraintRefused("the grammar is too ambiguous to be followed; simplify it")
            if stack is None:
                found.add(None)
                continue
            frame, below = stack
            if frame.inside:
                waiting.extend(self._leave(stack, text, begun))
            elif isinstance(frame.node, Special):
                found.add(Config(frame.node, None, below))
            elif self.is_leaf(frame.node):
                start = self.leaf(frame.node).start
                if start is not None:
                    self._arrive(Config(frame.node, start, below), found, waiting)
            else:
                waiting.extend(self._enter(frame.node, below, text, begun))
        return frozenset(found)

    def _arrive(self, config: Config, found: set[Config | None], waiting: list[Stack]) -> None:
        leaf = self.leaf(config.leaf)
        assert config.state is not None
        if leaf.accepting(config.state):
            waiting.append(config.stack)
        if not leaf.over(config.state):
            found.add(config)

    def _enter(self, node: Node, below: Stack, text: bytes, begun: set[Stack]) -> list[Stack]:
        if isinstance(node, Seq):
            for item in reversed(node.items):
                below = (Frame(item), below)
            return [below]
        if isinstance(node, Alt):
            return [(Frame(item), below) for item in node.items]
        if isinstance(node, Ref):
            return [(Frame(self.grammar.rules[node.name]), below)]
        if isinstance(node, Repeat):
            return self._repeat(node, 0, below, begun)
        if isinstance(node, Shuffle):
            return self._shuffle(node, Frame(node), below)
        if isinstance(node, Scope | Unique | Guard):
            return [(Frame(node.item), (Frame(node, True, len(text)), below))]
        raise ConstraintRefused(f"{type(node).__name__} cannot be executed here")

    def _leave(self, stack: tuple[Frame, Stack], text: bytes, begun: set[Stack]) -> list[Stack]:
        """The body of the frame on top is over."""
        frame, below = stack
        node = frame.node
        if isinstance(node, Repeat):
            return [] if stack in begun else self._repeat(node, frame.count, below, begun)
        if isinstance(node, Shuffle):
            return self._shuffle(node, frame, below)
        if isinstance(node, Guard):
            return [below] if self._asked(node.check, text[frame.start :]) else []
        if isinstance(node, Unique):
            return [below] if _differs(text, frame.start, _scope_start(below)) else []
        return [below]

    def _repeat(self, node: Repeat, count: int, below: Stack, begun: set[Stack]) -> list[Stack]:
        """After `count` repetitions: enough of them, or one more. Where the item may be empty any number of them is
        enough, and one that is empty, over where it was begun, is no step forward."""
        nullable = self.nullable(node.item)
        ways = [below] if count >= node.low or nullable else []
        if node.high is None or count < node.high:
            number = min(count + 1, node.low) if node.high is None else count + 1
            inside: Stack = (Frame(node, True, 0, number), below)
            if nullable:
                begun.add(inside)
            ways.append((Frame(node.item), inside))
        return ways

    def _shuffle(self, node: Shuffle, frame: Frame, below: Stack) -> list[Stack]:
        """After the entries of `frame`: enough of them, or one more, as long as there is room for the required."""
        missing = node.required - frame.used
        ways = [below] if not missing and frame.count >= node.low else []
        if node.high is not None and frame.count >= node.high:
            return ways
        entries: list[tuple[Node, frozenset[int]]] = [
            (item, frame.used | {i}) for i, item in enumerate(node.items) if i not in frame.used
        ]
        if node.rest is not None:
            entries.append((node.rest, frame.used))
        for item, used in entries:
            if node.high is None or frame.count + 1 + len(node.required - used) <= node.high:
                limit = node.low + len(node.items) + 1
                count = min(frame.count + 1, limit) if node.high is None else frame.count + 1
                rest: Stack = (Frame(item), (Frame(node, True, 0, count, used), below))
                ways.append((Frame(node.separator), rest) if frame.count else rest)
        return ways

    def _asked(self, check: int, value: bytes) -> bool:
        try:
            return self.grammar.checks[check](value.decode())
        except UnicodeDecodeError:  # a value that ends inside a character is none
            return False

    def _refuse_empty_leaves(self, node: Node) -> None:
        if not self.is_leaf(node):
            for item in children(node):
                self._refuse_empty_leaves(item)
        elif self.leaf(node).start is None:
            raise ConstraintRefused("a part of the grammar matches nothing: no text can satisfy it; leave it out")

    def _refuse_left_recursion(self) -> None:
        first: dict[str, set[str]] = {name: set() for name in self.grammar.rules}
        for name, node in self.grammar.rules.items():
            self._first_rules(node, first[name].add)
        path: list[tuple[str, bool]] = [(name, True) for name in first]
        on_path: set[str] = set()
        done: set[str] = set()
        while path:
            name, entering = path.pop()
            if not entering:
                on_path.remove(name)
                done.add(name)
            elif name in on_path:
                raise ConstraintRefused(
                    f"the rule {name!r:.80} calls itself before it has matched anything (left recursion); "
                    "rewrite it as a repetition"
                )
            elif name not in done:
                on_path.add(name)
                path.append((name, False))
                path.extend((other, True) for other in first[name])

    def _first_rules(self, node: Node, see: Callable[[str], object]) -> None:
        """The rules that may be called before anything is matched."""
        if isinstance(node, Ref):
            see(node.name)
        elif isinstance(node, Seq):
            for item in node.items:
                self._first_rules(item, see)
                if not self.nullable(item):
                    break
        elif isinstance(node, Alt | And):
            for item in node.items:
                self._first_rules(item, see)
        elif isinstance(node, Shuffle):
            entries = [*node.items, *([node.rest] if node.rest is not None else [])]
            for item in entries:
                self._first_rules(item, see)
            if any(self.nullable(item) for item in entries):
                self._first_rules(node.separator, see)
        elif isinstance(node, Repeat | Not | Scope | Unique | Guard):
            self._first_rules(node.item, see)


def _scope_start(stack: Stack) -> int | None:
    while stack is not None:
        frame, stack = stack
        if isinstance(frame.node, Scope) and frame.inside:
            return frame.start
    return None


def _differs(text: bytes, start: int, scope: int | None) -> bool:
    """Whether the value text[start:] differs from every item, or name, of its container that comes before it."""
    if scope is None:
        return True
    before = text[scope:start].decode().strip(" \t\r\n").removesuffix(",")
    closed = before + {"[": "]", "{": "}"}.get(before[:1], "")
    try:
        value = identity(parse(text[start:].decode()))
        return all(value != identity(entry) for entry in json.loads(closed, parse_float=Decimal))
    except ValueError:  # not JSON, so there is nothing to compare
        return True
