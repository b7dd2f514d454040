"""A graph can be printed and drawn: what is in it is shown, what people wrote harms nothing, size is bounded."""

from __future__ import annotations

import re
import time
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sglite.lang.choices import token_length_normalized, unconditional_likelihood_normalized
from sglite.lang.graph import ProgramGraph
from sglite.lang.ir import Arg, Computed, Fork, Gen, Graph, Join, Lit, NodeRecord, RoleBegin, Sampling, Select, VarRef

HOSTILE = "</script><script>alert(1)</script>'\"]}%%{init}%% --> \x1b[2J\u202e & <!-- ]]> #quot; `x` end\nsubgraph\x00"


def meta(prompt: int, cached: int, out: int, **more: object) -> dict[str, object]:
    counts = {"prompt_tokens": prompt, "cached_tokens": cached, "computed_prompt_tokens": prompt - cached}
    return {**counts, "completion_tokens": out, "forward_passes": out, "replayed_tokens": 0, **more}


def forked(*, ran: bool = True, text: str = "Topic: x", name: str = "view") -> Graph:
    """A prefix, two branches with a gen each, and a gen over both."""
    graph = Graph(name="f", program_id="p1")
    streams = [graph.new_stream() for _ in range(3)]
    start = graph.add(0, None, Lit(text), line="f.py:3")
    fork = graph.add(0, start.id, Fork((1, 2)), line="f.py:4")
    views = []
    for stream in streams[1:]:
        lit = graph.add(stream, fork.id, Lit(f"\nview {stream}:"), line="f.py:6")
        views.append(graph.add(stream, lit.id, Gen(name, Sampling(max_new_tokens=4)), line="f.py:6"))
    last = graph.add(0, fork.id, VarRef(name, views[0].id), (views[0].id,), "f.py:7")
    last = graph.add(0, last.id, VarRef(name, views[1].id), (views[1].id,), "f.py:7")
    total = graph.add(0, last.id, Gen("sum", Sampling(max_new_tokens=4)), line="f.py:7")
    if ran:
        graph.records[views[0].id] = NodeRecord(0.0, 0.012, text=text, meta=meta(1532, 1488, 64))
        graph.records[views[1].id] = NodeRecord(0.001, 0.3, text="b", meta=meta(12, 4, 4), attempts=2)
        graph.records[total.id] = NodeRecord(0.31, 0.5, text="c", meta=meta(30, 10, 4), error="it <b>failed</b>")
    return graph


def test_every_node_that_matters_has_a_line_and_after_a_run_its_counters() -> None:
    graph = forked()
    lines = str(ProgramGraph(graph)).splitlines()
    assert lines[0].startswith("program 'f': 3 streams, 9 nodes, 3 requests; prompt 1,574")
    assert len(lines) == 1 + len(graph.nodes)
    first = next(line for line in lines if line.lstrip().startswith("1") and "gen('view'" in line)
    assert "%3 = %2 + gen('view', max_new_tokens=4)" in first and "f.py:6" in first
    assert first.endswith("prompt 1,532 (cached 1,488) out 64  12 ms")
    assert "fork(2)  -> 1, 2" in lines[2] and "2 attempts" in "\n".join(lines)
    assert "FAILED: it <b>failed</b>" in lines[-1]


def test_a_compiled_graph_shows_names_before_they_have_values() -> None:
    graph = forked(ran=False)
    graph.add(0, 8, Arg("topic"))
    graph.add(0, 9, Computed("len(x)"))
    graph.add(0, 10, Select("pick", ("a", "b"), token_length_normalized))
    text = str(ProgramGraph(graph))
    for part in (
        "fork(2)",
        "value of 'view'",
        "gen('sum'",
        "argument 'topic'",
        "`len(x)`",
        "select('pick', ['a', 'b'])",
    ):
        assert part in text
    assert "prompt" not in text and repr(ProgramGraph(graph)).startswith("<program 'f': 3 streams, 12 nodes")


def test_hostile_text_prints_on_its_own_line_and_moves_no_cursor() -> None:
    graph = forked(text=HOSTILE, name=HOSTILE)
    graph.name, graph.records[8].error = HOSTILE, HOSTILE
    graph.add(0, 8, RoleBegin(HOSTILE), line=HOSTILE)
    text = str(ProgramGraph(graph))
    assert len(text.splitlines()) == 1 + len(graph.nodes)
    assert all(char.isprintable() for char in text.replace("\n", ""))


def test_mermaid_is_a_flowchart_whose_labels_hold_nothing_but_text() -> None:
    chart = ProgramGraph(forked(text=HOSTILE, name=HOSTILE)).to_mermaid()
    assert chart.startswith("flowchart")
    box = r'n\d+(\(\[|\{\{|\[)"([\w .,:+\-/=!?*]|#\d+;|<br/>)*"(\]\)|\}\}|\])'
    edge, style = r"n\d+ (-->|-\.->) n\d+", r"classDef request [\w:#,]+|class [n\d,]+ request"
    line = rf'({box}|subgraph s\d+\["stream \d+"\]|end|{edge}|{style})'
    assert [row for row in chart.splitlines()[1:] if not re.fullmatch(line, row.strip())] == []
    assert "n0 --> n1" in chart and "n3 -.-> n6" in chart


