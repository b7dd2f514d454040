"""What a step will do, while it is put together and until its results come back.

A plan is the SchedulerOutput the executor gets plus what only the scheduler needs to read the StepOutput:
which request each sample, score and hidden state belongs to, and how far each row brings its request.
"""

from __future__ import annotations

from dataclasses import dataclass

from sglite.runtime.cache.node import RadixNode
from sglite.runtime.engine.request import Request, owner_of
from sglite.runtime.engine.row_order import RowOrder
from sglite.runtime.protocol import CopyPages, PoolTask, RowStep, SampleTask, SchedulerOutput, ScoreTask


@dataclass(frozen=True)
class SchedulerLimits:
    """Budgets of a step and of the engine."""

    max_step_tokens: int = 2048
    """Tokens computed a step."""
    max_running: int = 64
    """Requests admitted at once."""
    chunk_size: int | None = None
    """Tokens of one request a step; ``None``: whatever the step leaves."""
    pin_budget: float = 0.5
    """Share of the pages that only pins may lock."""
    look_ahead: bool = False
    """Plan a row for a token that the step in flight is still sampling."""


class StepPlan:
    """A step under construction, bounded by ``token_budget`` tokens."""

    def __init__(self, step_id: int, token_budget: int) -> None:
        self.output = SchedulerOutput(step_id=step_id)
        self.tokens_left = token_budget
        self.computed: list[tuple[Request, int]] = []
        """Who is computed to which depth afterwards, by a row of its own or by somebody else's."""
        self.sampled: list[Request] = []
        self.scored: list[Request] = []
        self.pooled: list[Request] = []
        self.members: list[Request] = []
        """Everyone whose ``in_flight`` counts this step."""
        self._row_of: dict[Request, int] = {}
        self._again: dict[tuple[RadixNode, int], int] = {}
        """Rows that compute a position once more for its logits."""

    @property
    def step_id(self) -> int:
        """Number of the step."""
        return self.output.step_id

    @property
    def is_empty(self) -> bool:
        """Nothing to compute and nobody waits for its end."""
        return not self.members

    def join(self, request: Request) -> None:
        """``request`` takes part in the step."""
        if not self.members or self.members[-1] is not request:
            request.in_flight += 1
            self.members.append(request)

    def add_row(self, request: Request, row: RowStep, depth: int, copies: list[CopyPages]) -> int:
        """Compute ``row``, which brings ``request`` to ``depth`` (drafts not counted); returns the row's index."""
        index = len(self.output.rows)
        self.output.rows.append(row)
        self.output.copies.extend(copies)
        self.tokens_left -= len(row.token_ids)
        self._row_of[request] = index
        self.computed.append((request, depth))
        self.join(request)
        return index

    def row_covering(self, node: RadixNode, position: int) -> int | None:
        """Index of the row in which the owner of ``node`` computes ``position`` in this step."""
        owner = owner_of(node)
        index = None if owner is None else self._row_of.get(owner)
        if index is None:
            return None
        row = self.output.rows[index]
        return index if row.start <= position < row.start + len(row.token_ids) else None

    def note_replay(self, node: RadixNode, position: int, row: int) -> None:
        """``row`` computes ``position``, in ``node``, although it is in the cache."""
        self._again.setdefault((node, position), row)

    def row_with_logits(self, node: RadixNode, position: int) -> int | None:
        """Index of a row of this step that gives the logits at ``position`` of the path with ``node``."""
        row = self.row_covering(node, position)
        return self._again.get((node, position)) if row is None else row

    def sort_rows(self, row_order: RowOrder) -> None:
        """Let rows that share a prefix stand side by side. What a row gives does not depend on its place."""
        rows = self.output.rows
        if len(rows) < 3:
            return
        order = row_order.of([request.cursor.node for request in self._row_of if request.cursor is not None])
        if order == [*range(len(rows))]:
            return
        self.output.rows = [rows[index] for index in order]
        place = [0] * len(order)
        for new, old in enumerate(order):
            place[old] = new
        for sample in self.output.samples:
            sample.row = place[sample.row]
        for score in self.output.scores:
            score.row = place[score.row]
        for pool in self.output.pools:
            pool.row = place[pool.row]
        self._again = {at: place[row] for at, row in self._again.items()}

    def add_sample(self, request: Request, row: int, position: int) -> None:
        """Sample the token after ``position`` for ``request`` from the logits of ``row``."""
        task = SampleTask(
            slot=request.slot,
            row=row,
            position=position,
            num_output=request.num_output + request.num_unknown,
            attempt=0 if request.grammar is None else request.grammar.attempt(position + 1),
            constrained=request.grammar is not None,
        )
        self.output.samples.append(task)
        if request.unsent_forced:
            self.output.appended[request.slot] = request.unsent_forced
            request.unsent_forced = []
        self.sampled.append(request)
        request.samples_in_flight.append(None)
        if request.program is not None:
            request.program.service += 1
        self.join(request)

    def add_pool(self, request: Request, row: int, position: int) -> None:
        """Give ``request`` the hidden state of ``row`` at ``position``."""
        self.output.pools.append(PoolTask(slot=request.slot, row=row, position=position))
        self.pooled.append(request)
        self.join(request)

    def add_scores(self, request: Request, row_index: int) -> None:
        """Score the known tokens that ``request`` still wants scored and whose logits the row gives."""
        state = request.logprobs
        if state is None:
            return
        row = self.output.rows[row_index]
        end = row.start + len(row.token_ids)
        while state.unscored and state.unscored[0] - 1 < end:
            first = state.unscored.popleft()
            targets = [request.tokens[first]]
            while state.unscored and state.unscored[0] == first + len(targets) and state.unscored[0] - 1 < end:
                targets.append(request.tokens[state.unscored.popleft()])
            self._add_score(request, row_index, first - 1, targets)

    def share_score(self, request: Request, row_index: int) -> None:
        """Score the first token that ``request`` wants scored by the logits of somebody else's row."""
        assert request.logprobs is not None
        first = request.logprobs.unscored.popleft()
        self._add_score(request, row_index, first - 1, [request.tokens[first]])
        self.join(request)

    def _add_score(self, request: Request, row_index: int, position: int, targets: list[int]) -> None:
        self.output.scores.append(ScoreTask(slot=request.slot, row=row_index, position=position, targets=targets))
        self.scored.append(request)
        request.scores_in_flight += len(targets)
