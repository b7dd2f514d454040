"""A bound on thinking: it ends in time, nothing else is touched, and the way back is the way there."""

from __future__ import annotations

import random
import shutil
from typing import Any

import pytest

from sglite.constrained import bitmask
from sglite.constrained.compiler import ConstraintCompiler
from sglite.constrained.matcher import Matcher
from sglite.constrained.spec import ConstraintSpec
from sglite.constrained.thinking_budget import ThinkingBudget
from sglite.constrained.vocab import Vocabulary

EOS, BEGIN, END = 256, 257, 258
PIECES = [*(bytes([i]) for i in range(256)), None, None, None, b"</t", b"t>{", b"ab"]
VOCAB = Vocabulary(PIECES, [EOS], lambda text: list(text.encode()), special_ids={"[T]": BEGIN, "[/T]": END})
MARKS = {"text": ("<t>", "</t>"), "special": ("[T]", "[/T]")}
ENGINE = "native" if shutil.which("g++") else "reference"
ANY = {"type": "any_text", "excludes": []}
OBJECT = {"type": "regex", "pattern": r"\{[a-z]{0,6}\}"}


@pytest.fixture(scope="module")
def compiler() -> Any:
    compiler = ConstraintCompiler(VOCAB, engine=ENGINE)
    yield compiler
    compiler.close()


@pytest.fixture(params=["text", "special"])
def marks(request: pytest.FixtureRequest) -> tuple[str, str]:
    return MARKS[request.param]


def turn(compiler: ConstraintCompiler, marks: tuple[str, str], rest: Any, opened: bool = False) -> Matcher:
    """Thinking between the marks, or none, and then `rest`."""
    thought = {"type": "tag", "begin": "" if opened else marks[0], "content": ANY, "end": marks[1]}
    behind = {"type": "sequence", "elements": [thought, rest]}
    form = behind if opened else {"type": "or", "elements": [behind, rest]}
    spec = ConstraintSpec.structural_tag({"type": "structural_tag", "format": form})
    return compiler.submit(spec).result().matcher()


def bound(inner: Matcher, marks: tuple[str, str], budget: int, opened: bool = False) -> ThinkingBudget:
    return ThinkingBudget(inner, VOCAB, "" if opened else marks[0], marks[1], budget)


def allowed(matcher: Matcher) -> list[int]:
    mask = bitmask.allocate(1, VOCAB.size)[0]
    matcher.fill(mask)
    return bitmask.to_ids(mask).tolist()


def spelled(mark: str) -> list[int]:
    return [VOCAB.special_ids[mark]] if mark in VOCAB.special_ids else list(mark.encode())


@pytest.mark.parametrize("rest", [ANY, OBJECT], ids=["any", "object"])
@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("budget", [0, 1, 5])
def test_the_thinking_has_as_many_tokens_as_it_may(
    compiler: ConstraintCompiler, marks: tuple[str, str], rest: Any, opened: bool, budget: int
) -> None:
    matcher = bound(turn(compiler, marks, rest, opened), marks, budget, opened)
    assert opened or matcher.accept_run(spelled(marks[0])) == len(spelled(marks[0]))
    for _ in range(budget):
        assert 97 in allowed(matcher) and matcher.accept(97)
    for token in spelled(marks[1]):
        assert allowed(matcher) == [token] and not matcher.accept(97) and not matcher.accept(EOS)
        assert matcher.accept(token)
    assert len(allowed(matcher)) > 1 or not matcher.accept(97)
    assert matcher.accept_run(b"{ab}") == 4 and matcher.accept(EOS) and matcher.finished


