"""The state ``s`` of a running program: appends nodes, reads values.

Appending never blocks; reading waits for exactly what it reads. Names resolve in program order: ``s["x"]`` is the
latest ``x`` appended or set before the read, finished or not. A branch starts with its parent's variables.

A run ends with its body: streams finish what was appended and close. What they produced stays readable.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from sglite.lang.backends.base import Backend
from sglite.lang.cells import Cell, Signal
from sglite.lang.errors import Failure, ProgramError
from sglite.lang.executor import End, Job, Mark, RunContext, Snapshot, StreamRunner, Warmup
from sglite.lang.ir import CaptureEnd, Gen, Graph, Join, Node, Reasoned, Sampling, Select
from sglite.lang.messages import Message
from sglite.lang.session import SESSION
from sglite.lang.writer import Writer

logger = logging.getLogger(__name__)


class Run:
    """One execution of a program: its graph, its streams, and whether its body is over.

    ``inline``: every append waits until it was executed. ``finished`` resolves when the last stream has ended.
    """

    def __init__(
        self, backend: Backend, defaults: Sampling, *, stream: bool, inline: bool, warmup: Warmup | None = None
    ) -> None:
        self.graph = Graph()
        self.inline = inline
        self.finished: Future[None] = Future()
        self.body_over: Future[None] = Future()
        self.declared = Signal()
        self.streaming = stream
        self._lock = threading.Lock()
        self._runners: list[StreamRunner] = []
        self._to_end = 0
        self._ended = False
        self._body_thread: int | None = None
        self._context = RunContext(
            program_id=uuid.uuid4().hex,
            backend=backend,
            defaults=defaults,
            stream=stream,
            loop=SESSION.loop,
            rng=random.Random(),
            on_end=self._one_ended,
            warmup=warmup,
        )

    def new_runner(self, *, root: bool = False) -> StreamRunner:
        """A runner for one more stream; RuntimeError once the run has ended."""
        with self._lock:
            self.check_open()
            runner = StreamRunner(self._context, root=root)
            self._runners.append(runner)
            return runner

    def check_open(self) -> None:
        """RuntimeError once the run has ended."""
        if self._ended:
            raise RuntimeError("this run of the program has ended; append inside the program's body")

    def enter_body(self) -> None:
        """The body begins, in this thread."""
        self._body_thread = threading.get_ident()

    def end(self, failure: Failure | None = None) -> None:
        """The body is over: streams finish their jobs, or with ``failure`` stop at once, and close."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            runners = list(self._runners)
            self._to_end = len(runners)
        self._body_thread = None
        if failure is not None and self.streaming:
            logger.warning("%s", failure.error())
        for runner in runners:
            if failure is not None:
                runner.cancel(failure)
            runner.push([End()])
        self.body_over.set_result(None)
        self.declared.fire()

    def stop(self, failure: Failure) -> None:
        """Stops every stream; what has no value yet fails. The body, if it runs, learns of it when it reads."""
        with self._lock:
            runners = list(self._runners)
        for runner in runners:
            runner.cancel(failure)

    def _one_ended(self) -> None:
        self._to_end -= 1
        if self._to_end == 0:
            self.finished.set_result(None)

    def outside(self) -> bool:
        """Whether this thread follows a streamed run whose body, in another thread, still appends."""
        return self.streaming and not self.body_over.done() and threading.get_ident() != self._body_thread


