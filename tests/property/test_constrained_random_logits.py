"""A model of random logits: whatever it ends with is valid, within any budget, with forced tokens on or off.

Schemas go through the whole front end; the judges are jsonschema and `re`. A value that turned out wrong is taken back
and tried again, and where that does not help the end is an error that says so, never a wrong value.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from constrained_schemas import Judge, Schemas, lowered
from constrained_walks import engine_named, small_vocabulary

from sglite.constrained import bitmask
from sglite.constrained.grammar import Grammar, normalise
from sglite.constrained.regex import match_expr
from sglite.constrained.spec import ConstraintError, ConstraintRefused

VOCAB = small_vocabulary()
CLOSERS = [i for i, piece in enumerate(VOCAB.token_bytes) if piece and piece[-1:] in b'"}]']
PATTERNS = [
    r"a{2,5}b?",
    r"(ab|a)(b|bc)*",
    r"[^a]{0,20}",
    r"(?=.*b)[ab]{1,6}",
    r"\d{1,3}(\.\d+)?",
    r"x?(?!aa)[a-c]*",
    r"é|中{1,2}|😀",
    r"^\s*a\s*$",
    r"(?<!a)b|\bab\b",
    r"[\s\S]{3,7}",
    r"(a|b){0,40}c",
]
LIMIT = 400


@dataclass
class Answer:
    """What came of one generation: the text, and why it ended."""

    end: str
    text: str = ""
    tokens: int = 0
    taken_back: int = 0


class RandomModel:
    """Draws tokens by random logits; after `patience` tokens those that close something are likelier."""

    def __init__(self, seed: int) -> None:
        self._numpy = np.random.default_rng(seed)
        self._patience = int(self._numpy.integers(0, 60))
        self._greedy = bool(self._numpy.random() < 0.3)

    def choose(self, mask: bitmask.Mask, step: int) -> int:
        logits = self._numpy.gumbel(size=VOCAB.size)
        if step > self._patience:
            logits[CLOSERS] += 6
            logits[list(VOCAB.eos_ids)] += 9
        allowed = np.array([i for i in bitmask.to_ids(mask) if i < VOCAB.size])
        return int(allowed[np.argmax(logits[allowed])])


@dataclass
class Request:
    """One generation, as the runtime drives a matcher."""

    matcher: Any
    model: RandomModel
    ids: list[int] = field(default_factory=list)
    taken_back: int = 0

    def run(self) -> Answer:
        mask = np.empty(VOCAB.words, dtype=np.int32)
        for step in range(LIMIT):
            run = self.matcher.forced()
            assert self.matcher.accept_run(run) == len(run)
            self.ids += run
            if self.matcher.stuck:
                back = self.matcher.retreat()
                if not back:
                    assert self.matcher.error.startswith("constraint_unsatisfied"), self.matcher.error
                    return self.answer("unsatisfied")
                del self.ids[-back:]
                self.taken_back += 1
                continue
            self.matcher.fill(mask)
            token = self.model.choose(mask, step)
            assert self.matcher.accept(token)
            if token in VOCAB.eos_ids:
                return self.answer("ended")
            self.ids.append(token)
        return self.answer("cut off")

    def answer(self, end: str) -> Answer:
        data = b"".join(VOCAB.token_bytes[i] or b"" for i in self.ids)
        return Answer(end, data.decode(errors="replace"), len(self.ids), self.taken_back)


def answer(program: Any, seed: int) -> tuple[Answer, int | None]:
    """An answer to a compiled constraint, and its budget of tokens."""
    rng = random.Random(seed)
    budget = rng.choice([None, rng.randint(1, 30), rng.randint(1, 200)])
    try:
        matcher = program.matcher(jump_forward=rng.random() < 0.5, close_at=budget)
    except ValueError as error:
        assert "cannot be complete" in str(error)
        return Answer("budget refused"), budget
    return Request(matcher, RandomModel(seed)).run(), budget


def answers_to_schema(engine: Any, seed: int, count: int) -> Counter[str]:
    rng = random.Random(seed)
    schema = Schemas(rng).draw()
    ends: Counter[str] = Counter()
    grammar = lowered(schema, rng.choice(["schema", "schema", "any"]))
    if grammar is None:
        return ends
    try:
        program, judge = engine.compile(grammar), Judge(schema)
    except (ConstraintRefused, ConstraintError):
        return ends
    for n in range(count):
        given, budget = answer(program, 1000 * seed + n)
        ends[given.end] += 1
        where = f"seed {seed}/{n}, schema {json.dumps(schema, ensure_ascii=False)}, budget {budget}: {given.text!r}"
        if given.end == "ended":
            assert judge(given.text), f"not valid: {where}"
        closed = budget is None or given.end != "cut off"
        assert closed or given.taken_back, f"not closed: {where}"  # what is taken back takes steps, not tokens
        assert budget is None or given.tokens <= budget, f"{given.tokens} tokens: {where}"
    return ends


@pytest.fixture(scope="module")
def engine() -> Any:
    return engine_named("native", VOCAB)


def test_every_finished_answer_is_valid(engine: Any) -> None:
    ends = sum((answers_to_schema(engine, seed, 3) for seed in range(200)), Counter())
    assert ends["ended"] > 400 and ends["unsatisfied"] < 0.03 * ends.total(), ends


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_finished_answer_of_twenty_thousand_is_valid(engine: Any) -> None:
    ends = sum((answers_to_schema(engine, seed, 4) for seed in range(10_000, 16_500)), Counter())
    assert ends.total() > 20_000 and ends["unsatisfied"] < 0.03 * ends.total(), ends


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_finished_text_matches_its_pattern(engine: Any, pattern: str) -> None:
    program = engine.compile(normalise(Grammar({"root": match_expr(pattern)})))
    for seed in range(12):
        given, budget = answer(program, seed)
        if given.end == "ended":
            assert re.fullmatch(pattern, given.text), (pattern, given.text)
        assert budget is None or (given.end != "cut off" and given.tokens <= budget)
