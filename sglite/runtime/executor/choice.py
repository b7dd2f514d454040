"""What is sampled and scored in a step, as far as it is known before the step runs: of which hidden states, how each
row is drawn from, where the results belong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

from torch import Tensor

from sglite.runtime.backend.draws import Draws
from sglite.runtime.executor.rows import RowState
from sglite.runtime.protocol import RowStep, SampleTask, SchedulerOutput, ScoreTask
from sglite.runtime.sample.adjust import SampleRow
from sglite.runtime.sample.draw import draws_of
from sglite.runtime.spec.base import draft_depths

_NO_DRAFTS = (0,)
"""Depths of what is sampled without any."""
Stage = Callable[[Sequence[int]], Tensor]
"""``Backend.stage``."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Of a step with samples or scores. Indices are ``None`` where they are all of them, in their order."""

    states: list[RowState]
    """Of the rows that are sampled, task by task: their slots may be others' when the results come."""
    greedy: bool
    """Nothing but the most likely token of each row is wanted: then nobody looks at the logits."""
    picked: list[int]
    """[n] hidden states that logits are made of, each once."""
    wanted: Tensor | None
    """[n] the same on the device."""
    slots: Tensor
    """[samples] the tasks' slots."""
    scored: list[tuple[RowState, Tensor]]
    """By score: its row's state, and which of the logits are its own."""
    sampled: Tensor | None
    """[m] logits that are sampled from."""
    rows: list[SampleRow]
    """[m] how; none where it is greedy."""
    draws: Draws | None
    constrained: list[int]
    """Which of those have masks."""

    @property
    def counts(self) -> bool:
        """Tokens of some row are counted: nothing can be sampled before the steps before it have been finished."""
        return any(state.counts is not None for state in self.states)


def choice_of(
    step: SchedulerOutput, first: Sequence[int], states: Callable[[int], RowState], stage: Stage
) -> Choice | None:
    """``first``: where each row's tokens begin, and their number; ``states``: by slot. ``None``: nothing is wanted."""
    if not (step.samples or step.scores):
        return None
    own = [states(task.slot) for task in step.samples]
    greedy = not step.scores and all(_is_plain(*pair, step) for pair in zip(step.samples, own, strict=True))
    tasks = [_hidden(task, step.rows, first, len(task.targets)) for task in step.scores]
    tasks += [_hidden(task, step.rows, first, 1 + len(drafts(task, step.rows))) for task in step.samples]
    picked = [*chain.from_iterable(tasks)] if greedy else [*dict.fromkeys(chain.from_iterable(tasks))]
    wanted = None if picked == [*range(first[-1])] else stage(picked)
    slots = stage([task.slot for task in step.samples])
    if greedy:
        return Choice(own, True, picked, wanted, slots, [], None, [], None, [])
    place = {index: number for number, index in enumerate(picked)}
    places = [[place[index] for index in task] for task in tasks]
    rows, constrained = _sample_rows(step, own)
    flat = [*chain.from_iterable(places[len(step.scores) :])]
    return Choice(
        states=own,
        greedy=False,
        picked=picked,
        wanted=wanted,
        slots=slots,
        scored=[(states(task.slot), stage(mine)) for task, mine in zip(step.scores, places, strict=False)],
        sampled=None if flat == [*range(len(picked))] else stage(flat),
        rows=rows,
        draws=draws_of(rows) if rows else None,
        constrained=constrained,
    )


def drafts(task: SampleTask, rows: Sequence[RowStep]) -> Sequence[int]:
    """Parents of the drafts that a task verifies: those of its own row."""
    row = rows[task.row]
    return row.parents if row.parents is not None and row.slot == task.slot else ()


def _is_plain(task: SampleTask, state: RowState, step: SchedulerOutput) -> bool:
    free = not task.constrained and not state.bans(task.num_output) and not drafts(task, step.rows)
    return free and state.is_plain


def _hidden(task: SampleTask | ScoreTask, rows: Sequence[RowStep], first: Sequence[int], count: int) -> list[int]:
    """The hidden states of a task: ``count`` from its position on."""
    start = first[task.row] + task.position - rows[task.row].start
    return [start] if count == 1 else [*range(start, start + count)]


def _sample_rows(step: SchedulerOutput, states: Sequence[RowState]) -> tuple[list[SampleRow], list[int]]:
    """A row a task, with drafts one for every node of the tree; and which of them have masks."""
    rows: list[SampleRow] = []
    constrained: list[int] = []
    for task, state in zip(step.samples, states, strict=True):
        tree = drafts(task, step.rows)
        for depth in [0, *draft_depths(tree)] if tree else _NO_DRAFTS:
            if task.constrained:
                constrained.append(len(rows))
            rows.append(_sample_row(task, state, depth))
    return rows, constrained


def _sample_row(task: SampleTask, state: RowState, depth: int) -> SampleRow:
    new = state.new
    return SampleRow(
        params=new.sampling,
        seed=new.seed,
        position=task.position + depth,
        attempt=task.attempt,
        num_output=task.num_output + depth,
        banned_until_min=new.banned_until_min,
        counts=state.counts,
        logprobs=new.logprobs,
    )
