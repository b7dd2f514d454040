"""Hypothesis plays client, clock and bad luck against an EngineCore: any events, and then everybody gets an end.

After every step ``Bench`` checks pages, slots, budgets and the tree. At the end every request has ended exactly once;
its output is the reference, or, where it was cut short, the reference's beginning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
from engines import Bench, Clock, Outcome, ToyCompiler, toy_logprobs, toy_outcome
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from sglite.constrained.spec import ConstraintSpec
from sglite.runtime.cache.frames import WindowSpec
from sglite.runtime.protocol import LogprobOptions, ProgramRef

REFUSED = ["refused", "broken"]
RESAMPLED = ["* < * * >5 + *", "< * + * >3 < * >4", "< + * + >5 *"]
CONSTRAINTS = [None, None, None, "* + + *", "+ + + 2|4 * + +", "* * * + *", *RESAMPLED, *REFUSED]
TRUNKS = [[0, 1, 2, 3, 4, 0, 1, 2, 3], [0, 1, 2, 3, 1, 1], [4, 4, 4], [0]]

prompts = st.builds(
    lambda trunk, cut, tail: trunk[: len(trunk) - cut] + tail or [0],
    st.sampled_from(TRUNKS),
    st.integers(0, 4),
    st.lists(st.integers(0, 4), max_size=6),
)
WINDOWS = [{"window": WindowSpec(*sizes)} for sizes in ((3, 8), (5, 7), (9, 12), (4, 30))]
configurations = st.fixed_dictionaries(
    {
        "num_pages": st.sampled_from([8, 12, 40]),
        "page_size": st.sampled_from([1, 3, 4]),
        "max_step_tokens": st.sampled_from([3, 8, 64]),
        "max_running": st.sampled_from([1, 2, 5]),
        "chunk_size": st.sampled_from([None, 1, 3]),
        "overlap": st.booleans(),
        "policy": st.sampled_from(["program", "fcfs", "lpm", "dfs-weight"]),
        "pin_budget": st.sampled_from([0.0, 0.3, 0.5, 1.0]),
        "layers": st.sampled_from([{}, {}, *({"states": {"ssm": n}} for n in (5, 9)), *WINDOWS]),
    }
)


programs = st.builds(
    lambda name, node, group, size, upcoming: ProgramRef(
        program_id=name, node_id=node, group_id=group, group_size=size, upcoming=upcoming
    ),
    st.sampled_from("ab"),
    st.sampled_from(["", "0", "1", "2"]),
    st.sampled_from(["", "f", "g"]),
    st.integers(0, 4),
    st.integers(0, 2),
)


@dataclass
class Asked:
    """What was asked for, and which early ends have been given cause for."""

    prompt: list[int]
    n: int
    constraint: str | None
    fields: dict[str, Any]
    aborted: bool = False


class CoreMachine(RuleBasedStateMachine):
    """The rules are the events."""

    @initialize(configuration=configurations, slow=st.booleans(), keeps=st.booleans(), jumps=st.booleans())
    def start(self, configuration: dict[str, Any], slow: bool, keeps: bool, jumps: bool) -> None:
        self.clock = Clock()
        self.compiler = ToyCompiler(slow=slow)
        sizes = {name: value for name, value in configuration.items() if name != "layers"}
        config = {"radix_cache": keeps, "max_waiting": 12, "jump_forward": jumps}
        self.bench = Bench(compiler=self.compiler, clock=self.clock, config=config, **configuration["layers"], **sizes)
        self.asked: dict[str, Asked] = {}
        self.failures = 0
        self.bench.worker.fail_step = lambda step: self.fail_now()
        self.fail_next = False

    def fail_now(self) -> bool:
        failing, self.fail_next = self.fail_next, False
        self.failures += failing
        return failing

    @rule(
        prompt=prompts,
        n=st.integers(0, 8),
        priority=st.integers(-1, 2),
        namespace=st.sampled_from(["", "", "salt"]),
        pin=st.sampled_from(["", "", "a/1", "b/2"]),
        scored=st.sampled_from([None, None, "output", "all"]),
        constraint=st.sampled_from(CONSTRAINTS),
        timeouts=st.sampled_from([{}, {}, {"timeout_s": 5.0}, {"queue_timeout_s": 2.0}]),
        program=st.none() | programs,
    )
    def add(
        self,
        prompt: list[int],
        n: int,
        priority: int,
        namespace: str,
        pin: str,
        scored: str | None,
        constraint: str | None,
        timeouts: dict[str, float],
        program: ProgramRef | None,
    ) -> None:
        fields: dict[str, Any] = {"priority": priority, "namespace": namespace, "pin": pin, **timeouts}
        fields["program"] = program
        if scored is not None:
            fields["logprobs"] = LogprobOptions(start_len=0 if scored == "all" else None)
        name = f"r{len(self.asked)}"
        self.asked[name] = Asked(prompt, n, constraint, fields)
        spec = None if constraint is None else ConstraintSpec.regex(constraint)
        self.bench.add(name, prompt, n, constraint=spec, **fields)

    @rule(count=st.sampled_from([1, 1, 2, 5]))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.bench.step()

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([*self.asked]))
        open_before = self.bench.core.scheduler.find(name) is not None
        assert self.bench.core.abort(name) == open_before
        self.asked[name].aborted |= open_before
        assert not self.bench.core.abort(name)

    @rule()
    def flush(self) -> None:
        self.bench.core.flush_cache()
        self.bench.check()

    @rule()
    def unpin(self) -> None:
        self.bench.core.unpin("a/")
        self.bench.check()

    @rule(prefix=st.sampled_from(["a/", "a/1", "b/"]), seconds=st.sampled_from([None, 0.0, 2.0]))
    def park(self, prefix: str, seconds: float | None) -> None:
        self.bench.core.park(prefix, seconds)
        self.bench.check()

    @rule(tokens=st.sampled_from([3000, 100_000]))
    def serve(self, tokens: int) -> None:
        """Program ``a`` has had much service."""
        if self.bench.core.programs.get("a") is not None:
            program = self.bench.core.programs.enter("a")
            program.service += tokens

    @rule(seconds=st.sampled_from([0.001, 0.5, 3.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def fail_a_step(self) -> None:
        self.fail_next = True

    @rule()
    def compile(self) -> None:
        self.compiler.release()

    def teardown(self) -> None:
        if not hasattr(self, "bench"):
            return
        for _ in range(3000):
            self.compiler.release()
            self.clock.now += 0.001
            self.bench.step()
            if not self.bench.core.scheduler.has_work:
                break
        self.bench.run(limit=0)
        for name, asked in self.asked.items():
            self.check(name, asked)
        self.bench.core.flush_cache()
        self.bench.check()
        counts = self.bench.core.cache.allocator.counts()
        assert counts.free == counts.total
        frames = self.bench.core.cache.allocator.frames
        assert frames is None or frames.counts().free == frames.total
        pins = self.bench.core.scheduler.memory.pins
        assert not (pins._held or pins._given_up or pins._parked)
        assert not any(root.children for root in self.bench.core.cache._roots.values())

    def check(self, name: str, asked: Asked) -> None:
        """How a request ended, and with what."""
        done = self.bench.done[name]
        assert done.terminals == 1 and done.last is not None and done.last.finish_reason is not None
        reason = done.last.finish_reason
        constraint = None if asked.constraint in REFUSED else asked.constraint
        outcome = toy_outcome(asked.prompt, asked.n, constraint=constraint)
        if reason.type in ("abort", "error"):
            self.check_cause(asked, reason.code, outcome)
            if reason.code in ("constraint_refused", "invalid_request") or asked.constraint in REFUSED:
                assert done.tokens == []
                return
        assert asked.constraint not in REFUSED
        want = outcome.tokens
        if reason.type in ("abort", "error"):
            assert done.tokens == want[: len(done.tokens)]
        else:
            assert done.tokens == want and reason.type == outcome.end
            accounting = done.last.accounting
            assert accounting.prompt_tokens == accounting.cached_tokens + accounting.computed_prompt_tokens
        if "logprobs" in asked.fields:
            rows = toy_logprobs(self.bench.worker, asked.prompt + want, len(asked.prompt))
            assert done.logprobs == rows[: len(done.tokens)]

    def check_cause(self, asked: Asked, code: str | None, outcome: Outcome) -> None:
        """Nobody ends early without a reason that was given to it."""
        causes = {
            "cancelled": asked.aborted,
            "timeout": "timeout_s" in asked.fields or "queue_timeout_s" in asked.fields,
            "constraint_unsatisfied": outcome.end == "constraint_unsatisfied",
            "constraint_refused": asked.constraint == "refused",
            "internal": self.failures > 0 or asked.constraint == "broken",
            "invalid_request": len(self.asked) > 12 or len(asked.prompt) + asked.n > self.bench.core.capacity,
        }
        assert causes.get(code or "", False), (code, asked)


TestCore = CoreMachine.TestCase
TestCore.settings = settings(
    max_examples=120, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
