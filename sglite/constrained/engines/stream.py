"""A grammar as a stream of int32, the form in which it crosses into native code (`csrc/ir`)."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Sequence
from typing import Any

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
)
from sglite.constrained.spec import ConstraintRefused

_MAX_STREAM = 8_000_000


def serialise(grammar: Grammar) -> array[int]:
    """A grammar as the int32 stream that `csrc/ir` reads."""
    return _Writer(grammar).write()


class _Writer:
    """Each node is [op, a, b, n_data, data..., n_kids, kids...]. A node that stands at several places is written once
    and copied."""

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._numbers = {name: i for i, name in enumerate(grammar.rules)}
        self._known: dict[int, array[int]] = {}
        self._write: dict[type, Callable[[Any], array[int]]] = {
            Text: self._text,
            Chars: lambda node: self._flat(1, [bound for pair in node.ranges for bound in pair]),
            Seq: lambda node: self._kids((2, 0, 0, 0), node.items),
            Alt: lambda node: self._kids((3, 0, 0, 0), node.items),
            Repeat: self._repeat,
            And: lambda node: self._kids((5, 0, 0, 0), node.items),
            Not: lambda node: self._kids((6, 0, 0, 0), (node.item,)),
            JsonString: lambda node: self._kids((7, 0, 0, 0), (node.item,)),
            Ref: lambda node: array("i", (8, self._numbers[node.name], 0, 0, 0)),
            Shuffle: self._shuffle,
            Scope: lambda node: self._kids((10, 0, 0, 0), (node.item,)),
            Unique: lambda node: self._kids((11, int(node.safe), 0, 0), (node.item,)),
            Guard: lambda node: self._kids((12, node.check, 0, 0), (node.item,)),
            Special: lambda node: self._flat(13, node.ids),
        }

    def write(self) -> array[int]:
        out = array("i", (len(self._numbers), self._numbers[self._grammar.root]))
        for node in self._grammar.rules.values():
            out += self._node(node)
            if len(out) > _MAX_STREAM:
                raise ConstraintRefused(f"too large: over {_MAX_STREAM} numbers describe it; split it or simplify it")
        return out

    def _node(self, node: Node) -> array[int]:
        known = self._known.get(id(node))
        if known is None:
            write = self._write.get(node.__class__)
            if write is None:
                raise ConstraintRefused(f"the native engine does not execute {type(node).__name__}")
            known = self._known[id(node)] = write(node)
        return known

    def _kids(self, head: tuple[int, ...], kids: Sequence[Node]) -> array[int]:
        out = array("i", head)
        out.append(len(kids))
        for kid in kids:
            out += self._node(kid)
        return out

    def _text(self, node: Text) -> array[int]:
        out = array("i", (0, 0, 0, len(node.text)))
        out.frombytes(node.text.encode(_CODE_POINTS))
        out.append(0)
        return out

    def _flat(self, op: int, data: Sequence[int]) -> array[int]:
        return array("i", (op, 0, 0, len(data), *data, 0))

    def _repeat(self, node: Repeat) -> array[int]:
        return self._kids((4, _int32(node.low), -1 if node.high is None else _int32(node.high), 0), (node.item,))

    def _shuffle(self, node: Shuffle) -> array[int]:
        kids = (*node.items, node.separator, *((node.rest,) if node.rest is not None else ()))
        head = (9, node.low, -1 if node.high is None else node.high, 1 + len(node.required))
        return self._kids((*head, int(node.rest is not None), *sorted(node.required)), kids)


_CODE_POINTS = f"utf-32-{sys.byteorder[0]}e"


def _int32(count: int) -> int:
    return min(count, 2**31 - 1)
