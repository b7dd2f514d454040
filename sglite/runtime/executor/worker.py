"""The worker: turns a planned step into one ragged batch, runs the model, samples. Owns model, pool and row state.

What it keeps between steps is one ``RowState`` a slot (``rows``): the page table, the last sampled token (a row may be
planned before anybody knows that token) and what penalties need. Everything else comes with the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sglite.runtime.backend.base import Backend, BatchLayout, ForwardContext
from sglite.runtime.cache.pool import KVPool
from sglite.runtime.executor.base import Masks
from sglite.runtime.executor.choice import Choice, choice_of, drafts
from sglite.runtime.executor.graphs import DecodeGraphs
from sglite.runtime.executor.rows import Rows, RowState
from sglite.runtime.executor.stages import Prepared, Running
from sglite.runtime.protocol import (
    PooledState,
    PoolTask,
    RowStep,
    SampledToken,
    SampleTask,
    SchedulerOutput,
    ScoredTokens,
    ScoreTask,
    StepOutput,
)
from sglite.runtime.sample.logprobs import LogitsNotFinite, not_finite
from sglite.runtime.sample.sampler import Sampler, SampleResult, at_once
from sglite.runtime.spec.base import accept_path

_NOT_FINITE = "the hidden state is not finite: the model gave NaN or infinity; check its weights and dtype"


class Model(Protocol):
    """What the worker needs of a model."""

    def angles(self, positions: Tensor) -> Any:
        """What ``forward`` needs of [T] positions."""
        ...

    def forward(self, input_ids: Tensor, positions: Tensor, context: ForwardContext, angles: Any = None) -> Tensor:
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

    A step has parts, so that one may be made ready or launched while another is under way: ``prepare`` makes a batch of
    it, ``launch`` the forward pass, ``choose`` the sampling, ``finish`` waits for the results. ``begin`` is the first
    two, ``execute`` all of them. The first and the last may be done on another thread than those between, each in the
    order of the steps; where tokens are counted (``counts``) nothing of a step may begin before the one before it has
    been finished.

    Args:
        model: the network.
        backend: the device.
        pool: keys, values and states; its page and slot numbers are the scheduler's.
        device_slots: so many slots have their last tokens kept on the device, which lets a step begin before the host
            knows what the one before it sampled; 0: the host keeps them.
        graphs: runs steps in which every row computes one token.
    """

    def __init__(
        self,
        model: Model,
        backend: Backend,
        pool: KVPool,
        *,
        device_slots: int = 0,
        graphs: DecodeGraphs | None = None,
    ) -> None:
        self._model = model
        self._backend = backend
        self._pool = pool
        self._graphs = graphs
        self._sampler = Sampler(backend.sample, backend.fetch if device_slots else at_once)
        self._last = torch.zeros(device_slots, dtype=torch.int64, device=backend.device) if device_slots else None
        frames = pool.num_pages if pool.num_frames else 0
        self._rows = Rows(pool.page_size, frames, bool(pool.states), on_device=device_slots > 0)

    def execute(self, step: SchedulerOutput, masks: Callable[[], Masks | None]) -> StepOutput:
        """Run a step; see ``Worker``."""
        running = self.begin(step)
        self.choose(running, masks)
        return self.finish(running)

    @torch.inference_mode()
    def begin(self, step: SchedulerOutput) -> Running:
        """Take in what the step says of rows and pages, and launch the forward pass."""
        return self.launch(self.prepare(step))

    def counts(self, step: SchedulerOutput) -> bool:
        """Whether tokens are counted, of any row, for penalties. All steps before it have been prepared."""
        return self._rows.counting or any(new.sampling.has_penalties for new in step.new_rows)

    @torch.inference_mode()
    def prepare(self, step: SchedulerOutput) -> Prepared:
        """Take in what the step says of rows, and make a batch of it."""
        self._rows.update(step)
        layout, token_ids, first = self._rows.batch(step.rows)
        stage, unknown = self._backend.stage, self._last is not None and bool(token_ids) and min(token_ids) < 0
        choice = choice_of(step, first, self._rows.__getitem__, stage)
        pooled = [first[task.row] + task.position - step.rows[task.row].start for task in step.pools]
        layout = _wanting(layout, pooled if choice is None else [*pooled, *choice.picked])
        positions, run = stage(layout.positions), None
        if token_ids and (self._graphs is None or not self._graphs.covers(layout)):
            run = (ForwardContext(self._backend, self._backend.plan(layout), self._pool), self._model.angles(positions))
        return Prepared(
            step=step,
            layout=layout,
            ids=stage(token_ids),
            slots=stage([-1 - token for token in token_ids]) if unknown and max(token_ids) < 0 else None,
            unknown=unknown,
            positions=positions,
            run=run,
            pooled=stage(pooled) if pooled else None,
            choice=choice,
        )

    @torch.inference_mode()
    def launch(self, prepared: Prepared, begun: Callable[[], None] | None = None) -> Running:
        """Copy pages and launch the forward pass; ``begun`` is called when that takes its time, where it does."""
        self._copy(prepared.step)
        running = Running(prepared.step, prepared.choice, self._forward(prepared, begun))
        if prepared.pooled is not None:
            running.pools = self._backend.fetch(self._model.pooled(running.hidden[prepared.pooled]).float())
        return running

    @torch.inference_mode()
    def choose(self, running: Running, masks: Callable[[], Masks | None]) -> None:
        """Launch what becomes of the hidden states. ``masks``: see ``Worker``."""
        choice = running.choice
        if choice is not None:
            hidden = running.hidden if choice.wanted is None else running.hidden[choice.wanted]
            if choice.greedy:
                self._greedy(running, choice, hidden)
            else:
                logits = self._model.logits(hidden)
                for task, (state, own) in zip(running.step.scores, choice.scored, strict=True):
                    running.scores.append(self._score(task, state, logits[own]))
                if choice.rows:
                    self._sample(running, choice, logits, masks())
        self._backend.copy_states(self._pool, running.step.checkpoints)

    @torch.inference_mode()
    def finish(self, running: Running) -> StepOutput:
        """Wait for the results."""
        step = running.step
        output = StepOutput(step_id=step.step_id)
        if running.pools is not None:
            output.pools = _pooled(step.pools, running.pools()[0])
        output.scores = [score() for score in running.scores]
        output.samples = running.samples()
        return output

    def _copy(self, step: SchedulerOutput) -> None:
        """Copy what the step says before it computes."""
        self._backend.copy_pages(self._pool, step.copies)
        if self._pool.num_frames:
            self._backend.copy_pages(self._pool, step.frame_copies, frames=True)
        self._backend.copy_states(self._pool, step.state_copies)

    def _forward(self, prepared: Prepared, begun: Callable[[], None] | None) -> Tensor:
        """Run the model; hidden states [T, hidden] after the final norm."""
        if prepared.run is not None:
            context, angles = prepared.run
            context = context if begun is None else replace(context, begun=begun)
            return self._model.forward(self._input_ids(prepared), prepared.positions, context, angles)
        if self._graphs is None or not len(prepared.positions):
            return torch.empty(0)
        return self._graphs.forward(prepared.layout, self._input_ids(prepared), prepared.positions)

    def _input_ids(self, prepared: Prepared) -> Tensor:
        """Ids [T] on the device, those that only the device knows among them."""
        if self._last is None or not prepared.unknown:
            return prepared.ids
        if prepared.slots is not None:
            return self._last.index_select(0, prepared.slots)
        return torch.where(prepared.ids < 0, self._last[(-1 - prepared.ids).clamp(min=0)], prepared.ids)

    def _keep(self, choice: Choice, ids: Tensor) -> None:
        """The tasks' rows sampled ``ids`` last. A row that could not be sampled may be in the next step already, which
        looks its token up: it must be one."""
        if self._last is not None:
            self._last.index_copy_(0, choice.slots, ids.clamp(min=0))

    def _greedy(self, running: Running, choice: Choice, hidden: Tensor) -> None:
        """The most likely token of each task's row."""
        ids, tops = self._model.greedy(hidden)
        self._keep(choice, ids)
        pairs = [*zip(running.step.samples, choice.states, strict=True)]
        if self._last is None:
            running.samples = partial(_most_likely, pairs, lambda: [ids, tops], True)
        else:
            running.samples = partial(_most_likely, pairs, self._backend.fetch(ids, tops), False)

    def _score(self, task: ScoreTask, state: RowState, logits: Tensor) -> Callable[[], ScoredTokens]:
        """Logprobs of known tokens, by their rows of the logits."""
        options = state.new.logprobs
        assert options is not None

        def score() -> ScoredTokens:
            try:
                logprobs = self._sampler.score(logits, task.targets, options)
            except LogitsNotFinite as error:
                return ScoredTokens(slot=task.slot, position=task.position, logprobs=[], error=str(error))
            return ScoredTokens(slot=task.slot, position=task.position, logprobs=logprobs)

        return score

    def _sample(self, running: Running, choice: Choice, logits: Tensor, masks: Masks | None) -> None:
        """One token a task, or with drafts the accepted path: every node of the tree is sampled at once."""
        step, rows = running.step, choice.rows
        if choice.sampled is not None:
            logits = logits[choice.sampled]
        mask = _full_mask(len(rows), choice.constrained, masks)
        pending = self._sampler.start(logits, rows, mask, choice.draws)
        if len(rows) == len(step.samples):
            self._keep(choice, pending.ids)
            running.samples = lambda: _sampled(step, choice, pending.results(), self._last is None)
            return
        samples = _sampled(step, choice, pending.results(), self._last is None)
        self._keep(choice, self._backend.stage([sample.token_ids[-1] if sample.token_ids else 0 for sample in samples]))
        running.samples = lambda: samples


