"""Structural tags: free text in which a trigger opens a tag whose content is constrained.

Read are the nested form ({"type": "structural_tag", "format": {...}}) and the flat one ({"structures": [{"begin",
"schema", "end"}], "triggers": [...]}). Every schema, regex and grammar inside is read by our own front ends and
handed to the engine as a grammar, so a keyword is enforced or refused here as anywhere else.
"""

from __future__ import annotations

import json
from typing import Any

from sglite.constrained.ebnf import read_ebnf
from sglite.constrained.engines.xgrammar import to_ebnf
from sglite.constrained.grammar import Grammar, normalise
from sglite.constrained.json_schema.document import escape
from sglite.constrained.json_schema.lower import lower_parsed
from sglite.constrained.limits import Limits
from sglite.constrained.regex import check_regex
from sglite.constrained.report import KeywordReport, Verdict
from sglite.constrained.spec import ConstraintError, ConstraintRefused, ConstraintSpec, parse_json

# format type -> its fields that are passed on, beside the contents that are lowered
_FIELDS = {
    "const_string": {"value"},
    "any_text": {"excludes"},
    "sequence": {"elements"},
    "or": {"elements"},
    "tag": {"begin", "content", "end"},
    "triggered_tags": {"triggers", "tags", "at_least_one", "stop_after_first", "excludes"},
    "tags_with_separator": {"tags", "separator", "at_least_one", "stop_after_first"},
}
_CONTENT = {"json_schema": "json_schema", "regex": "pattern", "grammar": "grammar"}


def lower_tag(spec: ConstraintSpec, limits: Limits) -> tuple[str, KeywordReport]:
    """The tag in the engine's own JSON form, contents lowered. Raises ConstraintError or ConstraintRefused."""
    tag = parse_json(spec.value, "structural tag")
    if not isinstance(tag, dict):
        raise ConstraintError(f"a structural tag is a JSON object, got {spec.value:.60}")
    lowering = _Lowering(spec, limits)
    if "structures" in tag:
        tag = _from_flat(tag)
    elif set(tag) - {"type", "format"} or tag.get("type", "structural_tag") != "structural_tag" or "format" not in tag:
        raise ConstraintError("a structural tag has 'type': 'structural_tag' and a 'format', or 'structures'")
    lowered = {"type": "structural_tag", "format": lowering.format(tag["format"], "/format", 0)}
    return json.dumps(lowered), KeywordReport(lowering.verdicts, lowering.reasons)


def _from_flat(tag: dict[str, Any]) -> dict[str, Any]:
    if set(tag) - {"type", "structures", "triggers"} or not isinstance(tag["structures"], list):
        raise ConstraintError("a structural tag with 'structures' has that list and 'triggers', nothing else")
    tags = []
    for i, item in enumerate(tag["structures"]):
        if not isinstance(item, dict) or set(item) != {"begin", "schema", "end"}:
            raise ConstraintError(f"/structures/{i}: expected an object with 'begin', 'schema' and 'end'")
        content = {"type": "json_schema", "json_schema": item["schema"]}
        tags.append({"type": "tag", "begin": item["begin"], "content": content, "end": item["end"]})
    return {"format": {"type": "triggered_tags", "triggers": tag.get("triggers", []), "tags": tags}}


class _Lowering:
    def __init__(self, spec: ConstraintSpec, limits: Limits) -> None:
        self._spec = spec
        self._limits = limits
        self.verdicts: dict[str, Verdict] = {}
        self.reasons: dict[str, str] = {}

    def format(self, node: Any, pointer: str, depth: int) -> dict[str, Any]:
        if depth > self._limits.max_depth:
            raise ConstraintRefused(f"nested deeper than {self._limits.max_depth}", pointer=pointer)
        if not isinstance(node, dict) or not isinstance(node.get("type"), str):
            raise ConstraintError(f"{pointer}: expected an object with a 'type', got {node!r:.60}")
        kind = node["type"]
        if kind in _CONTENT:
            return self._content(node, kind, pointer)
        if kind not in _FIELDS:
            reason = f"the format {kind!r:.40} is not enforced; use one of {', '.join(_FIELDS)}"
            raise ConstraintRefused(reason, pointer=f"{pointer}/type", keyword="type")
        self._only(node, _FIELDS[kind] | {"type"}, pointer)
        result = dict(node)
        for field in ("elements", "tags"):
            if field in node:
                result[field] = self._list(node[field], field, f"{pointer}/{field}", depth)
        if "content" in node:
            result["content"] = self.format(node["content"], f"{pointer}/content", depth + 1)
        return result

    def _list(self, parts: Any, field: str, pointer: str, depth: int) -> list[dict[str, Any]]:
        if not isinstance(parts, list):
            raise ConstraintError(f"{pointer}: expected an array")
        if field == "tags":  # the type of a tag may be left out
            parts = [{"type": "tag", **part} if isinstance(part, dict) else part for part in parts]
        return [self.format(part, f"{pointer}/{i}", depth + 1) for i, part in enumerate(parts)]

    def _content(self, node: dict[str, Any], kind: str, pointer: str) -> dict[str, Any]:
        field = _CONTENT[kind]
        self._only(node, {"type", field}, pointer)
        value, at = node.get(field), f"{pointer}/{field}"
        try:
            grammar = self._grammar(kind, value, at)
            return {"type": "grammar", "grammar": to_ebnf(normalise(grammar, self._limits))}
        except ConstraintRefused as error:
            raise ConstraintRefused(error.reason, pointer=at + error.pointer, keyword=error.keyword) from None
        except ConstraintError as error:
            raise ConstraintError(f"{at}: {error}") from None

    def _grammar(self, kind: str, value: Any, at: str) -> Grammar:
        if kind == "json_schema":
            grammar, report = lower_parsed(value, self._spec.whitespace, self._spec.strict, self._limits)
            self.verdicts |= {at + pointer: report[pointer] for pointer in report}
            self.reasons |= {at + pointer: reason for pointer, reason in report.reasons.items()}
            return grammar
        if not isinstance(value, str):
            raise ConstraintError(f"expected a string, got {value!r:.60}")
        return read_ebnf(value, self._limits) if kind == "grammar" else Grammar({"root": check_regex(value).body})

    def _only(self, node: dict[str, Any], known: set[str], pointer: str) -> None:
        for key in node:
            if key not in known:
                reason = f"{key!r:.40} is not enforced here; remove it"
                raise ConstraintRefused(reason, pointer=f"{pointer}/{escape(key)}", keyword=key)
