"""From a request's spec to what an engine compiles, with the verdict on every keyword."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sglite.constrained.budget import Budget
from sglite.constrained.grammar import Grammar, Text, alt, check_satisfiable
from sglite.constrained.json_schema.lower import lower_schema
from sglite.constrained.lark import read_grammar
from sglite.constrained.limits import Limits
from sglite.constrained.regex import match_expr
from sglite.constrained.report import KeywordReport
from sglite.constrained.spec import ConstraintError, ConstraintRefused, ConstraintSpec, parse_json
from sglite.constrained.structural_tag import lower_tag


@dataclass(frozen=True)
class Lowered:
    """A grammar, and what became of the keywords it was made from."""

    report: KeywordReport
    grammar: Grammar


def lower(
    spec: ConstraintSpec, limits: Limits, *, specials: Mapping[str, int] | None = None, budget: Budget | None = None
) -> Lowered:
    """Check a spec and lower it. Raises ConstraintError or ConstraintRefused; never compiles anything.

    `specials` are the special tokens that a structural tag may be written with, by their text.
    """
    check_size(spec, limits)
    try:
        grammar, report = _read(spec, limits, specials or {}, budget)
        check_satisfiable(grammar)
        return Lowered(report, grammar)
    except RecursionError:
        raise ConstraintRefused(f"the {spec.kind} is nested too deeply; make it flatter") from None


def check_size(spec: ConstraintSpec, limits: Limits) -> None:
    """Raises ConstraintRefused for a text that is too long to be looked at."""
    nbytes = len(spec.value.encode("utf-8", "surrogatepass"))
    if nbytes > limits.max_bytes:
        raise ConstraintRefused(f"the {spec.kind} has {nbytes} bytes, at most {limits.max_bytes}; make it smaller")


def _read(
    spec: ConstraintSpec, limits: Limits, specials: Mapping[str, int], budget: Budget | None
) -> tuple[Grammar, KeywordReport]:
    if spec.kind == "json_schema":
        return lower_schema(spec, limits)
    if spec.kind == "structural_tag":
        return lower_tag(spec, limits, specials, budget)
    if spec.kind == "regex":
        return Grammar({"root": match_expr(spec.value, limits, budget=budget)}), KeywordReport()
    if spec.kind == "ebnf":
        return read_grammar(spec.value, limits, budget), KeywordReport()
    return _choice(spec.value), KeywordReport()


def _choice(value: str) -> Grammar:
    choices = parse_json(value, "choice")
    if not isinstance(choices, list) or not choices or not all(isinstance(c, str) for c in choices):
        raise ConstraintError(f"choice takes a non-empty list of strings, got {value:.80}")
    for choice in choices:
        if any(0xD800 <= ord(c) <= 0xDFFF for c in choice):
            raise ConstraintError(f"the choice {choice!r:.80} holds half a surrogate pair; it cannot be encoded")
    return Grammar({"root": alt(Text(choice) for choice in choices)})
