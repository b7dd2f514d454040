"""The request side of a constraint: what a caller asks for, and how a refusal is told.

This module is all the language needs to know of constraints, so it imports the standard library only. A
`ConstraintSpec` is plain text with a kind: hashable, comparable, cheap to send to another process. Nothing here
decides whether a constraint can be enforced; `sglite.constrained.compiler` does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["json_schema", "regex", "ebnf", "choice", "structural_tag"]
Whitespace = Literal["fixed", "compact", "flexible"]
Order = Literal["schema", "any"]

KINDS: tuple[Kind, ...] = ("json_schema", "regex", "ebnf", "choice", "structural_tag")
WHITESPACES: tuple[Whitespace, ...] = ("fixed", "compact", "flexible")
ORDERS: tuple[Order, ...] = ("schema", "any")


class ConstraintError(ValueError):
    """The constraint is malformed: not JSON, a broken regex, an undefined rule. One line, with the place."""


class ConstraintRefused(ValueError):
    """The constraint is well formed but will not be enforced, so it is not accepted.

    `pointer` is the JSON pointer of the offending keyword ("" when the constraint is not JSON), `keyword` its
    name, `reason` one sentence that says why and what to do.
    """

    def __init__(self, reason: str, *, pointer: str = "", keyword: str = "") -> None:
        super().__init__(f"{pointer}: {reason}" if pointer else reason)
        self.pointer = pointer
        self.keyword = keyword
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return (_refused, (self.reason, self.pointer, self.keyword))


class CompilerBusy(RuntimeError):
    """So many constraints wait to be compiled that this one was not taken; it may be asked for again later."""


def _refused(reason: str, pointer: str, keyword: str) -> ConstraintRefused:
    return ConstraintRefused(reason, pointer=pointer, keyword=keyword)


@dataclass(frozen=True)
class ConstraintSpec:
    """What the generated text must be.

    `value` holds JSON text for `json_schema`, `choice` and `structural_tag`, the pattern for `regex`, the grammar
    for `ebnf`. `whitespace` applies to JSON only: "fixed" is one line with ", " and ": ", "compact" is "," and
    ":", "flexible" lets the model choose, within a bound. `strict=False` lets a schema keyword that cannot be
    enforced pass, listed in the report as unenforced. `order` is that of an object's properties: "schema" as they are
    declared, "any" as the model likes.
    """

    kind: Kind
    value: str
    whitespace: Whitespace = "fixed"
    strict: bool = True
    order: Order = "schema"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConstraintError(f"constraint kind {self.kind!r} is not one of {', '.join(KINDS)}")
        if self.whitespace not in WHITESPACES:
            raise ConstraintError(f"whitespace {self.whitespace!r} is not one of {', '.join(WHITESPACES)}")
        if self.order not in ORDERS:
            raise ConstraintError(f"order {self.order!r} is not one of {', '.join(ORDERS)}")
        if not isinstance(self.value, str):
            raise ConstraintError(f"the value of a {self.kind} constraint is text, not {type(self.value).__name__}")

    @classmethod
    def json_schema(
        cls,
        schema: str | Mapping[str, Any] | bool,
        *,
        whitespace: Whitespace = "fixed",
        strict: bool = True,
        order: Order = "schema",
    ) -> ConstraintSpec:
        """JSON text valid under `schema` (a schema, or its JSON text). With `order="schema"` properties come in the
        order in which the schema declares them."""
        return cls("json_schema", _canonical_json(schema, "JSON schema"), whitespace, strict, order)

    @classmethod
    def json_object(cls, *, whitespace: Whitespace = "fixed") -> ConstraintSpec:
        """Any JSON object."""
        return cls.json_schema({"type": "object"}, whitespace=whitespace)

    @classmethod
    def regex(cls, pattern: str) -> ConstraintSpec:
        """Text that matches `pattern` from its first to its last character."""
        return cls("regex", pattern)

    @classmethod
    def ebnf(cls, grammar: str) -> ConstraintSpec:
        """Text derived from the rule `root` of a grammar in GBNF notation, or from `start` of one in Lark's."""
        return cls("ebnf", grammar)

    @classmethod
    def choice(cls, choices: Sequence[str]) -> ConstraintSpec:
        """Exactly one of `choices`."""
        if isinstance(choices, str) or not choices or not all(isinstance(c, str) for c in choices):
            raise ConstraintError(f"choice takes a non-empty list of strings, got {choices!r:.80}")
        return cls("choice", json.dumps(list(choices), ensure_ascii=False))

    @classmethod
    def structural_tag(
        cls,
        tag: str | Mapping[str, Any],
        *,
        whitespace: Whitespace = "fixed",
        strict: bool = True,
        order: Order = "schema",
    ) -> ConstraintSpec:
        """Free text in which every trigger opens one of the given tags, whose content is constrained."""
        return cls("structural_tag", _canonical_json(tag, "structural tag"), whitespace, strict, order)

    def key(self) -> str:
        """A fixed-length name for caches: equal specs, and only they, have equal keys."""
        head = f"{self.kind}\0{self.whitespace}\0{int(self.strict)}\0{self.order}\0"
        return hashlib.sha256(head.encode() + self.value.encode("utf-8", "surrogatepass")).hexdigest()


def parse_json(text: str, what: str) -> Any:
    """Parse JSON strictly: no duplicate keys, no NaN. Raises ConstraintError with line and column."""
    try:
        return json.loads(text, object_pairs_hook=_unique_pairs, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ConstraintError(f"{what} is not JSON: {error.msg} at line {error.lineno} column {error.colno}") from None
    except RecursionError:
        raise ConstraintError(f"{what} is nested too deeply to be read") from None
    except ConstraintError as error:
        raise ConstraintError(f"{what} is not JSON: {error}") from None
    except ValueError as error:  # an integer with more digits than Python converts
        raise ConstraintError(f"{what} cannot be read: {error}") from None


def _canonical_json(value: str | Mapping[str, Any] | bool, what: str) -> str:
    if isinstance(value, str):
        value = parse_json(value, what)
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConstraintError(f"{what} cannot be written as JSON: {error}") from None


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ConstraintError(f"the key {twice!r:.80} appears twice in one object")
    return result


def _no_constant(name: str) -> Any:
    raise ConstraintError(f"{name} is not a JSON value")
