"""The state ``s`` of a running program: appends nodes, reads values.

Appending never blocks; reading waits for exactly what it reads. Names resolve in program order: ``s["x"]`` is the
latest ``x`` appended or set before the read, finished or not. A branch starts with its parent's variables.

Reads come in three spellings: ``s["x"]`` waits and gives the value, ``await s.get("x")`` does so in an async program,
``s.var("x")`` does not wait: it stands for the value wherever something is appended.

A run ends with its body: streams finish what was appended and close. What they produced stays readable.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from sglite.lang.cells import Cell, Feed, arrival
from sglite.lang.context import Job, Mark, Snapshot
from sglite.lang.errors import Failure, ProgramError
from sglite.lang.executor import StreamRunner
from sglite.lang.ir import CaptureEnd, Gen, Join, Node, Reasoned, Select
from sglite.lang.messages import Message
from sglite.lang.run import Run
from sglite.lang.session import SESSION
from sglite.lang.spelling import Place, TypedSpelling
from sglite.lang.usage import Usage
from sglite.lang.values import Value

if TYPE_CHECKING:
    from sglite.lang.graph import ProgramGraph


class ProgramState(TypedSpelling):
    """See the module. ``ret_value``: what the body returned. Other attributes are the program's to set."""

    def __init__(
        self,
        run: Run,
        runner: StreamRunner,
        stream: int,
        path: str = "0",
        prev: int | None = None,
        role: str | None = None,
        cells: dict[str, Cell] | None = None,
    ) -> None:
        super().__init__(run.graph, stream, prev, role)
        self.run = run
        self._runner = runner
        self._path = path
        self._requests = 0
        self._branches = 0
        self._cells: dict[str, Cell] = dict(cells or {})
        self.ret_value: Any = None
        self.body: Any = None
        """The task of a streamed async body."""

    @staticmethod
    def start(run: Run) -> ProgramState:
        """The state a body begins with."""
        return ProgramState(run, run.new_runner(root=True), run.graph.new_stream())

    # --- appending ---

    def _record(self, nodes: list[Node], values: Sequence[Value[Any] | None]) -> None:
        self.run.check_open()
        self._runner.push([self._job(node, value) for node, value in zip(nodes, values, strict=True)])
        self._after_push()

    def _after_push(self) -> None:
        self.run.declared.fire()
        if self.run.inline:
            self.sync()

    def _job(self, node: Node, value: Value[Any] | None) -> Job:
        op = node.op
        if isinstance(op, (Gen, Select, Reasoned)):
            self._requests += 1
        path = f"{self._path}/{self._requests}"
        if isinstance(op, Reasoned):
            name = op.gen.name or ""
            reasoning = self._declare(f"{name}_reasoning_content", node)
            return Job(node, path, self._declare(name, node), reasoning=reasoning)
        if isinstance(op, Gen):
            cell = self._unnamed(path, node) if op.name is None else self._declare(op.name, node)
            cell.partial = None if op.type is None else op.type.partial
            return Job(node, path, cell)
        if isinstance(op, (Select, CaptureEnd)) and op.name is not None:
            return Job(node, path, self._declare(op.name, node))
        if isinstance(op, Select):
            return Job(node, path, self._unnamed(path, node))
        return Job(node, path, needs=None if value is None else value.cell)

    def _declare(self, name: str, node: Node) -> Cell:
        cell = self._cells[name] = self._last_cell = Cell(name, node.id)
        cell.graph = self._graph
        return cell

    def _unnamed(self, path: str, node: Node) -> Cell:
        cell = self._last_cell = Cell(f"output {path}", node.id)
        cell.graph = self._graph
        return cell

    def _last_value(self) -> Value[Any]:
        return self._value_of(self._last_cell)

    def _value_of(self, cell: Cell) -> Value[Any]:
        return Value(cell, self.run.marks, self.run.may_block)

    def _started(self, coroutine: Coroutine[Any, Any, Any]) -> Value[Any]:
        if not self.run.is_async:
            coroutine.close()
            name = getattr(coroutine, "__name__", "a coroutine")
            raise TypeError(f"{self.run.graph.name!r} is a plain function and cannot start {name}(); use `async def`")
        return self.run.tasks.value_of(self._value_of, coroutine)

    def _ordered(self, texts: list[str]) -> list[str]:
        return self.run.ordered(texts)

    def _new_place(self) -> Place:
        return Place(self.run.next_checkpoint(), self._role, self._turns, self._prev, dict(self._cells))

    def _restore(self, place: Place) -> None:
        self._cells = dict(place.variables)

    def _branch(self, fork: Node, streams: Sequence[int]) -> list[ProgramState]:
        group = (f"{self.run.graph.program_id}:{fork.id}", len(streams))
        runners = [self.run.new_runner(group=group) for _ in streams]
        self._runner.push([Job(fork, children=tuple(runners))])
        self._after_push()
        branches = []
        for runner, stream in zip(runners, streams, strict=True):
            path = f"{self._path}.{self._branches}"
            self._branches += 1
            branches.append(ProgramState(self.run, runner, stream, path, fork.id, self._role, self._cells))
            branches[-1]._turns = self._turns
        return branches

    def _gather(self, branches: Sequence[ProgramState]) -> None:
        new = dict.fromkeys(name for b in branches for name in list(b._cells) if name not in self._cells)
        for name in new:
            parts = [b._cells[name] for b in branches if name in b._cells]
            sources = tuple(part.node for part in parts if part.node >= 0)
            node = self._graph.add(self._stream, self._prev, Join("gather_variable"), sources)
            cell = self._cells[name] = Cell.gathered(name, parts, node.id, SESSION.loop.call)
            cell.graph = self._graph
        self.run.declared.fire()

    def _concatenate(self, branches: Sequence[ProgramState]) -> None:
        marks = [Mark() for _ in branches]
        for branch, mark in zip(branches, marks, strict=True):
            branch._runner.push([mark])
        sources = tuple(b._prev for b in branches if b._prev is not None)
        node = self._add(Join("concate_and_append"), sources)
        self._runner.push([Job(node, parts=tuple(mark.future for mark in marks))])
        self._after_push()

    # --- variables ---

    def _missing(self, name: str) -> KeyError:
        if self.run.stopped.done():
            return self.run.stopped.result().variable_error(name)
        return KeyError(f"no variable {name!r} in this program so far; there are {sorted(self._cells)}")

    def _cell(self, name: str) -> Cell | None:
        """The latest cell of a name; waits for one while a streamed body in another thread may still append it."""
        while (waiter := self._undeclared(name)) is not None:
            self.run.wait(waiter, lambda: f"await s.get({name!r})")
        return self._cells.get(name)

    async def _acell(self, name: str) -> Cell | None:
        while (waiter := self._undeclared(name)) is not None:
            await arrival(waiter)
        return self._cells.get(name)

    def _undeclared(self, name: str) -> Any:
        """What to wait for when ``name`` may still be appended by a body in another thread."""
        if name in self._cells or not self._followed():
            return None
        waiter = self.run.declared.waiter()
        return waiter if name not in self._cells and self._followed() else None

    def _followed(self) -> bool:
        """Whether somebody who reads this follows the run from outside. Branches are the body's own."""
        return self._path == "0" and self.run.outside()

    def _awaited(self, name: str) -> Cell:
        cell = self._cell(name)
        if cell is None:
            raise self._missing(name)
        with cell.waited_for():
            self.run.wait(cell.done, lambda: f"await s.get({name!r})")
        return cell

    def get_var(self, name: str) -> Any:
        """Waits for a variable's value. KeyError if nothing sets it, VariableError (a KeyError) if that failed."""
        return self._awaited(name).get()

    def set_var(self, name: str, value: Any) -> None:
        """Gives a variable a value; the text stays as it is."""
        self._cells[name] = Cell.of(name, value)
        self.run.declared.fire()

    __getitem__ = get_var
    __setitem__ = set_var

    def __contains__(self, name: str) -> bool:
        """Whether reading ``name`` gives a value, now or once its request has finished."""
        cell = self._cells.get(name)
        return cell is not None and cell.failure is None

    def variable_names(self) -> list[str]:
        """The names that have a value or will have one, in order of appearance."""
        return list(self._cells)

    async def get(self, name: str) -> Any:
        """``s[name]`` for async programs."""
        cell = await self._acell(name)
        if cell is None:
            raise self._missing(name)
        with cell.waited_for():
            await arrival(cell.done)
        return cell.get()

    def var(self, name: str) -> Value[Any]:
        """What ``s[name]`` will be, without waiting: append it, alone, in a sum or inside an f-string."""
        cell = self._cells.get(name)
        if cell is None:
            raise self._missing(name)
        return self._value_of(cell)

    def raw(self, name: str) -> Any:
        """Waits for a typed variable and gives the text that its value was read from."""
        cell = self._awaited(name)
        cell.get()
        return cell.raw

    def get_meta_info(self, name: str) -> Any:
        """Waits for a variable and returns what the back end said about its request; None for other names.

        With ``n`` > 1 a list, one entry per output.
        """
        if self._cell(name) is None:
            return None
        cell = self._awaited(name)
        cell.get()
        return cell.meta

    # --- text ---

    def _snapshot(self, instead: str = "await s.finished()") -> Snapshot:
        if self._followed():
            self.run.wait(self.run.settled, lambda: instead)
        mark = Mark()
        self.run.check_process()
        if not self.run.may_block():
            self.run.wait(mark.future, lambda: instead)
        self._runner.push([mark])
        snapshot: Snapshot = self.run.wait(mark.future, lambda: instead)
        return snapshot

    async def _asnapshot(self) -> Snapshot:
        if self._followed():
            await arrival(self.run.settled)
        mark = Mark()
        self.run.check_process()
        self._runner.push([mark])
        return await arrival(mark.future)

    def _healthy_snapshot(self, instead: str) -> Snapshot:
        return _healthy(self._snapshot(instead))

    def sync(self) -> None:
        """Waits until everything appended so far has been executed or has failed."""
        self._snapshot()

    async def finished(self) -> ProgramError | None:
        """``sync`` and ``error`` for async programs."""
        failure = (await self._asnapshot()).failure
        return None if failure is None else failure.error()

    def error(self) -> ProgramError | None:
        """Waits like ``sync``; what went wrong in this stream, with its cause as ``__cause__``, or None."""
        failure = self._snapshot().failure
        return None if failure is None else failure.error()

    def text(self) -> str:
        """Waits like ``sync``; all text of this stream. ProgramError if it failed."""
        return self._healthy_snapshot("await s.get_text()").text

    def messages(self) -> list[Message]:
        """Waits like ``sync``; the finished turns. ProgramError if the stream failed."""
        return self._healthy_snapshot("await s.get_messages()").messages

    async def get_text(self) -> str:
        """``text`` for async programs."""
        return _healthy(await self._asnapshot()).text

    async def get_messages(self) -> list[Message]:
        """``messages`` for async programs."""
        return _healthy(await self._asnapshot()).messages

    def park(self, expected_s: float | None = None) -> None:
        """A hint: the program now waits for something else than outputs, a tool say, for about so long."""
        self._runner.park(expected_s)

    def cancel(self) -> None:
        """Stops the run: requests in flight are aborted, what has no value yet fails."""
        self.run.stop(Failure("cancel()", None, RuntimeError("the run was cancelled"), ""))

    @property
    def usage(self) -> Usage:
        """What the whole run has cost so far, branches included."""
        return self.run.usage

    def graph(self) -> ProgramGraph:
        """The run's graph so far, with what became of its nodes; to print, draw and explain."""
        from sglite.lang.graph import ProgramGraph

        return ProgramGraph(self.run.graph)

    def __repr__(self) -> str:
        if not self.run.may_block():
            return f"<state of {self.run.graph.name!r}, running>"
        snapshot = self._snapshot()
        failed = f", failed: {snapshot.failure.error()}" if snapshot.failure is not None else ""
        return f"ProgramState({snapshot.text}{failed})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a state cannot be pickled or copied: its run belongs to this process; take text() or variables"
        )

    # --- streaming ---

    def text_iter(self, var_name: str | None = None) -> Iterator[str]:
        """The stream's text, or a variable's, in pieces as they come; an unknown variable has none.

        Ends with the run, or where it failed (``error`` says so). Inside the body: what there is after ``sync``.
        """
        if var_name is not None:
            cell = self._cell(var_name)
            yield from () if cell is None else self._pieces(cell.feed, f"s.text_async_iter({var_name!r})")
        elif self._follows():
            yield from self._pieces(self._runner.feed, "s.text_async_iter()")
        else:
            self.sync()
            yield from (text for text, _ in self._runner.feed.so_far())

    def _pieces(self, feed: Feed, instead: str) -> Iterator[str]:
        if not feed.closed:
            self.run.check_blocking(lambda: f"async for ... in {instead}")
        yield from (text for text, _ in feed.read())

    def _follows(self) -> bool:
        """Whether text can be followed to its end: not inside the body, which would wait for itself."""
        return self.run.settled.done() or self.run.outside()

    async def text_async_iter(self, var_name: str | None = None, return_meta_data: bool = False) -> AsyncIterator[Any]:
        """``text_iter`` for ``async for``; with ``return_meta_data`` pairs of text and meta info."""
        feed = self._runner.feed
        if var_name is not None:
            cell = await self._acell(var_name)
            if cell is None:
                return
            feed = cell.feed
        elif not self._follows():
            await self._asnapshot()
            for text, meta in feed.so_far():
                yield (text, meta) if return_meta_data else text
            return
        async for text, meta in feed.aread():
            yield (text, meta) if return_meta_data else text

    def partial_iter(self, name: str) -> Iterator[Any]:
        """The value of a typed variable while it is written: a fuller object each time, the whole one last."""
        cell = self._cell(name)
        if cell is None:
            raise self._missing(name)
        text = ""
        for piece in self._pieces(cell.feed, f"{name}.partial() of a value, or `await s.get({name!r})`"):
            text += piece
            value = None if cell.partial is None else cell.partial(text)
            if value is not None:
                yield value
        yield cell.get()


State = ProgramState
"""The name for annotations: ``async def extract(s: sgl.State, text: str) -> Person``."""


def _healthy(snapshot: Snapshot) -> Snapshot:
    if snapshot.failure is not None:
        raise snapshot.failure.error()
    return snapshot
