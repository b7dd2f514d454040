"""Whatever schema is accepted: what is generated is valid by an independent validator, and whatever is valid is taken.

The second half holds under `order="any"`; the order of properties is the one policy that these schemas would notice.
"""

from __future__ import annotations

import contextlib
import json
import random
from typing import Any

import jsonschema
import pytest
from constrained_walks import allowed_ids, closing, small_vocabulary
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglite.constrained.engines.native import NativeEngine
from sglite.constrained.limits import Limits
from sglite.constrained.lower import lower
from sglite.constrained.spec import ConstraintError, ConstraintRefused, ConstraintSpec

NAMES = st.sampled_from(["a", "ab", "b", "x1", 'q"'])
SMALL = st.integers(0, 4)
CONSTANTS = st.sampled_from([None, True, 0, 1, 2.5, "a", "ab", "", [], [1], {}, {"a": 1}])
PATTERNS = st.sampled_from(["^a", "b$", "^[a-c]{1,3}$", "^x", "^(a|bc)*$", "^.{2}$"])
BOUNDS = st.integers(-20, 20) | st.sampled_from([0.5, -1.25, 10.75])


def some(**keywords: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=keywords)


def of_type(name: str, keywords: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(st.sampled_from([True, True, True, False]), keywords).map(
        lambda t: {"type": name, **t[1]} if t[0] else t[1]
    )


NUMBERS = some(minimum=BOUNDS, maximum=BOUNDS, exclusiveMinimum=BOUNDS, exclusiveMaximum=BOUNDS)
LEAVES = st.one_of(
    st.sampled_from(
        [True, {}, {"type": "null"}, {"type": "boolean"}, {"type": ["integer", "null"]}, {"$ref": "#/$defs/d"}]
    ),
    st.sampled_from([{"$ref": "#"}, False]),
    of_type("integer", NUMBERS),
    of_type("integer", some(multipleOf=st.integers(1, 9), minimum=st.just(0))),
    of_type("number", NUMBERS),
    of_type("string", some(minLength=SMALL, maxLength=st.integers(0, 30), pattern=PATTERNS)),
    some(enum=st.lists(CONSTANTS, min_size=1, max_size=4), type=st.sampled_from(["string", "integer", "object"])),
    CONSTANTS.map(lambda value: {"const": value}),
)


def combine(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    objects = some(
        properties=st.dictionaries(NAMES, inner, max_size=4),
        required=st.lists(NAMES, max_size=2, unique=True),
        additionalProperties=inner,
        patternProperties=st.dictionaries(PATTERNS, inner, max_size=2),
        propertyNames=some(pattern=PATTERNS, maxLength=SMALL) | LEAVES,
        minProperties=SMALL,
        maxProperties=SMALL,
        unevaluatedProperties=inner,
        dependentRequired=st.dictionaries(NAMES, st.lists(NAMES, max_size=1), max_size=2),
        dependentSchemas=st.dictionaries(NAMES, inner, max_size=1),
        anyOf=st.lists(inner, min_size=1, max_size=2),
    )
    arrays = some(
        items=inner,
        prefixItems=st.lists(inner, min_size=1, max_size=3),
        minItems=SMALL,
        maxItems=SMALL,
        unevaluatedItems=inner,
        uniqueItems=st.booleans(),
        contains=inner,
        minContains=SMALL,
        maxContains=SMALL,
    )
    lists = st.lists(inner, min_size=1, max_size=3)
    applied = st.tuples(st.sampled_from(["allOf", "anyOf", "oneOf"]), lists).map(lambda t: {t[0]: t[1]})
    both = st.tuples(applied, inner).map(lambda t: {**t[1], **t[0]} if isinstance(t[1], dict) else t[0])
    negated = inner.map(lambda schema: {"not": schema})
    conditional = st.fixed_dictionaries({"if": inner}, optional={"then": inner, "else": inner})
    return st.one_of(of_type("object", objects), of_type("array", arrays), applied, both, negated, conditional)


SCHEMAS = st.recursive(LEAVES, combine, max_leaves=6)
SCALARS = CONSTANTS | st.sampled_from([-1, 2, 3, 5, 0.5, "b", "abc", "bc", "x1", "xx"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.sampled_from(["zz", "bc"]), inner, max_size=4)
    ),
    max_leaves=8,
)
VOCAB = small_vocabulary()  # its first 256 ids are the bytes


@pytest.fixture(scope="module")
def engine() -> NativeEngine:
    return NativeEngine(VOCAB)


def compiled(engine: NativeEngine, schema: Any, definition: Any, **options: Any) -> tuple[Any, Any]:
    """The program and the validator of a schema; (None, None) when it is refused or leads back to itself."""
    whole = {**schema, "$defs": {"d": definition}} if isinstance(schema, dict) else schema
    try:
        program = engine.compile(lower(ConstraintSpec.json_schema(whole, **options), Limits()).grammar)
    except ConstraintRefused:
        return None, None
    except ConstraintError as error:
        assert "leads back to itself" in str(error)
        return None, None
    return program, jsonschema.Draft202012Validator(whole)


def walked(matcher: Any, rng: random.Random, patience: int = 25, limit: int = 400) -> bytes | None:
    """A random answer; a value that turned out wrong is taken back. None when cut off, or nothing was left to try."""
    ids: list[int] = []
    for step in range(limit):
        if matcher.stuck:
            back = matcher.retreat()
            if not back:
                return None
            del ids[-back:]
            continue
        allowed = allowed_ids(VOCAB, matcher)
        assert allowed, f"a dead end after {ids}"
        ends = [i for i in allowed if i in VOCAB.eos_ids]
        if ends and (len(ends) == len(allowed) or step > patience or rng.random() < 0.15):
            return b"".join(VOCAB.token_bytes[i] or b"" for i in ids)
        texts = [i for i in allowed if i not in VOCAB.eos_ids]
        token = closing(VOCAB, texts, rng) if step > patience else rng.choice(texts)
        assert matcher.accept(token)
        ids.append(token)
    return None


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS, definition=SCHEMAS, seed=st.integers(0, 1000), layout=st.sampled_from(["fixed", "flexible"]))
def test_walks_of_any_accepted_schema_validate(
    engine: NativeEngine, schema: Any, definition: Any, seed: int, layout: Any
) -> None:
    program, validator = compiled(engine, schema, definition, whitespace=layout)
    for n in range(3 if program else 0):
        text = walked(program.matcher(), random.Random(seed + n))
        if text is not None:
            with contextlib.suppress(RecursionError):  # a reference to the root, which the validator follows for ever
                validator.validate(json.loads(text))


def takes(program: Any, value: Any) -> bool:
    matcher = program.raw_matcher()
    return all(matcher.accept(byte) for byte in json.dumps(value).encode()) and matcher.accepting


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS, definition=SCHEMAS, values=st.lists(VALUES, min_size=1, max_size=8))
def test_a_value_is_taken_exactly_when_it_is_valid(
    engine: NativeEngine, schema: Any, definition: Any, values: list[Any]
) -> None:
    program, validator = compiled(engine, schema, definition, order="any")
    for value in values if program else []:
        with contextlib.suppress(RecursionError):
            assert takes(program, value) == validator.is_valid(value), value
