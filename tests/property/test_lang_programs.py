"""Any program gives what reading it line by line says: text, variables, messages, prompts; however it is run.

Programs are random trees of steps. The reference executes them one after the other on plain strings; the language runs
them with branches at the same time, streamed or not, inline or not, on a back end whose answers depend on the prompt.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import sglite as sgl
from sglite.lang.backends.base import Backend, GenCall, Output, Stream
from sglite.lang.choices import ChoiceScores, decide, token_length_normalized
from sglite.lang.errors import BackendError
from sglite.lang.formats import PLAIN, ChatFormat

CHOICES = ["red", "green", "blue"]
POISON = "#"


def answer(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()[:4]


def choose(prompt: str) -> str:
    return min(CHOICES, key=lambda choice: answer(prompt + choice))


class Digest(Backend):
    """Answers with a digest of the prompt; refuses prompts that end in POISON."""

    def chat_format(self) -> ChatFormat:
        return PLAIN

    def open(self, program_id: str) -> Stream:
        return DigestStream("")

    async def prefill(self, text: str) -> None: ...


class DigestStream(Stream):
    def __init__(self, text: str) -> None:
        self.text, self.last_was_append = text, False

    def append(self, text: str) -> None:
        assert not self.last_was_append, "neighbouring literals reach the back end as one"
        self.last_was_append = True
        self.text += text

    async def generate(self, call: GenCall) -> AsyncGenerator[tuple[Output, ...], None]:
        self.last_was_append = False
        if self.text.endswith(POISON):
            raise BackendError("poisoned")
        out = answer(self.text)
        if call.stream:
            yield (Output(out[:2]),)
        yield (Output(out, {"prompt": self.text}),)
        self.text += out

    async def score(self, name: str | None, choices: Sequence[str], *, unconditional: bool, **_: Any) -> ChoiceScores:
        self.last_was_append = False
        rank = sorted(choices, key=lambda choice: answer(self.text + choice))
        return ChoiceScores([[[-float(rank.index(c)), 0, c]] for c in choices], [[] for _ in choices])

    async def fork(self, n: int) -> list[Stream]:
        self.last_was_append = False
        return [DigestStream(self.text) for _ in range(n)]

    async def aclose(self) -> None: ...


@dataclass
class Step:
    kind: str
    text: str = ""
    name: str = ""
    branches: list[list[Step]] = field(default_factory=list)
    mode: str = ""


@dataclass
class Ref:
    """The reference state: everything happens at once, in order, on strings."""

    text: str = ""
    variables: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, str]] = field(default_factory=list)
    failed: bool = False

    def put(self, name: str, value: Any) -> None:
        self.variables[name] = value


MISSING = object()


def reference(state: Ref, steps: list[Step]) -> None:
    for step in steps:
        if step.kind == "lit":
            state.text += "" if state.failed else step.text
        elif step.kind == "gen":
            state.failed = state.failed or state.text.endswith(POISON)
            out = MISSING if state.failed else answer(state.text)
            state.put(step.name, out)
            state.text += "" if state.failed else out
        elif step.kind == "select":
            out = MISSING if state.failed else choose(state.text)
            state.put(step.name, out)
            state.text += "" if state.failed else out
        elif step.kind == "turn":
            state.text += "" if state.failed else "USER: "
            inner_from = len(state.text)
            reference(state, step.branches[0])
            if not state.failed:
                state.messages.append({"role": "user", "content": state.text[inner_from:].lstrip()})
                state.text += "\n"
        elif step.kind == "scope":
            begin = len(state.text)
            reference(state, step.branches[0])
            state.put(step.name, MISSING if state.failed else state.text[begin:])
        elif step.kind == "fork":
            kids = [
                Ref(state.text, dict(state.variables), [dict(m) for m in state.messages], state.failed)
                for _ in step.branches
            ]
            for kid, inner in zip(kids, step.branches, strict=True):
                reference(kid, inner)
            if step.mode == "gather_variable":
                for name in dict.fromkeys(n for k in kids for n in k.variables if n not in state.variables):
                    values = [k.variables[name] for k in kids if name in k.variables]
                    state.put(name, MISSING if any(v is MISSING for v in values) else values)
            elif step.mode == "concate_and_append" and not state.failed:
                grown = len(state.text)
                for kid in kids:
                    if kid.failed:
                        state.failed = True
                        break
                    state.text += kid.text[grown:]


def execute(s: Any, steps: list[Step]) -> None:
    for step in steps:
        if step.kind == "lit":
            s += step.text
        elif step.kind == "gen":
            s += sgl.gen(step.name)
        elif step.kind == "select":
            s += sgl.select(step.name, CHOICES)
        elif step.kind == "turn":
            with s.user():
                execute(s, step.branches[0])
        elif step.kind == "scope":
            with s.var_scope(step.name):
                execute(s, step.branches[0])
        elif step.kind == "fork":
            group = s.fork(len(step.branches))
            for branch, inner in zip(group, step.branches, strict=True):
                execute(branch, inner)
            if step.mode:
                group.join(step.mode)


names = st.sampled_from("uvwxyz")
literals = st.builds(Step, st.just("lit"), text=st.text("ab \n#", max_size=4))
outputs = st.builds(Step, st.sampled_from(["gen", "select"]), name=names)


def steps(depth: int, roles: bool) -> st.SearchStrategy[list[Step]]:
    options = [literals, outputs]
    if depth > 0:
        inner = steps(depth - 1, roles)
        options.append(st.builds(Step, st.just("scope"), name=names, branches=st.tuples(inner).map(list)))
        branches = st.lists(steps(depth - 1, False), min_size=1, max_size=3)
        modes = st.sampled_from(["", "gather_variable", "concate_and_append"])
        options.append(st.builds(Step, st.just("fork"), branches=branches, mode=modes))
        if roles:
            turn = st.tuples(steps(depth - 1, False)).map(list)
            options.append(st.builds(Step, st.just("turn"), branches=turn))
    return st.lists(st.one_of(options), max_size=5)


def read(state: Any, name: str) -> Any:
    try:
        return state[name]
    except sgl.VariableError:
        return MISSING


@settings(max_examples=150, deadline=None)
@given(steps(2, True), st.booleans(), st.booleans())
def test_a_program_gives_what_its_lines_say(program: list[Step], stream: bool, threads: bool) -> None:
    body = sgl.function(lambda s: execute(s, program))
    state = body.run(backend=Digest(), stream=stream, use_thread=threads)
    expected = Ref()
    reference(expected, program)
    assert (state.error() is not None) == expected.failed
    assert {name: read(state, name) for name in expected.variables} == expected.variables
    assert "".join(state.text_iter()) == expected.text
    if not expected.failed:
        assert state.text() == expected.text and state.messages() == expected.messages
    state.run.finished.result(10)


@settings(max_examples=30, deadline=None)
@given(st.lists(steps(1, False), min_size=1, max_size=8), st.sampled_from(["auto", 1, 2]))
def test_rows_of_a_batch_do_not_know_of_each_other(programs: list[list[Step]], threads: Any) -> None:
    body = sgl.function(lambda s, program: execute(s, program))
    states = body.run_batch([(program,) for program in programs], backend=Digest(), num_threads=threads)
    for state, program in zip(states, programs, strict=True):
        expected = Ref()
        reference(expected, program)
        assert (state.error() is not None) == expected.failed and "".join(state.text_iter()) == expected.text


rows = st.lists(st.lists(st.floats(-20, 0), min_size=1, max_size=4), min_size=1, max_size=5)


@given(rows, st.integers(0, 3))
def test_the_default_rule_is_the_argmax_of_the_means_wherever_the_winner_stands(
    given_rows: list[list[float]], shift: int
) -> None:
    scores = ChoiceScores([[[lp, 0, None] for lp in row] for row in given_rows], [[] for _ in given_rows])
    choices = [str(i) for i in range(len(given_rows))]
    decision = decide(token_length_normalized, choices, scores, 0.0, random.Random(shift))
    means = [sum(row) / len(row) for row in given_rows]
    assert means[int(decision.decision)] == max(means)
