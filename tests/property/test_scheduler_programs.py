"""Random programs through a random engine: nobody is forgotten, nothing leaks, and every output is the reference.

A seed draws the configuration (pages, budgets, policy, overlap, recurrent state), the prompts, what the requests ask
for, when they come, who is aborted and which steps fail. ``Bench`` checks every invariant after every step.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from engines import Bench, Clock, Done, Guesser, ToyCompiler, program, toy_logprobs, toy_reference

from sglite.constrained.spec import ConstraintSpec
from sglite.runtime.protocol import LogprobOptions, ProgramRef

CONSTRAINTS = ["* + + *", "+ + + 2|4 * + +", "* * * + *", "1|2 + 3 3 3 *"]
BATCH = 30
"""Seeds a test: a failing one is named in the message."""


@dataclass
class Asked:
    """A request of a program."""

    prompt: list[int]
    n: int
    fields: dict[str, Any] = field(default_factory=dict)


class RandomRun:
    """One seed's engine and requests."""

    def __init__(self, seed: int, states: bool) -> None:
        self.rng = rng = random.Random(seed)
        self.clock = Clock()
        page_size = rng.choice([1, 2, 4, 16, 64])
        self.keeps = rng.random() < 0.85
        max_running = rng.choice([1, 2, 4, 8])
        self.bench = Bench(
            num_pages=max(rng.choice([48, 64, 128, 512, 2048]) // page_size, 2),
            page_size=page_size,
            max_step_tokens=rng.choice([4, 7, 16, 64]),
            max_running=max_running,
            chunk_size=rng.choice([None, 1, 3, 7]),
            overlap=rng.random() < 0.5,
            policy=rng.choice(["program", "fcfs", "lpm", "dfs-weight"]),
            pin_budget=rng.choice([0.0, 0.2, 0.5, 1.0]),
            clock=self.clock,
            states={"ssm": rng.choice([max_running, max_running + 3, 64])} if states else None,
            compiler=ToyCompiler(),
            proposer=Guesser(rng) if rng.random() < 0.3 else None,
            config={"radix_cache": self.keeps},
        )
        self.fails = rng.random() < 0.15
        if self.fails:
            self.bench.worker.fail_step = lambda step: rng.random() < 0.05
        self.aborts = rng.random() < 0.3
        self.features = {
            name for name in ("priority", "logprobs", "pin", "constraint", "namespace", "program") if rng.random() < 0.3
        }
        self.asked: dict[str, Asked] = {}

    def draw(self, trunk: list[int]) -> Asked:
        """A request that branches off ``trunk``."""
        rng = self.rng
        prompt = trunk + [rng.randrange(5) for _ in range(rng.choice([0, 0, 1, 3, 9]))]
        n = rng.randrange(12)
        if len(prompt) + n + 1 > self.bench.core.capacity:
            prompt, n = prompt[:5], 3
        fields: dict[str, Any] = {}
        if "priority" in self.features:
            fields["priority"] = rng.randrange(3)
        if "namespace" in self.features:
            fields["namespace"] = rng.choice(["", "salt"])
        if "logprobs" in self.features and rng.random() < 0.5:
            fields["logprobs"] = LogprobOptions(start_len=rng.choice([None, 0, len(prompt) // 2, len(prompt)]))
        if "pin" in self.features and rng.random() < 0.5:
            fields["pin"] = f"p{rng.randrange(3)}/{rng.randrange(4)}/"
        if "program" in self.features and rng.random() < 0.8:
            fields["program"] = ProgramRef(
                program_id=f"p{rng.randrange(3)}",
                node_id=rng.choice(["", f"{rng.randrange(20)}"]),
                group_id=rng.choice(["", f"{rng.randrange(4)}"]),
                group_size=rng.randrange(5),
                upcoming=rng.randrange(3),
            )
        if "constraint" in self.features and rng.random() < 0.5:
            fields["constraint"] = ConstraintSpec.regex(rng.choice(CONSTRAINTS))
        return Asked(prompt, n, fields)

    def play(self) -> None:
        """Requests arrive while others run, until all is done."""
        rng, b = self.rng, self.bench
        trunks = program(rng)
        wanted = rng.randrange(1, 14)
        for _ in range(5000):
            if len(self.asked) < wanted and rng.random() < 0.6:
                name = f"r{len(self.asked)}"
                asked = self.asked[name] = self.draw(rng.choice(trunks))
                b.add(name, asked.prompt, asked.n, **asked.fields)
            elif self.aborts and self.asked and rng.random() < 0.1:
                b.core.abort(rng.choice([*self.asked]))
            if "program" in self.features:
                self.hint()
            self.clock.now += 0.001
            b.step()
            if len(self.asked) == wanted and not b.core.scheduler.has_work:
                break
        b.run(limit=0)

    def hint(self) -> None:
        """Now and then a program waits for a tool, has had a lot of service, or ends."""
        rng, core = self.rng, self.bench.core
        name = f"p{rng.randrange(3)}"
        if rng.random() < 0.2:
            core.park(rng.choice([f"{name}/", f"{name}/{rng.randrange(4)}/"]), rng.choice([None, 0.01, 5.0]))
        if rng.random() < 0.05 and core.programs.get(name) is not None:
            core.programs.enter(name).service += 5000
        if rng.random() < 0.05:
            core.unpin(f"{name}/")

    def check_output(self, asked: Asked, done: Done) -> None:
        """An answer that ended by itself is the reference; one cut short a beginning of it."""
        constraint = asked.fields.get("constraint")
        want = toy_reference(asked.prompt, asked.n, constraint=None if constraint is None else constraint.value)
        assert done.terminals == 1 and done.last is not None and done.last.finish_reason is not None
        reason = done.last.finish_reason
        if reason.type in ("abort", "error"):
            assert self.aborts if reason.type == "abort" else self.fails and reason.code == "internal", reason
            assert done.tokens == want[: len(done.tokens)]
            return
        assert done.tokens == want
        accounting = done.last.accounting
        assert accounting.prompt_tokens == accounting.cached_tokens + accounting.computed_prompt_tokens
        if "logprobs" not in asked.fields:
            return
        assert done.logprobs == toy_logprobs(self.bench.worker, asked.prompt + want, len(asked.prompt))
        start = asked.fields["logprobs"].start_len
        known = [row for row in done.prompt_logprobs if row.logprob is not None]
        assert known == ([] if start is None else toy_logprobs(self.bench.worker, asked.prompt, start))

    def check_end(self) -> None:
        """Outputs, counters, and an empty engine once the cache is flushed."""
        b = self.bench
        for name, asked in self.asked.items():
            self.check_output(asked, b.done[name])
        quiet = not (b.core.cache.evicted_pages or b.core.scheduler.preemptions or self.fails or self.aborts)
        if self.keeps and quiet and "namespace" not in self.features:
            assert all(count <= 1 for count in b.worker.computed.values()), b.worker.computed.most_common(3)
        b.core.flush_cache()
        b.check()
        counts = b.core.cache.allocator.counts()
        assert counts.free == counts.total, counts
        assert all(s.num_free == s.total for s in b.core.cache.states.values())
        assert not any(root.children for root in b.core.cache._roots.values())


def run_seeds(first: int, last: int, states: bool) -> tuple[int, int]:
    """Play seeds; returns evictions and preemptions, so that a test can see that there were some."""
    evicted = preempted = 0
    for seed in range(first, last):
        run = RandomRun(seed, states)
        try:
            run.play()
            run.check_end()
        except BaseException as error:
            error.add_note(f"seed {seed}, states={states}") if hasattr(error, "add_note") else None
            raise
        evicted += run.bench.core.cache.evicted_pages
        preempted += run.bench.core.scheduler.preemptions
    return evicted, preempted


@pytest.mark.parametrize("states", [False, True], ids=["kv", "kv and state"])
@pytest.mark.parametrize("first", range(0, 5 * BATCH, BATCH))
def test_random_programs(first: int, states: bool) -> None:
    evicted, preempted = run_seeds(first, first + BATCH, states)
    assert evicted > 0 and preempted > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("states", [False, True], ids=["kv", "kv and state"])
def test_many_random_programs(states: bool) -> None:
    run_seeds(10_000, 13_000, states)