class Page(HTMLParser):
    """Collects the tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def test_the_page_runs_nothing_and_fetches_nothing(tmp_path: Path) -> None:
    graph = forked(text=HOSTILE, name=HOSTILE)
    graph.name = HOSTILE
    page = ProgramGraph(graph).to_html(tmp_path / "g.html")
    assert (tmp_path / "g.html").read_text(encoding="utf-8") == page
    found = Page(page)
    assert not {"script", "link", "iframe", "img", "object", "a", "b", "image", "use"} & set(found.tags)
    assert {"svg", "table", "title", "pattern"} <= set(found.tags)
    assert not [name for name, value in found.attributes if name.startswith("on") or name in ("href", "src")]
    assert [value for _, value in found.attributes if "//" in value] == ["http://www.w3.org/2000/svg"]


def test_bars_are_divided_as_their_tokens_are_and_tell_their_cost() -> None:
    page = ProgramGraph(forked()).to_html()
    assert "prompt 1,532 = cached 1,488 + computed 44; out 64 (0 forced), 64 forward passes" in page
    bars = re.findall(r"<g><title>.*?</g>", page, re.DOTALL)
    assert len(bars) == 3
    widths = [float(width) for width in re.findall(r"width='([\d.]+)' height='18' fill='(?:url|#60|#34)", bars[0])]
    assert widths == pytest.approx([w / 1596 * 24 for w in (1488, 44, 64)], abs=0.06)
    assert "<th>total</th>" in page and "<td>1,574</td>" in page


def test_drawings_are_well_formed_and_notebooks_get_one() -> None:
    hostile = forked(text=HOSTILE, name=HOSTILE)
    hostile.records[8].error = HOSTILE
    hostile.add(0, 8, RoleBegin(HOSTILE), line=HOSTILE)
    for graph in (forked(), forked(ran=False), hostile, Graph()):
        view = ProgramGraph(graph)
        root = ElementTree.fromstring(view.to_svg())
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        boxes = list(root.iter("{http://www.w3.org/2000/svg}title"))
        assert len(boxes) == len(graph.nodes)
        assert "<svg" in view._repr_svg_() and "<svg" in view._repr_html_()
        assert "<svg" in view.to_html() and view.to_mermaid().startswith("flowchart")


def test_in_a_drawing_every_edge_points_down() -> None:
    svg = ProgramGraph(forked()).to_svg()
    curves = re.findall(r"<path d='M\d+ (\d+) C\d+ \d+ \d+ \d+ \d+ (\d+)'", svg)
    assert len(curves) == 10 and all(int(start) < int(end) for start, end in curves)


def large() -> Graph:
    graph = Graph(name="large")
    previous = graph.add(graph.new_stream(), None, Lit("x" * 100_000))
    fork = graph.add(0, previous.id, Fork(tuple(graph.new_stream() for _ in range(1999))))
    for stream in range(1, 2000):
        lit = graph.add(stream, fork.id, Lit(f"text {stream} " * 50))
        for _ in range(4):
            lit = graph.add(stream, lit.id, Gen("v", Sampling(max_new_tokens=9)))
            graph.records[lit.id] = NodeRecord(stream * 0.01, stream * 0.01 + 1, "out " * 500, meta(900, 800, 9))
    return graph


def test_ten_thousand_nodes_are_shown_in_bounded_time_and_space() -> None:
    view = ProgramGraph(large())
    assert len(view.nodes) == 9997
    for render, limit in ((str, 200_000), (ProgramGraph.to_mermaid, 50_000), (ProgramGraph.to_svg, 400_000)):
        start = time.process_time()
        text = render(view)
        assert time.process_time() - start < 2 and len(text) < limit
        assert "more nodes" in text
    for render in (ProgramGraph.to_html, ProgramGraph._repr_html_):
        start = time.process_time()
        assert len(render(view)) < 3_000_000
        assert time.process_time() - start < 2
    start = time.process_time()
    assert view.critical_path().requests == 4
    assert time.process_time() - start < 1


def test_the_path_before_a_run_is_the_most_requests_in_sequence() -> None:
    graph = forked(ran=False)
    path = ProgramGraph(graph).critical_path()
    assert path.requests == 2 and [step.node.id for step in path][-1] == 8 and path.seconds is None
    graph.add(0, 8, Select("s", ("a", "b"), unconditional_likelihood_normalized))
    assert ProgramGraph(graph).critical_path().requests == 4  # choices with the prompt, then without


def test_the_path_after_a_run_is_the_longest_time() -> None:
    path = ProgramGraph(forked()).critical_path()
    assert [step.node.id for step in path] == [5, 8]
    assert path.seconds == pytest.approx(0.299 + 0.19)
    assert path.requests == 3  # one of them was asked twice
    assert "critical path: 3 requests in sequence" in str(path)


def test_a_read_makes_everything_after_it_wait() -> None:
    graph = Graph()
    for _ in range(2):
        graph.new_stream()
    first = graph.add(0, None, Gen("a", Sampling()))
    graph.add(1, None, Gen("b", Sampling()))
    assert ProgramGraph(graph).critical_path().requests == 1
    graph.reads = [(first.id, 1, 0.25)]  # type: ignore[attr-defined]
    assert ProgramGraph(graph).critical_path().requests == 2


def test_joins_and_empty_graphs_have_paths() -> None:
    graph = forked(ran=False)
    graph.add(0, 8, Join("concate_and_append"), (3, 5))
    assert ProgramGraph(graph).critical_path().requests == 2
    assert len(ProgramGraph(Graph()).critical_path()) == 0 and str(ProgramGraph(Graph())).startswith("program")
