"""What running and traced programs have in common: turns, scopes, forks, and the graph they write.

A ``Writer`` is one stream of a graph. Subclasses say what happens to recorded nodes (``ProgramState`` runs them,
``TraceState`` only keeps them) and what reading a variable means.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from sglite.lang.ir import (
    Ask,
    CaptureBegin,
    CaptureEnd,
    Concat,
    Expr,
    Fork,
    Graph,
    Lit,
    Node,
    Op,
    Reply,
    RoleBegin,
    RoleEnd,
    Select,
    Tell,
    VarRef,
    flatten,
)
from sglite.lang.session import SESSION
from sglite.lang.values import CLOSE, OPEN, Value, unmarked

W = TypeVar("W", bound="Writer")


class Writer(ABC):
    """Appends operations to one stream of a graph and keeps its turns well formed."""

    def __init__(self, graph: Graph, stream: int, prev: int | None = None, role: str | None = None) -> None:
        self._graph = graph
        self._stream = stream
        self._prev = prev
        self._role = role
        self._turns = False
        """Whether a turn has been finished: a conversation, not plain text."""

    @abstractmethod
    def _record(self, nodes: list[Node], values: Sequence[Value[Any] | None]) -> None:
        """Takes nodes that were just added to the graph, in order, and for references the values they stand for."""

    @abstractmethod
    def _branch(self: W, fork: Node, streams: Sequence[int]) -> list[W]:
        """Records ``fork`` and returns a state for each of ``streams``."""

    @abstractmethod
    def _gather(self: W, branches: Sequence[W]) -> None:
        """Variables new in ``branches`` become lists here."""

    @abstractmethod
    def _concatenate(self: W, branches: Sequence[W]) -> None:
        """Text new in ``branches`` is appended here, in order."""

    def _add(self, op: Op, sources: tuple[int, ...] = (), line: str = "") -> Node:
        node = self._graph.add(self._stream, self._prev, op, sources, line)
        self._prev = node.id
        return node

    def _append(self, value: object) -> None:
        ops = tuple(plain for op in flatten(value) for plain in _without_marks(op))
        self._role = _role_after(self._role, ops)
        self._turns |= any(isinstance(op, (RoleEnd, Tell)) for op in ops)
        line = self._graph.reading or caller()
        nodes: list[Node] = []
        values: list[Value[Any] | None] = []
        for op in ops:
            value = op if isinstance(op, Value) else None
            reference = op
            if value is not None:
                reference = VarRef(value.name, value.cell.node if value.cell.graph is self._graph else -1)
            source = (reference.source,) if isinstance(reference, VarRef) and reference.source >= 0 else ()
            nodes.append(self._add(reference, source, line))
            values.append(value)
        self._record(nodes, values)

    def __iadd__(self: W, value: str | Expr) -> W:
        """Appends text or an expression. ValueError for None or misplaced roles, TypeError for other values."""
        self._append(value)
        return self

    # --- turns and scopes ---

    def _turn(self: W, role: str, parts: Sequence[str | Expr | None]) -> Any:
        if not parts or (len(parts) == 1 and parts[0] is None):
            return self._turn_scope(role)
        content = [op for part in parts for op in flatten(part)]
        self._append(Concat((RoleBegin(role), *content, RoleEnd(role))))
        return self

    @contextmanager
    def _turn_scope(self, role: str) -> Iterator[None]:
        self._append(RoleBegin(role))
        try:
            yield
        except BaseException:
            if self._role == role:
                self._append(RoleEnd(role))
            raise
        self._append(RoleEnd(role))

    def system(self, *parts: str | Expr | None) -> Any:
        """Appends a system turn, returns the state; as ``with s.system():`` makes one of what is appended inside."""
        return self._turn("system", parts)

    def user(self, *parts: str | Expr | None) -> Any:
        """Appends a user turn, returns the state; as ``with s.user():`` makes one of what is appended inside."""
        return self._turn("user", parts)

    def assistant(self, *parts: str | Expr | None) -> Any:
        """Appends an assistant turn, returns the state; as ``with s.assistant():`` makes one of what is inside."""
        return self._turn("assistant", parts)

    @contextmanager
    def var_scope(self, name: str) -> Iterator[None]:
        """What is appended inside becomes the value of variable ``name`` as well."""
        self._append(CaptureBegin(name))
        try:
            yield
        finally:
            self._append(CaptureEnd(name))

    # --- branches ---

    def fork(self: W, size: int = 1) -> ForkGroup[W]:
        """``size`` branches that start from the text so far; what they share is computed once."""
        if size < 1:
            raise ValueError(f"fork({size}): a program can only be forked into 1 or more branches")
        streams = tuple(self._graph.new_stream() for _ in range(size))
        return ForkGroup(self, self._branch(self._add(Fork(streams), line=self._graph.reading or caller()), streams))

    def branch(self: W) -> W:
        """One more stream that starts from the text so far and runs beside this one."""
        return self.fork(1)[0]

    @contextmanager
    def copy(self: W) -> Iterator[W]:
        """A scratch copy; its new variables come back as lists of one."""
        group = self.fork(1)
        try:
            yield group[0]
        finally:
            group.join()


class ForkGroup(Generic[W]):
    """The branches of one fork."""

    def __init__(self, parent: W, branches: list[W]) -> None:
        self._parent = parent
        self._branches = branches

    def __len__(self) -> int:
        return len(self._branches)

    def __iter__(self) -> Iterator[W]:
        return iter(self._branches)

    def __getitem__(self, index: int) -> W:
        return self._branches[index]

    def __setitem__(self, index: int, branch: W) -> None:
        """Only what ``group[i] += ...`` needs."""
        if branch is not self._branches[index]:
            raise ValueError(f"branch {index} of a fork cannot be replaced; append to it with +=")

    def __iadd__(self, value: str | Expr | Sequence[str | Expr] | Callable[[int], str | Expr]) -> ForkGroup[W]:
        """Appends to every branch: the same for all, one item each, or what a function of the index returns."""
        if isinstance(value, (list, tuple)):
            if len(value) != len(self):
                raise ValueError(f"a fork of {len(self)} branches was given {len(value)} items; give one per branch")
            items: Sequence[object] = value
        elif callable(value):
            items = [value(i) for i in range(len(self))]
        else:
            items = [value] * len(self)
        for branch, item in zip(self._branches, items, strict=True):
            branch._append(item)
        return self

    def join(self, mode: str = "gather_variable") -> None:
        """Takes back what the branches produced, without waiting for it.

        ``gather_variable``: variables the parent does not have become lists there, one item per branch that has
        them. ``concate_and_append``: the branches' new text is appended to the parent, in order.
        """
        if mode == "gather_variable":
            self._parent._gather(self._branches)
        elif mode == "concate_and_append":
            self._parent._concatenate(self._branches)
        else:
            raise ValueError(f"join({mode!r}): no such mode; use 'gather_variable' or 'concate_and_append'")


def _role_after(role: str | None, ops: Sequence[Op]) -> str | None:
    """The open role after ``ops``; ValueError where turns nest or a turn ends that is not open."""
    for op in ops:
        if isinstance(op, RoleBegin):
            if role is not None:
                raise ValueError(f"a turn of {op.role!r} begins inside one of {role!r}; end that one first")
            role = op.role
        elif isinstance(op, RoleEnd):
            if role != op.role:
                open_turn = "no turn is open" if role is None else f"the open turn is {role!r}'s"
                raise ValueError(f"a turn of {op.role!r} ends, but {open_turn}")
            role = None
        elif isinstance(op, (Ask, Tell)) and role is not None:
            raise ValueError(f"{op} inside a turn of {role!r}; end that one first")
        elif isinstance(op, Ask):
            role = "assistant"
        elif isinstance(op, Reply):
            role = None
    return role


def _without_marks(op: Op) -> Iterator[Op]:
    """The operation, or for a literal with symbolic values in it, its parts."""
    if isinstance(op, Lit) and (OPEN in op.text or CLOSE in op.text):
        yield from unmarked(op.text, SESSION.marks)
        return
    if isinstance(op, Select) and any(OPEN in choice or CLOSE in choice for choice in op.choices):
        raise ValueError("select: a value that may not exist yet cannot be a choice; read it first: s['name']")
    yield op


def caller() -> str:
    """Where the program is: file and line of the innermost frame outside the language."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(("sglite.lang", "contextlib")):
        frame = frame.f_back
    code = frame.f_code
    return f"{code.co_filename.rpartition('/')[2]}:{frame.f_lineno}"