def _wanting(layout: BatchLayout, tokens: Sequence[int]) -> BatchLayout:
    """The layout with what of it is looked at, where that is much less than all."""
    return layout if 2 * len(tokens) > len(layout.positions) else replace(layout, wanted=sorted({*tokens}))


def _most_likely(
    pairs: Sequence[tuple[SampleTask, RowState]], fetched: Callable[[], list[Tensor]], note: bool
) -> list[SampledToken]:
    """The tokens that greedy rows took; ``note`` them in the rows' states."""
    ids, tops = fetched()
    samples = []
    for (task, state), token, top in zip(pairs, ids.tolist(), tops.tolist(), strict=True):
        error = not_finite(top)
        if note and error is None:
            state.last_token = token
        samples.append(SampledToken(slot=task.slot, token_ids=[token] if error is None else [], error=error))
    return samples


def _sampled(step: SchedulerOutput, choice: Choice, results: list[SampleResult], note: bool) -> list[SampledToken]:
    """Take the results of all tasks; ``note`` the last tokens in the rows' states."""
    if len(results) == len(step.samples):
        taken = [[result] for result in results]
    else:
        every = iter(results)
        taken = [_accepted(task, step.rows, every) for task in step.samples]
    pairs = zip(step.samples, choice.states, taken, strict=True)
    return [_note(task, state, accepted, note) for task, state, accepted in pairs]


