"""A forced run is what the tokenizer gives for the finished text, whichever of the possible texts that becomes."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import pytest
from token_texts import KINDS, PATTERNS, family, published, trained

from sglite.constrained.jump_forward import StableTokens
from sglite.constrained.matcher import ForcedText
from sglite.constrained.vocab import Vocabulary


def crossings(pieces: frozenset[bytes], longest: int, possible: list[bytes], start: int, forced: bytes) -> list[int]:
    """Where a vocabulary token starts that runs out of the forced bytes into one of the possible texts."""
    found = []
    for b in range(len(forced)):
        low = len(forced) - b + 1
        tails = {text[start + b : start + b + longest] for text in possible}
        if any(tail[:n] in pieces for tail in tails for n in range(low, len(tail) + 1)):
            found.append(b)
    return found


def spell(vocab: Vocabulary, text: str) -> list[int] | None:
    """The canonical tokens of a text. An encoder that puts a space in front gets the text after a line end."""
    for head in ("", "\n", "|"):
        ids = vocab.encode(head + text)
        first = vocab.encode(head) if head else []
        if ids[: len(first)] == first:
            ids = ids[len(first) :]
            if b"".join(vocab.content(i) or b"\0" for i in ids) == text.encode():
                return ids
    return None


def common(items: list[Any]) -> Any:
    """What all of them begin with."""
    low, high = min(items), max(items)
    size = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[:size]


def check(vocab: Vocabulary, rounds: int, seed: int) -> tuple[int, int]:
    """Tokens of the runs, and tokens that were certain, over all the spans that went to their natural end."""
    stable = StableTokens(vocab)
    pieces = frozenset(piece for piece in vocab.token_bytes if piece)
    longest = max(map(len, pieces))
    rng = random.Random(seed)
    committed = certain = 0
    for _ in range(rounds):
        spelled = [(text.encode(), ids) for text in family(rng) if (ids := spell(vocab, text)) is not None]
        if not spelled:
            continue
        text, ids = rng.choice(spelled)
        cut = rng.randrange(len(ids) + 1)
        start = sum(len(vocab.content(i) or b"") for i in ids[:cut])
        possible = [(other, spelling) for other, spelling in spelled if other.startswith(text[:start])]
        longest_forced = common([other[start:] for other, _ in possible])
        forced = longest_forced[: rng.choice([len(longest_forced), rng.randrange(len(longest_forced) + 1)])]
        found = crossings(pieces, longest, [other for other, _ in possible], start, forced)
        context = stable.context(ids[:cut], forced)
        run = [] if context is None else stable.run(context, ForcedText(forced, tuple(found)))
        rest = [spelling[cut:] for _, spelling in possible if spelling[:cut] == ids[:cut]]
        if forced == longest_forced:
            committed, certain = committed + len(run), certain + len(common(rest)[:64])
        for spelling in rest:
            assert spelling[: len(run)] == run, (ids[:cut], text[:start], forced, found, run, spelling[: len(run) + 2])
    return committed, certain


@cache
def vocabulary(kind: str) -> Vocabulary:
    return published() if kind == "published" else trained(kind)


@pytest.mark.parametrize("kind", ["published", *KINDS])
def test_runs_are_the_tokenizers_own(kind: str) -> None:
    committed, certain = check(vocabulary(kind), 1500, 1)
    share = 0.9 if kind == "published" or kind in PATTERNS else 0.8  # those without words wait for more
    assert committed > 500 and committed >= share * certain, "little of what is certain is held back"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["published", *KINDS])
def test_runs_are_the_tokenizers_own_at_length(kind: str) -> None:
    check(vocabulary(kind), 50_000, 2)
