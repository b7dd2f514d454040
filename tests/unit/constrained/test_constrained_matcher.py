"""The laws of `Matcher`: mask and accept agree, rollback is exact, a fork is independent, forced is forced."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from constrained_walks import allowed_ids, closing, small_vocabulary

from sglite.constrained import bitmask
from sglite.constrained.compiler import ConstraintCompiler
from sglite.constrained.matcher import Matcher
from sglite.constrained.spec import ConstraintSpec
from sglite.constrained.vocab import Vocabulary

VOCAB = small_vocabulary()
EOS = VOCAB.eos_ids[0]
SPECS = [
    ConstraintSpec.json_schema(
        {
            "type": "object",
            "properties": {
                "name": {"type": "string", "minLength": 1, "maxLength": 30},
                "code": {"type": "string", "pattern": "^[a-zé]{5,12}$"},
                "n": {"type": "array", "items": {"type": "number", "minimum": -1, "maximum": 10}},
            },
            "required": ["name"],
        },
        whitespace="flexible",
    ),
    ConstraintSpec.json_object(),
    ConstraintSpec.regex(r"(中文|😀|é)+ .{0,30}!"),
    ConstraintSpec.choice(["a", "ab", "abc"]),
]


@pytest.fixture(scope="module")
def compiler() -> Any:
    compiler = ConstraintCompiler(VOCAB)
    yield compiler
    compiler.close()


def row(matcher: Matcher) -> bytes:
    mask = np.full(VOCAB.words, 0x5A5A5A5A, dtype=np.int32)
    matcher.fill(mask)
    return mask.tobytes()


def step(matcher: Matcher, rng: random.Random, close: bool) -> int | None:
    ids = [i for i in allowed_ids(VOCAB, matcher) if i not in VOCAB.eos_ids]
    if not ids:
        return None
    token = closing(VOCAB, ids, rng) if close else rng.choice(ids)
    assert matcher.accept(token)
    return token


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.kind)
def test_a_token_is_allowed_exactly_when_accept_takes_it(compiler: ConstraintCompiler, spec: ConstraintSpec) -> None:
    rng = random.Random(1)
    matcher = compiler.compile(spec).matcher()
    for n in range(45):
        allowed = set(allowed_ids(VOCAB, matcher))
        for token in range(-1, VOCAB.size + 40):
            taken = matcher.accept(token)
            assert taken == (token in allowed), (n, token)
            if taken:
                matcher.rollback(1)
        assert bool(allowed & set(VOCAB.eos_ids)) == matcher.accepting
        if step(matcher, rng, n > 25) is None:
            break


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.kind)
@pytest.mark.parametrize("seed", range(4))
def test_rollback_restores_every_mask(compiler: ConstraintCompiler, spec: ConstraintSpec, seed: int) -> None:
    rng = random.Random(seed)
    matcher = compiler.compile(spec).matcher()
    history = [row(matcher)]
    for n in range(120):
        if len(history) > 1 and rng.random() < 0.25:
            back = rng.randrange(1, len(history))
            matcher.rollback(back)
            del history[-back:]
        elif matcher.accepting and not matcher.finished and rng.random() < 0.3:
            assert matcher.accept(EOS)
            assert matcher.finished and not matcher.accept(EOS)
            matcher.rollback(1)
        elif step(matcher, rng, n > 60) is not None:
            history.append(row(matcher))
        assert row(matcher) == history[-1]
    matcher.rollback(len(history) - 1)
    assert row(matcher) == history[0]
    with pytest.raises(ValueError, match="cannot roll back 1"):
        matcher.rollback(1)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.kind)
def test_a_fork_is_independent_and_remembers(compiler: ConstraintCompiler, spec: ConstraintSpec) -> None:
    rng = random.Random(7)
    matcher = compiler.compile(spec).matcher()
    first = row(matcher)
    step(matcher, rng, False)
    here = row(matcher)
    other = matcher.fork()
    while step(other, rng, True) is not None and len(row(other)) and not other.finished:
        pass
    assert row(matcher) == here
    twin = matcher.fork()
    twin.rollback(1)
    assert row(twin) == first and row(matcher) == here


def test_forced_tokens_are_each_the_only_one_allowed() -> None:
    # single bytes alone: with merges a forced text can be split in several ways, and no token is forced
    vocab = Vocabulary([*(bytes([i]) for i in range(256)), None], [256], lambda text: list(text.encode()))
    compiler = ConstraintCompiler(vocab)
    schema = {"type": "object", "properties": {"answer": {"type": "boolean"}}, "required": ["answer"]}
    closed = schema | {"additionalProperties": False}
    matcher = compiler.compile(ConstraintSpec.json_schema(closed)).matcher()
    assert bytes(matcher.forced()) == b'{"answer": '
    assert bytes(matcher.forced(limit=3)) == b'{"a'
    other = matcher.fork()
    for token in matcher.forced():
        assert allowed_ids(vocab, other) == [token] and other.accept(token)
    assert bytes(matcher.forced()) == b'{"answer": ', "forced leaves the state as it was"
    assert other.accept(ord("t")) and bytes(other.forced()) == b"rue}"
    assert other.accept_run(b"rue}") == 4 and other.forced() == [] and other.finished
    compiler.close()


def test_end_of_sequence(compiler: ConstraintCompiler) -> None:
    matcher = compiler.compile(ConstraintSpec.choice(["a", "ab"])).matcher()
    assert not matcher.accepting and not matcher.accept(EOS)
    assert matcher.accept(ord("a")) and matcher.accepting and not matcher.finished
    assert matcher.accept(ord("b")) and matcher.accepting and matcher.finished
    assert matcher.accept(VOCAB.eos_ids[1]) and matcher.finished and not matcher.accept(ord("a"))
    assert allowed_ids(VOCAB, matcher) == list(VOCAB.eos_ids), "a row in flight never meets an empty mask"
    matcher.rollback(2)
    assert matcher.accept(ord("b")) and not matcher.accept(ord("b"))
    assert matcher.accept_run([EOS, EOS]) == 1


def test_ids_without_text_are_never_allowed(compiler: ConstraintCompiler) -> None:
    matcher = compiler.compile(ConstraintSpec.regex(r"[\s\S]*")).matcher()
    allowed = set(allowed_ids(VOCAB, matcher))
    silent = {i for i in range(VOCAB.size) if VOCAB.content(i) is None} - set(VOCAB.eos_ids)
    assert len(silent) == 5 and not allowed & silent
    mask = np.zeros(VOCAB.words, dtype=np.int32)
    assert matcher.fill(mask) is True
    assert bitmask.count(mask) == len([i for i in bitmask.to_ids(mask) if i < VOCAB.size]), "padding bits are clear"


def test_a_vocabulary_without_the_bytes_reports_the_dead_end() -> None:
    compiler = ConstraintCompiler(Vocabulary([b"a", b"b", None], [2], lambda text: []))
    matcher = compiler.compile(ConstraintSpec.regex("ac|b")).matcher()
    assert matcher.error is None and matcher.accept(0)
    assert matcher.error is not None and not matcher.finished
    matcher.rollback(1)
    assert matcher.error is None and matcher.accept(1)
    compiler.close()


def test_a_wrong_mask_is_named(compiler: ConstraintCompiler) -> None:
    matcher = compiler.compile(ConstraintSpec.choice(["a"])).matcher()
    for bad in (
        np.zeros(VOCAB.words + 1, np.int32),
        np.zeros(VOCAB.words, np.int64),
        np.zeros((1, VOCAB.words), np.int32),
    ):
        with pytest.raises(ValueError, match="the mask is int32"):
            matcher.fill(bad)  # type: ignore[arg-type]
