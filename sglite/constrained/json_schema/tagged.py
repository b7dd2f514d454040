"""An object whose properties are written one by one between tags, as some models write the arguments of a call.

    <parameter=city>              strings as they are, up to the end mark; other values as JSON text
    Paris
    </parameter>

Promise: what the grammar generates, read by the rules of the style, is valid under the schema. The policies besides
those of JSON text: no string holds the style's own end mark; where a style does not tell strings from other values, no
string looks like a value of another type that is allowed in its place; counts of properties make their order free.
What cannot be said of separate values is refused with its pointer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sglite.constrained import fsm_native
from sglite.constrained.free_text import Speller, up_to_first, without
from sglite.constrained.grammar import (
    EMPTY,
    NOTHING,
    And,
    Check,
    Grammar,
    Guard,
    Node,
    Ref,
    Shuffle,
    Text,
    alt,
    optional,
    repeat,
    seq,
)
from sglite.constrained.json_schema.affordable import affordable
from sglite.constrained.json_schema.asked import Asked
from sglite.constrained.json_schema.cells import Cell, cells_of, names_told
from sglite.constrained.json_schema.document import Document
from sglite.constrained.json_schema.kinds import STRING, TYPES, Kinds
from sglite.constrained.json_schema.layout import Layout
from sglite.constrained.json_schema.lower import Lowering
from sglite.constrained.json_schema.normal import NEVER, Conjunction, ObjectShape, surely_empty
from sglite.constrained.json_schema.strings import StringSet
from sglite.constrained.json_schema.tail import MAX_SHUFFLED
from sglite.constrained.limits import Limits
from sglite.constrained.regex import match_expr
from sglite.constrained.report import KeywordReport
from sglite.constrained.spec import ConstraintRefused, Order, Whitespace

_NAME = r'[^<>"\x00-\x1f\x7f]+'
_SPACE = r"[ \t\n\r]*"
_LOOKS = {
    "null": "null",
    "boolean": "true|false",
    "integer": r"-?[0-9][-+.0-9eE]*",
    "array": r"\[[\s\S]*\]",
    "object": r"\{[\s\S]*\}",
}
_MAX_COUNTED = 1000  # a longer string is counted when it ends, not by states
_MAX_STATES = 30_000
_MAX_WORK = 20_000_000


@dataclass(frozen=True)
class Style:
    """How one property is written: ``head``, the name, ``string`` or ``other``, the value, ``tail``.

    ``mark`` ends the value of a string wherever it stands; it is in ``tail``. Line breaks listed in ``loose`` may be
    left out. Where ``string`` and ``other`` are the same, the value itself has to tell its type.
    """

    head: str
    string: tuple[str, ...]
    other: tuple[str, ...]
    tail: str
    mark: str
    after: tuple[str, ...] = ("",)

    @property
    def typed(self) -> bool:
        return self.string != self.other


def _dsml(name: str) -> Style:
    mark = f"</｜DSML｜{name}>"
    return Style(f'<｜DSML｜{name} name="', ('" string="true">',), ('" string="false">',), f"{mark}\n", mark)


_GLM = ("</arg_key>\n<arg_value>", "</arg_key><arg_value>")
STYLES: Mapping[str, Style] = {
    "qwen_xml": Style("<parameter=", (">\n",), (">\n",), "\n</parameter>\n", "</parameter>"),
    "glm_xml": Style("<arg_key>", _GLM, _GLM, "</arg_value>", "</arg_value>", ("\n", "")),
    "deepseek_xml": _dsml("parameter"),
    "deepseek_v4_1_xml": _dsml(" parameter"),
}
"""By the name that a structural tag's ``style`` has; what another program calls so is called so here."""


def lower_tagged(
    schema: Any, style: str, whitespace: Whitespace, strict: bool, limits: Limits, order: Order, speller: Speller
) -> tuple[Grammar, KeywordReport]:
    """The grammar of an object in a style, as ``lower_parsed`` is that of JSON text. ``speller`` knows which parts of
    the tags are tokens of their own. Raises ConstraintError or ConstraintRefused."""
    document = Document(schema, strict, limits)
    lowering = _Tagged(document, Layout.of(whitespace), order, STYLES[style], Kinds(schema), speller)
    return lowering.run(), document.report()


