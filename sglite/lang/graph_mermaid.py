"""A graph as a Mermaid flowchart: one subgraph per stream, solid arrows for text, dotted ones for data.

Labels may hold anything: every character that is neither a letter, a digit nor harmless is written as a Mermaid
entity, so that no text ends a label, starts a directive or becomes HTML.
"""

from __future__ import annotations

from sglite.lang.graph_nodes import before, counters, is_request, is_shown, label
from sglite.lang.ir import Fork, Graph, Join, Node

MAX_NODES = 200
MAX_CHARS = 30_000
"""Nodes that are drawn, and the length of their boxes: renderers refuse charts of more than 500 edges or 50,000
characters."""
_HARMLESS = frozenset(" .,:+-_/=!?*")


def to_mermaid(graph: Graph) -> str:
    """The flowchart's source."""
    shown = [node for node in graph.nodes if is_shown(node)]
    boxes = _boxes(graph, shown)
    drawn = {node.id: node for node in shown if node.id in boxes}
    lines = ["flowchart TD"]
    for stream in sorted({node.stream for node in drawn.values()}):
        lines.append(f'  subgraph s{stream}["stream {stream}"]')
        lines += [f"    {boxes[node.id]}" for node in drawn.values() if node.stream == stream]
        lines.append("  end")
    edges = [edge for node in drawn.values() for edge in _edges(graph, node, drawn)]
    lines += [f"  n{start} {arrow} n{end}" for start, arrow, end in edges[: 2 * MAX_NODES]]
    if len(shown) > len(drawn):
        lines.append(f'  more["{len(shown) - len(drawn)} more nodes"]')
    lines.append("  classDef request fill:#dbeafe,stroke:#1d4ed8,color:#111")
    asked = [f"n{node.id}" for node in drawn.values() if is_request(node)]
    if asked:
        lines.append(f"  class {','.join(asked)} request")
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """``text`` inside a label's double quotes."""
    return "".join(
        char if (char.isascii() and char.isalnum()) or char in _HARMLESS else f"#{ord(char)};" for char in text
    )


def _boxes(graph: Graph, shown: list[Node]) -> dict[int, str]:
    """The boxes of the first nodes, as many as a renderer takes."""
    boxes: dict[int, str] = {}
    chars = 0
    for node in shown[:MAX_NODES]:
        box = _box(graph, node)
        chars += len(box)
        if chars > MAX_CHARS:
            break
        boxes[node.id] = box
    return boxes


def _box(graph: Graph, node: Node) -> str:
    numbers = counters(graph.records.get(node.id))
    text = escape(label(node, 48)) + (f"<br/>{escape(numbers)}" if numbers else "")
    if is_request(node):
        return f'n{node.id}(["{text}"])'
    if isinstance(node.op, (Fork, Join)):
        return f'n{node.id}{{{{"{text}"}}}}'
    return f'n{node.id}["{text}"]'


def _edges(graph: Graph, node: Node, drawn: dict[int, Node]) -> list[tuple[int, str, int]]:
    found: dict[int, str] = {}
    for source in before(node):
        at: int | None = source
        while at is not None and at not in drawn:
            at = graph.nodes[at].prev
        if at is not None:
            found.setdefault(at, "-->" if source == node.prev else "-.->")
    return [(source, arrow, node.id) for source, arrow in found.items()]
