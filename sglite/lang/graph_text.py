"""A graph as lines of text, for terminals.

program 'f': 3 streams, 7 nodes, 3 requests
0      %0 = 'Topic: x'
0      %1 = %0 + fork(2)                          -> 1, 2
 1     %2 = %1 + '\\nview 0:'
 1     %3 = %2 + gen('view', max_new_tokens=4)    f.py:7   prompt 12 (cached 8) out 4  12 ms
"""

from __future__ import annotations

from sglite.lang.graph_nodes import before, counters, is_request, is_shown, label, plain, streams_of, total
from sglite.lang.ir import Fork, Graph, Node

MAX_LINES = 500
"""Lines that are shown; the rest is counted."""
_INDENT = 8
"""Streams from here on are not indented further."""


def to_text(graph: Graph, max_lines: int = MAX_LINES) -> str:
    """One line per node that says something; after a run with the counters of its requests."""
    lines = [headline(graph)]
    shown = [node for node in graph.nodes if is_shown(node)]
    rows = [_row(graph, node) for node in shown[:max_lines]]
    widths = [min(limit, max((len(row[i]) for row in rows), default=0)) for i, limit in enumerate((12, 90, 32))]
    for stream, what, line, numbers in rows:
        text = f"{stream:<{widths[0]}}  {what:<{widths[1]}}  {line:<{widths[2]}}  {numbers}"
        lines.append(text.rstrip())
    if len(shown) > max_lines:
        lines.append(f"... {len(shown) - max_lines:,} more nodes; to_jsonl() has them all")
    return "\n".join(lines)


def headline(graph: Graph) -> str:
    """Name and size, and after a run its totals."""
    requests = sum(map(is_request, graph.nodes))
    streams = max(1, len(streams_of(graph.nodes)))
    head = f"program {plain(graph.name)!r}: {_some(streams, 'stream')}, {_some(len(graph.nodes), 'node')}, "
    head += _some(requests, "request")
    if graph.records:
        spent = total(graph)
        head += f"; prompt {spent.prompt:,} (cached {spent.cached:,}) out {spent.completion:,}  {spent.seconds:.3f} s"
    return head


def _row(graph: Graph, node: Node) -> tuple[str, str, str, str]:
    stream = " " * min(node.stream, _INDENT) + str(node.stream)
    edges = [f"%{source}" for source in _shown_edges(graph, node)]
    if len(edges) > 6:
        edges = [*edges[:5], f"{len(edges) - 5} more"]
    what = f"%{node.id} = {' + '.join([*edges, label(node)])}"
    if isinstance(node.op, Fork):
        children = [str(child) for child in node.op.children]
        what += f"  -> {', '.join(children if len(children) < 8 else [children[0], '...', children[-1]])}"
    return stream, what, plain(node.line, 32), counters(graph.records.get(node.id))


def _shown_edges(graph: Graph, node: Node) -> list[int]:
    """The nodes before it, where those that are not shown stand for the ones before them."""
    found: dict[int, None] = {}
    for source in before(node):
        at: int | None = source
        while at is not None and not is_shown(graph.nodes[at]):
            at = graph.nodes[at].prev
        if at is not None:
            found[at] = None
    return list(found)


def _some(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
