"""What each kind of node does to one stream: to its text, and to the back end's sequence behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from sglite.lang.backends.base import GenCall, Hints, Stream, check_finished
from sglite.lang.cells import Feed, arrival
from sglite.lang.choices import decide
from sglite.lang.context import End, Job, Mark, RunContext, Snapshot
from sglite.lang.errors import Failure, Unsupported
from sglite.lang.generating import generate, outputs_of
from sglite.lang.history import Change, common_length, noted, reconciled, shown
from sglite.lang.ir import (
    REST_OF_CONTEXT,
    Ask,
    CaptureBegin,
    CaptureEnd,
    Checkpoint,
    Fork,
    Gen,
    Join,
    Lit,
    Media,
    NodeRecord,
    Reasoned,
    Reply,
    Restart,
    RoleBegin,
    RoleEnd,
    Rollback,
    Sampling,
    Select,
    Tell,
    VarRef,
)
from sglite.lang.messages import Message, ToolSpec
from sglite.lang.reasoning import split_reasoning
from sglite.lang.transcript import Transcript

_UPCOMING = 4


class Performer:
    """One stream's text and sequence. Everything but ``feed`` is for the programs' loop.

    ``group``: the fork that the stream is a branch of, and its number of branches. ``ahead``: the jobs that follow.
    """

    def __init__(
        self, context: RunContext, group: tuple[str, int], ahead: Callable[[], Sequence[Job | Mark | End]]
    ) -> None:
        self._context = context
        self._group = group
        self._ahead = ahead
        self.transcript = Transcript(context.backend.chat_format())
        self.feed = Feed()
        self._inherited = 0
        self._stream: Stream | None = None
        self._pending: list[str] = []
        self._requested = False
        self._generating = False
        self._prepared: set[int] = set()
        self.prepares = False
        self._marks: dict[int, tuple[object, Transcript]] = {}

    @property
    def text(self) -> str:
        """All text so far."""
        return self.transcript.text

    @property
    def num_chars(self) -> int:
        """Its length."""
        return self.transcript.num_chars

    def adopt(self, transcript: Transcript | None, stream: Stream | None) -> None:
        """Goes on from where a parent stands."""
        if transcript is not None:
            self.transcript, self._inherited = transcript, transcript.num_pieces
            self.feed.write(transcript.text)
        self._stream, self._requested = stream, True
        self._look()

    def _look(self) -> None:
        """Whether the sequence has a use for what comes next."""
        known = self._stream is not None and type(self._stream).prepare is not Stream.prepare
        self.prepares = known and self._context.budget is None

    def snapshot(self, failure: Failure | None) -> Snapshot:
        """How the stream stands."""
        script = self.transcript
        messages = [shown(message) for message in script.messages]
        return Snapshot(script.text, script.text_from(self._inherited), messages, failure)

    def park(self, expected_s: float | None) -> None:
        """The program waits for something else, for about so long."""
        if self._stream is not None:
            self._stream.park(expected_s)

    async def aclose(self) -> None:
        """Gives the back end's sequence back."""
        self.feed.close()
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.aclose()

    # --- nodes that need no request ---

    def apply(self, job: Job) -> bool:
        """Runs a node that only concerns text; False if it needs the back end."""
        op, script = job.node.op, self.transcript
        if isinstance(op, Lit):
            self._write(script.add(op.text))
        elif isinstance(op, RoleBegin):
            self._write(script.begin_turn(op.role))
        elif isinstance(op, RoleEnd):
            self._write(script.end_turn())
        elif isinstance(op, CaptureBegin):
            script.begin_capture(op.name)
        elif isinstance(op, CaptureEnd):
            assert job.cell is not None
            job.cell.resolve(self._captured(op.name), None)
        elif isinstance(op, Tell):
            self._write(script.tell(op.message))
        elif isinstance(op, Reply):
            if script.templated:
                script.place(self._opened().mark())
            self._write(script.reply(op.message))
        else:
            return False
        return True

    def _captured(self, name: str) -> str:
        try:
            return self.transcript.end_capture(name)
        except ValueError:
            raise ValueError(
                f"var_scope({name!r}): its beginning is gone, by a rollback() or compact() inside"
            ) from None

    def _write(self, text: str) -> None:
        self._pending.append(text)
        self.feed.write(text)

    # --- nodes that do ---

    async def request(self, job: Job, record: NodeRecord) -> None:
        """Runs a node that needs the back end, or something to wait for."""
        op = job.node.op
        if isinstance(op, VarRef):
            record.text = await _text_of(job)
            self._write(self.transcript.add(record.text))
        elif isinstance(op, Join):
            await self._join(job)
        elif isinstance(op, Restart):
            await self._restart(op)
        else:
            stream = await self._flushed()
            if isinstance(op, Gen):
                await self._generate(job, op, stream, record)
            elif isinstance(op, Reasoned):
                await self._generate_reasoned(job, op, stream, record)
            elif isinstance(op, Select):
                await self._select(job, op, stream, record)
            elif isinstance(op, Fork):
                await self._fork(job, stream)
            elif isinstance(op, Media):
                self.feed.write(self.transcript.add(stream.attach(op)))
            elif isinstance(op, Ask):
                await self._ask(op, stream)
            elif isinstance(op, Checkpoint):
                self._marks[op.number] = stream.mark(), self.transcript.copy(captures=True)
            elif isinstance(op, Rollback):
                if op.number not in self._marks:
                    raise ValueError("rollback: the text before this place was written anew, by the model's template")
                mark, transcript = self._marks[op.number]
                stream.rewind(mark)
                self._prepared.clear()
                self.transcript = transcript.copy(captures=True)
            else:
                raise TypeError(f"{op!r} cannot run: it stands for a value that only a trace leaves open")

    async def _flushed(self) -> Stream:
        """The back end's sequence, with every literal so far in it."""
        stream = self._opened()
        if not self._requested:
            self._requested = True
            if self._context.warmup is not None:
                await self._context.warmup.arrive(self.transcript.text)
        return stream

    def _opened(self) -> Stream:
        if self._stream is None:
            self._stream = self._context.backend.open(self._context.graph.program_id)
            if self._context.speculate:
                self._stream.speculate(self._context.speculate)
            self._look()
        if self._pending:
            text = "".join(self._pending)
            self._pending.clear()
            self._stream.append(text)
        return self._stream

    def _call(self, path: str, op: Gen, attempt: int = 0) -> GenCall:
        context = self._context
        sampling = op.sampling.over(context.defaults)
        stop = (*(sampling.stop or ()), *op.extra_stop, *context.backend.chat_format().stop)
        typed = op.type is not None and (op.type.regex or op.type.json_schema) is not None
        closed = "try_close" if typed and context.backend.closes and sampling.on_limit is None else None
        fixed = Sampling(stop=tuple(dict.fromkeys(stop)), on_limit=closed)
        if op.whole_turn:
            sampling = sampling.over(Sampling(max_new_tokens=REST_OF_CONTEXT))
        sampling = fixed.over(sampling)
        seed = context.seed_of(path, attempt) if sampling.seed is None else sampling.seed + attempt
        if op.heal and not context.backend.heals:
            raise Unsupported(f"{type(context.backend).__name__} cannot heal the border between text and a gen")
        group, size = self._group
        return GenCall(
            name=op.name,
            sampling=sampling if seed is None else replace(sampling, seed=seed),
            stream=context.stream,
            conversation=self.transcript,
            hints=Hints(node=path, group=group, group_size=size, upcoming=self._upcoming()),
            heal=op.heal,
            tools=self.transcript.tools,
            tool_choice=self.transcript.tool_choice if self.transcript.tools else "auto",
            schema_of=op.type,
        )

    def _upcoming(self) -> int:
        """Requests that are known to follow; beyond a few, nobody asks how many."""
        asking = (job for job in self._ahead() if isinstance(job, Job) and isinstance(job.node.op, (Gen, Select)))
        return sum(1 for _ in islice(asking, _UPCOMING))

    async def _generate(self, job: Job, op: Gen, stream: Stream, record: NodeRecord) -> None:
        cell = job.cell

        def show(text: str, meta: dict[str, Any]) -> None:
            self.feed.write(text, meta)
            if cell is not None:
                cell.feed.write(text, meta)

        def call_of(attempt: int) -> GenCall:
            return self._call(job.path, op, attempt)

        self._generating = True
        try:
            self.prepare_more()
            text, _ = await generate(self._context, stream, op, call_of, cell, record, show)
        finally:
            self._generating = False
            if record.attempts > 1:
                self._prepared.clear()  # what was taken back took along what had been shown
        self._group = ("", 1)
        self.transcript.add(text)

    def prepare_more(self) -> None:
        """Shows the back end what follows the gen under way, as far as it is plain text and gens.

        Behind anything else nothing is shown: what a template, a join or a value will write is not known yet.
        """
        stream = self._stream
        if stream is None or not self.prepares or not self._generating:
            return
        outline, text = self.transcript.outline(), ""
        for job in self._ahead():
            if isinstance(job, Mark):
                continue
            op = None if isinstance(job, End) else job.node.op
            if isinstance(op, Lit):
                text += op.text
            elif isinstance(op, RoleBegin):
                text += outline.begin_turn(op.role)
            elif isinstance(op, RoleEnd):
                text += outline.end_turn()
            elif isinstance(job, Job) and isinstance(op, Gen) and not op.retries and not op.heal:
                if job.node.id not in self._prepared:
                    self._prepared.add(job.node.id)
                    stream.prepare(text, self._call(job.path, op))
                text = ""
            elif not isinstance(op, (CaptureBegin, CaptureEnd)):
                return

    async def _generate_reasoned(self, job: Job, op: Reasoned, stream: Stream, record: NodeRecord) -> None:
        """Only the answer becomes part of the sequence: the text with its reasoning is taken back."""
        mark = stream.mark()
        outputs = await outputs_of(self._context, record, stream, self._call(job.path, op.gen))
        check_finished(outputs)
        reasoning, answer = split_reasoning(outputs[0].text, op.tags)
        stream.rewind(mark)
        self._write(self.transcript.add(answer))
        assert job.cell is not None and job.reasoning is not None
        job.cell.resolve(answer, outputs[0].meta)
        job.reasoning.resolve(reasoning, outputs[0].meta)

    async def _select(self, job: Job, op: Select, stream: Stream, record: NodeRecord) -> None:
        unconditional = op.method.requires_unconditional_logprobs
        group, size = self._group
        hints = Hints(node=job.path, group=group, group_size=size, upcoming=self._upcoming())
        scores = await stream.score(
            op.name, op.choices, unconditional=unconditional, conversation=self.transcript, hints=hints
        )
        self._group = ("", 1)
        decision = decide(op.method, op.choices, scores, op.temperature, self._context.rng_of(job.path))
        self._write(self.transcript.add(decision.decision))
        meta = {**scores.cost, **(decision.meta_info or {})}
        self._context.usage.add([meta])
        record.meta, record.text = meta, decision.decision
        record.metas.append(meta)
        if job.cell is not None:
            job.cell.resolve(decision.decision, meta)

    async def _fork(self, job: Job, stream: Stream) -> None:
        branches = await stream.fork(len(job.children))
        for child, branch in zip(job.children, branches, strict=True):
            child.adopt(self.transcript.copy(), branch, None)

    async def _join(self, job: Job) -> None:
        for part in job.parts:
            snapshot = await arrival(part)
            if snapshot.failure is not None:
                raise snapshot.failure.error()
            self._write(self.transcript.add(snapshot.new_text))

    async def _restart(self, op: Restart) -> None:
        """The old sequence is given back; a new one begins, with the old system turn if it is to be kept."""
        old, self._stream = self._stream, None
        if old is not None:
            await old.aclose()
        kept = [m for m in self.transcript.messages[:1] if m["role"] == "system"] if op.keep_system else []
        self._pending.clear()
        self._marks.clear()
        self._inherited = 0
        self.transcript = Transcript(self._context.backend.chat_format())
        for message in kept:
            for text in (self.transcript.begin_turn("system"), self.transcript.add(message["content"])):
                self._pending.append(text)
            self._pending.append(self.transcript.end_turn())

    async def _ask(self, op: Ask, stream: Stream) -> None:
        """Makes the text what the model's template makes of the conversation, and opens the assistant's turn."""
        backend, script = self._context.backend, self.transcript
        script.tools = op.tools if backend.calls_tools else ()
        script.tool_choice = op.tool_choice
        change = None if backend.by_messages else await asyncio.to_thread(self._change, op)
        if change is None:
            self._write(script.begin_turn("assistant"))
            return
        before, text = script.text, change.text
        if change.common is not None:
            place = script.rewind(change.common)
            kept = 0 if place is None else place[0] + 1
            self._marks = {n: at for n, at in self._marks.items() if at[1].num_chars < kept}
            self._pending.clear()
            if place is None:
                await stream.aclose()
                self._stream = None
                script.place(self._opened().mark())
            else:
                stream.rewind(place[1])
                text = text[place[0] :]
        self._pending.append(script.ask(text, op.tools))
        self.feed.write(script.text[common_length(before, script.text) :])
        script.place(self._opened().mark())

    def _change(self, op: Ask) -> Change | None:
        """What brings the text to the template's prompt; None without a template. Runs beside the loop."""
        render = self._context.backend.render
        messages = noted(self.transcript.messages, op.note)
        if render([shown(message) for message in messages], op.tools) is None:
            return None

        def rendered(messages: Sequence[Message], tools: Sequence[ToolSpec]) -> str | None:
            return render([shown(message) for message in messages], tools)

        return reconciled(rendered, messages, op.tools, self.transcript.text, self._context.history)


async def _text_of(job: Job) -> str:
    """The text of the value that a reference stands for."""
    assert job.needs is not None
    await arrival(job.needs.done)
    job.needs.get()
    raw = job.needs.raw
    if isinstance(raw, list):
        raise ValueError(f"{job.needs.name!r} is a list; append its items, or sgl.join(...) them")
    return raw if isinstance(raw, str) else str(raw)
