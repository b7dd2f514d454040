"""A grammar's texts as they stand inside a JSON string, or in front of a mark that ends them."""

from __future__ import annotations

import json

from sglite.constrained import charset
from sglite.constrained.grammar import Alt, Chars, Grammar, Node, Ref, Repeat, Seq, Text, alt, children, repeat, seq
from sglite.constrained.spec import ConstraintRefused

_ESCAPED = charset.of('"\\' + "".join(map(chr, range(32))))


def json_text(grammar: Grammar) -> Grammar:
    """The JSON strings, without their quotes, whose values are the texts of ``grammar``: one spelling of each.

    Raises ConstraintRefused for what is no grammar of characters: lookaround, and what only JSON Schema asks for.
    """
    return Grammar({name: _spelled(node) for name, node in grammar.rules.items()}, grammar.root)


def check_without(grammar: Grammar, text: str) -> None:
    """Raises ConstraintRefused unless it is plain that no text of the grammar has ``text`` in it: no terminal has its
    first character."""
    if any(_may_hold(node, text[0]) for node in grammar.rules.values()):
        raise ConstraintRefused(
            f"the texts of the grammar may hold {text[0]!r}, with which their end, {text!r:.60}, begins here; leave "
            "the character out of its terminals, or use a regex"
        )


def _may_hold(node: Node, char: str) -> bool:
    if isinstance(node, Text):
        return char in node.text
    if isinstance(node, Chars):
        return charset.contains(node.ranges, ord(char))
    if isinstance(node, Seq | Alt | Repeat | Ref):
        return any(_may_hold(item, char) for item in children(node))
    return True


def _spelled(node: Node) -> Node:
    if isinstance(node, Text):
        return Text(_escaped(node.text))
    if isinstance(node, Chars):
        return _characters(node)
    if isinstance(node, Seq):
        return seq(*(_spelled(item) for item in node.items))
    if isinstance(node, Alt):
        return alt(_spelled(item) for item in node.items)
    if isinstance(node, Repeat):
        return repeat(_spelled(node.item), node.low, node.high)
    if isinstance(node, Ref):
        return node
    raise ConstraintRefused("lookaround in a grammar inside JSON is not enforced; write it another way")


def _characters(node: Chars) -> Node:
    plain = charset.difference(node.ranges, _ESCAPED)
    rest = charset.intersect(node.ranges, _ESCAPED)
    spelled: list[Node] = [Text(_escaped(chr(code))) for low, high in rest for code in range(low, high + 1)]
    return alt([*([Chars(plain)] if plain or not spelled else []), *spelled])


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