class _Tagged(Lowering):
    """The root is written between tags; what is inside a value is JSON text again."""

    def __init__(
        self, document: Document, layout: Layout, order: Order, style: Style, kinds: Kinds, speller: Speller
    ) -> None:
        super().__init__(document, layout, order)
        self._style = style
        self._kinds = kinds
        self._speller = speller
        self._begun = False
        self._checked: dict[str, tuple[Node, int]] = {}

    def run(self) -> Grammar:
        found = super().run()
        if isinstance(found.rules["root"], Guard):
            raise self._refused("a reference here depends on what refers to it, which is only known of JSON text", "")
        count = len(found.checks)
        rules = {name: Guard(node, count + number) for name, (node, number) in self._checked.items()}
        checks = (*found.checks, *map(_of_text, found.checks)) if rules else found.checks
        return Grammar({**found.rules, **rules}, found.root, checks)

    def value(self, terms: Conjunction) -> Node:
        if self._begun:
            return super().value(terms)
        self._begun = True
        form = self.form(terms)
        if "object" in form.loose or any(isinstance(each.value, dict) for each in form.constants):
            raise self._refused("what the arguments have to be as a whole cannot be said of each of them", "")
        return alt(self._object(shape, f"t{i}") for i, shape in enumerate(form.objects))

    def _refused(self, what: str, keyword: str) -> ConstraintRefused:
        reason = f"{what}; this format writes them one by one, so simplify the schema of the object"
        return ConstraintRefused(reason, pointer=f"/{keyword}" if keyword else "", keyword=keyword)

    def _object(self, shape: ObjectShape, rule: str) -> Node:
        names = names_told(shape)
        cells = cells_of(shape, names)
        if cells is None or not all(cell.exact for cell in cells):
            raise self._refused("names as these patterns want them are too many to tell apart", "patternProperties")
        if shape.some:
            raise self._refused("that one of several properties has to be there cannot be enforced", "")
        nodes: list[Node] = []
        required: list[int] = []
        for name in names:
            value = shape.value_of(name)
            if NEVER in value:
                if name in shape.required:
                    return NOTHING
                continue
            if name in shape.required:
                required.append(len(nodes))
            nodes.append(self._declared(name, value))
        for i, cell in enumerate(cells):
            self.rules[f"{rule}.{i}"] = self._undeclared(cell)
        more = alt(Ref(f"{rule}.{i}") for i in range(len(cells))) if cells else NOTHING
        return self._members(nodes, frozenset(required), more, shape)

    def _members(self, nodes: list[Node], required: frozenset[int], more: Node, shape: ObjectShape) -> Node:
        low = 0 if shape.low <= len(required) else shape.low
        high = None if more == NOTHING and shape.high is not None and shape.high >= len(nodes) else shape.high
        counted = bool(low) or high is not None
        if counted and more != NOTHING:
            raise self._refused(
                "properties with names of any kind cannot be counted", "minProperties" if low else "maxProperties"
            )
        if len(nodes) > MAX_SHUFFLED and (counted or self.any_order):
            reason = f"of {len(nodes)} names cannot come in any order, at most {MAX_SHUFFLED}"
            raise self._refused(reason, "properties")
        if high is not None and high < max(low, len(required)):
            return NOTHING
        rest = repeat(more, 0, None)
        if not nodes or not (counted or self.any_order):
            return seq(*(node if i in required else optional(node) for i, node in enumerate(nodes)), rest)
        if high == 0:
            return EMPTY
        filled = Shuffle(tuple(nodes), required, EMPTY, max(1, low), high, None if more == NOTHING else more)
        return filled if low or required else alt([EMPTY, filled])

    def _declared(self, name: str, terms: Conjunction) -> Node:
        if not _is_name(name):
            raise ConstraintRefused(
                f"the name {name!r:.60} cannot be written between the tags of this format; use letters and digits",
                pointer="/properties",
                keyword="properties",
            )
        style, found = self._style, []
        strings, others = self._values(terms, self._kinds.of(name))
        if strings != NOTHING:
            found += [seq(self._speller.spelled(style.head + name + between), strings) for between in style.string]
        if others != NOTHING:
            found += [seq(self._speller.spelled(style.head + name + between), others) for between in style.other]
        return alt(found)

    def _undeclared(self, cell: Cell) -> Node:
        style = self._style
        root = self.document.root.schema
        plain = isinstance(root, dict) and not any(word in root for word in ("$ref", "allOf", "anyOf", "oneOf"))
        kinds = self._kinds.of("\0") if plain else TYPES  # else the types may depend on the name
        name = And((cell.names.expr, match_expr(_NAME)))
        strings, others = self._values(cell.value, kinds)
        found = []
        if strings != NOTHING:
            found += [seq(self._speller.spelled(between), strings) for between in style.string]
        if others != NOTHING:
            found += [seq(self._speller.spelled(between), others) for between in style.other]
        return seq(self._speller.spelled(style.head), name, alt(found)) if found else NOTHING

    def _values(self, terms: Conjunction, kinds: frozenset[str]) -> tuple[Node, Node]:
        """The strings, and the other values, each with what ends them."""
        form = self.form(terms)
        rest = form._replace(strings=StringSet.NONE)
        texts = form.strings
        if not self._style.typed and kinds != STRING:
            texts = texts & ~StringSet.language(_looks_like(kinds - STRING))
        strings = NOTHING if surely_empty(texts) else self._text(texts, terms)
        name = f"p{len(self.rules)}.{len(self._checked)}"
        others = self._lower(name, terms, rest)
        if others == NOTHING:
            return self._after(strings), NOTHING
        self.rules[name] = others
        return self._after(strings), self._after(seq(Ref(name), self._speller.spelled(self._style.tail)))

    def _after(self, node: Node) -> Node:
        return node if node == NOTHING else seq(node, alt(Text(text) for text in self._style.after))

    def _text(self, strings: StringSet, terms: Conjunction) -> Node:
        """Strings as they are, with the tail behind them."""
        short = strings.values is not None or max(strings.low, strings.high or 0) <= _MAX_COUNTED
        strings, exact = affordable(strings if short else StringSet(0, None, strings.parts))
        plain = And((strings.expr, without((self._style.mark,))))
        if short and exact and fsm_native.fits(plain, _MAX_STATES, _MAX_WORK) is not False:
            return self._ended(strings.expr)
        asked = self.guards.around(EMPTY, terms)
        if not isinstance(asked, Guard):
            raise self._refused("a string as long as this is asked when it ends, which needs a local reference", "")
        name = f"g{len(self._checked)}"
        self._checked[name] = (And((strings.expr, without((self._style.mark,)))), asked.check)
        return seq(Ref(name), self._speller.spelled(self._style.tail))

    def _ended(self, value: Node) -> Node:
        """A regular value and the tail, whose mark is the first in the text: spelled out, or with special tokens."""
        mark, tail = self._style.mark, self._style.tail
        end = tail[: tail.index(mark) + len(mark)]
        plain = And((seq(value, Text(end)), up_to_first((mark,), (mark,), ())))
        token = self._speller.after_text(end, (mark,), value=value)
        rest = Text(tail[len(end) :])
        return seq(plain if token is None else alt([plain, token]), rest)


def _is_name(name: str) -> bool:
    return bool(name) and not any(char in '<>"\x7f' or char < " " for char in name)


@lru_cache(maxsize=64)
def _looks_like(kinds: frozenset[str]) -> Node:
    """The texts that are read as a value of one of the types, and some more."""
    looks = [_LOOKS[kind] for kind in sorted(kinds) if kind in _LOOKS]  # where there is "number" there is "integer"
    return match_expr(f"{_SPACE}({'|'.join(looks)}){_SPACE}") if looks else NOTHING


def _of_text(check: Check) -> Check:
    """The question about a JSON text, of a string written as it is."""
    assert isinstance(check, Asked)
    return check.bare()