def _note(task: SampleTask, state: RowState, accepted: list[SampleResult], note: bool) -> SampledToken:
    """Take a task's results, remember them for the rows and penalties that follow."""
    tokens = []
    for result in accepted:
        if result.error is not None:
            return SampledToken(slot=task.slot, token_ids=[], error=result.error)
        tokens.append(result.token_id)
    if note:
        state.last_token = tokens[-1]
    if state.counts is not None:
        state.counts.add(tokens)
    logprobs = [result.logprob for result in accepted if result.logprob is not None]
    return SampledToken(slot=task.slot, token_ids=tokens, logprobs=logprobs)


def _pooled(tasks: Sequence[PoolTask], hidden: Tensor) -> list[PooledState]:
    """The hidden states [n, size] that the tasks ask for."""
    vectors = hidden.numpy().astype("<f4")
    return [
        PooledState(slot=task.slot, hidden=vector.tobytes())
        if np.isfinite(vector).all()
        else PooledState(slot=task.slot, error=_NOT_FINITE)
        for task, vector in zip(tasks, vectors, strict=True)
    ]


def _accepted(task: SampleTask, rows: list[RowStep], results: Iterator[SampleResult]) -> list[SampleResult]:
    """Of a task's results, which it takes, those on the accepted path."""
    parents = drafts(task, rows)
    tree = [*islice(results, 1 + len(parents))]
    guesses = rows[task.row].token_ids[len(rows[task.row].token_ids) - len(parents) :]
    return [tree[node] for node in accept_path(guesses, parents, [result.token_id for result in tree])]


def _full_mask(count: int, constrained: list[int], masks: Masks | None) -> Tensor | None:
    """Bitmasks for ``count`` rows of logits: those supplied for the ``constrained`` ones, all ones for the others."""
    if masks is None or len(masks) == 0:
        return None
    if len(masks) == count:
        return torch.from_numpy(masks)
    full = np.full((count, masks.shape[1]), -1, dtype=np.int32)
    full[constrained] = masks
    return torch.from_numpy(full)
