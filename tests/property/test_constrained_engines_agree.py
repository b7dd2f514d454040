"""Engines against the reference engine: the same masks, bit for bit, along random walks of random grammars."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import pytest
from constrained_schemas import Schemas, lowered
from constrained_walks import allowed_ids, engine_named, small_vocabulary, tiny_vocabulary
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sglite.constrained import bitmask
from sglite.constrained.charset import EVERY, complement, make, of
from sglite.constrained.engines.reference import ReferenceEngine
from sglite.constrained.grammar import (
    EMPTY,
    Alt,
    And,
    Chars,
    Grammar,
    Guard,
    JsonString,
    Node,
    Not,
    Ref,
    Repeat,
    Scope,
    Seq,
    Shuffle,
    Special,
    Text,
    Unique,
    children,
    normalise,
)
from sglite.constrained.matcher import ForcedText
from sglite.constrained.spec import ConstraintRefused

# The reference is exponential where a grammar is deeply ambiguous. Examples are the same in every run, so that one of
# those does not stop a run by chance.
SECONDS_A_WALK = 1.0

VOCAB = tiny_vocabulary()
RESERVED = (VOCAB.eos_ids[0] - 3, VOCAB.eos_ids[0] - 2)
CHECKS = (
    lambda text: len(text) % 2 == 0,
    lambda text: "a" not in text,
    lambda text: text.count("b") == text.count("0"),
    lambda text: True,
)

TEXTS = st.sampled_from(["", "a", "b", "ab", "é", "中a", "0", "10", '"', "\\", "a/b", "\n", "😀"]).map(Text)
SETS = st.sampled_from(
    [of("ab"), of("01"), of("aé中"), of('"\\/n'), EVERY, complement(of("a")), of("\x01\n😀"), make([(0x80, 0x900)])]
)
SPANS = st.tuples(st.integers(0, 2), st.integers(0, 2)).map(lambda t: (t[0], t[0] + t[1]))
COUNTS = (
    SPANS
    | st.tuples(st.integers(0, 2), st.none())
    | st.sampled_from([(0, 20), (17, 19), (3, 40), (0, 300), (18, None)])
)


def lists(items: st.SearchStrategy[Node], most: int = 3) -> st.SearchStrategy[tuple[Node, ...]]:
    return st.lists(items, min_size=1, max_size=most).map(tuple)


def combine_regular(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    return st.one_of(
        st.builds(Seq, lists(inner)),
        st.builds(Alt, lists(inner)),
        st.builds(lambda item, span: Repeat(item, *span), inner, SPANS | st.tuples(st.integers(0, 2), st.none())),
        st.builds(And, lists(inner, 2)),
        st.builds(Not, inner),
    )


COUNTED = st.builds(lambda ranges, span: Repeat(Chars(ranges), *span), SETS, COUNTS)
REGULAR: st.SearchStrategy[Node] = st.recursive(TEXTS | st.builds(Chars, SETS) | COUNTED, combine_regular, max_leaves=5)
STRINGS = st.builds(JsonString, REGULAR)
SPECIALS = st.sampled_from([(RESERVED[0],), RESERVED]).map(Special)
REFS = st.sampled_from(["root", "one", "two"]).map(Ref)
NUMBERS = st.sampled_from(["0", "1", "-1", "10", "1.0", "0.10", "-0"]).map(Text)


def separated(items: list[Node], brackets: str) -> Node:
    parts = [part for item in items for part in (Text(", "), item)][1:]
    return Scope(Seq((Text(brackets[0]), *parts, Text(brackets[1]))))


def some_of(item: Node, brackets: str, low: int, high: int | None) -> Node:
    """A JSON container of `low` to `high` times `item`."""
    more = Repeat(Seq((Text(", "), item)), max(low - 1, 0), None if high is None else high - 1)
    inside = Seq((item, more))
    return Scope(Seq((Text(brackets[0]), inside if low else Alt((inside, EMPTY)), Text(brackets[1]))))


def containers(values: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    unique = st.builds(Unique, values, st.booleans())
    names = st.builds(Unique, STRINGS, st.booleans())
    members = st.builds(lambda name, value: Seq((name, Text(": "), value)), names, values)
    low_high = st.tuples(st.integers(0, 2), st.none() | st.integers(2, 4))
    return st.one_of(
        st.builds(lambda items: separated(items, "[]"), st.lists(unique | values, min_size=1, max_size=3)),
        st.builds(lambda item, span: some_of(item, "[]", *span), unique, low_high),
        st.builds(lambda item, span: some_of(item, "{}", *span), members, low_high),
    )


JSON_VALUES: st.SearchStrategy[Node] = st.recursive(
    STRINGS | NUMBERS | st.builds(Alt, lists(NUMBERS)),
    lambda inner: containers(inner) | st.builds(Guard, inner, st.integers(0, 3)) | st.builds(Alt, lists(inner, 2)),
    max_leaves=5,
)


def shuffles(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    def build(items: tuple[Node, ...], picks: list[bool], span: tuple[int, int | None], rest: Node | None) -> Node:
        required = frozenset(i for i, pick in enumerate(picks[: len(items)]) if pick)
        return Shuffle(items, required, Text(","), span[0], span[1], rest)

    highs = st.tuples(st.integers(0, 2), st.none() | st.integers(2, 4))
    entries = st.builds(lambda mark, item: Seq((Text(mark), item)), st.sampled_from("ab0"), inner)
    return st.builds(build, lists(entries), st.lists(st.booleans(), min_size=3, max_size=3), highs, st.none() | entries)


def combine(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    return st.one_of(
        st.builds(Seq, lists(inner)),
        st.builds(Alt, lists(inner)),
        st.builds(lambda item, span: Repeat(item, *span), inner, SPANS | st.tuples(st.integers(0, 2), st.none())),
        st.builds(Guard, inner, st.integers(0, 3)),
        shuffles(inner),
    )


NODES: st.SearchStrategy[Node] = st.recursive(
    st.one_of(REGULAR, STRINGS, SPECIALS, REFS, REFS, JSON_VALUES), combine, max_leaves=7
)
GRAMMARS = st.builds(
    lambda root, one, two: Grammar({"root": root, "one": one, "two": two}, checks=CHECKS), NODES, NODES, NODES
)


def positional(grammar: Grammar) -> bool:
    """Whether the text has a say in what may follow."""
    waiting = list(grammar.rules.values())
    while waiting:
        node = waiting.pop()
        if isinstance(node, Guard | Unique):
            return True
        waiting.extend(children(node))
    return False


def mask_of(raw: Any, room: int | None = None) -> list[int]:
    mask = np.full(VOCAB.words, -1, dtype=np.int32)
    raw.fill(mask, room)
    return [int(i) for i in bitmask.to_ids(mask)]


def compare(reference: Any, other: Any, rng: random.Random, exact: bool) -> list[int]:
    """Everything that two raw matchers say of one state; the ids that are allowed."""
    allowed = mask_of(reference)
    assert mask_of(other) == allowed
    assert (other.accepting, other.ended, other.num_accepted, other.text, other.held()) == (
        reference.accepting,
        reference.ended,
        reference.num_accepted,
        reference.text,
        reference.held(),
    )
    room = rng.randrange(12)
    assert mask_of(other, room) == mask_of(reference, room)
    limit = rng.choice([0, 1, 2, 5, 30])
    forced, expected = other.forced_text(limit), reference.forced_text(limit)
    if exact:
        assert forced == expected
    else:  # a byte after which a value turns out wrong may still count as one of several
        assert expected.text.startswith(forced.text)
    return allowed


def same_completion(reference: Any, other: Any) -> None:
    """`shortest` completes the text, and is as short as any."""
    text, expected = other.shortest(), reference.shortest()
    assert (text is None) == (expected is None)
    if text is not None:
        assert len(text) == len(expected)
        walked = other.fork()
        pieces = [bytes([byte]) for byte in text]
        if all(piece in VOCAB.token_bytes for piece in pieces):
            assert all(walked.accept(VOCAB.token_bytes.index(piece)) for piece in pieces) and walked.accepting


def walk_together(grammar: Grammar, engine: Any, rng: random.Random, steps: int) -> None:
    exact = not positional(grammar)
    reference = ReferenceEngine(VOCAB).compile(grammar).raw_matcher()
    other = engine.compile(grammar).raw_matcher()
    begun = time.process_time()
    for _ in range(steps):
        if time.process_time() - begun > SECONDS_A_WALK:
            return
        allowed = compare(reference, other, rng, exact)
        if exact and rng.random() < 0.3:
            same_completion(reference, other)
        what = rng.random()
        if what < 0.1:
            reference, other = reference.fork(), other.fork()
        elif what < 0.2 and reference.num_accepted:
            back = rng.randint(1, reference.num_accepted)
            reference.rollback(back)
            other.rollback(back)
        elif what < 0.3:
            token = rng.randrange(VOCAB.size + 2)
            expected = token in allowed and not reference.ended
            assert reference.accept(token) == other.accept(token) == expected
        elif allowed:
            long = [i for i in allowed if len(VOCAB.content(i) or b"") > 1]
            token = rng.choice(long if long and rng.random() < 0.4 else allowed)
            ended = reference.ended
            assert reference.accept(token) == other.accept(token) == (not ended)


@pytest.fixture(scope="module", params=["native"])
def engine(request: pytest.FixtureRequest) -> Any:
    return engine_named(request.param, VOCAB)


def normal(grammar: Grammar) -> Grammar:
    """The grammar as engines are given it; draws another one where they may refuse."""
    try:
        grammar = normalise(grammar)
        ReferenceEngine(VOCAB).compile(grammar)
    except ConstraintRefused:
        assume(False)
    return grammar


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(grammar=GRAMMARS, seed=st.integers(0, 10**6))
def test_masks_agree_bit_for_bit(engine: Any, grammar: Grammar, seed: int) -> None:
    walk_together(normal(grammar), engine, random.Random(seed), 14)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(value=JSON_VALUES, seed=st.integers(0, 10**6))
def test_values_that_are_compared_agree_bit_for_bit(engine: Any, value: Node, seed: int) -> None:
    walk_together(normal(Grammar({"root": value}, checks=CHECKS)), engine, random.Random(seed), 25)


@pytest.fixture(scope="module", params=["reference", "native"])
def each(request: pytest.FixtureRequest) -> Any:
    return engine_named(request.param, VOCAB)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(grammar=GRAMMARS, seed=st.integers(0, 10**6))
def test_rollback_restores_every_mask_bit_for_bit(each: Any, grammar: Grammar, seed: int) -> None:
    rng = random.Random(seed)
    raw = each.compile(normal(grammar)).raw_matcher()
    seen = [(mask_of(raw), raw.accepting, raw.held(), raw.text, raw.forced_text())]
    for _ in range(8):
        allowed = seen[-1][0]
        if allowed and not raw.ended and rng.random() < 0.7:
            assert raw.accept(rng.choice(allowed))
            seen.append((mask_of(raw), raw.accepting, raw.held(), raw.text, raw.forced_text()))
        elif len(seen) > 1:
            back = rng.randint(1, len(seen) - 1)
            raw.rollback(back)
            del seen[len(seen) - back :]
            assert seen[-1] == (mask_of(raw), raw.accepting, raw.held(), raw.text, raw.forced_text())


WIDE = small_vocabulary()


def forced_by_trying(raw: Any) -> bytes:
    """The bytes that must follow: one after the other, as long as a single byte, and no end, may."""
    probe, forced = raw.fork(), b""
    while not probe.accepting and len(forced) < 40:
        ways = [byte for byte in range(256) if can_take(probe, byte)]
        if len(ways) != 1:
            break
        probe.accept(WIDE.token_bytes.index(bytes(ways)))
        forced += bytes(ways)
    return forced


def can_take(raw: Any, byte: int) -> bool:
    taken = raw.accept(WIDE.token_bytes.index(bytes([byte])))
    if taken:
        raw.rollback(1)
    return bool(taken)


def crossings_by_trying(raw: Any, forced: bytes) -> tuple[int, ...]:
    found = []
    for at in range(len(forced)):
        probe = raw.fork()
        assert all(probe.accept(WIDE.token_bytes.index(bytes([b]))) for b in forced[:at])
        longer = [
            i for i, p in enumerate(WIDE.token_bytes) if p and len(p) > len(forced) - at and p.startswith(forced[at:])
        ]
        if any(probe.fork().accept(i) for i in longer if i not in WIDE.eos_ids):
            found.append(at)
    return tuple(found)


@pytest.mark.parametrize("name", ["reference", "native"])
def test_forced_runs_equal_brute_force(name: str) -> None:
    engine, found = engine_named(name, WIDE), 0
    for seed in range(40 if name == "native" else 8):
        rng = random.Random(seed)
        grammar = lowered(Schemas(rng).draw())
        if grammar is None or positional(grammar):
            continue
        raw = engine.compile(grammar).raw_matcher()
        for _ in range(6):
            forced = forced_by_trying(raw)
            assert raw.forced_text(40) == ForcedText(forced, crossings_by_trying(raw, forced))
            found += bool(forced)
            allowed = allowed_ids(WIDE, raw)
            if raw.ended or not raw.accept(rng.choice(allowed)):
                break
    assert found > (20 if name == "native" else 3)
