"""The laws of `TokenMatcher`: the same ids with and without jump-forward, masks and accept agree, rollback is exact."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from raw_matchers import EOS, VOCAB, Objects, RawBytes, Texts, allowed, pick, row
from token_texts import family

from sglite.constrained.jump_forward import StableTokens
from sglite.constrained.matcher import Matcher
from sglite.constrained.token_matcher import Shared, TokenMatcher
from sglite.constrained.vocab import Vocabulary


def write(matcher: Matcher, seed: int, limit: int = 200) -> tuple[list[int], int]:
    """Ids up to the end of sequence, greedily by random logits, and how many of them were forced."""
    ids: list[int] = []
    forced = 0
    while len(ids) < limit:
        run = matcher.forced()
        assert matcher.accept_run(run) == len(run)
        ids += run
        forced += len(run)
        if len(ids) >= limit:
            break
        choice = pick(seed, len(ids), allowed(matcher))
        assert matcher.accept(choice)
        if choice == EOS:
            return ids, forced
        ids.append(choice)
    return ids, forced


def texts(seed: int) -> list[bytes]:
    return [text.encode() for text in family(random.Random(seed)) if text] or [b"a"]


def machine(seed: int) -> Any:
    return Objects() if seed % 4 == 0 else Texts(texts(seed), keyed=seed % 2 == 0)


@pytest.mark.parametrize("seed", range(24))
def test_jump_forward_changes_no_id(seed: int) -> None:
    raw = RawBytes(VOCAB, machine(seed))
    shared = Shared(StableTokens(VOCAB))
    budget = 60 if isinstance(raw.machine, Objects) else None
    on, forced = write(TokenMatcher(raw.fork(), VOCAB, True, budget, shared), seed, 60)
    for own in (shared, None):
        off, none = write(TokenMatcher(raw.fork(), VOCAB, False, budget, own), seed, 60)
        assert off == on and none == 0
    assert forced or len(on) < 4 or len(getattr(raw.machine, "texts", [])) > 1


def test_a_finite_set_of_one_is_forced_to_its_end() -> None:
    text = json.dumps({"name": "userName", "n": [1, 2], "中文": "😀"}, ensure_ascii=False)
    matcher = TokenMatcher(RawBytes(VOCAB, Texts([text.encode()])), VOCAB)
    run = matcher.forced()
    assert run == VOCAB.encode(text)
    assert matcher.forced(3) == run[:3] and matcher.forced(0) == []
    for token in run:
        assert allowed(matcher) == [token] and not matcher.accept(EOS) and matcher.accept(token)
    assert matcher.forced() == [] and matcher.accepting and matcher.finished and allowed(matcher) == [EOS]
    assert matcher.accept(EOS) and matcher.finished and not matcher.accept(EOS) and allowed(matcher) == [EOS]


@pytest.mark.parametrize("seed", range(8))
def test_accept_takes_what_the_mask_allows(seed: int) -> None:
    matcher = TokenMatcher(RawBytes(VOCAB, machine(seed)), VOCAB, close_at=None if seed % 3 else 40)
    for position in range(12):
        ids = allowed(matcher)
        for token in [-1, *random.Random(seed).sample(range(VOCAB.size + 3), 200), *ids[:50], EOS]:
            assert matcher.accept(token) == (token in ids)
            if token in ids:
                matcher.rollback(1)
        assert (EOS in ids) == matcher.accepting
        if ids == [EOS]:
            break
        assert matcher.accept(pick(seed, position, ids))


@pytest.mark.parametrize("seed", range(8))
def test_rollback_is_bit_equal_after_runs(seed: int) -> None:
    rng = random.Random(seed)
    matcher = TokenMatcher(RawBytes(VOCAB, machine(seed)), VOCAB, close_at=None if seed % 3 else 60)
    seen = [(row(matcher), matcher.forced())]
    for _ in range(60):
        if len(seen) > 1 and rng.random() < 0.3:
            back = rng.randrange(1, len(seen))
            matcher.rollback(back)
            del seen[-back:]
        ids = allowed(matcher)
        for token in matcher.forced() or [rng.choice(ids)]:
            if matcher.accept(token):
                seen.append((row(matcher), matcher.forced()))
        twin = matcher.fork()
        assert (row(twin), twin.forced()) == seen[-1] == (row(matcher), matcher.forced())
        twin.rollback(len(seen) - 1)
        assert (row(twin), twin.forced()) == seen[0] and (row(matcher), matcher.forced()) == seen[-1]
    with pytest.raises(ValueError, match="cannot roll back"):
        matcher.rollback(len(seen))


def test_states_that_repeat_are_asked_once() -> None:
    class Counting(RawBytes):
        asked = 0

        def forced_text(self, limit: int = 256) -> Any:
            Counting.asked += 1
            return super().forced_text(limit)

    shared = Shared(StableTokens(VOCAB))
    for _ in range(3):
        matcher = TokenMatcher(Counting(VOCAB, Objects()), VOCAB, shared=shared)
        assert matcher.accept_run(matcher.forced()) > 2 and matcher.accept_run(VOCAB.encode(' "')) == 1
        for _ in range(20):
            row(matcher)
            assert matcher.forced() == [] and matcher.accept(VOCAB.encode("a")[0])
    assert Counting.asked == 3, "the beginning, before the quote, inside the string"


def test_a_vocabulary_without_the_bytes_says_so() -> None:
    vocab = Vocabulary([b"a", b"b", None], [2], lambda text: [])
    matcher = TokenMatcher(RawBytes(vocab, Texts([b"ac", b"b"])), vocab)
    assert matcher.error is None and not matcher.stuck and matcher.accept(0)
    assert matcher.stuck and matcher.error is not None and "bytes the vocabulary lacks" in matcher.error
    assert not matcher.finished and matcher.held == 0 and matcher.retreat() == 0
    matcher.rollback(1)
    assert matcher.error is None and matcher.accept(1) and matcher.finished


def test_a_wrong_mask_is_named() -> None:
    matcher = TokenMatcher(RawBytes(VOCAB, Texts([b"name"])), VOCAB)
    with pytest.raises(ValueError, match="the mask is int32"):
        matcher.fill(np.zeros(VOCAB.words + 1, np.int32))


def test_what_fits_a_budget_still_fits_after_a_token_was_tried() -> None:
    class Tired(RawBytes):
        """Finds completions until it is told to rest: an engine's search has a limit, which tries use up."""

        rests = False

        def shortest(self) -> bytes | None:
            return None if self.rests else super().shortest()

    words = [b"userName = userName", b"userName = itemName"]
    raw = Tired(VOCAB, Texts(words))
    least = max(len(VOCAB.encode(word.decode())) for word in words)
    matcher = TokenMatcher(raw, VOCAB, jump_forward=False, close_at=least)
    while not matcher.accepting:
        raw.rests = False
        mask = row(matcher)
        raw.rests = True
        for token in allowed(matcher):
            assert matcher.accept(token)
            matcher.rollback(1)
        assert row(matcher) == mask
        token = allowed(matcher)[0]
        raw.rests = False
        assert matcher.accept(token)
    assert len(matcher._ids) <= least
