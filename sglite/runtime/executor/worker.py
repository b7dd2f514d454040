"""The worker: turns a planned step into one ragged batch, runs the model, samples. Owns model, pool and row state.

What it keeps between steps is one ``RowState`` a slot: the page table, the last sampled token (a row may be planned
before anybody knows that token) and what penalties need. Everything else comes with the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sglite.runtime.backend.base import Backend, BatchLayout, ForwardContext
from sglite.runtime.cache.pool import KVPool
from sglite.runtime.executor.base import Masks
from sglite.runtime.protocol import (
    UNKNOWN_TOKEN,
    NewRow,
    PooledState,
    RowStep,
    SampledToken,
    SampleTask,
    SchedulerOutput,
    ScoredTokens,
    ScoreTask,
    StepOutput,
)
from sglite.runtime.sample.logprobs import LogitsNotFinite
from sglite.runtime.sample.penalties import TokenCounts
from sglite.runtime.sample.sampler import Sampler, SampleResult, SampleRow
from sglite.runtime.spec.base import accept_path, draft_depths

_NOT_FINITE = "the hidden state is not finite: the model gave NaN or infinity; check its weights and dtype"


class Model(Protocol):
    """What the worker needs of a model."""

    def forward(self, input_ids: Tensor, positions: Tensor, context: ForwardContext) -> Tensor:
        """[T] ids and positions to [T, hidden]."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden] to [n, vocab] in float32."""
        ...

    def pooled(self, hidden: Tensor) -> Tensor:
        """[n, hidden] to [n, size]: what stands for the texts that end there."""
        ...


@dataclass
class RowState:
    """What a slot stands for while its request runs."""

    new: NewRow
    counts: TokenCounts | None
    pages: list[int] = field(default_factory=list)
    last_token: int = UNKNOWN_TOKEN


