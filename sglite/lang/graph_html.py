"""A run as a page: one lane per stream, one bar per request, a table of what it all cost.

A bar lasts as long as its request did and is divided as its tokens are: cached, computed, generated. Before a run bars
stand in the order in which requests can be sent. The page needs no script and nothing from anywhere else; all of it is
escaped, since prompts and answers are other people's text.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from sglite.lang.graph_nodes import (
    Cost,
    before,
    cost,
    is_request,
    label,
    milliseconds,
    plain,
    quoted,
    streams_of,
    total,
    variable,
    waves,
)
from sglite.lang.graph_path import critical_path
from sglite.lang.graph_text import headline
from sglite.lang.ir import Graph, Node

MAX_LANES = 256
MAX_BARS = 2000
MAX_ROWS = 1000
_LANE, _BAR, _LEFT, _WIDE = 26, 18, 90, 1000
_CSP = "default-src 'none'; style-src 'unsafe-inline'"
_CSS = """
.sglite{font:13px/1.4 system-ui,sans-serif;color:#111827;background:#fff}
.sglite table{border-collapse:collapse;margin:12px 0}
.sglite th,.sglite td{padding:2px 10px;text-align:right;border-bottom:1px solid #e5e7eb}
.sglite th:first-child,.sglite td:first-child,.sglite td.what{text-align:left}
.sglite td.what,.sglite svg text{font-family:ui-monospace,Menlo,Consolas,monospace}
.sglite .failed{color:#b91c1c}
"""
_COLUMNS = ("prompt", "cached", "computed", "completion", "forced", "passes")


@dataclass(frozen=True)
class _Bar:
    node: Node
    start: float
    end: float
    critical: bool


def to_html(graph: Graph) -> str:
    """The whole page."""
    return (
        f"<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{_CSP}">'
        f"<title>{escape(plain(graph.name))}</title></head><body>{fragment(graph)}</body></html>"
    )


def fragment(graph: Graph) -> str:
    """The page without its frame, for notebooks."""
    path = critical_path(graph)
    summary = f"{path.requests} requests one after the other"
    if path.seconds is not None:
        summary += f", {milliseconds(path.seconds)}"
    return (
        f"<div class='sglite'><style>{_CSS}</style><h3>{escape(headline(graph))}</h3>"
        f"<p>Critical path (outlined): {summary}.</p>{timeline(graph)}{_legend()}{_table(graph)}</div>"
    )


def timeline(graph: Graph) -> str:
    """The lanes and bars as one ``<svg>``."""
    bars, missing = _bars(graph)
    lanes = {stream: index for index, stream in enumerate(streams_of(bar.node for bar in bars)[:MAX_LANES])}
    start = min((bar.start for bar in bars), default=0.0)
    span = max((bar.end for bar in bars), default=1.0) - start or 1.0
    height = 30 + max(1, len(lanes)) * _LANE + 6
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{_LEFT + _WIDE + 20}' height='{height}' role='img'>"
        "<defs><pattern id='sglite-cached' width='6' height='6' patternUnits='userSpaceOnUse' "
        "patternTransform='rotate(45)'><rect width='6' height='6' fill='#e5e7eb'/><rect width='2' height='6' "
        "fill='#9ca3af'/></pattern></defs>"
    ]
    parts += [_axis(graph, span, tick, height) for tick in range(5)]
    for stream, index in lanes.items():
        y = 30 + index * _LANE
        parts.append(f"<text x='4' y='{y + 13}' font-size='11' fill='#6b7280'>stream {stream}</text>")
    for bar in bars:
        if bar.node.stream in lanes:
            parts.append(_drawn(graph, bar, start, _WIDE / span, 30 + lanes[bar.node.stream] * _LANE))
    parts.append("</svg>")
    if missing:
        parts.append(f"<p>{missing:,} more requests are not drawn.</p>")
    return "".join(parts)


def _bars(graph: Graph) -> tuple[list[_Bar], int]:
    critical = {step.node.id for step in critical_path(graph)}
    asked = [node for node in graph.nodes if is_request(node)]
    if graph.records:
        asked = [node for node in asked if node.id in graph.records]
        times = {
            n.id: (r.started, r.started if r.ended is None else r.ended) for n in asked for r in (graph.records[n.id],)
        }
    else:
        times = _turns(graph)
    chosen = asked[:MAX_BARS]
    kept = [_Bar(node, *times[node.id], node.id in critical) for node in chosen]
    lanes = set(streams_of(chosen)[:MAX_LANES])
    return kept, len(asked) - sum(node.stream in lanes for node in chosen)


def _turns(graph: Graph) -> dict[int, tuple[float, float]]:
    """Before a run: in which round of requests each one can be sent."""
    depth: list[int] = []
    for node in graph.nodes:
        depth.append(max((depth[source] for source in before(node) if source < node.id), default=0) + waves(node))
    return {node.id: (float(depth[node.id] - waves(node)), float(depth[node.id])) for node in graph.nodes}


def _axis(graph: Graph, span: float, tick: int, height: int) -> str:
    x = _LEFT + _WIDE * tick // 4
    text = milliseconds(span * tick / 4) if graph.records else f"{span * tick / 4:g} requests"
    return (
        f"<line x1='{x}' y1='24' x2='{x}' y2='{height}' stroke='#e5e7eb'/>"
        f"<text x='{x}' y='16' font-size='10' text-anchor='middle' fill='#6b7280'>{text}</text>"
    )


def _drawn(graph: Graph, bar: _Bar, origin: float, scale: float, y: int) -> str:
    """One bar: its parts are as wide as their share of the tokens."""
    record = graph.records.get(bar.node.id)
    spent = cost(record)
    x, width = _LEFT + (bar.start - origin) * scale, max(2.0, (bar.end - bar.start) * scale)
    parts = [(spent.cached, "url(#sglite-cached)"), (spent.computed, "#60a5fa"), (spent.completion, "#34d399")]
    tokens = sum(count for count, _ in parts)
    if record is not None and record.error is not None:
        parts, tokens = [(1, "#f87171")], 1
    elif not tokens:
        parts, tokens = [(1, "#bfdbfe")], 1
    drawn, at = [], x
    for count, fill in parts:
        part = width * count / tokens
        if count:
            drawn.append(f"<rect x='{at:.1f}' y='{y}' width='{part:.1f}' height='{_BAR}' fill='{fill}'/>")
        at += part
    edge = "stroke='#111827' stroke-width='1.5'" if bar.critical else "stroke='#6b7280' stroke-width='0.5'"
    frame = f"<rect x='{x:.1f}' y='{y}' width='{width:.1f}' height='{_BAR}' fill='none' {edge}/>"
    return f"<g><title>{escape(_tooltip(graph, bar.node, spent))}</title>{''.join(drawn)}{frame}</g>"


def _tooltip(graph: Graph, node: Node, spent: Cost) -> str:
    record = graph.records.get(node.id)
    lines = [f"%{node.id} {label(node, 120)}", plain(node.line, 120)]
    if record is not None:
        lines.append(
            f"prompt {spent.prompt:,} = cached {spent.cached:,} + computed {spent.computed:,}; "
            f"out {spent.completion:,} ({spent.forced:,} forced), {spent.passes:,} forward passes"
        )
        lines.append(f"{milliseconds(spent.seconds)} from {milliseconds(record.started)}, {record.attempts} attempt(s)")
        lines.append(quoted(record.text, 200))
        lines.append(f"FAILED: {plain(record.error, 200)}" if record.error is not None else "")
    return "\n".join(filter(None, lines))


def _legend() -> str:
    kinds = (("#d1d5db", "cached"), ("#60a5fa", "computed"), ("#34d399", "generated"))
    items = "".join(
        f"<span style='background:{fill};padding:0 8px;margin-right:8px'>{name}</span>" for fill, name in kinds
    )
    return f"<p>{items} (each bar is divided as its tokens are)</p>"


def _table(graph: Graph) -> str:
    heads = ["node", "what", "stream", *_COLUMNS, "time"]
    rows = ["".join(f"<th>{name}</th>" for name in heads)]
    asked = [node for node in graph.nodes if is_request(node)]
    for node in asked[:MAX_ROWS]:
        record = graph.records.get(node.id)
        spent = cost(record)
        name = variable(node)
        what = escape(quoted(name, 40) if name is not None else label(node, 40))
        failed = " class='failed'" if record is not None and record.error is not None else ""
        took = milliseconds(spent.seconds) if record is not None else ""
        cells = _cells(spent) if record is not None else "<td></td>" * len(_COLUMNS)
        rows.append(
            f"<td{failed}>%{node.id}</td><td class='what'>{what}</td><td>{node.stream}</td>{cells}<td>{took}</td>"
        )
    if len(asked) > MAX_ROWS:
        rows.append(f"<td colspan='{len(heads)}'>{len(asked) - MAX_ROWS:,} more requests</td>")
    whole = total(graph)
    if graph.records:
        rows.append(f"<th>total</th><th></th><th></th>{_cells(whole)}<td>{milliseconds(whole.seconds)}</td>")
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _cells(spent: Cost) -> str:
    return "".join(f"<td>{getattr(spent, name):,}</td>" for name in _COLUMNS)
