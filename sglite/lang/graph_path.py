"""The critical path: the longest chain of nodes that had to follow one another.

Edges: text (a node and the one before it in its stream), data (what a value or a join is made of) and control (the
body read a value before it appended a node). Before a run the length of a chain is the number of its requests; after a
run it is the seconds its nodes took, and the requests are counted along it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sglite.lang.graph_nodes import Read, before, cost, is_request, label, milliseconds, reads_of, waves
from sglite.lang.ir import Graph, Node


@dataclass(frozen=True)
class PathStep:
    """One node of the path. ``started``: seconds since the run began; ``requests``: rounds it asks the model in."""

    node: Node
    requests: int
    started: float | None = None
    seconds: float | None = None
    passes: int = 0

    def __str__(self) -> str:
        took = "" if self.seconds is None else f"  {milliseconds(self.seconds)}"
        return f"%{self.node.id} (stream {self.node.stream}) {label(self.node)}{took}"


@dataclass(frozen=True)
class CriticalPath:
    """The nodes that ask the model, in order; ``seconds`` is their sum, None before a run."""

    steps: tuple[PathStep, ...]
    seconds: float | None

    @property
    def requests(self) -> int:
        """Requests one after the other."""
        return sum(step.requests for step in self.steps)

    @property
    def forward_passes(self) -> int:
        """Passes that the requests on the path took part in, as the back end reports them; 0 before a run."""
        return sum(step.passes for step in self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[PathStep]:
        return iter(self.steps)

    def __getitem__(self, index: int) -> PathStep:
        return self.steps[index]

    def __str__(self) -> str:
        took = "" if self.seconds is None else f", {milliseconds(self.seconds)}"
        return "\n".join(
            [f"critical path: {self.requests} requests in sequence{took}", *(f"  {s}" for s in self.steps)]
        )


def critical_path(graph: Graph) -> CriticalPath:
    """The longest chain; of equally long ones the one that ends first."""
    ran = bool(graph.records)
    steps = tuple(_step(graph, node) for node in longest(graph, _seconds if ran else _requests) if is_request(node))
    return CriticalPath(steps, sum(step.seconds or 0.0 for step in steps) if ran else None)


def longest(graph: Graph, weight: Callable[[Graph, Node], float]) -> list[Node]:
    """The chain of nodes whose weights have the largest sum, in order."""
    through, at = _chains(graph, weight)
    found = []
    while at is not None:
        found.append(graph.nodes[at])
        at = through[at]
    return found[::-1]


def _chains(graph: Graph, weight: Callable[[Graph, Node], float]) -> tuple[list[int | None], int | None]:
    """For every node the one before it on its longest chain, and where the longest of all ends."""
    reads, passed = reads_of(graph), 0
    length: list[float] = []
    through: list[int | None] = []
    gate: int | None = None
    for node in graph.nodes:
        while passed < len(reads) and reads[passed].at <= node.id:
            gate = _later(gate, reads[passed], length)
            passed += 1
        sources = [source for source in before(node) if 0 <= source < node.id]
        sources += [gate] if gate is not None else []
        best = max(sources, key=length.__getitem__, default=None)
        through.append(best)
        length.append((0.0 if best is None else length[best]) + weight(graph, node))
    last = max(range(len(length)), key=length.__getitem__, default=None)
    return through, last


def _later(gate: int | None, read: Read, length: list[float]) -> int | None:
    """Of two nodes that the body has waited for, the one with the longer chain behind it."""
    if not 0 <= read.source < len(length):
        return gate
    return read.source if gate is None or length[read.source] >= length[gate] else gate


def _requests(graph: Graph, node: Node) -> float:
    return float(waves(node))


def _seconds(graph: Graph, node: Node) -> float:
    """Requests that took no time that was measured still count for something."""
    return cost(graph.records.get(node.id)).seconds + 1e-9 * waves(node) if is_request(node) else 0.0


def _step(graph: Graph, node: Node) -> PathStep:
    record = graph.records.get(node.id)
    if record is None:
        return PathStep(node, waves(node))
    spent = cost(record)
    return PathStep(node, waves(node) * max(1, record.attempts), record.started, spent.seconds, spent.passes)
