"""Running a graph: what a preview found out is appended again, without the Python that it was read from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglite.lang.ir import (
    Arg,
    CaptureEnd,
    Checkpoint,
    Computed,
    Dynamic,
    Fork,
    Gen,
    Graph,
    Join,
    Node,
    Reasoned,
    Rollback,
    Select,
    VarRef,
)
from sglite.lang.program import ProgramState
from sglite.lang.spelling import Place

_UNKNOWN = (Arg, Computed, Dynamic)


def body_of(graph: Graph) -> Callable[[ProgramState], dict[int, ProgramState]]:
    """A program's body that appends what ``graph`` says; it returns the state of every stream by its number.

    ValueError for a graph that depends on what only a run of its program can tell.
    """
    unknown = next((node for node in graph.nodes if isinstance(node.op, _UNKNOWN)), None)
    if unknown is not None:
        where = f" ({unknown.line})" if unknown.line else ""
        raise ValueError(
            f"node %{unknown.id}{where} is not known before a run: {unknown.op!r}; compile with all arguments, or run "
            "the program itself"
        )

    def body(s: ProgramState) -> dict[int, ProgramState]:
        replay = _Replay(graph, s)
        for node in graph.nodes:
            replay.append(node)
        return replay.streams

    body.__name__ = graph.name
    return body


class _Replay:
    """The streams of the new run by their numbers in the graph, and the values that its nodes gave."""

    def __init__(self, graph: Graph, state: ProgramState) -> None:
        self.streams = {0: state}
        self._graph = graph
        self._values: dict[int, Any] = {}
        self._places: dict[int, Place] = {}

    def append(self, node: Node) -> None:
        """Appends what ``node`` says to the stream that it is in."""
        state, op = self.streams[node.stream], node.op
        if isinstance(op, Fork):
            self.streams.update(zip(op.children, state.fork(len(op.children)), strict=True))
        elif isinstance(op, Join):
            self._join(node, op, state)
        elif isinstance(op, VarRef):
            if op.source not in self._values:
                raise ValueError(f"node %{node.id}: {op!r} comes from outside the graph")
            state += self._values[op.source]
        elif isinstance(op, Checkpoint):
            self._places[op.number] = state.checkpoint()
        elif isinstance(op, Rollback):
            state.rollback(self._places[op.number])
        else:
            state += op
            if isinstance(op, (Gen, Reasoned, Select, CaptureEnd)):
                self._values[node.id] = state._last_value()

    def _join(self, node: Node, op: Join, state: ProgramState) -> None:
        """Text is appended; gathered variables are lists, which stay where they were made."""
        if op.mode == "concate_and_append":
            numbers = [self._graph.nodes[source].stream for source in node.sources]
            state._concatenate([self.streams[number] for number in numbers if number != node.stream])
