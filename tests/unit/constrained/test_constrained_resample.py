"""A value that turns out wrong is taken back and ruled out, by its text; the end is a right value or an error."""

from __future__ import annotations

import random

import numpy as np
import pytest
from raw_matchers import EOS, VOCAB, Distinct, RawBytes, allowed, ids_of, pick, row

from sglite.constrained import bitmask
from sglite.constrained.jump_forward import StableTokens
from sglite.constrained.resample import PER_REQUEST, PER_VALUE, Ruled
from sglite.constrained.token_matcher import TokenMatcher

WORDS = [b"name", b"names", b"12", b"1234", b"types", b"x"]


def write(matcher: TokenMatcher, seed: int, greedy: bool = True) -> tuple[bytes | None, int]:
    """The text of a model that always likes the same tokens best, None when it gives up; and its attempts."""
    ids: list[int] = []
    attempts = 0
    for step in range(400):
        if matcher.stuck:
            held = matcher.held
            taken = matcher.retreat()
            if not taken:
                return None, attempts
            assert taken == held <= len(ids) and not matcher.stuck
            del ids[-taken:]
            attempts += 1
            continue
        run = matcher.forced()
        # the liking depends on where in an item a token stands, so that every item would be the same one
        at = len(b"".join(VOCAB.content(i) or b"" for i in ids).split(b",")[-1].lstrip(b"["))
        choice = run[0] if run else pick(seed, at if greedy else step * 1000 + at, allowed(matcher))
        assert matcher.accept(choice)
        if choice == EOS:
            return b"".join(VOCAB.content(i) or b"" for i in ids), attempts
        ids.append(choice)
    raise AssertionError("it does not end")


@pytest.mark.parametrize("jump", [True, False])
@pytest.mark.parametrize("greedy", [True, False])
def test_every_answer_is_right(jump: bool, greedy: bool) -> None:
    retreats = 0
    for seed in range(8):
        machine = Distinct(WORDS, 4)
        text, attempts = write(TokenMatcher(RawBytes(VOCAB, machine), VOCAB, jump), seed, greedy)
        retreats += attempts
        assert text is not None, "there are more words than items"
        items = text[1:-1].split(b",")
        assert len(items) == len(set(items)) == 4 and set(items) <= set(WORDS)
    assert retreats > 5


def test_greedy_takes_the_next_best() -> None:
    """An attempt a used word at most: other tokens for the same text are no other text."""
    for seed in range(10):
        text, attempts = write(TokenMatcher(RawBytes(VOCAB, Distinct(WORDS, 2)), VOCAB), seed)
        assert text is not None and attempts <= 1


def test_what_cannot_be_is_an_error_and_the_state_stays() -> None:
    matcher = TokenMatcher(RawBytes(VOCAB, Distinct([b"name", b"x"], 3)), VOCAB)
    assert matcher.accept_run([*VOCAB.encode("["), *VOCAB.encode("name"), *VOCAB.encode(","), *VOCAB.encode("x")]) == 4
    assert matcher.accept_run(VOCAB.encode(",")) == 1 and matcher.error is None
    before = matcher.fork()
    assert matcher.accept_run(VOCAB.encode("name")) == 1 and matcher.stuck and matcher.error is None
    assert matcher.retreat() == 1 and not matcher.stuck, "the other word is left to try"
    assert matcher.accept_run(VOCAB.encode("name")) == 0 and row(matcher) != row(before)
    assert matcher.accept(VOCAB.encode("x")[0]) and matcher.stuck
    held = row(matcher)
    assert matcher.retreat() == 0 and row(matcher) == held
    assert matcher.error is not None and matcher.error.startswith("constraint_unsatisfied: ")
    matcher.rollback(1)
    assert matcher.stuck and str(matcher.error).startswith("constraint_unsatisfied: "), "no word is left for this item"
    matcher.rollback(2)
    assert not matcher.stuck and matcher.error is None and matcher.held == 0


def test_attempts_are_bounded() -> None:
    words = [bytes([n]) for n in range(97, 121)]
    raw = RawBytes(VOCAB, Distinct(words, 25))
    ids = ids_of("[" + ",".join(w.decode() for w in words) + ",")
    matcher = TokenMatcher(raw, VOCAB, jump_forward=False)
    assert matcher.accept_run(ids) == len(ids)
    attempts = 0
    rng = random.Random(0)
    while True:
        while not matcher.stuck:
            assert matcher.accept(rng.choice(allowed(matcher)))
        if not matcher.retreat():
            break
        attempts += 1
    assert attempts == PER_VALUE and PER_VALUE < PER_REQUEST
    assert matcher.error is not None and f"wrong {PER_VALUE} times" in matcher.error


def test_ruled_out_is_only_what_was_wrong() -> None:
    raw = RawBytes(VOCAB, Distinct([b"na", b"x"], 2))
    ids = ids_of("[na,na")
    assert all(raw.accept(i) for i in ids)
    ruled = Ruled(StableTokens(VOCAB))
    assert ruled.retreat(raw, ids) == 2 and raw.num_accepted == len(ids), "the state is unchanged"
    raw.rollback(2)
    mask = np.frombuffer(row(raw), dtype=np.int32).copy()
    before = set(allowed(raw))
    ruled.narrow(ids[:-2], mask)
    gone = {VOCAB.content(i) for i in before if not bitmask.allows(mask, i)}
    assert gone == {b"n", b"na"}, "the text, and what can only become it"
    assert {VOCAB.content(i) for i in before} - gone == {b"x"}
    ruled.forget(len(ids) - 2)
    assert ruled, "the beginning of the value is still there"
    ruled.forget(len(ids) - 3)
    assert not ruled
