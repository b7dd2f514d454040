"""A graph as a drawing: streams are columns, time runs down, edges are curves. A layered layout of our own.

A node's row is one below the lowest node before it, so every edge points down. The result is one ``<svg>`` element
without scripts, styles of the page or references to anything outside it.
"""

from __future__ import annotations

from html import escape

from sglite.lang.graph_nodes import before, counters, is_request, is_shown, label, plain
from sglite.lang.ir import Fork, Graph, Join, Node

MAX_NODES = 300
MAX_LANES = 32
_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _TOP, _LEFT = 220, 38, 28, 26, 34, 12
_FONT = "font-family='ui-monospace,Menlo,Consolas,monospace'"
_FILL = {"request": "#dbeafe", "branch": "#fef3c7", "text": "#f3f4f6", "failed": "#fecaca"}


def to_svg(graph: Graph) -> str:
    """The drawing; of a large graph its first nodes and streams, and how many more there are."""
    nodes, missing = _chosen(graph)
    lanes = {stream: index for index, stream in enumerate(sorted({node.stream for node in nodes.values()}))}
    edges = {node.id: _edges(graph, node, nodes) for node in nodes.values()}
    rows = _rows(nodes, edges)
    height = _TOP + (max(rows.values(), default=0) + 1) * (_HEIGHT + _GAP_Y) + (20 if missing else 0)
    width = 2 * _LEFT + max(1, len(lanes)) * (_WIDTH + _GAP_X) - _GAP_X
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' "
        f"viewBox='0 0 {width} {height}' role='img' aria-label='{escape(label_of(graph))}'>",
        f"<rect width='{width}' height='{height}' fill='#ffffff'/>",
    ]
    place = {
        i: (_LEFT + lanes[n.stream] * (_WIDTH + _GAP_X), _TOP + rows[i] * (_HEIGHT + _GAP_Y)) for i, n in nodes.items()
    }
    parts += [_lane(stream, _LEFT + index * (_WIDTH + _GAP_X), height) for stream, index in lanes.items()]
    parts += [_curve(place[source], place[i], dotted) for i in nodes for source, dotted in edges[i]]
    parts += [_box(graph, node, *place[i]) for i, node in nodes.items()]
    if missing:
        note = f"{missing:,} more nodes are not drawn"
        parts.append(f"<text x='{_LEFT}' y='{height - 6}' {_FONT} font-size='12' fill='#6b7280'>{note}</text>")
    return "".join([*parts, "</svg>"])


def label_of(graph: Graph) -> str:
    """What the drawing is called where it cannot be seen."""
    return f"graph of program {graph.name[:60]!r}"


def _chosen(graph: Graph) -> tuple[dict[int, Node], int]:
    shown = [node for node in graph.nodes if is_shown(node)]
    lanes: dict[int, None] = {}
    nodes: dict[int, Node] = {}
    for node in shown:
        if len(nodes) == MAX_NODES:
            break
        if node.stream in lanes or len(lanes) < MAX_LANES:
            lanes[node.stream] = None
            nodes[node.id] = node
    return nodes, len(shown) - len(nodes)


def _edges(graph: Graph, node: Node, nodes: dict[int, Node]) -> list[tuple[int, bool]]:
    """Nodes it is drawn below, and whether by data only."""
    found: dict[int, bool] = {}
    for source in before(node):
        at: int | None = source
        while at is not None and at not in nodes:
            at = graph.nodes[at].prev
        if at is not None:
            found.setdefault(at, source != node.prev)
    return list(found.items())


def _rows(nodes: dict[int, Node], edges: dict[int, list[tuple[int, bool]]]) -> dict[int, int]:
    rows: dict[int, int] = {}
    for i in nodes:
        rows[i] = max((rows[source] + 1 for source, _ in edges[i]), default=0)
    return rows


def _lane(stream: int, x: int, height: int) -> str:
    middle = x + _WIDTH // 2
    return (
        f"<line x1='{middle}' y1='{_TOP}' x2='{middle}' y2='{height}' stroke='#f3f4f6' stroke-width='2'/>"
        f"<text x='{middle}' y='20' text-anchor='middle' {_FONT} font-size='12' fill='#6b7280'>stream {stream}</text>"
    )


def _curve(start: tuple[int, int], end: tuple[int, int], dotted: bool) -> str:
    x1, y1 = start[0] + _WIDTH // 2, start[1] + _HEIGHT
    x2, y2 = end[0] + _WIDTH // 2, end[1]
    bend = max(12, (y2 - y1) // 2)
    dash = " stroke-dasharray='4 3'" if dotted else ""
    path = f"M{x1} {y1} C{x1} {y1 + bend} {x2} {y2 - bend} {x2} {y2}"
    return f"<path d='{path}' fill='none' stroke='#9ca3af' stroke-width='1.5'{dash}/>"


def _box(graph: Graph, node: Node, x: int, y: int) -> str:
    record = graph.records.get(node.id)
    kind = "request" if is_request(node) else "branch" if isinstance(node.op, (Fork, Join)) else "text"
    if record is not None and record.error is not None:
        kind = "failed"
    numbers = counters(record)
    text_y = y + (16 if numbers else 23)
    first = escape(f"%{node.id} {label(node, 26)}")
    title = escape("\n".join(filter(None, (f"%{node.id} {label(node, 200)}", plain(node.line, 200), numbers))))
    second = (
        f"<text x='{x + 8}' y='{y + 30}' {_FONT} font-size='9' fill='#4b5563'>{escape(numbers[:38])}</text>"
        if numbers
        else ""
    )
    return (
        f"<g><title>{title}</title><rect x='{x}' y='{y}' width='{_WIDTH}' height='{_HEIGHT}' rx='6' "
        f"fill='{_FILL[kind]}' stroke='#9ca3af'/><text x='{x + 8}' y='{text_y}' {_FONT} font-size='11' "
        f"fill='#111827'>{first}</text>{second}</g>"
    )
