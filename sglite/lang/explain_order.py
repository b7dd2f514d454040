"""What is sure to have happened before what, and so which counts do not depend on who was faster."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from sglite.lang.explain_positions import Positions
from sglite.lang.explain_track import Call
from sglite.lang.graph_nodes import before, reads_of
from sglite.lang.ir import Graph

_MAX_STEPS = 100_000
"""Nodes that are looked at before it gives up: then nothing more is sure."""


class Order:
    """The order of a program's nodes, and of its requests."""

    def __init__(self, graph: Graph, positions: Positions, calls: Sequence[Call]) -> None:
        self._graph = graph
        self._positions = positions
        self._calls = calls
        self._reads = reads_of(graph)
        self._left = _MAX_STEPS
        self._known: dict[tuple[int, int], bool] = {}

    # --- nodes ---

    def precedes(self, first: int, then: int) -> bool:
        """Whether node ``then`` cannot begin before node ``first`` has ended."""
        if first >= then:
            return False
        key = first, then
        if key not in self._known:
            self._known[key] = self._search(first, then)
        return self._known[key]

    def _search(self, first: int, then: int) -> bool:
        todo, seen = [then], {then}
        while todo and self._left > 0:
            self._left -= 1
            node = self._graph.nodes[todo.pop()]
            sources = [*before(node), *(read.source for read in self._reads if read.at <= node.id)]
            for source in sources:
                if source == first:
                    return True
                if source > first and source not in seen:
                    seen.add(source)
                    todo.append(source)
        return False

    # --- requests ---

    def is_over(self, at: int, node: int) -> bool:
        """Whether a position is sure to be computed when ``node`` begins; nobody waits for what forks compute."""
        carriers = (i for i in self._positions.carriers.get(at, ()) if self._calls[i].kind != "fork")
        writers = (i for i, sure in self._positions.writers.get(at, ()) if sure)
        return any(self.precedes(self._calls[i].node, node) for i in (*carriers, *writers))

    def is_alone(self, writer: int, at: int) -> bool:
        """Whether, when request ``writer`` comes to generate after ``at``, nobody else is or was there."""
        node = self._calls[writer].node
        places = [at, *self._positions.after(at)]
        calls = {i for place in places for i in self._positions.calls_at(place)}
        return all(i == writer or self.precedes(node, self._calls[i].node) for i in calls)

    def bounds(self) -> tuple[int, int]:
        """Least and most prompt tokens that are computed, over all orders in which the requests may run."""
        low = high = sum(call.computed for call in self._calls)
        for at in self._positions.contested():
            carriers, writers = self._positions.carriers[at], self._positions.writers[at]
            counted = carriers[0] < min(writer for writer, _ in writers)
            generated = all(any(sure and self._before(w, c) for w, sure in writers) for c in carriers)
            prompted = all(any(self._before(c, w) for c in carriers) for w, _ in writers)
            low += int(prompted) - counted
            high += int(not generated) - counted
        return low, high

    def lookalikes(self, guessed: Sequence[tuple[int, int, Sequence[Hashable]]]) -> int:
        """Tokens of outputs with ids nobody told, in places where prompts of others go on as well: if they are the
        same in truth, so many are computed once and not twice."""
        positions, tokens = self._positions, 0
        for writer, start, ids in guessed:
            own = positions.follow(start, ids[:1])
            others = (i for at in positions.after(start) if at != own for i in positions.carriers.get(at, ()))
            if len(ids) > 1 and any(i != writer for i in others):
                tokens += len(ids) - 1
        return tokens

    def doubtful(self, prefixes: Sequence[tuple[Call, int]]) -> list[int]:
        """Forks whose prefix, from a position on, another stream may have computed first: then they ask for nothing."""
        found = []
        for call, start in prefixes:
            positions = self._positions.between(start, call.end)
            if all(any(not self.precedes(call.node, node) for node in self._others(at, call)) for at in positions):
                found.append(call.node)
        return found

    def _others(self, at: int, call: Call) -> list[int]:
        """The nodes of other requests that have a position."""
        return [self._calls[i].node for i in self._positions.calls_at(at) if self._calls[i] is not call]

    def _before(self, first: int, then: int) -> bool:
        return self.precedes(self._calls[first].node, self._calls[then].node)
