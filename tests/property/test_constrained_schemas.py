"""Whatever schema is accepted: every finished walk is valid under it, by an independent validator."""

from __future__ import annotations

import contextlib
import json
import random
from typing import Any

import jsonschema
import pytest
from constrained_walks import small_vocabulary, walk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglite.constrained.compiler import ConstraintCompiler
from sglite.constrained.spec import ConstraintRefused, ConstraintSpec

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
        patternProperties=st.dictionaries(PATTERNS, inner, max_size=1),
        propertyNames=some(pattern=PATTERNS, maxLength=SMALL),
        minProperties=SMALL,
        maxProperties=SMALL,
        unevaluatedProperties=st.booleans(),
    )
    arrays = some(
        items=inner,
        prefixItems=st.lists(inner, min_size=1, max_size=3),
        minItems=SMALL,
        maxItems=SMALL,
        unevaluatedItems=st.booleans(),
        uniqueItems=st.booleans(),
    )
    lists = st.lists(inner, min_size=1, max_size=3)
    applied = st.tuples(st.sampled_from(["allOf", "anyOf", "oneOf"]), lists).map(lambda t: {t[0]: t[1]})
    both = st.tuples(applied, inner).map(lambda t: {**t[1], **t[0]} if isinstance(t[1], dict) else t[0])
    return st.one_of(of_type("object", objects), of_type("array", arrays), applied, both)


SCHEMAS = st.recursive(LEAVES, combine, max_leaves=6)
VOCAB = small_vocabulary()


@pytest.fixture(scope="module")
def compiler() -> ConstraintCompiler:
    return ConstraintCompiler(VOCAB)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS, definition=SCHEMAS, seed=st.integers(0, 1000), layout=st.sampled_from(["fixed", "flexible"]))
def test_walks_of_any_accepted_schema_validate(
    compiler: ConstraintCompiler, schema: Any, definition: Any, seed: int, layout: Any
) -> None:
    whole = {**schema, "$defs": {"d": definition}} if isinstance(schema, dict) else schema
    try:
        compiled = compiler.compile(ConstraintSpec.json_schema(whole, whitespace=layout))
    except ConstraintRefused:
        return
    except ValueError as error:
        assert "leads back to itself" in str(error)
        return
    validator = jsonschema.Draft202012Validator(whole)
    for n in range(3):
        text = walk(VOCAB, compiled.matcher(), random.Random(seed + n), patience=25, limit=400)
        if text is not None:
            with contextlib.suppress(RecursionError):  # a reference to the root, which the validator follows for ever
                validator.validate(json.loads(text))
