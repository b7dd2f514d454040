"""A text under a budget is complete when its tokens are used up, is free before that, and says what was filled in."""

from __future__ import annotations

import json
import random

import pytest
from raw_matchers import EOS, VOCAB, Objects, RawBytes, Texts, allowed, pick, row
from token_texts import family

from sglite.constrained.closing import filled_pointers, shortest_tokens
from sglite.constrained.jump_forward import StableTokens
from sglite.constrained.token_matcher import Shared, TokenMatcher

TOKENS = StableTokens(VOCAB)
SHARED = Shared(TOKENS)


def write(matcher: TokenMatcher, seed: int, budget: int, late: bool = False) -> tuple[list[int], list[bool]]:
    """Ids of a model with random logits that never ends a text by itself; and where tokens were forbidden."""
    ids: list[int] = []
    narrowed: list[bool] = []
    while True:
        run = matcher.forced()
        assert matcher.accept_run(run) == len(run)
        ids += run
        free = set(allowed(matcher._raw))
        fits = allowed(matcher)
        narrowed += [False] * len(run) + [set(fits) != free and matcher.forced() == []]
        choice = pick(seed, len(ids), [i for i in fits if i != EOS] or fits)
        if late:  # prefers to go on for ever
            choice = next((i for i in fits if (VOCAB.content(i) or b"").strip(b"abcdefghijkl ") == b""), choice)
        assert matcher.accept(choice)
        if choice == EOS:
            return ids, narrowed
        ids.append(choice)
        assert len(ids) <= budget


@pytest.mark.parametrize("jump", [True, False])
def test_every_budget_is_met(jump: bool) -> None:
    machine = Objects()
    least = shortest_tokens(RawBytes(VOCAB, machine), TOKENS)
    assert least == len(VOCAB.encode('{"name": "", "items": []}'))
    for budget in [*range(least, least + 25), 60, 90]:
        matcher = TokenMatcher(RawBytes(VOCAB, machine), VOCAB, jump, budget, SHARED)
        ids, _ = write(matcher, budget, budget, late=budget % 2 == 0)
        text = b"".join(VOCAB.content(i) or b"" for i in ids)
        assert set(json.loads(text)) == {"name", "items"} and len(ids) <= budget
        assert matcher.closed_from is None or 0 <= matcher.closed_from <= len(text)


def test_a_budget_below_the_shortest_text_is_refused() -> None:
    least = shortest_tokens(RawBytes(VOCAB, Objects()), TOKENS)
    with pytest.raises(ValueError, match=f"at most {least - 1} tokens cannot be complete; the shortest has {least}"):
        TokenMatcher(RawBytes(VOCAB, Objects()), VOCAB, close_at=least - 1)


@pytest.mark.parametrize("seed", range(20))
def test_finite_texts_within_every_budget(seed: int) -> None:
    texts = [text.encode() for text in family(random.Random(seed)) if text] or [b"a"]
    raw = RawBytes(VOCAB, Texts(texts, keyed=seed % 2 == 0))
    for budget in range(shortest_tokens(raw, TOKENS), 40, 3):
        ids, _ = write(TokenMatcher(raw.fork(), VOCAB, seed % 3 > 0, budget), seed, budget)
        assert b"".join(VOCAB.content(i) or b"" for i in ids) in texts


def test_closing_begins_late_and_says_where() -> None:
    """Nothing is forbidden while the completion in bytes fits behind every token; then the text is led to its end."""
    budget = 120
    matcher = TokenMatcher(RawBytes(VOCAB, Objects()), VOCAB, close_at=budget)
    ids, narrowed = write(matcher, 0, budget, late=True)
    first = narrowed.index(True)
    completion = len(b'", "items": []}')
    assert first >= budget - completion - max(len(p) for p in VOCAB.token_bytes if p) and any(narrowed[first:])
    text = b"".join(VOCAB.content(i) or b"" for i in ids)
    assert matcher.closed_from == len(b"".join(VOCAB.content(i) or b"" for i in ids[:first]))
    assert filled_pointers(text, matcher.closed_from) == ["", "/name", "/items"]
    matcher.rollback(len(ids) + 1 - first + 1)
    assert matcher.closed_from is None, "it goes with the tokens"


def test_a_large_budget_forbids_nothing() -> None:
    free = TokenMatcher(RawBytes(VOCAB, Objects()), VOCAB)
    bound = TokenMatcher(RawBytes(VOCAB, Objects()), VOCAB, close_at=10_000)
    for position in range(60):
        assert row(bound) == row(free)
        ids = [i for i in allowed(free) if i != EOS]
        if not ids:
            break
        choice = pick(3, position, ids)
        assert free.accept(choice) and bound.accept(choice)
    assert bound.closed_from is None


def test_a_budget_is_charged_with_what_came_before() -> None:
    least = shortest_tokens(RawBytes(VOCAB, Objects()), TOKENS)
    matcher = TokenMatcher(RawBytes(VOCAB, Objects()), VOCAB, close_at=least + 30)
    matcher.charge(30)
    ids, _ = write(matcher, 0, least)
    assert len(ids) <= least
    with pytest.raises(ValueError, match="before the text begins"):
        matcher.charge(1)


def test_a_vocabulary_that_cannot_fit_says_so() -> None:
    matcher = TokenMatcher(RawBytes(VOCAB, Texts([b"xyxyxy", b"xyxyxyxyxyxyxyxyxyxy"])), VOCAB, close_at=10)
    matcher.charge(8)
    assert matcher.stuck and matcher.error is not None and "within the tokens left" in matcher.error


def test_pointers_of_what_was_filled_in() -> None:
    text = b'{"a": [1, {"b/~": "x"}], "c\\u00e9": null, "": {}}'
    every = ["", "/a", "/a/0", "/a/1", "/a/1/b~1~0", "/cé", "/"]
    assert filled_pointers(text, 0) == every
    assert filled_pointers(text, text.index(b", {")) == [p for p in every if p != "/a/0"]
    assert filled_pointers(text, text.index(b"null")) == ["", "/cé", "/"]
    assert filled_pointers(text, len(text)) == []
    assert filled_pointers(text, 0, most=2) == ["", "/a"]
    assert filled_pointers(b'{"a": [1', 7) == ["", "/a", "/a/0"], "what is cut off ends after everything"
    assert filled_pointers(b"[" * 20_000, 5)[:2] == ["", "/0"]
    assert filled_pointers(b'"}{\\",:"', 3) == [""] and filled_pointers(b"", 0) == []


def test_rollback_restores_the_written_completion() -> None:
    matcher = TokenMatcher(RawBytes(VOCAB, Objects()), VOCAB, close_at=30)
    assert matcher.accept_run(matcher.forced()) > 2
    rows = [row(matcher)]
    for position in range(12):
        choice = pick(5, position, allowed(matcher))
        if choice == EOS or not matcher.accept(choice):
            break
        rows.append(row(matcher))
    for expected in reversed(rows[:-1]):
        matcher.rollback(1)
        assert row(matcher) == expected == row(matcher.fork())
