"""The reasoning gate: everything before the end of thinking, the constraint after it, and the way back."""

from __future__ import annotations

import random
from typing import Any

import pytest
from raw_matchers import EOS, VOCAB, Objects, RawBytes, Texts, allowed, ids_of, pick, row

from sglite.constrained.closing import shortest_tokens
from sglite.constrained.jump_forward import StableTokens
from sglite.constrained.token_matcher import TokenMatcher
from sglite.constrained.wrappers import ReasoningGate, ThinkEnd

TEXT = "</x>"
BY_TEXT = ThinkEnd(VOCAB, TEXT)
BY_IDS = ThinkEnd(VOCAB, [300, 301, 300, 302])


def gate(end: ThinkEnd, budget: int | None = None, **options: Any) -> ReasoningGate:
    inner = TokenMatcher(RawBytes(VOCAB, Objects()), VOCAB, options.get("jump_forward", True))
    return ReasoningGate(inner, end, budget, **options)


def test_thinking_is_free_and_then_the_constraint_begins() -> None:
    matcher, inner = gate(BY_TEXT), TokenMatcher(RawBytes(VOCAB, Objects()), VOCAB)
    for token in ids_of("a <b </</x"):
        ids = allowed(matcher)
        assert EOS not in ids and token in ids and not matcher.accept(EOS) and matcher.accept(token)
    assert matcher.thinking and matcher.forced() == [] and not matcher.accepting and not matcher.finished
    assert matcher.error is None and not matcher.stuck and matcher.held == 0 and matcher.retreat() == 0
    assert matcher.accept_run(ids_of(">")) == 1
    assert not matcher.thinking and row(matcher) == row(inner) and matcher.forced() == inner.forced() != []
    assert not matcher.accept_run(ids_of("a")) and matcher.accept_run(inner.forced()) == len(inner.forced())


def test_no_token_runs_past_the_end_of_thinking() -> None:
    matcher = gate(BY_TEXT)
    past = [i for i in range(VOCAB.size) if (piece := VOCAB.content(i)) and TEXT.encode() in piece[:-1]]
    assert matcher.accept_run(ids_of("</x")) == 3
    ids = set(allowed(matcher))
    past += [i for i in range(VOCAB.size) if (piece := VOCAB.content(i)) and piece[:1] == b">" and len(piece) > 1]
    assert past and not ids & set(past) and VOCAB.encode(">")[0] in ids
    for token in range(-1, VOCAB.size + 1):
        taken = matcher.accept(token)
        assert taken == (token in ids)
        if taken:
            matcher.rollback(1)


@pytest.mark.parametrize("end", [BY_TEXT, BY_IDS], ids=["text", "ids"])
@pytest.mark.parametrize("jump", [True, False])
@pytest.mark.parametrize("budget", [0, 1, 5])
def test_a_budget_ends_the_thinking(end: ThinkEnd, jump: bool, budget: int) -> None:
    for seed in range(6):
        matcher, count = gate(end, budget, jump_forward=jump), 0
        while matcher.thinking:
            ids = allowed(matcher)
            run = matcher.forced()
            assert jump or not run
            assert not run or ids == [run[0]]
            assert not run or len(run) <= end.longest
            choice = pick(seed, count, ids)
            assert matcher.accept(choice)
            count += 1
        assert count <= budget + end.longest


def test_a_partial_end_is_completed() -> None:
    matcher = gate(BY_IDS, 5)
    assert matcher.accept_run([7, 300, 301, 300, 301]) == 5
    assert matcher.forced() == [300, 302], "300 301 is the beginning of the end as well"
    assert matcher.forced(1) == [300] and matcher.accept_run([300, 302]) == 2 and not matcher.thinking


@pytest.mark.parametrize("seed", range(4))
def test_rollback_and_fork_across_the_gate(seed: int) -> None:
    rng = random.Random(seed)
    matcher = gate([BY_TEXT, BY_IDS][seed % 2], 6)
    seen = [(row(matcher), matcher.forced(), matcher.thinking)]
    for _ in range(60):
        if len(seen) > 1 and rng.random() < 0.2:
            back = rng.randrange(1, len(seen))
            matcher.rollback(back)
            del seen[-back:]
        for token in matcher.forced() or [rng.choice(allowed(matcher))]:
            if matcher.accept(token):
                seen.append((row(matcher), matcher.forced(), matcher.thinking))
        twin = matcher.fork()
        twin.rollback(len(seen) - 1)
        assert (row(twin), twin.forced(), twin.thinking) == seen[0]
        assert (row(matcher), matcher.forced(), matcher.thinking) == seen[-1]
    with pytest.raises(ValueError, match="cannot roll back"):
        matcher.rollback(len(seen))


def test_an_end_of_sequence_while_thinking() -> None:
    matcher = gate(BY_IDS, allow_eos=True)
    assert EOS in allowed(matcher) and matcher.accept(EOS) and matcher.finished and not matcher.accepting
    assert allowed(matcher) == [EOS] and not matcher.accept(EOS) and not matcher.accept(5)
    matcher.rollback(1)
    assert not matcher.finished and matcher.accept(5)
    assert gate(BY_IDS, 0, allow_eos=True).accept(EOS) is False, "the end of thinking is forced"


def test_the_budget_of_the_whole_holds() -> None:
    raw, tokens = RawBytes(VOCAB, Objects()), StableTokens(VOCAB)
    whole = 40
    budget = whole - BY_TEXT.longest - shortest_tokens(raw, tokens)
    for seed in range(6):
        matcher = ReasoningGate(TokenMatcher(raw.fork(), VOCAB, close_at=whole), BY_TEXT, budget)
        count, rng = 0, random.Random(seed)
        while not matcher.finished:
            if count >= 3 and rng.random() < 0.3:  # now and then some are taken back, across the gate as well
                matcher.rollback(back := rng.randrange(1, 4))
                count -= back
            ids = [i for i in allowed(matcher) if i != EOS]
            assert ids and matcher.accept(rng.choice(ids))
            count += 1
        assert matcher.accepting and count <= whole


def test_wrong_ends_are_named() -> None:
    with pytest.raises(ValueError, match="is empty"):
        ThinkEnd(VOCAB, "")
    with pytest.raises(ValueError, match="outside the vocabulary"):
        ThinkEnd(VOCAB, [VOCAB.size])
    with pytest.raises(ValueError, match="negative"):
        ReasoningGate(TokenMatcher(RawBytes(VOCAB, Texts([b"a"])), VOCAB), BY_TEXT, -1)
    matcher = gate(BY_TEXT)
    matcher.accept(5)
    with pytest.raises(ValueError, match="before the text begins"):
        matcher.charge(1)
