"""Objects of one shape: the declared properties in their order, then the others, whose names are kept unique.

Without counts the text is a chain, as long as the properties are many; with counts, or demands that some property
has to meet, it is the automaton of `counting`; in any order it is one Shuffle.
"""

from __future__ import annotations

from sglite.constrained.grammar import NOTHING, Alt, Node, Ref, Scope, Shuffle, optional, seq
from sglite.constrained.json_schema.cells import Cell, cells_of, names_told
from sglite.constrained.json_schema.counting import Counting, Entry, Ready
from sglite.constrained.json_schema.listing import Values, bracketed, maybe_empty, name_node
from sglite.constrained.json_schema.normal import NEVER, ObjectShape
from sglite.constrained.json_schema.strings import StringSet
from sglite.constrained.json_schema.tail import MAX_SHUFFLED, Tail
from sglite.constrained.spec import ConstraintRefused


def object_node(values: Values, shape: ObjectShape, rule: str, pointer: str) -> tuple[Node, bool]:
    """The objects of a shape, with rules named after `rule`; and whether these are more than the shape has."""
    names = names_told(shape)
    cells = cells_of(shape, names)
    wide = cells is None or not all(cell.exact for cell in cells)
    if cells is None:
        cells = [Cell(StringSet.ALL & ~StringSet.of(list(names)), (), (), None, True, True)]
        shape = shape._replace(some=())
    ready = _ready(shape, names, cells)
    if ready is None:
        return NOTHING, False
    if values.any_order and ready.entries:
        inside = _shuffled(values, ready, rule, pointer)
        wide = wide or bool(ready.some)
    elif ready.low or ready.high is not None or ready.some:
        counting = Counting(values, ready, rule)
        inside = counting.build()
        wide = wide or counting.wide
    else:
        inside = _chain(values, ready, rule)
    node = bracketed("{", inside, "}", values.layout)
    return (Scope(node) if cells else node), wide


def _ready(shape: ObjectShape, names: dict[str, None], cells: list[Cell]) -> Ready | None:
    """The shape without what says nothing; None when it has no objects."""
    entries = []
    for name in names:
        value = shape.value_of(name)
        if NEVER not in value:
            entries.append(Entry(name, value, name in shape.required))
        elif name in shape.required:
            return None
    low, high = shape.low, shape.high
    if all(cell.listed is not None for cell in cells):
        most = len(entries) + sum(len(cell.listed or ()) for cell in cells)
        if most < low:
            return None
        high = None if high is not None and high >= most else high
    if high is not None and high < max(low, len(shape.required)):
        return None
    return Ready(entries, cells, 0 if low <= len(shape.required) else low, high, shape.some)


def _entry(values: Values, entry: Entry) -> Node:
    return seq(name_node(entry.name, values.layout), values.layout.colon, values.value(entry.value))


def _shuffled(values: Values, ready: Ready, rule: str, pointer: str) -> Node:
    tail = Tail(values, ready.cells, f"{rule}.more")
    nodes = (*(_entry(values, entry) for entry in ready.entries), *tail.written)
    if len(nodes) > MAX_SHUFFLED:
        reason = f"of {len(nodes)} names cannot come in any order, at most {MAX_SHUFFLED}; use order 'schema'"
        raise ConstraintRefused(f"'properties' {reason}", pointer=f"{pointer}/properties", keyword="properties")
    required = frozenset(i for i, entry in enumerate(ready.entries) if entry.required)
    rest = None if tail.more == NOTHING else tail.more
    filled: Node = NOTHING
    if ready.high != 0:
        filled = Shuffle(nodes, required, values.layout.comma, max(1, ready.low), ready.high, rest)
    return maybe_empty(filled, values.layout, ready.low or len(required))


def _chain(values: Values, ready: Ready, rule: str) -> Node:
    """The properties up to the first required one need to know whether anything is there yet; the others do not."""
    layout, rules = values.layout, values.rules
    nodes = [_entry(values, entry) for entry in ready.entries]
    tail = Tail(values, ready.cells, f"{rule}.more")
    stop = next((i for i, entry in enumerate(ready.entries) if entry.required), len(nodes))
    after = [
        seq(layout.comma, node) if entry.required else optional(seq(layout.comma, node))
        for entry, node in zip(ready.entries[stop + 1 :], nodes[stop + 1 :], strict=True)
    ]
    rest = seq(*after, tail.following(0, None), layout.space)
    if stop == len(nodes):
        head, joint = tail.alone(0, None), rest
    else:
        if stop:
            rules[f"{rule}.rest"] = rest
            rest = Ref(f"{rule}.rest")
        head, joint = seq(nodes[stop], rest), seq(layout.comma, nodes[stop], rest)
    if not stop:
        return head
    rules[f"{rule}.{stop}"] = joint
    for i in range(stop - 1, 0, -1):
        rules[f"{rule}.{i}"] = seq(optional(seq(layout.comma, nodes[i])), Ref(f"{rule}.{i + 1}"))
    return Alt((*(seq(nodes[i], Ref(f"{rule}.{i + 1}")) for i in range(stop)), head))
