"""Grammars in Lark's notation, read into a grammar.

`name: expansions` defines a rule, `NAME: ...` a terminal; a text starts at `start`. Strings (`"a"`, `"a"i`), ranges
(`"a".."z"`), patterns (`/[a-z]+/i`), groups, `[...]` and `?` for what may be left out, `*`, `+`, `~ n`, `~ n..m`, `|`,
aliases and priorities (which say nothing about texts), templates, `%ignore`, and `%import common.NAME`.

Promise: the texts are those that Lark's Earley parser with the lexer `dynamic_complete` reads. A terminal stands for
every text that it matches as a whole, wherever the grammar allows it, and what is ignored may stand between any two
terminals, before the first and behind the last. (Lark itself looks no further than the first match that Python's `re`
comes to: it never finds the `ab` of `/a|ab/`. A lexer that always takes the longest terminal allows less, where
terminals can be mistaken for each other.) Refused with their position: what depends on which match is taken (lazy and
possessive quantifiers, atomic groups) or on the text beside a terminal (anchors, word boundaries, lookaround), other
imports, `%declare`, `%override`, `%extend`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sglite.constrained import left_recursion
from sglite.constrained.budget import Budget
from sglite.constrained.ebnf import read_ebnf
from sglite.constrained.grammar import Chars, Grammar, Node, Ref, Text, alt, repeat, seq
from sglite.constrained.lark_reader import Cat, Definition, Many, Name, Or, Reader, Terminal, Tree, is_lark
from sglite.constrained.left_recursion import LeftRecursion
from sglite.constrained.limits import Limits
from sglite.constrained.spec import ConstraintError

_MAX_TEMPLATES = 1024
_SHORT = 64
"""Characters of a text that is written out wherever it is handed to a template."""
_IGNORED, _ROOT = "%ignore", "%start"
"""The rules of what may stand between terminals and of a whole text: no names of Lark's are spelled so."""


def read_grammar(text: str, limits: Limits | None = None, budget: Budget | None = None) -> Grammar:
    """Read a grammar in whichever of the two notations it is: this one, or that of ``read_ebnf``."""
    return read_lark(text, limits, budget) if is_lark(text) else read_ebnf(text, limits)


def read_lark(text: str, limits: Limits | None = None, budget: Budget | None = None) -> Grammar:
    """Read a grammar. ConstraintError names line and column; ConstraintRefused the notation that is not enforced."""
    limits = limits or Limits()
    reader = Reader(text, limits, budget)
    reader.read()
    return _Builder(reader, limits).grammar()


