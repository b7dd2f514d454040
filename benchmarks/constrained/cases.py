"""What an everyday schema is measured with: a schema, instances that must be accepted, and what mutants prove.

``mutants`` changes an instance in one place: another type, a missing or unknown property, a number out of bounds, a
text cut or grown, an item twice. Which of them are wrong is for ``jsonschema`` to say, not for us.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.protocols import Validator

from sglite.constrained.compiler import CompiledConstraint, ConstraintCompiler
from sglite.constrained.spec import ConstraintError, ConstraintRefused, ConstraintSpec, Whitespace
from sglite.constrained.vocab import Vocabulary

SEPARATORS = {"fixed": (", ", ": "), "compact": (",", ":")}
MAX_MUTANTS = 60
"""Of one instance."""
MAX_SHOWN = 160


@dataclass(frozen=True)
class Case:
    """A schema and instances of it, as JSON values."""

    name: str
    schema: Any
    valid: tuple[Any, ...]


@dataclass
class Outcome:
    """What came of some cases; ``problems`` has one line for everything that is not as it must be."""

    schemas: int = 0
    compiled: int = 0
    accepted: int = 0
    rejected: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def right(self) -> bool:
        return not self.problems

    def add(self, other: Outcome) -> None:
        self.schemas += other.schemas
        self.compiled += other.compiled
        self.accepted += other.accepted
        self.rejected += other.rejected
        self.problems += other.problems


def write(value: Any, whitespace: Whitespace) -> str:
    """A value as the whitespace policy has it."""
    return json.dumps(value, ensure_ascii=False, separators=SEPARATORS[whitespace])


def accepts(compiled: CompiledConstraint, vocab: Vocabulary, text: str) -> bool:
    """Whether every token of the text's own encoding is allowed and the text may end there."""
    matcher = compiled.matcher()
    ids = vocab.encode(text)
    return matcher.accept_run(ids) == len(ids) and matcher.accepting


def check(compiler: ConstraintCompiler, vocab: Vocabulary, case: Case, whitespace: Whitespace = "fixed") -> Outcome:
    """Compile a case, offer its instances and their mutants."""
    outcome = Outcome(schemas=1)
    try:
        compiled = compiler.compile(ConstraintSpec.json_schema(case.schema, whitespace=whitespace))
    except Exception as error:  # whatever goes wrong with one schema is told, and the others are measured
        verb = "refused" if isinstance(error, (ConstraintError, ConstraintRefused)) else type(error).__name__
        outcome.problems.append(f"{case.name}: {verb}: {error}"[:MAX_SHOWN])
        return outcome
    outcome.compiled = 1
    oracle = Draft202012Validator(case.schema)
    has_format = '"format"' in json.dumps(case.schema)
    for value in case.valid:
        oracle.validate(value)
        _offer(outcome, case, accepts(compiled, vocab, write(value, whitespace)), True, write(value, whitespace))
        for mutant in _distinct(mutants(value), MAX_MUTANTS):
            wanted = _verdict(oracle, mutant, has_format)
            if wanted is not None:
                text = write(mutant, whitespace)
                _offer(outcome, case, accepts(compiled, vocab, text), wanted, text)
    return outcome


def _offer(outcome: Outcome, case: Case, accepted: bool, wanted: bool, text: str) -> None:
    if accepted == wanted:
        outcome.accepted += accepted
        outcome.rejected += not accepted
        return
    verb = "accepted, and it is invalid" if accepted else "rejected, and it is valid"
    outcome.problems.append(f"{case.name}: {verb}: {text}"[:MAX_SHOWN])


def _verdict(oracle: Validator, value: Any, has_format: bool) -> bool | None:
    """What must be said of a value; ``None`` where formats decide, which the oracle leaves open."""
    valid = oracle.is_valid(value)
    return None if valid and has_format else valid


def _distinct(values: Iterator[Any], most: int) -> list[Any]:
    found: dict[str, Any] = {}
    for value in values:
        found.setdefault(json.dumps(value), value)
        if len(found) == most:
            break
    return list(found.values())


def mutants(value: Any) -> Iterator[Any]:
    """The value with one thing changed, outermost changes first. No change reorders properties."""
    for other in (None, True, 0, 1.5, -1, "", "zz", [], {}, [[]]):
        if type(other) is not type(value) or other != value:
            yield other
    if isinstance(value, str):
        yield from (value[:-1], value + "x", value * 9, value.swapcase(), value + "\t")
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, (int, float)):
        # -0.0 is left out: what we write within bounds has no negative zero.
        yield from (value + 1, value - 1, value * 1000 + 7, -value or 0)
        if abs(value) < 2**50:  # a float that is whole would be an integer to the standard, and is not to us
            yield value + 0.25
    elif isinstance(value, list):
        yield from _list_mutants(value)
    elif isinstance(value, dict):
        yield from _dict_mutants(value)


def _list_mutants(value: list[Any]) -> Iterator[Any]:
    yield value[:-1]
    yield value + value[-1:]
    yield value * 7
    yield [*value, None]
    for index, item in enumerate(value[:4]):
        for other in mutants(item):
            yield [*value[:index], other, *value[index + 1 :]]


def _dict_mutants(value: dict[str, Any]) -> Iterator[Any]:
    for name in value:
        yield {key: item for key, item in value.items() if key != name}
    yield value | {"unheard-of": 1}
    yield value | {"unheard-of": {"deep": ["x"]}}
    inner = [(name, mutants(item)) for name, item in value.items()]
    while inner:  # a few of every property before many of the first
        for entry in list(inner):
            name, others = entry
            try:
                yield value | {name: next(others)}
            except StopIteration:
                inner.remove(entry)


def check_all(
    compiler: ConstraintCompiler,
    vocab: Vocabulary,
    cases: list[Case],
    whitespace: Whitespace = "fixed",
    progress: Callable[[int], None] = lambda done: None,
) -> Outcome:
    """The sum over ``cases``."""
    total = Outcome()
    for index, case in enumerate(cases):
        total.add(check(compiler, vocab, case, whitespace))
        progress(index + 1)
    return total
