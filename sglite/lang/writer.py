"""What running and traced programs have in common: turns, scopes, forks, and the graph they write.

A ``Writer`` is one stream of a graph. Subclasses say what happens to recorded nodes (``ProgramState`` runs them,
``TraceState`` only keeps them) and what reading a variable means.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from sglite.lang.ir import CaptureBegin, CaptureEnd, Expr, Fork, Graph, Node, Op, RoleBegin, RoleEnd, flatten

W = TypeVar("W", bound="Writer")


class Writer(ABC):
    """Appends operations to one stream of a graph and keeps its turns well formed."""

    def __init__(self, graph: Graph, stream: int, prev: int | None = None, role: str | None = None) -> None:
        self._graph = graph
        self._stream = stream
        self._prev = prev
        self._role = role

    @abstractmethod
    def _record(self, nodes: list[Node]) -> None:
        """Takes nodes that were just added to the graph, in order."""

    @abstractmethod
    def _branch(self: W, fork: Node, streams: Sequence[int]) -> list[W]:
        """Records ``fork`` and returns a state for each of ``streams``."""

    @abstractmethod
    def _gather(self: W, branches: Sequence[W]) -> None:
        """Variables new in ``branches`` become lists here."""

    @abstractmethod
    def _concatenate(self: W, branches: Sequence[W]) -> None:
        """Text new in ``branches`` is appended here, in order."""

    def _add(self, op: Op, sources: tuple[int, ...] = ()) -> Node:
        node = self._graph.add(self._stream, self._prev, op, sources)
        self._prev = node.id
        return node

    def _append(self, value: object) -> None:
        ops = flatten(value)
        self._role = _role_after(self._role, ops)
        self._record([self._add(op) for op in ops])

    def __iadd__(self: W, value: str | Expr) -> W:
        """Appends text or an expression. ValueError for None or misplaced roles, TypeError for other values."""
        self._append(value)
        return self

    # --- turns and scopes ---

    def _turn(self, role: str, expr: str | Expr | None) -> Any:
        if expr is None:
            return self._turn_scope(role)
        self._append(RoleBegin(role) + expr + RoleEnd(role))
        return None

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

    def system(self, expr: str | Expr | None = None) -> Any:
        """Appends a system turn, or as ``with s.system():`` makes one of what is appended inside."""
        return self._turn("system", expr)

    def user(self, expr: str | Expr | None = None) -> Any:
        """Appends a user turn, or as ``with s.user():`` makes one of what is appended inside."""
        return self._turn("user", expr)

    def assistant(self, expr: str | Expr | None = None) -> Any:
        """Appends an assistant turn, or as ``with s.assistant():`` makes one of what is appended inside."""
        return self._turn("assistant", expr)

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
        return ForkGroup(self, self._branch(self._add(Fork(streams)), streams))

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
    return role
