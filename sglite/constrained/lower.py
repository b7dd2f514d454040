"""From a request's spec to what an engine compiles, with the verdict on every keyword."""

from __future__ import annotations

from dataclasses import dataclass

from sglite.constrained.ebnf import read_ebnf
from sglite.constrained.grammar import Grammar, Text, alt, normalise
from sglite.constrained.json_schema.lower import lower_schema
from sglite.constrained.limits import Limits
from sglite.constrained.regex import check_regex
from sglite.constrained.report import KeywordReport
from sglite.constrained.spec import ConstraintError, ConstraintRefused, ConstraintSpec, parse_json
from sglite.constrained.structural_tag import lower_tag


@dataclass(frozen=True)
class Lowered:
    """Exactly one of `grammar` and `tag_json` is set."""

    report: KeywordReport
    grammar: Grammar | None = None
    tag_json: str | None = None


def lower(spec: ConstraintSpec, limits: Limits) -> Lowered:
    """Check a spec and lower it. Raises ConstraintError or ConstraintRefused; never compiles anything."""
    nbytes = len(spec.value.encode("utf-8", "surrogatepass"))
    if nbytes > limits.max_bytes:
        raise ConstraintRefused(f"the {spec.kind} has {nbytes} bytes, at most {limits.max_bytes}; make it smaller")
    if spec.kind == "json_schema":
        grammar, report = lower_schema(spec, limits)
        return Lowered(report, normalise(grammar, limits))
    if spec.kind == "structural_tag":
        tag_json, report = lower_tag(spec, limits)
        return Lowered(report, tag_json=tag_json)
    if spec.kind == "regex":
        grammar = Grammar({"root": check_regex(spec.value, limits).body})
    elif spec.kind == "ebnf":
        grammar = read_ebnf(spec.value, limits)
    else:
        grammar = _choice(spec.value)
    return Lowered(KeywordReport(), normalise(grammar, limits))


def _choice(value: str) -> Grammar:
    choices = parse_json(value, "choice")
    if not isinstance(choices, list) or not choices or not all(isinstance(c, str) for c in choices):
        raise ConstraintError(f"choice takes a non-empty list of strings, got {value:.80}")
    for choice in choices:
        if any(0xD800 <= ord(c) <= 0xDFFF for c in choice):
            raise ConstraintError(f"the choice {choice!r:.80} holds half a surrogate pair; it cannot be encoded")
    return Grammar({"root": alt(Text(choice) for choice in choices)})
