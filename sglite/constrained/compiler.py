"""ConstraintCompiler: specs become compiled constraints off the caller's thread, once each, within a deadline.

Promises. Equal specs in flight compile once and share the result; a spec that was checked before is not read again. A
late compile, and one that failed in the engine, is not remembered: the next request tries again. What the front end
refuses is remembered, because it will say the same again. A compile that passes its deadline fails its own requests
only; its thread cannot be stopped, so it is left to end by itself and a new one takes its place, at most `_MAX_LATE`
of them at a time. The engine's work is done at low priority. The cache holds at most `cache_entries` results and
`cache_bytes`, least recently used out first. No lock is held while anything is read, compiled or measured.

With `apart`, specs are read in processes (`apart/`). One that is not done after `_SLOW_S` makes room for another
worker with a process of its own, so that what is quick does not wait for what is slow; at the deadline the process is
killed, and the thread is free again.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from concurrent.futures import Future
from dataclasses import dataclass, field

from sglite.constrained import closing
from sglite.constrained.apart.client import CompileProcess, Refusal
from sglite.constrained.budget import Budget
from sglite.constrained.engines.base import ENGINES, Engine, Program, StreamEngine, load
from sglite.constrained.idle import run_idle
from sglite.constrained.jump_forward import StableTokens
from sglite.constrained.limits import Limits
from sglite.constrained.lower import check_size
from sglite.constrained.matcher import Matcher
from sglite.constrained.readings import Readings
from sglite.constrained.report import KeywordReport
from sglite.constrained.spec import CompilerBusy, ConstraintRefused, ConstraintSpec
from sglite.constrained.vocab import Vocabulary

_MAX_LATE = 4
_SLOW_S = 0.25
_MAX_SPARE = 2  # processes that are kept for the next slow constraint
_PAUSE_S = 0.0005  # how long a front end on a worker thread keeps the interpreter to itself


@dataclass(frozen=True)
class CompiledConstraint:
    """An immutable, shareable constraint. `report` tells what became of every keyword."""

    spec: ConstraintSpec
    report: KeywordReport
    program: Program
    tokens: StableTokens = field(repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """Approximate memory of the compiled form; it may grow with use."""
        return self.program.nbytes

    def matcher(self, jump_forward: bool = True, close_at: int | None = None) -> Matcher:
        """A new matcher at the start of the text; with `close_at`, of a text of at most so many tokens."""
        return self.program.matcher(jump_forward, close_at)

    def shortest_tokens(self) -> int:
        """Tokens of a shortest text, the least that `close_at` can be, the end of sequence not counted.

        Raises ConstraintRefused where that text is too long to be written out.
        """
        completion = self.program.raw_matcher().shortest()
        if completion is None:
            raise ConstraintRefused("its shortest text is too long to be ended in time; leave on_limit at 'stop'")
        return closing.cost(completion, self.tokens)


class _Job:
    """One spec being compiled, for everybody who asked for it."""

    def __init__(self, spec: ConstraintSpec, deadline: float | None) -> None:
        self.spec = spec
        self.deadline = deadline  # time.monotonic; None while the engine is still being loaded
        self.future: Future[CompiledConstraint] = Future()
        self.future.set_running_or_notify_cancel()  # shared: one caller cannot cancel it for the others
        self.key = spec.key()
        self.running = False
        self.reading_since: float | None = None  # time.monotonic; of one that is read apart
        self.set_aside = False  # its worker does not count any more

    def is_read(self) -> None:
        """From now on."""
        self.reading_since = time.monotonic()


class ConstraintCompiler:
    """Compiles specs for one vocabulary.

    `deadline_s` counts from `submit`, waiting included, but not the loading of the engine, which happens at the
    first compile. `engine` is one that is ready, or the name of one: "auto", "native", "xgrammar" or "reference".
    `apart` is for who serves others: constraints are read in a process, if the engine is the native one.
    """

    def __init__(
        self,
        vocab: Vocabulary,
        *,
        cache_entries: int = 256,
        cache_bytes: int = 256 * 1024 * 1024,
        deadline_s: float = 10.0,
        max_schema_bytes: int = 256 * 1024,
        max_queued: int = 1024,
        workers: int = 1,
        engine: Engine | str = "auto",
        apart: bool = False,
    ) -> None:
        if min(cache_entries, cache_bytes, max_queued, workers) < 1 or deadline_s <= 0:
            raise ValueError(
                f"cache_entries {cache_entries}, cache_bytes {cache_bytes}, max_queued {max_queued}, workers {workers} "
                f"and deadline_s {deadline_s} must be positive"
            )
        if isinstance(engine, str) and engine not in ENGINES:
            raise ValueError(f"the constraint engine {engine!r} is not one of {', '.join(ENGINES)}")
        self.vocab = vocab
        self._limits = Limits(max_bytes=max_schema_bytes)
        self._readings = Readings(self._limits, vocab.special_ids)
        self._apart = apart
        self._processes: list[CompileProcess] = []
        self._spare: list[CompileProcess] = []  # of them, those that no worker has
        self._restarts = 0  # of processes that are no longer listed
        self._cache_entries = cache_entries
        self._cache_bytes = cache_bytes
        self._deadline_s = deadline_s
        self._max_queued = max_queued
        self._workers = workers
        self._engine_name = engine if isinstance(engine, str) else ""
        self._engine = None if isinstance(engine, str) else engine
        self._tokens: StableTokens | None = None
        self._engine_lock = threading.Lock()
        self._changed = threading.Condition()
        self._cache: OrderedDict[str, CompiledConstraint] = OrderedDict()
        self._jobs: dict[str, _Job] = {}
        self._queue: deque[_Job] = deque()
        self._threads = 0  # workers alive and not late
        self._late = 0  # workers inside a compile that was set aside
        self._watching = False
        self._closed = False
        self._counts = {"submitted": 0, "cache_hits": 0, "compiled": 0, "refused": 0, "timeouts": 0}
        self._seconds = 0.0

    def counts(self) -> dict[str, float]:
        """So far: specs submitted, those compiled before, compiled, refused, out of time; processes that were killed
        or died; seconds spent compiling."""
        with self._changed:
            restarts = self._restarts + sum(process.restarts for process in self._processes)
            return {**self._counts, "restarts": restarts, "seconds": self._seconds}

    def compile(self, spec: ConstraintSpec) -> CompiledConstraint:
        """Compile and wait. Raises ConstraintError, or ConstraintRefused (also when the deadline passes)."""
        return self.submit(spec).result()

    def submit(self, spec: ConstraintSpec) -> Future[CompiledConstraint]:
        """Compile on a pool thread. A cached result is there at once, and so is CompilerBusy when too many wait."""
        key = spec.key()
        with self._changed:
            if self._closed:
                raise RuntimeError("the constraint compiler is closed")
            cached = self._cache.get(key)
            self._counts["submitted"] += 1
            if cached is not None:
                self._counts["cache_hits"] += 1
                self._cache.move_to_end(key)
                done: Future[CompiledConstraint] = Future()
                done.set_result(cached)
                return done
            job = self._jobs.get(key)  # one compile for equal specs in flight
            if job is None and len(self._queue) >= self._max_queued:
                full: Future[CompiledConstraint] = Future()
                full.set_exception(CompilerBusy(f"{self._max_queued} constraints wait to be compiled; try again later"))
                return full
            if job is None:
                deadline = None if self._engine is None else time.monotonic() + self._deadline_s
                job = self._jobs[key] = _Job(spec, deadline)
                self._queue.append(job)
                self._start_threads()
                self._changed.notify_all()
            return job.future

    def check(self, spec: ConstraintSpec) -> KeywordReport:
        """Read and check a spec on the caller's thread, without compiling. Raises as `compile` does."""
        return self._readings.read(spec, Budget(seconds=self._deadline_s)).report

    def close(self) -> None:
        """Refuse what waits and stop the workers when they are idle. Idempotent."""
        with self._changed:
            self._closed = True
            jobs = list(self._jobs.values())
            self._jobs.clear()
            self._queue.clear()
            processes = list(self._processes)
            self._changed.notify_all()
        for process in processes:
            process.close()
        for job in jobs:
            _fail(job, ConstraintRefused("the server is shutting down; the constraint was not compiled"))

    # Daemon threads, because an executor's threads are joined at exit and a compile cannot be interrupted.

    def _start_threads(self) -> None:
        if self._threads < self._workers and self._late < _MAX_LATE:
            self._threads += 1
            threading.Thread(target=self._work, name="constraint-compile", daemon=True).start()
        if not self._watching:
            self._watching = True
            threading.Thread(target=self._watch, name="constraint-deadline", daemon=True).start()

    def _work(self) -> None:
        process = self._take_process() if self._apart else None
        self._work_with(process)
        if process is not None:
            self._put_back(process)

    def _work_with(self, process: CompileProcess | None) -> None:
        while self._do_next(process):
            pass

    def _do_next(self, process: CompileProcess | None) -> bool:
        """Wait for a job and do it; whether this thread is to go on. Between two it holds neither."""
        job = self._next_job()
        if job is None:
            return False
        started = time.monotonic()
        result = self._run(job) if process is None else self._run_apart(job, process)
        sizes = self._sizes(job.key, result) if isinstance(result, CompiledConstraint) else {}
        with self._changed:
            on_time = self._jobs.get(job.key) is job
            self._seconds += time.monotonic() - started
            if on_time:
                del self._jobs[job.key]
                self._counts["compiled" if isinstance(result, CompiledConstraint) else "refused"] += 1
                if isinstance(result, CompiledConstraint):
                    self._remember(job.key, result, sizes)
            self._changed.notify_all()
            needed = not job.set_aside or self._rejoin()
        if on_time and isinstance(result, CompiledConstraint):
            job.future.set_result(result)
        elif on_time and isinstance(result, Exception):
            job.future.set_exception(result)
        return needed

    def _next_job(self) -> _Job | None:
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            if self._closed:
                self._threads -= 1
                return None
            job = self._queue.popleft()
            job.running = True
            return job

    def _rejoin(self) -> bool:
        """A worker comes back from a compile that was set aside: whether it is still needed."""
        self._late -= 1
        if self._threads >= self._workers:
            return False
        self._threads += 1
        return True

    def _run(self, job: _Job) -> CompiledConstraint | Exception:
        try:
            lowered = self._readings.read(job.spec, Budget(seconds=self._deadline_s, pause_s=_PAUSE_S))
            engine, tokens = self._ready_engine()
            program = run_idle(lambda: engine.compile(lowered.grammar))
        except Exception as error:
            return error
        return CompiledConstraint(job.spec, lowered.report, program, tokens)

    def _run_apart(self, job: _Job, process: CompileProcess) -> CompiledConstraint | Exception:
        try:
            known = self._readings.refusal(job.spec)
            if known is not None:
                return known
            check_size(job.spec, self._limits)
            if self._engine is None and self._engine_name in ("auto", "native"):
                process.start()  # it gets ready while the engine is loaded
            engine, tokens = self._ready_engine()
            if not isinstance(engine, StreamEngine):
                process.close()
                return self._run(job)
            assert job.deadline is not None
            written = process.read(job.spec, job.deadline, job.is_read)
            program = run_idle(lambda: engine.compile_stream(written.stream, written.checks))
        except Refusal as refusal:
            if refusal.lasting:
                self._readings.refused(job.spec, refusal.error)
            return refusal.error
        except Exception as error:
            return error
        return CompiledConstraint(job.spec, written.report, program, tokens)

    def _take_process(self) -> CompileProcess:
        with self._changed:
            if self._spare:
                return self._spare.pop()
            process = CompileProcess(self._limits, self.vocab.special_ids, _PAUSE_S)
            self._processes.append(process)
            if self._closed:
                process.close()
            return process

    def _put_back(self, process: CompileProcess) -> None:
        with self._changed:
            if len(self._spare) < _MAX_SPARE:
                self._spare.append(process)
                return
            self._processes.remove(process)
            self._restarts += process.restarts
        process.close()

    def _ready_engine(self) -> tuple[Engine, StableTokens]:
        with self._engine_lock:
            engine = self._engine or load(self._engine_name, self.vocab)
            if self._tokens is None:
                self._tokens = getattr(engine, "tokens", None) or StableTokens(self.vocab)
            if self._engine is None:
                with self._changed:
                    self._engine = engine
                    for job in self._jobs.values():
                        job.deadline = job.deadline or time.monotonic() + self._deadline_s
                    self._changed.notify_all()
            return engine, self._tokens

    def _watch(self) -> None:
        """Fail the jobs whose deadline has passed, and put a new worker where one is stuck or, apart, slow."""
        while True:
            with self._changed:
                if self._closed or not self._jobs:
                    self._watching = False
                    return
                now = time.monotonic()
                late = [job for job in self._jobs.values() if job.deadline is not None and job.deadline <= now]
                for job in late:
                    self._give_up(job)
                for job in self._jobs.values():
                    if job.reading_since is not None and job.reading_since + _SLOW_S <= now:
                        self._set_aside(job)
                if not late:
                    ends = [job.deadline - now for job in self._jobs.values() if job.deadline is not None]
                    self._changed.wait(min([*ends, _SLOW_S] if self._apart else ends, default=None))
            for job in late:
                _fail(job, ConstraintRefused(f"compiling took longer than {self._deadline_s:g} s; simplify it"))

    def _give_up(self, job: _Job) -> None:
        del self._jobs[job.key]
        self._counts["timeouts"] += 1
        if job.running:
            self._set_aside(job)
        else:
            self._queue.remove(job)

    def _set_aside(self, job: _Job) -> None:
        """The job's worker does not count any more, until it is back."""
        if job.set_aside:
            return
        job.set_aside = True
        self._late += 1
        self._threads -= 1
        if self._queue:
            self._start_threads()

    def _sizes(self, key: str, result: CompiledConstraint) -> dict[str, int]:
        """Bytes of every result in the cache and of a new one. Asked without the lock: an engine may take its time."""
        with self._changed:
            results = [*self._cache.items(), (key, result)]
        return {name: one.nbytes for name, one in results}

    def _remember(self, key: str, result: CompiledConstraint, sizes: dict[str, int]) -> None:
        self._cache[key] = result
        used = sum(sizes.get(other, 0) for other in self._cache)
        while len(self._cache) > self._cache_entries or (used > self._cache_bytes and len(self._cache) > 1):
            oldest, _ = self._cache.popitem(last=False)
            used -= sizes.get(oldest, 0)


def _fail(job: _Job, error: ConstraintRefused) -> None:
    job.future.set_exception(error)