class _Builder:
    """Definitions as the rules of a grammar."""

    def __init__(self, reader: Reader, limits: Limits) -> None:
        self._reader = reader
        self._limits = limits
        self._definitions = reader.definitions
        self._rules: dict[str, Node] = {}
        self._instances: dict[tuple[str, tuple[Node, ...]], str] = {}
        self._parts = 0
        self._handed: dict[Node, str] = {}
        self._waiting: list[tuple[str, Definition, Mapping[str, Node]]] = []

    def grammar(self) -> Grammar:
        """Everything. Terminals are rules too; they are checked not to be of themselves."""
        if "start" not in self._definitions:
            raise ConstraintError(
                "grammar: there is no rule named 'start' to start from (a rule of GBNF notation is 'name ::=')"
            )
        if (first := self._definitions["start"]).parameters:
            self._reader.broken("the rule 'start' cannot have parameters", first.at)
        ignored = [self._node(tree, {}, inside=True) for tree in self._reader.ignored]
        if ignored:
            self._rules[_IGNORED] = repeat(alt(ignored), 0, None)
        for name, definition in self._definitions.items():
            if not definition.parameters:
                self._rules[name] = self._node(definition.tree, {}, inside=_is_terminal(name))
        while self._waiting:
            name, definition, given = self._waiting.pop()
            self._rules[name] = self._node(definition.tree, given, inside=False)
        self._check_terminals()
        start: Node = Ref("start")
        self._rules[_ROOT] = seq(Ref(_IGNORED), start) if ignored else start
        return self._rewritten()

    def _rewritten(self) -> Grammar:
        try:
            return Grammar(left_recursion.rewrite(self._rules), _ROOT)
        except LeftRecursion as error:
            cycle = [name for name in error.cycle if name in self._definitions]
            self._reader.refuse(f"left recursion ({error})", self._definitions[(cycle or ["start"])[0]].at)

    def _node(self, tree: Tree, given: Mapping[str, Node], *, inside: bool) -> Node:
        """``given``: what a template's parameters stand for; ``inside``: a terminal, where nothing is ignored."""
        if isinstance(tree, Terminal):
            return tree.node if inside else self._followed(tree.node)
        if isinstance(tree, Name):
            return self._named(tree, given, inside=inside)
        if isinstance(tree, Many):
            return repeat(self._node(tree.item, given, inside=inside), tree.low, tree.high)
        parts = [self._node(item, given, inside=inside) for item in tree.items]
        return seq(*parts) if isinstance(tree, Cat) else alt(parts)

    def _followed(self, terminal: Node) -> Node:
        return seq(terminal, Ref(_IGNORED)) if self._reader.ignored else terminal

    def _named(self, tree: Name, given: Mapping[str, Node], *, inside: bool) -> Node:
        name = tree.name
        if name in given and not tree.arguments:
            return given[name]
        definition = self._definitions.get(name)
        if definition is None:
            self._reader.broken(f"{name!r:.60} is not defined", tree.at)
        if inside and not _is_terminal(name):
            self._reader.broken(f"a terminal cannot hold the rule {name!r:.60}", tree.at)
        if len(tree.arguments) != len(definition.parameters):
            wanted = len(definition.parameters)
            self._reader.broken(f"{name!r:.60} takes {wanted} arguments, not {len(tree.arguments)}", tree.at)
        if definition.parameters:
            arguments = [self._short(self._node(one, given, inside=False)) for one in tree.arguments]
            return self._instance(tree, definition, arguments)
        return Ref(name) if inside or not _is_terminal(name) else self._followed(Ref(name))

    def _short(self, node: Node) -> Node:
        """``node``, or a rule in its place: what is handed on from template to template must not grow with it."""
        if isinstance(node, Ref | Chars) or (isinstance(node, Text) and len(node.text) <= _SHORT):
            return node
        if node not in self._handed:
            self._handed[node] = f"{_ROOT}{{{len(self._handed)}}}"
            self._rules[self._handed[node]] = node
        return Ref(self._handed[node])

    def _instance(self, tree: Name, definition: Definition, arguments: Sequence[Node]) -> Node:
        key = tree.name, tuple(arguments)
        if key not in self._instances:
            if len(self._instances) >= _MAX_TEMPLATES:
                self._reader.refuse(f"more than {_MAX_TEMPLATES} uses of templates", tree.at)
            self._parts += _size(definition.tree)
            if self._parts > self._limits.max_nodes:
                self._reader.refuse(f"templates that come to more than {self._limits.max_nodes} parts", tree.at)
            self._instances[key] = f"{tree.name}{{{len(self._instances)}}}"
            given = dict(zip(definition.parameters, arguments, strict=True))
            self._waiting.append((self._instances[key], definition, given))
        return Ref(self._instances[key])

    def _check_terminals(self) -> None:
        """None of them is part of itself."""
        done: set[str] = set()
        for root in filter(_is_terminal, self._definitions):
            path: dict[str, None] = {}
            waiting = [(root, False)]
            while waiting:
                name, over = waiting.pop()
                if over:
                    done.add(path.popitem()[0])
                elif name in path:
                    self._reader.broken(f"the terminal {name!r} is part of itself", self._definitions[name].at)
                elif name not in done:
                    path[name] = None
                    waiting += [(name, True), *((used, False) for used in _names(self._definitions[name].tree))]


def _is_terminal(name: str) -> bool:
    return name.lstrip("_")[:1].isupper()


def _inside(tree: Tree) -> tuple[Tree, ...]:
    if isinstance(tree, Cat | Or):
        return tree.items
    return (tree.item,) if isinstance(tree, Many) else tree.arguments if isinstance(tree, Name) else ()


def _names(tree: Tree) -> list[str]:
    own = [tree.name] if isinstance(tree, Name) else []
    return own + [name for item in _inside(tree) for name in _names(item)]


def _size(tree: Tree) -> int:
    return 1 + sum(map(_size, _inside(tree)))
