"""Schemas people use every day compile, accept every instance of theirs and refuse what jsonschema refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from constrained_walks import small_vocabulary

from benchmarks.constrained import everyday_openai, everyday_pydantic
from benchmarks.constrained.cases import Case, check, mutants
from sglite.constrained.compiler import CompiledConstraint, ConstraintCompiler
from sglite.constrained.spec import ConstraintSpec

VOCAB = small_vocabulary()
CASES = [*everyday_pydantic.cases(), *everyday_openai.cases()]


@pytest.fixture(scope="module")
def compiler() -> Iterator[ConstraintCompiler]:
    compiler = ConstraintCompiler(VOCAB)
    yield compiler
    compiler.close()


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_schema_of_every_day(compiler: ConstraintCompiler, case: Case) -> None:
    outcome = check(compiler, VOCAB, case)
    assert outcome.problems == []
    assert outcome.compiled == 1 and outcome.accepted >= len(case.valid)


@pytest.mark.parametrize("name", ["pydantic/Nested", "openai/linked list"])
def test_without_spaces_too(compiler: ConstraintCompiler, name: str) -> None:
    (case,) = [case for case in CASES if case.name == name]
    assert check(compiler, VOCAB, case, "compact").problems == []


def test_the_cases_are_many_and_their_names_are_their_own() -> None:
    assert len(CASES) > 130 and len({case.name for case in CASES}) == len(CASES)
    assert sum(not case.valid for case in CASES) == 0


class Swapped:
    """Compiles one schema whatever it is asked for."""

    def __init__(self, compiler: ConstraintCompiler, schema: dict[str, Any]) -> None:
        self._compiler, self._schema = compiler, schema

    def compile(self, _: ConstraintSpec) -> CompiledConstraint:
        return self._compiler.compile(ConstraintSpec.json_schema(self._schema))


def test_a_check_finds_what_is_wrong_both_ways(compiler: ConstraintCompiler) -> None:
    """The judge judged: a constraint that is another one than the oracle's is found out."""
    case = Case("at least 3", {"type": "integer", "minimum": 3}, (5,))
    loose = check(Swapped(compiler, {"type": "integer"}), VOCAB, case)  # type: ignore[arg-type]
    assert "at least 3: accepted, and it is invalid: 0" in loose.problems
    tight = check(Swapped(compiler, {"type": "integer", "minimum": 6}), VOCAB, case)  # type: ignore[arg-type]
    assert "at least 3: rejected, and it is valid: 5" in tight.problems


def test_mutants_change_one_thing() -> None:
    found = {json.dumps(mutant) for mutant in mutants({"a": 1, "b": ["x", {"c": None}]})}
    assert json.dumps({"a": 1, "b": ["x", {"c": None}]}) not in found
    for text in ('{"a": 1}', '{"a": 2, "b": ["x", {"c": null}]}', '{"a": 1, "b": ["x"]}', '{"a": 1, "b": ["x", {}]}'):
        assert text in found