class ModelWorker:
    """Runs steps of a model on a backend.

    Args:
        model: the network.
        backend: the device.
        pool: keys, values and states; its page and slot numbers are the scheduler's.
    """

    def __init__(self, model: Model, backend: Backend, pool: KVPool) -> None:
        self._model = model
        self._backend = backend
        self._pool = pool
        self._sampler = Sampler(backend.apply_mask)
        self._rows: dict[int, RowState] = {}
        self._frames = np.full(pool.num_pages if pool.num_frames else 0, -1, dtype=np.int64)
        """The frame of every page, in the groups that are kept in frames."""

    @torch.inference_mode()
    def execute(self, step: SchedulerOutput, masks: Callable[[], Masks | None]) -> StepOutput:
        """Run a step; see ``Worker``."""
        self._prepare(step)
        hidden, first = self._forward(step)
        logits, index = self._logits(step, hidden, first)
        output = StepOutput(step_id=step.step_id)
        output.pools = self._pooled(step, hidden, first)
        output.scores = [self._score(task, logits, index) for task in step.scores]
        output.samples = self._sample(step, logits, index, masks())
        self._backend.copy_states(self._pool, step.checkpoints)
        return output

    def _prepare(self, step: SchedulerOutput) -> None:
        """Bring the row states up to date and copy pages."""
        for slot in step.released:
            self._rows.pop(slot, None)
        for new in step.new_rows:
            counts = TokenCounts(new.prompt_ids, new.output_ids) if new.sampling.has_penalties else None
            self._rows[new.slot] = RowState(new, counts)
        for row in step.rows:
            self._rows[row.slot].pages[row.pages_from :] = row.pages
        for slot, tokens in step.appended.items():
            counts = self._rows[slot].counts
            if counts is not None:
                counts.add(tokens)
        self._backend.copy_pages(self._pool, step.copies)
        if self._pool.num_frames:
            self._frames[list(step.frames)] = list(step.frames.values())
            self._backend.copy_pages(self._pool, step.frame_copies, frames=True)
        self._backend.copy_states(self._pool, step.state_copies)

    def _forward(self, step: SchedulerOutput) -> tuple[Tensor, list[int]]:
        """Run the model; hidden states [T, hidden] after the final norm, and the index of each row's first token."""
        layout, token_ids, first = self._layout(step.rows)
        if not token_ids:
            return torch.empty(0), first
        device = self._backend.device
        context = ForwardContext(self._backend, self._backend.plan(layout), self._pool)
        ids = torch.tensor(token_ids, device=device)
        return self._model.forward(ids, torch.tensor(layout.positions, device=device), context), first

    def _logits(
        self, step: SchedulerOutput, hidden: Tensor, first: list[int]
    ) -> tuple[Tensor, dict[tuple[int, int], int]]:
        """Logits [n, vocab] that scores and samples need, and where (row, position) stands among them."""
        wanted: dict[tuple[int, int], int] = {}
        for score in step.scores:
            for offset in range(len(score.targets)):
                wanted.setdefault((score.row, score.position + offset), len(wanted))
        for sample in step.samples:
            for node in range(len(_drafts(sample, step.rows)) + 1):
                wanted.setdefault((sample.row, sample.position + node), len(wanted))
        if not wanted:
            return torch.empty(0), wanted
        picked = [first[row] + position - step.rows[row].start for row, position in wanted]
        return self._model.logits(hidden[torch.tensor(picked, device=hidden.device)]), wanted

    def _pooled(self, step: SchedulerOutput, hidden: Tensor, first: list[int]) -> list[PooledState]:
        """The hidden states that the tasks ask for."""
        if not step.pools:
            return []
        picked = [first[task.row] + task.position - step.rows[task.row].start for task in step.pools]
        last = hidden[torch.tensor(picked, device=hidden.device)]
        vectors = self._model.pooled(last).float().cpu().numpy().astype("<f4")
        return [
            PooledState(slot=task.slot, hidden=vector.tobytes())
            if np.isfinite(vector).all()
            else PooledState(slot=task.slot, error=_NOT_FINITE)
            for task, vector in zip(step.pools, vectors, strict=True)
        ]

    def _layout(self, rows: list[RowStep]) -> tuple[BatchLayout, list[int], list[int]]:
        """The batch in plain integers, its token ids, and the index of each row's first token."""
        size = self._pool.page_size
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        starts = [0]
        for row in rows:
            state = self._rows[row.slot]
            ids = row.token_ids
            if ids[-1] == UNKNOWN_TOKEN:
                ids = [*ids[:-1], state.last_token]
            token_ids.extend(ids)
            end = row.start + len(ids)
            known = end - len(row.parents or [])
            positions.extend(range(row.start, known))
            positions.extend(known - 1 + depth for depth in draft_depths(row.parents or []))
            slots.extend([-1] * (row.store_from - row.start))
            slots.extend(state.pages[p // size] * size + p % size for p in range(row.store_from, end))
            starts.append(len(token_ids))
        framed = self._pool.num_frames > 0
        layout = BatchLayout(
            query_starts=starts,
            starts=[row.start for row in rows],
            seq_lens=[row.start + len(row.token_ids) for row in rows],
            positions=positions,
            slot_mapping=slots,
            page_tables=[self._rows[row.slot].pages for row in rows],
            page_size=size,
            parents=[row.parents for row in rows],
            state_slots=[row.state_slots for row in rows] if self._pool.states else None,
            frame_mapping=[slot for row in rows for slot in self._frame_slots(row)] if framed else None,
            frame_tables=[self._frames[self._rows[row.slot].pages].tolist() for row in rows] if framed else None,
        )
        return layout, token_ids, starts

    def _frame_slots(self, row: RowStep) -> Iterator[int]:
        """Where the tokens of a row are stored in frames: new ones, and those that layers with a window had lost."""
        size, pages = self._pool.page_size, self._rows[row.slot].pages
        for position in range(row.start, row.start + len(row.token_ids)):
            stored = position >= row.store_from or row.refill[0] <= position < row.refill[1]
            frame = int(self._frames[pages[position // size]]) if stored else -1
            yield frame * size + position % size if stored else -1

    def _score(self, task: ScoreTask, logits: Tensor, index: dict[tuple[int, int], int]) -> ScoredTokens:
        """Logprobs of known tokens."""
        options = self._rows[task.slot].new.logprobs
        assert options is not None
        rows = [index[task.row, task.position + offset] for offset in range(len(task.targets))]
        try:
            logprobs = self._sampler.score(logits[torch.tensor(rows, device=logits.device)], task.targets, options)
        except LogitsNotFinite as error:
            return ScoredTokens(slot=task.slot, position=task.position, logprobs=[], error=str(error))
        return ScoredTokens(slot=task.slot, position=task.position, logprobs=logprobs)

    def _sample(
        self, step: SchedulerOutput, logits: Tensor, index: dict[tuple[int, int], int], masks: Masks | None
    ) -> list[SampledToken]:
        """One token a task, or with drafts the accepted path: every node of the tree is sampled at once."""
        if not step.samples:
            return []
        rows: list[SampleRow] = []
        owners: list[SampleTask] = []
        picked: list[int] = []
        for task in step.samples:
            for node, depth in enumerate([0, *draft_depths(_drafts(task, step.rows))]):
                rows.append(self._sample_row(task, depth))
                owners.append(task)
                picked.append(index[task.row, task.position + node])
        if picked != list(range(len(logits))):
            logits = logits[torch.tensor(picked, device=logits.device)]
        results = iter(self._sampler.sample(logits, rows, _full_mask(owners, masks)))
        return [self._note(task, step.rows, results) for task in step.samples]

    def _sample_row(self, task: SampleTask, depth: int) -> SampleRow:
        state = self._rows[task.slot]
        return SampleRow(
            params=state.new.sampling,
            seed=state.new.seed,
            position=task.position + depth,
            attempt=task.attempt,
            num_output=task.num_output + depth,
            banned_until_min=state.new.banned_until_min,
            counts=state.counts,
            logprobs=state.new.logprobs,
        )

    def _note(self, task: SampleTask, rows: list[RowStep], results: Iterator[SampleResult]) -> SampledToken:
        """Take a task's results, keep the accepted path, remember its end for the rows and penalties that follow."""
        parents, row = _drafts(task, rows), rows[task.row]
        tree = [next(results) for _ in range(len(parents) + 1)]
        drafts = row.token_ids[len(row.token_ids) - len(parents) :] if parents else []
        accepted = [tree[node] for node in accept_path(drafts, parents, [result.token_id for result in tree])]
        error = next((result.error for result in accepted if result.error is not None), None)
        if error is not None:
            return SampledToken(slot=task.slot, token_ids=[], error=error)
        tokens = [result.token_id for result in accepted]
        state = self._rows[task.slot]
        state.last_token = tokens[-1]
        if state.counts is not None:
            state.counts.add(tokens)
        logprobs = [result.logprob for result in accepted if result.logprob is not None]
        return SampledToken(slot=task.slot, token_ids=tokens, logprobs=logprobs)


def _drafts(task: SampleTask, rows: list[RowStep]) -> list[int]:
    """Parents of the drafts that a task verifies: those of its own row."""
    row = rows[task.row]
    return row.parents if row.parents is not None and row.slot == task.slot else []


def _full_mask(owners: list[SampleTask], masks: Masks | None) -> Tensor | None:
    """Bitmasks for all rows of logits, given whose they are: those supplied, all ones where there is no constraint."""
    if masks is None or len(masks) == 0:
        return None
    full = np.full((len(owners), masks.shape[1]), -1, dtype=np.int32)
    full[[i for i, task in enumerate(owners) if task.constrained]] = masks
    return torch.from_numpy(full)