@pytest.mark.parametrize("seed", range(6))
def test_what_is_no_thinking_or_ends_in_time_is_left_alone(
    compiler: ConstraintCompiler, marks: tuple[str, str], seed: int
) -> None:
    """Mask for mask, and what is forced, as without the bound."""
    rng, begin, end = random.Random(seed), spelled(marks[0]), spelled(marks[1])
    short = [*begin, *rng.choices(range(97, 123), k=4), *end, *b"{ab}"]
    for text in (short, list(b"{abc}"), list(b"{}"), [32, *b"{}"], [*short[:-4], 261 if seed % 2 else 123, 125]):
        plain = turn(compiler, marks, OBJECT)
        matcher = bound(plain.fork(), marks, 9)
        for token in text:
            assert allowed(matcher) == allowed(plain) and matcher.accepting == plain.accepting
            taken = plain.accept(token)
            assert matcher.accept(token) == taken
        assert matcher.finished == plain.finished and matcher.stuck == plain.stuck
        assert matcher.forced() == plain.forced()


def test_what_the_constraint_forces_is_told_where_nobody_thinks(
    compiler: ConstraintCompiler, marks: tuple[str, str]
) -> None:
    rest = {"type": "const_string", "value": "{abc}"}
    for text in (b"{", [*spelled(marks[0]), 97, *spelled(marks[1])]):
        plain = turn(compiler, marks, rest)
        matcher = bound(plain.fork(), marks, 9)
        assert matcher.accept_run(text) == plain.accept_run(text) == len(text)
        assert matcher.forced() == plain.forced() != []


def test_a_token_may_hold_a_mark_and_more(compiler: ConstraintCompiler) -> None:
    marks = MARKS["text"]
    matcher = bound(turn(compiler, marks, OBJECT), marks, 3)
    assert matcher.accept_run(b"<t>a") == 4
    assert matcher.accept(259) and allowed(matcher) != [62], "</t: two tokens, and the end has begun"
    assert matcher.accept(97) and allowed(matcher) == [60], "that was no end"
    assert not matcher.accept(259)
    matcher = bound(turn(compiler, marks, OBJECT), marks, 3)
    assert matcher.accept_run(b"<t></") == 5 and matcher.accept(260), "t>{ ends it and goes on"
    assert matcher.accept_run(b"ab}") == 3 and matcher.accepting


@pytest.mark.parametrize("seed", range(6))
def test_the_way_back(compiler: ConstraintCompiler, marks: tuple[str, str], seed: int) -> None:
    rng = random.Random(seed)
    matcher = bound(turn(compiler, marks, OBJECT), marks, 3)
    fresh, taken = matcher.fork(), list[int]()
    for _ in range(40):
        if taken and rng.random() < 0.3:
            back = rng.randrange(1, len(taken) + 1)
            matcher.rollback(back)
            del taken[-back:]
        ids = [i for i in allowed(matcher) if i != EOS]
        wanted = [i for i in [*spelled(marks[0]), *spelled(marks[1]), 97, 123] if i in ids] or ids
        if wanted:
            taken.append(rng.choice(wanted))
            assert matcher.accept(taken[-1])
        twin = fresh.fork()
        assert twin.accept_run(taken) == len(taken)
        assert allowed(twin) == allowed(matcher) == allowed(matcher.fork()) and twin.forced() == matcher.forced()
    assert matcher.retreat() == matcher.held == 0


def test_copies_think_each_for_itself(compiler: ConstraintCompiler, marks: tuple[str, str]) -> None:
    matcher = bound(turn(compiler, marks, OBJECT), marks, 3)
    matcher.accept_run([*spelled(marks[0]), 97])
    twin = matcher.fork()
    assert matcher.accept_run(b"bc") == 2 and allowed(matcher) == spelled(marks[1])[:1]
    twin.rollback(1)
    assert twin.accept_run(b"abc") == 3 and allowed(twin) == spelled(marks[1])[:1]


def test_the_constraint_decides_where_both_cannot_be(compiler: ConstraintCompiler) -> None:
    """A bound that asks for an end that the constraint forbids there asks in vain."""
    inner = turn(compiler, MARKS["text"], OBJECT, opened=True)
    matcher = ThinkingBudget(inner.fork(), VOCAB, "", "[/T]", 0)
    assert allowed(matcher) == allowed(inner) and matcher.accept(97)
    with pytest.raises(ValueError, match="negative"):
        ThinkingBudget(inner, VOCAB, "", "[/T]", -1)
