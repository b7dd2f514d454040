"""What an engine does for a program, replayed from its graph without running anything.

The rules, for an engine whose cache is cold:

- A stream is one sequence of ids. Text is encoded when a gen, a fork or a scored prompt needs it, neighbours together;
  what is encoded stays. ``select`` does not commit text: what it chose is encoded with the text around it.
- A gen is one request (``n`` of them; once more per attempt) whose prompt is the whole sequence. Its output joins the
  sequence without the token that ended it. Its last token is not computed by it, but by whoever goes on from there.
- ``select`` is one request per choice, the prompt and the choice; a rule that wants to know what choices are worth by
  themselves sends one more per choice, without the prompt.
- A fork makes its prefix a request of its own if anything of it has not been computed; else it costs nothing.
- Every distinct (prefix, token) position is computed once: by the first request that has it in its prompt, unless a
  request before it generated it. Where two requests that do not wait for each other could both be first, one with the
  position in its prompt and one generating it, the number of computed prompt tokens is known only within bounds.
- With overlap, a token that ends an output before its limit has been computed as well, ahead, if no other request was
  at that place; whether a constraint's or a stop string's last token and its forced ones have been, depends.
- Not counted as computed here, and counted by engines as replayed: the last token of a prompt that is wholly cached.

``sum(computed_prompt_tokens) - sum(replayed_tokens)`` of a run is what ``computed`` predicts, less what it replays of
its own output: requests that write the same tokens (equal prompts at temperature 0) may find the last one computed.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from sglite.lang.explain_order import Order
from sglite.lang.explain_positions import ROOT, Positions
from sglite.lang.explain_tokens import Encoder, Gap, Tokens
from sglite.lang.explain_track import Call, Track, first_names, number_of
from sglite.lang.formats import ChatFormat
from sglite.lang.graph_nodes import is_request, metas_of, variable
from sglite.lang.history import noted, reconciled, shown
from sglite.lang.ir import (
    Arg,
    Ask,
    CaptureBegin,
    CaptureEnd,
    Checkpoint,
    Computed,
    Dynamic,
    Fork,
    Gen,
    Graph,
    Join,
    Lit,
    Media,
    Node,
    NodeRecord,
    Reasoned,
    Reply,
    Restart,
    RoleBegin,
    RoleEnd,
    Rollback,
    Select,
    Symbol,
    Tell,
    VarRef,
)
from sglite.lang.messages import Message, ToolSpec
from sglite.lang.transcript import Transcript


class Model:
    """Replays ``graph``; afterwards ``calls`` are its requests and ``low``/``high`` bound their computed tokens.

    ``render``: the chat template of the back end, or None. ``assume``: lengths of outputs nobody knows yet.
    ``overlap``: whether the engine plans the next step while one runs; None: who knows.
    """

    def __init__(
        self,
        graph: Graph,
        encoder: Encoder,
        chat_format: ChatFormat,
        render: Any = None,
        assume: Mapping[str, int] | None = None,
        history: str = "append",
        overlap: bool | None = None,
    ) -> None:
        self.graph = graph
        self.encoder = encoder
        self.positions = Positions()
        self.calls: list[Call] = []
        self.inexact: dict[str, None] = {}
        """Why the numbers may be off."""
        self.rewritten = 0
        """Generated tokens that another request may generate as well."""
        self.gaps: dict[int, str] = {}
        """By position, texts that nobody knows yet."""
        self._format = chat_format
        self._render = render
        self._assume = assume or {}
        self._history = history
        self._overlap = overlap
        self._guessed: list[tuple[int, int, Sequence[Hashable]]] = []
        """Requests whose output's ids nobody told, where they begin to generate, and the ids they are taken to have."""
        self._stops: list[tuple[int, int, int]] = []
        """Requests that a token ended, the position before that token, and its own."""
        self._order = Order(graph, self.positions, self.calls)
        self._prefixes: list[tuple[Call, int]] = []
        """The requests of forks, and from where on their prefixes were not known to be computed."""
        self._streams: dict[int, Track] = {}
        self._values: dict[int, str] = {}
        self._replay()

    def _replay(self) -> None:
        for node in list(self.graph.nodes):
            stream = self._streams.setdefault(node.stream, Track(Transcript(self._format)))
            if not stream.dead:
                self._step(node, stream)
        for writer, parent, stop in self._stops:
            if self._overlap and self._order.is_alone(writer, parent):
                self.positions.writers[stop].append((writer, True))
        self.low, self.high = self._order.bounds()
        self.low -= self._order.lookalikes(self._guessed)
        self.rewritten += self.positions.written_again()
        for fork in self._order.doubtful(self._prefixes):
            self.inexact[f"fork %{fork} sends no request where somebody else has just computed its prefix"] = None

    # --- nodes ---

    def _step(self, node: Node, stream: Track) -> None:
        op, script = node.op, stream.script
        if isinstance(op, Lit):
            stream.write(script.add(op.text))
        elif isinstance(op, (Symbol, Media)):
            stream.write(script.add(self._text_of(node, op)))
        elif isinstance(op, Dynamic):
            self.inexact["what follows depends on the run"] = None
        elif isinstance(op, RoleBegin):
            stream.write(script.begin_turn(op.role))
        elif isinstance(op, RoleEnd):
            stream.write(script.end_turn())
        elif isinstance(op, Tell):
            stream.write(script.tell(op.message))
        elif isinstance(op, Reply):
            if script.templated:
                script.place(stream.mark())
            stream.write(script.reply(op.message))
        elif isinstance(op, CaptureBegin):
            script.begin_capture(op.name)
        elif isinstance(op, CaptureEnd):
            self._values[node.id] = script.end_capture(op.name)
        elif is_request(node):
            self._request(node, stream)
        else:
            self._move(node, stream)

    def _move(self, node: Node, stream: Track) -> None:
        """Nodes that concern the sequence itself."""
        op = node.op
        if isinstance(op, Fork):
            self._fork(node, op, stream)
        elif isinstance(op, Join):
            self._join(node, op, stream)
        elif isinstance(op, Ask):
            self._ask(node, op, stream)
        elif isinstance(op, Checkpoint):
            stream.places[op.number] = stream.mark(), stream.script.copy(captures=True)
        elif isinstance(op, Rollback):
            mark, script = stream.places[op.number]
            stream.rewind(mark)
            stream.script = script.copy(captures=True)
        elif isinstance(op, Restart):
            kept = [m for m in stream.script.messages[:1] if m["role"] == "system"] if op.keep_system else []
            stream.rewind(Track(stream.script).mark())
            script = stream.script = Transcript(self._format)
            for message in kept:
                stream.write(script.begin_turn("system") + script.add(message["content"]) + script.end_turn())

    def _fork(self, node: Node, op: Fork, stream: Track) -> None:
        self._commit(stream)
        if not all(self._order.is_over(at, node.id) for at in self.positions.between(stream.computed, stream.at)):
            start = stream.computed
            call = self._ask_for(node, "fork", stream, stream.at)
            self._prefixes.append((call, start))
        for child in op.children:
            script = stream.script.copy()
            branch = self._streams[child] = Track(script, inherited=script.num_pieces)
            branch.rewind(stream.mark())

    def _join(self, node: Node, op: Join, stream: Track) -> None:
        if op.mode != "concate_and_append":
            return
        for source in node.sources:
            branch = self._streams[self.graph.nodes[source].stream]
            if branch is not stream:
                stream.write(stream.script.add(branch.script.text_from(branch.inherited)))

    def _ask(self, node: Node, op: Ask, stream: Track) -> None:
        script = stream.script
        messages = noted(script.messages, op.note)
        if self._render is None or self._render([shown(m) for m in messages], op.tools) is None:
            stream.write(script.begin_turn("assistant"))
            return

        def rendered(messages: Sequence[Message], tools: Sequence[ToolSpec]) -> str | None:
            text = self._render([shown(message) for message in messages], tools)
            return None if text is None else str(text)

        change = reconciled(rendered, messages, op.tools, script.text, self._history)
        text = change.text
        if change.common is not None:
            place = script.rewind(change.common)
            stream.rewind(Track(script).mark() if place is None else place[1])  # type: ignore[arg-type]
            if place is None:
                script.place(stream.mark())
            else:
                text = text[place[0] :]
        stream.write(script.ask(text, op.tools))
        script.place(stream.mark())

    def _text_of(self, node: Node, op: Symbol | Media) -> str:
        """The text of a node that stands for some, or a gap."""
        record = self.graph.records.get(node.id)
        if record is not None and record.text:
            return record.text
        if isinstance(op, VarRef) and op.source in self._values:
            source = self.graph.nodes[op.source]
            if isinstance(source.op, CaptureEnd) or variable(source) == op.name:
                return self._values[op.source]
        if isinstance(op, Media):
            return self.encoder.mark(Gap(op.kind, ("media", op)))
        if isinstance(op, VarRef):
            return self.encoder.mark(Gap(op.name, ("var", op.source, op.name), self._assume.get(op.name)))
        if isinstance(op, Arg):
            return self.encoder.mark(Gap(op.name, ("arg", op.name), self._assume.get(op.name)))
        return self.encoder.mark(Gap(op.source if isinstance(op, Computed) else repr(op), ("node", node.id)))

    # --- requests ---

    def _request(self, node: Node, stream: Track) -> None:
        record = self.graph.records.get(node.id)
        if self.graph.records and record is None:
            stream.dead = True  # it failed before, or has not come to this yet
            return
        if isinstance(node.op, Select):
            self._select(node, node.op, stream)
        elif isinstance(node.op, Reasoned):
            mark = stream.mark()
            self._generate(node, node.op.gen, stream)
            stream.rewind(mark)
            text = record.text if record is not None else self.encoder.mark(Gap(str(variable(node)), ("var", node.id)))
            self._say(node, stream, text)
        elif isinstance(node.op, Gen):
            text = self._generate(node, node.op, stream)
            self._values[node.id] = stream.script.add(text)
        if record is not None and record.error is not None:
            self.inexact["a request failed; what it cost before it did is not known"] = None
            stream.dead = True

    def _say(self, node: Node, stream: Track, text: str) -> None:
        self._values[node.id] = text
        stream.write(stream.script.add(text))

    def _commit(self, stream: Track) -> None:
        """Encodes the text that is pending."""
        if stream.pending or stream.fresh:
            stream.at, gaps, names = self._follow(stream.at, stream.pending, stream.fresh)
            stream.gaps, stream.names = stream.gaps + gaps, first_names((*stream.names, *names))
            stream.pending, stream.fresh = "", False

    def _follow(self, at: int, text: str, first: bool) -> tuple[int, int, list[str]]:
        """Where ``text`` leads from ``at``, and its gaps."""
        gaps = []
        pieces = list(self.encoder.parts(text)) or [""]
        for index, piece in enumerate(pieces):
            if isinstance(piece, str):
                at = self.positions.follow(at, self.encoder.known(piece, first=first and index == 0))
            elif piece.length is None:
                at = self.positions.follow(at, [(piece.key, "?")], known=False)
                self.gaps[at] = piece.name
                gaps.append(piece.name)
            else:
                at = self.positions.follow(at, [(piece.key, i) for i in range(piece.length)])
        return at, len(gaps), gaps

    def _ask_for(
        self, node: Node, kind: str, stream: Track, end: int, gaps: int = 0, names: Sequence[str] = ()
    ) -> Call:
        """A request whose prompt is everything up to ``end``."""
        found = self.positions.carry(stream.carried, end, len(self.calls))
        depth = self.positions.depth
        prompt = Tokens(depth(end), stream.gaps + gaps, (*stream.names, *names))
        call = Call(node.id, kind, prompt, end, found, depth(found), Tokens(0))
        self.calls.append(call)
        if end == stream.at:
            stream.carried = end
            stream.computed = stream.computed if kind == "fork" else end
        return call

    def _generate(self, node: Node, op: Gen, stream: Track) -> str:
        """The requests of a gen; its output joins the sequence. Returns the output's text."""
        self._commit(stream)
        record = self.graph.records.get(node.id)
        metas = [] if record is None else metas_of(record)
        several = op.sampling.n or 1
        requests = max(len(metas), 1 if record is not None else several)
        start = stream.at
        for index in range(requests):
            call = self._ask_for(node, "gen", stream, start)
            if index < len(metas):
                call.completion = Tokens(number_of(metas[index], "completion_tokens"))
                call.forced = number_of(metas[index], "forced_tokens")
        joining = requests - several if requests > several else 0
        writer = len(self.calls) - requests + joining
        if record is None:
            return self._foretold(node, op, stream, writer)
        self.rewritten += sum(max(0, int(call.completion) - 1) for call in self.calls[writer + 1 :])
        meta = metas[joining] if joining < len(metas) else {}
        self._written(stream, writer, record, meta, op.sampling.max_new_tokens or 0)
        return record.text

    def _foretold(self, node: Node, op: Gen, stream: Track, writer: int) -> str:
        """An output nobody knows yet."""
        name = op.name or f"output of %{node.id}"
        length = self._assume.get(op.name) if op.name is not None else None
        key = ("var", node.id)
        if length is None:
            stream.at = self.positions.follow(stream.at, [(key, "?")], known=False)
            stream.gaps, stream.names = stream.gaps + 1, first_names((*stream.names, name))
            stream.carried = stream.computed = stream.at
            self.calls[writer].completion = Tokens(0, 1, (name,))
        else:
            self._join_output(stream, writer, [(key, i) for i in range(length)], length, 0, True)
            self.calls[writer].completion = Tokens(length)
        return self.encoder.mark(Gap(name, (key, "text"), length))

    def _written(self, stream: Track, writer: int, record: NodeRecord, meta: Mapping[str, Any], limit: int) -> None:
        """The output of a run: its ids if they are known, else those of its text, or stand-ins that are equal where
        outputs are equal."""
        text, count = record.text, number_of(meta, "completion_tokens")
        ids: Sequence[Hashable] = record.token_ids or ()
        reason = meta.get("finish_reason")
        stopped = isinstance(reason, Mapping) and reason.get("type") == "stop"
        matched = reason["matched"] if isinstance(reason, Mapping) and stopped and "matched" in reason else None
        told = len(ids) == count
        if not told:
            found = self.encoder.known(text, first=False) if self.encoder.has_ids and text else ()
            found = (*found, matched) if isinstance(matched, int) else found
            ids = found if len(found) == count else [("out", text, count, i) for i in range(count)]
            self._guessed.append((writer, stream.at, ids))
        kept = count
        if isinstance(matched, int):
            kept = count - 1
        elif isinstance(matched, str):
            kept = min(count, len(self.encoder.known(text, first=False)) if text else 0)
            self.inexact["a stop string ended an output: how many of its tokens stay is taken from its text"] = None
        start = stream.at
        self._join_output(stream, writer, ids, kept, number_of(meta, "forced_tokens"), told)
        looked_ahead = self._overlap is not False and not 0 < limit <= count
        if stopped and looked_ahead and count:
            parent = self.positions.follow(start, ids[: count - 1])
            self.positions.write(parent, ids[count - 1 :], writer, sure=0)
            if isinstance(matched, int):
                self._stops.append((writer, parent, self.positions.follow(parent, ids[count - 1 :])))

    def _join_output(
        self, stream: Track, writer: int, ids: Sequence[Hashable], kept: int, forced: int, told: bool
    ) -> None:
        """``kept`` of the output's tokens join the sequence; all but the last were computed, forced ones perhaps.

        ``told``: these are its ids. If not, whoever else has the same tokens there may have others in truth.
        """
        start, computed = stream.at, ids[: max(0, len(ids) - 1)]
        sure = max(0, len(computed) - forced)
        self.positions.write(start, computed, writer, sure if told else 0)
        stream.at = self.positions.follow(start, ids[:kept])
        stream.carried = stream.computed = self.positions.follow(start, ids[: min(kept, sure)])

    def _select(self, node: Node, op: Select, stream: Track) -> None:
        follow, text = self._follow, stream.pending
        for choice in op.choices:
            end, gaps, names = follow(stream.at, text + choice, stream.fresh)
            self._ask_for(node, "score", stream, end, gaps, names)
        if op.method.requires_unconditional_logprobs:
            self._score_alone(node, op, stream)
        record = self.graph.records.get(node.id)
        gap = Gap(op.name or f"choice of %{node.id}", ("var", node.id), self._assume.get(op.name or ""))
        self._say(node, stream, record.text if record is not None else self.encoder.mark(gap))

    def _score_alone(self, node: Node, op: Select, stream: Track) -> None:
        """Each choice once more, after nothing but the token that every sequence begins with."""
        if any(isinstance(part, Gap) for part in self.encoder.parts(stream.pending)):
            self.inexact["choices are scored alone after text that is not known yet"] = None
        known = "".join(part for part in self.encoder.parts(stream.pending) if isinstance(part, str))
        texts = [known, *(known + choice for choice in op.choices)]
        encoded = [self.encoder.known(text, first=stream.fresh) for text in texts]
        common = next((i for i, column in enumerate(zip(*encoded, strict=False)) if len(set(column)) > 1), None)
        common = min(map(len, encoded)) if common is None else common
        alone = Track(stream.script, at=self.positions.follow(ROOT, self.encoder.known("", first=True)))
        starts = alone.at == ROOT and stream.at == ROOT and not common  # nothing precedes the first: it has no score
        for ids in encoded[1:]:
            end = self.positions.follow(alone.at, ids[common + starts :])
            self._ask_for(node, "score", alone, end)
