"""The mask auditor: what a mask allows can be finished, and whatever is valid is allowed.

Schemas are random, the validator is jsonschema; the grammar comes from the whole front end. Where no check of a value
is involved, every allowed token is asked for a completion; where one is, a value may turn out wrong at its end, so
completions are only held to be valid when there is one.
"""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from constrained_schemas import Judge, Schemas, lowered, values
from constrained_walks import allowed_ids, engine_named, small_vocabulary

from sglite.constrained.grammar import Grammar, Guard, Unique, children
from sglite.constrained.spec import ConstraintError, ConstraintRefused
from sglite.constrained.vocab import Vocabulary

VOCAB = small_vocabulary()


def asks_values(grammar: Grammar) -> bool:
    waiting = list(grammar.rules.values())
    while waiting:
        node = waiting.pop()
        if isinstance(node, Guard) or (isinstance(node, Unique) and not node.safe):
            return True
        waiting.extend(children(node))
    return False


def finish(raw: Any) -> str | None:
    completion = raw.shortest()
    return None if completion is None else (raw.text + completion).decode()


def audit_prefixes(vocab: Vocabulary, engine: Any, grammar: Grammar, judge: Judge, rng: random.Random) -> None:
    """Along one random walk: everything that is allowed can be finished, and is then valid."""
    raw = engine.compile(grammar).raw_matcher()
    strict = not asks_values(grammar)
    for _ in range(rng.randint(0, 12)):
        ids = [i for i in allowed_ids(vocab, raw) if i not in vocab.eos_ids]
        if not ids:
            break
        heads = {(vocab.content(i) or b"")[:1]: i for i in rng.sample(ids, len(ids))}
        for token in rng.sample(sorted(heads.values()), min(4 if strict else 1, len(heads))):
            probe = raw.fork()
            assert probe.accept(token)
            text = finish(probe)
            assert text is not None or not strict, f"a dead end after {probe.text!r}"
            assert text is None or judge(text), f"not valid: {text}"
        assert raw.accept(rng.choice(ids))
    if raw.accepting:
        assert judge(raw.text.decode())


def audit_values(vocab: Vocabulary, engine: Any, schema: Any, judge: Judge, rng: random.Random) -> int:
    """Every valid value, properties in any order, is allowed token by token; how many there were."""
    grammar = lowered(schema, "any")
    valid = [v for v in values(schema, rng, 25) if judge(json.dumps(v, ensure_ascii=False))]
    if grammar is None:
        return 0
    program = engine.compile(grammar)
    for value in valid[:4]:
        raw = program.raw_matcher()
        text = json.dumps(value, ensure_ascii=False)
        for token in spelled(vocab, text.encode(), rng):
            assert token in allowed_ids(vocab, raw), (
                f"{text} is valid, but not {vocab.content(token)!r} after {raw.text!r}"
            )
            assert raw.accept(token)
        assert raw.accepting, f"{text} is valid, but may not end"
    return len(valid[:4])


def spelled(vocab: Vocabulary, data: bytes, rng: random.Random) -> list[int]:
    """Tokens that spell some bytes, at random among those that fit."""
    ids = []
    while data:
        fitting = [i for i, piece in enumerate(vocab.token_bytes) if piece and data.startswith(piece)]
        ids.append(rng.choice(fitting))
        data = data[len(vocab.token_bytes[ids[-1]] or b"") :]
    return ids


@pytest.fixture(scope="module")
def engine() -> Any:
    return engine_named("native", VOCAB)


def audit(engine: Any, seed: int) -> int:
    rng = random.Random(seed)
    schema = Schemas(rng).draw()
    grammar = lowered(schema)
    try:
        judge = Judge(schema)
        if grammar is not None:
            audit_prefixes(VOCAB, engine, grammar, judge, rng)
        return audit_values(VOCAB, engine, schema, judge, rng)
    except (ConstraintRefused, ConstraintError):
        return 0
    except AssertionError as error:
        raise AssertionError(f"seed {seed}, schema {json.dumps(schema, ensure_ascii=False)}: {error}") from error


def test_what_is_allowed_can_be_finished_and_what_is_valid_is_allowed(engine: Any) -> None:
    assert sum(audit(engine, seed) for seed in range(200)) > 300


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_same_for_many_schemas(engine: Any) -> None:
    assert sum(audit(engine, seed) for seed in range(1000, 5000)) > 3000
