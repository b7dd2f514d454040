"""The worker: turns a planned step into one ragged batch, runs the model, samples. Owns model, pool and row state.

What it keeps between steps is one ``RowState`` a slot (``rows``): the page table, the last sampled token (a row may be
planned before anybody knows that token) and what penalties need. Everything else comes with the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sglite.runtime.backend.base import Backend, ForwardContext
from sglite.runtime.cache.pool import KVPool
from sglite.runtime.executor.base import Masks
from sglite.runtime.executor.rows import Rows, RowState
from sglite.runtime.protocol import (
    PooledState,
    RowStep,
    SampledToken,
    SampleTask,
    SchedulerOutput,
    ScoredTokens,
    ScoreTask,
    StepOutput,
)
from sglite.runtime.sample.logprobs import LogitsNotFinite, not_finite
from sglite.runtime.sample.sampler import Sampler, SampleResult, SampleRow
from sglite.runtime.spec.base import accept_path, draft_depths

_NOT_FINITE = "the hidden state is not finite: the model gave NaN or infinity; check its weights and dtype"
_NO_DRAFTS = (0,)
"""Depths of what is sampled without any."""


class Model(Protocol):
    """What the worker needs of a model."""

    def forward(self, input_ids: Tensor, positions: Tensor, context: ForwardContext) -> Tensor:
        """[T] ids and positions to [T, hidden]."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, hidden] to [n, vocab] in float32."""
        ...

    def greedy(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """[n, hidden] to the most likely ids [n] and their logits [n], which tell where there are none."""
        ...

    def pooled(self, hidden: Tensor) -> Tensor:
        """[n, hidden] to [n, size]: what stands for the texts that end there."""
        ...


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
        self._rows = Rows(pool.page_size, pool.num_pages if pool.num_frames else 0, bool(pool.states))

    @torch.inference_mode()
    def execute(self, step: SchedulerOutput, masks: Callable[[], Masks | None]) -> StepOutput:
        """Run a step; see ``Worker``."""
        self._prepare(step)
        hidden, first = self._forward(step)
        output = StepOutput(step_id=step.step_id)
        output.pools = self._pooled(step, hidden, first)
        if self._is_greedy(step):
            output.samples = self._greedy(step, hidden, first)
        else:
            logits, picked = self._logits(step, hidden, first)
            output.scores = [self._score(task, logits, picked[place]) for place, task in enumerate(step.scores)]
            output.samples = self._sample(step, logits, picked[len(step.scores) :], masks())
        self._backend.copy_states(self._pool, step.checkpoints)
        return output

    def _prepare(self, step: SchedulerOutput) -> None:
        """Bring the row states up to date and copy pages."""
        self._rows.update(step)
        self._backend.copy_pages(self._pool, step.copies)
        if self._pool.num_frames:
            self._backend.copy_pages(self._pool, step.frame_copies, frames=True)
        self._backend.copy_states(self._pool, step.state_copies)

    def _forward(self, step: SchedulerOutput) -> tuple[Tensor, list[int]]:
        """Run the model; hidden states [T, hidden] after the final norm, and the index of each row's first token."""
        layout, token_ids, first = self._rows.batch(step.rows)
        if not token_ids:
            return torch.empty(0), first
        device = self._backend.device
        context = ForwardContext(self._backend, self._backend.plan(layout), self._pool)
        ids = torch.tensor(token_ids, device=device)
        return self._model.forward(ids, torch.tensor(layout.positions, device=device), context), first

    def _is_greedy(self, step: SchedulerOutput) -> bool:
        """Whether nothing but the most likely token of each row is wanted: then nobody looks at the logits."""
        return bool(step.samples) and not step.scores and all(self._is_plain(task, step) for task in step.samples)

    def _is_plain(self, task: SampleTask, step: SchedulerOutput) -> bool:
        state = self._rows[task.slot]
        free = not task.constrained and not state.bans(task.num_output) and not _drafts(task, step.rows)
        return free and state.is_plain

    def _greedy(self, step: SchedulerOutput, hidden: Tensor, first: list[int]) -> list[SampledToken]:
        """The most likely token of each task's row."""
        picked = [index for task in step.samples for index in _hidden(task, step.rows, first, 1)]
        if picked != [*range(len(hidden))]:
            hidden = hidden[torch.tensor(picked, device=hidden.device)]
        ids, tops = self._model.greedy(hidden)
        samples = []
        for task, token, top in zip(step.samples, ids.tolist(), tops.tolist(), strict=True):
            error = not_finite(top)
            if error is None:
                self._rows[task.slot].last_token = token
            samples.append(SampledToken(slot=task.slot, token_ids=[token] if error is None else [], error=error))
        return samples

    def _logits(self, step: SchedulerOutput, hidden: Tensor, first: list[int]) -> tuple[Tensor, list[list[int]]]:
        """Logits [n, vocab] that scores and samples need, each position once; and, for each score and then each
        sample, which rows of them are its own."""
        tasks = [_hidden(task, step.rows, first, len(task.targets)) for task in step.scores]
        tasks += [_hidden(task, step.rows, first, 1 + len(_drafts(task, step.rows))) for task in step.samples]
        wanted = dict.fromkeys(chain.from_iterable(tasks))
        if not wanted:
            return torch.empty(0), tasks
        picked = [*wanted]
        if picked == [*range(len(hidden))]:
            return self._model.logits(hidden), tasks
        place = dict(zip(picked, range(len(picked)), strict=True))
        logits = self._model.logits(hidden[torch.tensor(picked, device=hidden.device)])
        return logits, [[place[index] for index in task] for task in tasks]

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

    def _score(self, task: ScoreTask, logits: Tensor, picked: list[int]) -> ScoredTokens:
        """Logprobs of known tokens, by the rows ``picked`` of the logits."""
        options = self._rows[task.slot].new.logprobs
        assert options is not None
        try:
            logprobs = self._sampler.score(logits[torch.tensor(picked, device=logits.device)], task.targets, options)
        except LogitsNotFinite as error:
            return ScoredTokens(slot=task.slot, position=task.position, logprobs=[], error=str(error))
        return ScoredTokens(slot=task.slot, position=task.position, logprobs=logprobs)

    def _sample(
        self, step: SchedulerOutput, logits: Tensor, picked: list[list[int]], masks: Masks | None
    ) -> list[SampledToken]:
        """One token a task, or with drafts the accepted path: every node of the tree is sampled at once.

        ``picked``: the rows of the logits that belong to each task.
        """
        if not step.samples:
            return []
        rows: list[SampleRow] = []
        constrained: list[int] = []
        for task in step.samples:
            state, drafts = self._rows[task.slot], _drafts(task, step.rows)
            for depth in [0, *draft_depths(drafts)] if drafts else _NO_DRAFTS:
                if task.constrained:
                    constrained.append(len(rows))
                rows.append(_sample_row(task, state, depth))
        flat = [*chain.from_iterable(picked)]
        if flat != [*range(len(logits))]:
            logits = logits[torch.tensor(flat, device=logits.device)]
        results = self._sampler.sample(logits, rows, _full_mask(len(rows), constrained, masks))
        if len(results) == len(step.samples):
            return [self._note(task, [result]) for task, result in zip(step.samples, results, strict=True)]
        every = iter(results)
        return [self._note(task, _accepted(task, step.rows, every)) for task in step.samples]

    def _note(self, task: SampleTask, accepted: list[SampleResult]) -> SampledToken:
        """Take a task's results, remember their end for the rows and penalties that follow."""
        tokens = []
        for result in accepted:
            if result.error is not None:
                return SampledToken(slot=task.slot, token_ids=[], error=result.error)
            tokens.append(result.token_id)
        state = self._rows[task.slot]
        state.last_token = tokens[-1]
        if state.counts is not None:
            state.counts.add(tokens)
        logprobs = [result.logprob for result in accepted if result.logprob is not None]
        return SampledToken(slot=task.slot, token_ids=tokens, logprobs=logprobs)


def _hidden(task: SampleTask | ScoreTask, rows: list[RowStep], first: list[int], count: int) -> list[int]:
    """The hidden states of a task: ``count`` from its position on."""
    start = first[task.row] + task.position - rows[task.row].start
    return [start] if count == 1 else [*range(start, start + count)]


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


def _drafts(task: SampleTask, rows: list[RowStep]) -> Sequence[int]:
    """Parents of the drafts that a task verifies: those of its own row."""
    row = rows[task.row]
    return row.parents if row.parents is not None and row.slot == task.slot else ()


def _accepted(task: SampleTask, rows: list[RowStep], results: Iterator[SampleResult]) -> list[SampleResult]:
    """Of a task's results, which it takes, those on the accepted path."""
    parents = _drafts(task, rows)
    tree = [*islice(results, 1 + len(parents))]
    drafts = rows[task.row].token_ids[len(rows[task.row].token_ids) - len(parents) :]
    return [tree[node] for node in accept_path(drafts, parents, [result.token_id for result in tree])]


def _full_mask(count: int, constrained: list[int], masks: Masks | None) -> Tensor | None:
    """Bitmasks for ``count`` rows of logits: those supplied for the ``constrained`` ones, all ones for the others."""
    if masks is None or len(masks) == 0:
        return None
    if len(masks) == count:
        return torch.from_numpy(masks)
    full = np.full((count, masks.shape[1]), -1, dtype=np.int32)
    full[constrained] = masks
    return torch.from_numpy(full)