class ProgramState(Writer):
    """See the module. ``ret_value``: what the body returned. Other attributes are the program's to set."""

    def __init__(
        self,
        run: Run,
        runner: StreamRunner,
        stream: int,
        prev: int | None = None,
        role: str | None = None,
        cells: dict[str, Cell] | None = None,
    ) -> None:
        super().__init__(run.graph, stream, prev, role)
        self.run = run
        self._runner = runner
        self._cells: dict[str, Cell] = dict(cells or {})
        self.ret_value: Any = None

    @staticmethod
    def start(run: Run) -> ProgramState:
        """The state a body begins with."""
        return ProgramState(run, run.new_runner(root=True), run.graph.new_stream())

    # --- appending ---

    def _record(self, nodes: list[Node]) -> None:
        self.run.check_open()
        self._runner.push([self._job(node) for node in nodes])
        self._after_push()

    def _after_push(self) -> None:
        self.run.declared.fire()
        if self.run.inline:
            self.sync()

    def _job(self, node: Node) -> Job:
        op = node.op
        if isinstance(op, Reasoned):
            name = op.gen.name or ""
            return Job(node, self._declare(name, node), reasoning=self._declare(f"{name}_reasoning_content", node))
        if isinstance(op, (Gen, Select, CaptureEnd)) and op.name is not None:
            return Job(node, self._declare(op.name, node))
        return Job(node)

    def _declare(self, name: str, node: Node) -> Cell:
        cell = self._cells[name] = Cell(name, node.id)
        return cell

    def _branch(self, fork: Node, streams: Sequence[int]) -> list[ProgramState]:
        runners = [self.run.new_runner() for _ in streams]
        self._runner.push([Job(fork, children=tuple(runners))])
        self._after_push()
        return [
            ProgramState(self.run, runner, stream, fork.id, self._role, self._cells)
            for runner, stream in zip(runners, streams, strict=True)
        ]

    def _gather(self, branches: Sequence[ProgramState]) -> None:
        new = dict.fromkeys(name for b in branches for name in list(b._cells) if name not in self._cells)
        for name in new:
            parts = [b._cells[name] for b in branches if name in b._cells]
            sources = tuple(part.node for part in parts if part.node >= 0)
            node = self._graph.add(self._stream, self._prev, Join("gather_variable"), sources)
            self._cells[name] = Cell.gathered(name, parts, node.id)
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

    def _cell(self, name: str) -> Cell | None:
        """The latest cell of a name; waits for one while a streamed body in another thread may still append it."""
        while (waiter := self._undeclared(name)) is not None:
            SESSION.loop.wait(waiter)
        return self._cells.get(name)

    async def _acell(self, name: str) -> Cell | None:
        while (waiter := self._undeclared(name)) is not None:
            await asyncio.wrap_future(waiter)
        return self._cells.get(name)

    def _undeclared(self, name: str) -> Future[None] | None:
        """What to wait for when ``name`` may still be appended by a body in another thread."""
        if name in self._cells or not self.run.outside():
            return None
        waiter = self.run.declared.waiter()
        return waiter if name not in self._cells and self.run.outside() else None

    def get_var(self, name: str) -> Any:
        """Waits for a variable's value. KeyError if nothing sets it, VariableError (a KeyError) if that failed."""
        cell = self._cell(name)
        if cell is None:
            raise KeyError(f"no variable {name!r} in this program so far; there are {sorted(self._cells)}")
        SESSION.loop.wait(cell.done)
        return cell.get()

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

    def get_meta_info(self, name: str) -> Any:
        """Waits for a variable and returns what the back end said about its request; None for other names.

        With ``n`` > 1 a list, one entry per output.
        """
        cell = self._cell(name)
        if cell is None:
            return None
        SESSION.loop.wait(cell.done)
        cell.get()
        return cell.meta

    # --- text ---

    def _snapshot(self) -> Snapshot:
        if self.run.outside():
            SESSION.loop.wait(self.run.body_over)
        mark = Mark()
        self._runner.push([mark])
        return SESSION.loop.wait(mark.future)

    def _healthy_snapshot(self) -> Snapshot:
        snapshot = self._snapshot()
        if snapshot.failure is not None:
            raise snapshot.failure.error()
        return snapshot

    def sync(self) -> None:
        """Waits until everything appended so far has been executed or has failed."""
        self._snapshot()

    def error(self) -> ProgramError | None:
        """Waits like ``sync``; what went wrong in this stream, with its cause as ``__cause__``, or None."""
        failure = self._snapshot().failure
        return None if failure is None else failure.error()

    def text(self) -> str:
        """Waits like ``sync``; all text of this stream. ProgramError if it failed."""
        return self._healthy_snapshot().text

    def messages(self) -> list[Message]:
        """Waits like ``sync``; the finished turns. ProgramError if the stream failed."""
        return self._healthy_snapshot().messages

    def cancel(self) -> None:
        """Stops the run: requests in flight are aborted, what has no value yet fails."""
        self.run.stop(Failure("cancel()", None, RuntimeError("the run was cancelled"), ""))

    def __repr__(self) -> str:
        snapshot = self._snapshot()
        failed = f", failed: {snapshot.failure.error()}" if snapshot.failure is not None else ""
        return f"ProgramState({snapshot.text}{failed})"

    # --- streaming ---

    def text_iter(self, var_name: str | None = None) -> Iterator[str]:
        """The stream's text, or a variable's, in pieces as they come; an unknown variable has none.

        Ends with the run, or where it failed (``error`` says so). Inside the body: what there is after ``sync``.
        """
        if var_name is not None:
            cell = self._cell(var_name)
            if cell is not None:
                yield from (text for text, _ in cell.feed.read())
        elif self.run.body_over.done() or self.run.outside():
            yield from (text for text, _ in self._runner.feed.read())
        else:
            self.sync()
            yield from (text for text, _ in self._runner.feed.so_far())

    async def text_async_iter(self, var_name: str | None = None, return_meta_data: bool = False) -> AsyncIterator[Any]:
        """``text_iter`` for ``async for``; with ``return_meta_data`` pairs of text and meta info."""
        feed = self._runner.feed
        if var_name is not None:
            cell = await self._acell(var_name)
            if cell is None:
                return
            feed = cell.feed
        async for text, meta in feed.aread():
            yield (text, meta) if return_meta_data else text
