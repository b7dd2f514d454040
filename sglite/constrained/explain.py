"""What becomes of a constraint, in words: the report on every keyword, and the policies that apply.

>>> print(explain({"type": "string", "format": "date", "title": "day", "x-ui": 1}))
json_schema: accepted
  enforced    /type
  enforced    /format
  annotation  /title
  annotation  /x-ui
white space: fixed (one line, ", " and ": ")
properties:  in the order of the schema
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sglite.constrained.limits import Limits
from sglite.constrained.lower import Lowered, lower
from sglite.constrained.spec import ConstraintError, ConstraintRefused, ConstraintSpec

_WHITESPACE = {
    "fixed": 'one line, ", " and ": "',
    "compact": 'none, "," and ":"',
    "flexible": "as the model likes, within a bound",
}
_ORDERS = {"schema": "in the order of the schema", "any": "in any order"}
_MAX_LINES = 1_000


def explain(constraint: ConstraintSpec | Mapping[str, Any] | str | bool, *, strict: bool = True) -> str:
    """The report on a constraint, one line for each keyword. A schema may be given as it is, or as JSON text.

    With `strict` a keyword that cannot be enforced refuses the whole; without, it is left out and listed. Raises
    ConstraintError for what is malformed; a refusal is part of what is explained.
    """
    spec = constraint if isinstance(constraint, ConstraintSpec) else ConstraintSpec.json_schema(constraint)
    spec = replace(spec, strict=strict)
    try:
        found, refusal = _read(spec), None
    except ConstraintRefused as error:
        found, refusal = None, error
    lines = [f"{spec.kind}: {'accepted' if refusal is None else 'refused'}"]
    if refusal is not None:
        lines.append(f"  refused     {refusal.pointer or '(the whole)'}: {refusal.reason}")
        found = _without_strict(spec)
    if found is not None:
        lines += _keywords(found, refusal.pointer if refusal is not None else None)
    if spec.kind in ("json_schema", "structural_tag"):
        lines.append(f"white space: {spec.whitespace} ({_WHITESPACE[spec.whitespace]})")
        lines.append(f"properties:  {_ORDERS[spec.order]}")
    return "\n".join(lines)


def _read(spec: ConstraintSpec) -> Lowered:
    return lower(spec, Limits())


def _without_strict(spec: ConstraintSpec) -> Lowered | None:
    """What the rest of a refused schema would be: every other refusal shows as unenforced."""
    try:
        return _read(replace(spec, strict=False)) if spec.strict else None
    except (ConstraintError, ConstraintRefused):
        return None


def _keywords(found: Lowered, told: str | None) -> list[str]:
    """One line for each keyword but the one that was told already."""
    lines = []
    for pointer in found.report:
        verdict, reason = found.report[pointer], found.report.reasons.get(pointer)
        if pointer == told:
            continue
        name = "refused" if verdict == "unenforced" and told is not None else verdict
        lines.append(f"  {name:<11} {pointer}" + (f": {reason}" if reason else ""))
    if len(lines) > _MAX_LINES:
        return [*lines[:_MAX_LINES], f"  ... and {len(lines) - _MAX_LINES} more keywords"]
    return lines
