"""A program's graph for people: printed, drawn, explained, kept.

``program.compile(...)`` gives one before a run, ``state.graph()`` one with what became of each node. Views are made
when asked for and bounded: of a graph with 10,000 nodes they show the beginning and say how much is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglite.lang import graph_html, graph_jsonl, graph_mermaid, graph_svg, graph_text
from sglite.lang.explain import Explanation, explain
from sglite.lang.formats import ChatFormat
from sglite.lang.graph_path import CriticalPath, critical_path
from sglite.lang.ir import Graph, Node, NodeRecord

if TYPE_CHECKING:
    from sglite.lang.program import ProgramState


class ProgramGraph:
    """The graph of one program, traced or run. ``print`` shows it; a notebook draws it."""

    def __init__(self, graph: Graph, run: Callable[..., ProgramState] | None = None) -> None:
        self.graph = graph
        self._run = run

    @property
    def name(self) -> str:
        """The program's name."""
        return self.graph.name

    @property
    def nodes(self) -> list[Node]:
        """The nodes, in the order in which they were appended."""
        return self.graph.nodes

    @property
    def records(self) -> dict[int, NodeRecord]:
        """By node id, what a run made of the nodes; empty before one."""
        return self.graph.records

    def __str__(self) -> str:
        return graph_text.to_text(self.graph)

    def __repr__(self) -> str:
        return f"<{graph_text.headline(self.graph)}>"

    def to_mermaid(self) -> str:
        """Source of a Mermaid flowchart."""
        return graph_mermaid.to_mermaid(self.graph)

    def to_svg(self) -> str:
        """A drawing: one column per stream."""
        return graph_svg.to_svg(self.graph)

    def to_html(self, path: str | Path | None = None) -> str:
        """A page that needs nothing else: the timeline and a table of costs; also written to ``path`` if given."""
        page = graph_html.to_html(self.graph)
        if path is not None:
            Path(path).write_text(page, encoding="utf-8")
        return page

    def _repr_svg_(self) -> str:
        return self.to_svg()

    def _repr_html_(self) -> str:
        return graph_html.fragment(self.graph) if self.graph.records else self.to_svg()

    def critical_path(self) -> CriticalPath:
        """The longest chain of requests that had to follow one another: by number before a run, by time after it."""
        return critical_path(self.graph)

    def run(self, **options: Any) -> ProgramState:
        """Runs a graph that is wholly known, without the Python that it was compiled from; options as for ``run``.

        ``ret_value`` of the state: the state of every stream by its number. ValueError where something is open.
        """
        if self._run is None:
            raise ValueError("only graphs that compile() made can be run; this one is what a run has left, or a trace")
        return self._run(**options)

    def explain(
        self,
        *,
        encode: Callable[..., Sequence[int]] | None = None,
        count: Callable[[str], int] | None = None,
        backend: Any = None,
        chat_format: ChatFormat | None = None,
        assume: Mapping[str, int] | None = None,
    ) -> Explanation:
        """What the program costs on an engine, what it shares, and what keeps it from sharing more.

        Tokens are counted by ``encode`` (text -> ids; exact), ``count`` (text -> number) or the tokenizer and turns of
        ``backend``; without any of them a run's own counters are used, and an estimate before a run. ``assume``: how
        many tokens outputs that are not known yet will have, by variable.
        """
        return explain(self.graph, encode=encode, count=count, backend=backend, chat_format=chat_format, assume=assume)

    def to_jsonl(self, path: str | Path | None = None) -> str:
        """The graph and its records as a trace, one JSON object per line; also written to ``path`` if given."""
        text = "".join(f"{line}\n" for line in graph_jsonl.to_lines(self.graph))
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    @staticmethod
    def from_jsonl(text: str) -> ProgramGraph:
        """The graph of a trace. ValueError naming the line that is wrong."""
        return ProgramGraph(graph_jsonl.from_lines(text.split("\n")))

    @staticmethod
    def load(path: str | Path) -> ProgramGraph:
        """The graph of a trace in a file. OSError if it cannot be read, ValueError if it is no trace."""
        with Path(path).open(encoding="utf-8") as file:
            return ProgramGraph(graph_jsonl.from_lines(file))
