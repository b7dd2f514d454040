"""A worker without a model: instant, deterministic, and stricter than a real one. For tests and benchmarks.

Its "keys" are fingerprints: the slot of a position holds a fingerprint of all tokens up to it, computed from the
fingerprint that the row's page table leads to for the position before. Its next token is a function of that
fingerprint. A page mixed up, freed too early or not copied therefore changes tokens, and output is right exactly
when it equals ``script`` applied to the whole sequence (``reference``). Its hidden state is the fingerprint, 8 bytes.

A token sampled anew follows from the fingerprint and the attempt. Rows with penalties must have been told their whole
output. A recurrent-state group works the same way with one fingerprint a slot, which must agree with the paged one.
In a group with a window, what a row sees must be there: the fingerprints of the positions before each of its own.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sglite.runtime.cache.frames import WindowSpec
from sglite.runtime.executor.base import Masks
from sglite.runtime.protocol import (
    UNKNOWN_TOKEN,
    GroupSpec,
    NewRow,
    PooledState,
    RowStep,
    SampledToken,
    SampleTask,
    SchedulerOutput,
    ScoredTokens,
    StepOutput,
    TokenLogprob,
)
from sglite.runtime.spec.base import accept_path, draft_depths

MAX_TOKEN = 65536

Script = Callable[[int], int]
"""Fingerprint of all tokens so far -> next token."""


def extend_fingerprint(fingerprint: int, token: int) -> int:
    """The fingerprint of a sequence with one more token."""
    data = fingerprint.to_bytes(8, "little", signed=fingerprint < 0) + token.to_bytes(8, "little", signed=True)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def fingerprint_of(tokens: Sequence[int]) -> int:
    """The fingerprint of a whole sequence."""
    fingerprint = 0
    for token in tokens:
        fingerprint = extend_fingerprint(fingerprint, token)
    return fingerprint


def attempt_at(fingerprint: int, attempt: int) -> int:
    """What the script is given for a token that was taken back ``attempt`` times."""
    return fingerprint if attempt == 0 else extend_fingerprint(fingerprint, -1 - attempt)


class ScriptedWorker:
    """Runs steps over fingerprints.

    Args:
        script: next token from the fingerprint; seeds and temperature are ignored.
        num_pages, page_size: the pool, as the scheduler knows it.
        state_groups: names of recurrent-state groups, with their number of slots.
        window: of a group with frames of its own.
        step_seconds: how long a step pretends to take.
    """

    def __init__(
        self,
        script: Script,
        num_pages: int,
        page_size: int,
        state_groups: dict[str, int] | None = None,
        step_seconds: float = 0.0,
        window: WindowSpec | None = None,
    ) -> None:
        self.script = script
        self.page_size = page_size
        self.slots = [-1] * (num_pages * page_size)
        self.states = {name: [-1] * size for name, size in (state_groups or {}).items()}
        self.seen = None if window is None else SeenWindows(window, page_size)
        self.groups = [GroupSpec(name="kv")] + [GroupSpec(name=name, kind="state") for name in self.states]
        self.computed: Counter[int] = Counter()
        """How often each fingerprint was computed and stored: no (prefix, token) more than once, that is the rule."""
        self.replayed = 0
        self.steps: list[SchedulerOutput] = []
        self.fail_step: Callable[[SchedulerOutput], bool] = lambda step: False
        self._step_seconds = step_seconds
        self._failed_step = -2
        self._rows: dict[int, NewRow] = {}
        self._pages: dict[int, list[int]] = {}
        self._last: dict[int, int] = {}
        self._outputs: dict[int, list[int]] = {}
        """What each slot has been told of its output."""

    def execute(self, step: SchedulerOutput, masks: Callable[[], Masks | None]) -> StepOutput:
        """Run a step; see ``Worker``."""
        if self._step_seconds:
            time.sleep(self._step_seconds)
        self.steps.append(step)
        self._prepare(step)
        if self.fail_step(step):
            self._failed_step = step.step_id
            raise RuntimeError("scripted failure")
        prints = self._compute(step)
        if self.seen is not None:
            for index, row in enumerate(step.rows):
                right = self.seen.holds(row, self._pages[row.slot], partial(self._print_at, row, index, prints))
                assert self._in_order(right, step.step_id), f"row {index} does not see its window"
        for copy in step.checkpoints:
            self.states[copy.group][copy.dst] = self.states[copy.group][copy.src]
        output = StepOutput(step_id=step.step_id)
        output.scores = [
            ScoredTokens(
                slot=task.slot,
                position=task.position,
                logprobs=[self._logprob(prints[task.row, task.position + i], t) for i, t in enumerate(task.targets)],
            )
            for task in step.scores
        ]
        output.pools = [
            PooledState(slot=task.slot, hidden=prints[task.row, task.position].to_bytes(8, "little"))
            for task in step.pools
        ]
        allowed = iter(masks_by_task(step.samples, masks()))
        output.samples = [self._sample(task, step.rows[task.row], prints, next(allowed)) for task in step.samples]
        return output

    def _prepare(self, step: SchedulerOutput) -> None:
        for slot in step.released:
            del self._rows[slot], self._pages[slot]
        for new in step.new_rows:
            self._rows[new.slot], self._pages[new.slot] = new, []
            self._outputs[new.slot] = list(new.output_ids)
        for slot, tokens in step.appended.items():
            self._outputs[slot] += tokens
        for row in step.rows:
            self._pages[row.slot][row.pages_from :] = row.pages
        for copy in step.copies:
            src, dst = copy.src * self.page_size, copy.dst * self.page_size
            self.slots[dst : dst + copy.num_tokens] = self.slots[src : src + copy.num_tokens]
        if self.seen is not None:
            self.seen.prepare(step)
        for state in step.state_copies:
            values = self.states[state.group]
            values[state.dst] = 0 if state.src < 0 else values[state.src]

    def _in_order(self, right: bool, step_id: int) -> bool:
        """A step in flight behind a failed one works on rubbish, and nobody wants its results."""
        return right or step_id == self._failed_step + 1

    def _compute(self, step: SchedulerOutput) -> dict[tuple[int, int], int]:
        """Fingerprints by (row, position). Rows are stored in the order in which they depend on each other."""
        prints: dict[tuple[int, int], int] = {}
        todo = list(enumerate(step.rows))
        written = {
            self._slot(row, p) for row in step.rows for p in range(row.store_from, row.start + len(row.token_ids))
        }
        while todo:
            ready = [(i, row) for i, row in todo if row.start == 0 or self._slot(row, row.start - 1) not in written]
            assert ready, "rows of a step wait for each other"
            for index, row in ready:
                self._compute_row(index, row, prints, written, step.step_id)
            todo = [item for item in todo if item not in ready]
        return prints

    def _compute_row(
        self, index: int, row: RowStep, prints: dict[tuple[int, int], int], written: set[int], step_id: int
    ) -> None:
        before = self.slots[self._slot(row, row.start - 1)] if row.start else 0
        for name, slot in row.state_slots.items():
            right = self.states[name][slot] == before
            assert self._in_order(right, step_id), f"state of row {index} does not stand at position {row.start}"
        parents = row.parents or []
        known = len(row.token_ids) - len(parents)
        for offset, token in enumerate(row.token_ids):
            position = row.start + offset
            if offset > known:
                before = prints[index, row.start + known + parents[offset - known]]
            before = extend_fingerprint(before, self._last.get(row.slot, -2) if token == UNKNOWN_TOKEN else token)
            prints[index, position] = before
            slot = self._slot(row, position)
            if position >= row.store_from:
                self.slots[slot] = before
                self.computed[before] += offset < known
                written.discard(slot)
            else:
                self.replayed += 1
                right = slot in written or self.slots[slot] == before
                assert self._in_order(right, step_id), f"position {position} is not in the cache"
        for name, slot in row.state_slots.items():
            self.states[name][slot] = before
        if self.seen is not None:
            self.seen.store(row, self._pages[row.slot], partial(self._print_at, row, index, prints))

    def _print_at(self, row: RowStep, index: int, prints: dict[tuple[int, int], int], position: int) -> int:
        """The fingerprint of a row's position, of this step or of an earlier one."""
        return prints[index, position] if position >= row.start else self.slots[self._slot(row, position)]

    def _slot(self, row: RowStep, position: int) -> int:
        return self._pages[row.slot][position // self.page_size] * self.page_size + position % self.page_size

    def _sample(
        self, task: SampleTask, row: RowStep, prints: dict[tuple[int, int], int], allowed: Callable[[int], bool]
    ) -> SampledToken:
        """One token, or with drafts the accepted path."""
        parents = (row.parents or []) if task.slot == row.slot else []
        new = self._rows[task.slot]
        fingerprints = [prints[task.row, task.position + i] for i in range(len(parents) + 1)]
        depths = [0, *draft_depths(parents)]
        sampled = [
            self._choose(new, task.num_output + d, attempt_at(f, task.attempt), allowed)
            for f, d in zip(fingerprints, depths, strict=True)
        ]
        drafts = row.token_ids[len(row.token_ids) - len(parents) :] if parents else []
        path = accept_path(drafts, parents, sampled)
        tokens = [sampled[i] for i in path]
        if tokens[0] < 0:
            return SampledToken(slot=task.slot, token_ids=[], error="every token is masked")
        self._last[task.slot] = tokens[-1]
        if new.sampling.has_penalties:
            known = fingerprint_of([*new.prompt_ids, *self._outputs[task.slot]])
            right = known == fingerprints[0] or self._failed_step >= 0
            assert right, f"slot {task.slot} counts another output than it has"
        self._outputs[task.slot] += tokens
        logprobs = [] if new.logprobs is None else [self._logprob(fingerprints[i], sampled[i]) for i in path]
        return SampledToken(slot=task.slot, token_ids=tokens, logprobs=logprobs)

    def _choose(self, new: NewRow, num_output: int, fingerprint: int, allowed: Callable[[int], bool]) -> int:
        """The scripted token, or the next allowed one; -1: none is."""
        token = self.script(fingerprint)
        banned = new.banned_until_min if num_output < new.sampling.min_new_tokens else ()
        only = new.sampling.allowed_token_ids
        for _ in range(MAX_TOKEN):
            if allowed(token) and token not in banned and (only is None or token in only):
                return token
            token = (token + 1) % MAX_TOKEN
        return -1

    def _logprob(self, fingerprint: int, token: int) -> TokenLogprob:
        """A number that only this prefix and token give."""
        return TokenLogprob(token, -(extend_fingerprint(fingerprint, token) % 10**6) / 10**5)


class SeenWindows:
    """The frames of a group with a window: a cell a position, which holds its fingerprint."""

    def __init__(self, spec: WindowSpec, page_size: int) -> None:
        self.window = spec.window
        self.page_size = page_size
        self.frames: dict[int, int] = {}
        self.cells = [-1] * (spec.num_frames * page_size)

    def prepare(self, step: SchedulerOutput) -> None:
        """Pages get their frames, and frames their copies."""
        self.frames.update(step.frames)
        for copy in step.frame_copies:
            src, dst = copy.src * self.page_size, copy.dst * self.page_size
            self.cells[dst : dst + copy.num_tokens] = self.cells[src : src + copy.num_tokens]

    def store(self, row: RowStep, pages: list[int], print_of: Callable[[int], int]) -> None:
        """What a row stores: the positions that are new, and those that had been lost."""
        for position in [*range(*row.refill), *range(row.store_from, row.start + len(row.token_ids))]:
            self.cells[self._cell(pages, position)] = print_of(position)

    def holds(self, row: RowStep, pages: list[int], print_of: Callable[[int], int]) -> bool:
        """Whether all that the positions of a row see is what was computed there, the drafts themselves included."""
        seen = range(max(0, row.start - self.window + 1), row.start + len(row.token_ids))
        return all(self.cells[self._cell(pages, position)] == print_of(position) for position in seen)

    def _cell(self, pages: list[int], position: int) -> int:
        return self.frames[pages[position // self.page_size]] * self.page_size + position % self.page_size


def masks_by_task(tasks: Sequence[SampleTask], masks: Masks | None) -> list[Callable[[int], bool]]:
    """For every task, whether a token is allowed."""
    rows = iter(() if masks is None else masks)
    return [partial(_allowed, next(rows) if task.constrained else None) for task in tasks]


def _allowed(row: NDArray[np.int32] | None, token: int) -> bool:
    return row is None or (token // 32 < len(row) and bool(row[token // 32] >> (token % 32) & 1))


def reference(script: Script, prompt: Sequence[int], n: int) -> list[int]:
    """What ``n`` tokens after ``prompt`` must be."""
    tokens = list(prompt)
    fingerprint = fingerprint_of(tokens)
    for _ in range(n):
        tokens.append(script(fingerprint))
        fingerprint = extend_fingerprint(fingerprint, tokens[-1])
    return tokens[len(prompt) :]
