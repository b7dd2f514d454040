"""Tracing: what a program would do, as far as that is known without running it.

The body runs with a state that only records, and with symbols for the arguments that are not given. A body that looks
at a symbol (formats, compares or measures it) raises SymbolicValueError there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from inspect import Parameter, iscoroutinefunction, signature
from typing import Any

from sglite.lang.errors import SymbolicValueError
from sglite.lang.formats import ChatFormat
from sglite.lang.ir import (
    Arg,
    CaptureBegin,
    CaptureEnd,
    Computed,
    Gen,
    Graph,
    Join,
    Lit,
    Node,
    Op,
    Reasoned,
    RoleBegin,
    RoleEnd,
    Select,
    Symbol,
    VarRef,
)
from sglite.lang.messages import Message
from sglite.lang.spelling import Place, TypedSpelling
from sglite.lang.transcript import Transcript
from sglite.lang.usage import Usage
from sglite.lang.values import Value

logger = logging.getLogger(__name__)

_TRACING: ContextVar[bool] = ContextVar("sglite_tracing", default=False)


def tracing() -> bool:
    """Whether a program called now is called from the body of one that is being traced."""
    return _TRACING.get()


@dataclass(frozen=True)
class NodeView:
    """A node and the graph it is in."""

    node: Node
    graph: Graph

    def print_graph_dfs(self) -> None:
        """Prints the nodes this one follows from, earliest first, one per line."""
        seen: set[int] = set()
        stack: list[tuple[int, bool]] = [(self.node.id, False)]
        while stack:
            index, expanded = stack.pop()
            node = self.graph.nodes[index]
            if expanded:
                print(f"%{node.id} (stream {node.stream}) = {_edges(node)}{_shown(node.op)}")
            elif index not in seen:
                seen.add(index)
                before = [*node.sources, *([] if node.prev is None else [node.prev])]
                stack += [(index, True), *((i, False) for i in before)]


def _shown(op: Op) -> str:
    return repr(op) if isinstance(op, Symbol) else str(op)


def _edges(node: Node) -> str:
    before = [*([] if node.prev is None else [node.prev]), *node.sources]
    return "".join(f"%{i} + " for i in dict.fromkeys(before))


class TraceState(TypedSpelling):
    """A state that records. ``ret_value``: what the body returned; ``variables``: name -> the node that sets it."""

    def __init__(
        self,
        graph: Graph,
        stream: int,
        prev: int | None = None,
        role: str | None = None,
        variables: dict[str, NodeView] | None = None,
    ) -> None:
        super().__init__(graph, stream, prev, role)
        self.variables: dict[str, NodeView] = dict(variables or {})
        self._values: dict[str, Any] = {}
        self.ret_value: Any = None
        self._last: VarRef | None = None
        self._places = 0

    @property
    def nodes(self) -> list[Node]:
        """Every node of the program, in the order of appending."""
        return self._graph.nodes

    @property
    def last_node(self) -> NodeView | None:
        """The last node of this stream."""
        return None if self._prev is None else NodeView(self._graph.nodes[self._prev], self._graph)

    @property
    def stream(self) -> int:
        """The number of this stream."""
        return self._stream

    def _record(self, nodes: list[Node], values: Sequence[Value[Any] | None]) -> None:
        for node in nodes:
            if isinstance(node.op, Reasoned):
                self._set(node.op.gen.name, node)
                self._set(f"{node.op.gen.name}_reasoning_content", node)
            elif isinstance(node.op, (Gen, Select, CaptureEnd)) and node.op.name is not None:
                self._set(node.op.name, node)
            elif isinstance(node.op, (Gen, Select)):
                self._last = VarRef(f"output {node.id}", node.id)

    def _set(self, name: str | None, node: Node) -> None:
        if name is not None:
            self.variables[name] = NodeView(node, self._graph)
            self._values.pop(name, None)
            self._last = VarRef(name, node.id)

    def _branch(self, fork: Node, streams: Sequence[int]) -> list[TraceState]:
        branches = [TraceState(self._graph, stream, fork.id, self._role, self.variables) for stream in streams]
        for branch in branches:
            branch._turns = self._turns
        return branches

    def _last_value(self) -> Any:
        assert self._last is not None
        return self._last

    def _started(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        coroutine.close()
        return Computed(f"{getattr(coroutine, '__name__', 'task')}(...)")

    def _ordered(self, texts: list[str]) -> list[str]:
        return texts

    def _new_place(self) -> Place:
        self._places += 1
        return Place(self._places, self._role, self._turns, self._prev, dict(self.variables))

    def _restore(self, place: Place) -> None:
        self.variables = dict(place.variables)

    def _gather(self, branches: Sequence[TraceState]) -> None:
        new = dict.fromkeys(name for b in branches for name in b.variables if name not in self.variables)
        for name in new:
            sources = tuple(b.variables[name].node.id for b in branches if name in b.variables)
            self._set(name, self._graph.add(self._stream, self._prev, Join("gather_variable"), sources))

    def _concatenate(self, branches: Sequence[TraceState]) -> None:
        self._add(Join("concate_and_append"), tuple(b._prev for b in branches if b._prev is not None))

    def get_var(self, name: str) -> Any:
        """A symbol for the variable, or the value the program itself set. KeyError if there is no such variable."""
        if name in self._values:
            return self._values[name]
        return VarRef(name, self.variables[name].node.id)

    def set_var(self, name: str, value: Any) -> None:
        """Gives a variable a value."""
        self._values[name] = value

    __getitem__ = get_var
    __setitem__ = set_var
    var = get_var
    raw = get_var

    @property
    def usage(self) -> Usage:
        """A trace costs nothing."""
        return Usage()

    def __contains__(self, name: str) -> bool:
        return name in self.variables or name in self._values

    def sync(self) -> None:
        """Nothing to wait for."""

    def error(self) -> None:
        """A trace sends nothing that could fail."""

    def text(self) -> str:
        """Not known: raises SymbolicValueError."""
        raise SymbolicValueError("the text of a program is not known while it is traced")

    def messages(self) -> list[Message]:
        """Not known: raises SymbolicValueError."""
        raise SymbolicValueError("the messages of a program are not known while it is traced")

    def get_meta_info(self, name: str) -> Any:
        """Not known: raises SymbolicValueError."""
        raise SymbolicValueError(f"the meta info of {name!r} is not known while the program is traced")


def trace_program(function: Callable[..., Any], arguments: dict[str, Any], *, partial: bool = False) -> TraceState:
    """Runs a body symbolically; ``partial`` accepts a body that cannot go on without a value, up to there.

    TypeError for an ``async def``, whose body only a run can go through.
    """
    if iscoroutinefunction(function):
        raise TypeError(f"trace() runs plain functions; {function.__name__!r} is an async def: use compile()")
    graph = Graph()
    state = TraceState(graph, graph.new_stream())
    missing = {
        name: Arg(name)
        for name, parameter in list(signature(function).parameters.items())[1:]
        if name not in arguments
        and parameter.default is Parameter.empty
        and parameter.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    }
    with _trace_scope():
        try:
            state.ret_value = function(state, **arguments, **missing)
        except Exception as error:
            if not partial:
                raise
            logger.info("the trace of a program stops early: %s", error)
    return state


@contextmanager
def _trace_scope() -> Iterator[None]:
    token = _TRACING.set(True)
    try:
        yield
    finally:
        _TRACING.reset(token)


def static_prefix(trace: TraceState, chat_format: ChatFormat) -> str:
    """The text with which every run of a traced program starts."""
    script = Transcript(chat_format)
    for node in trace.nodes:
        if node.stream != trace.stream:
            break
        if isinstance(node.op, Lit):
            script.add(node.op.text)
        elif isinstance(node.op, RoleBegin):
            script.begin_turn(node.op.role)
        elif isinstance(node.op, RoleEnd):
            script.end_turn()
        elif not isinstance(node.op, CaptureBegin):
            break
    return script.text
