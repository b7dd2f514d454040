"""Structural tags: free text in which a trigger opens a tag whose content is constrained.

Read are the nested form ({"type": "structural_tag", "format": {...}}) and the flat one ({"structures": [{"begin",
"schema", "end"}], "triggers": [...]}). Both become one grammar: free text is the regular language of what holds no
trigger, and every schema, regex and grammar inside is read by our own front ends, so that a keyword is enforced or
refused here as anywhere else.

    any text ... <tool_call>        the text up to its first trigger
                 {"name": ...}      the content
                 </tool_call>       the end; then free text again
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sglite.constrained.budget import Budget
from sglite.constrained.free_text import Speller, joined, up_to_first, without
from sglite.constrained.grammar import EMPTY, NOTHING, Grammar, Node, Special, alt, repeat, seq
from sglite.constrained.grammar_join import Joined
from sglite.constrained.json_schema.lower import lower_parsed
from sglite.constrained.json_schema.tagged import STYLES, lower_tagged
from sglite.constrained.json_text import check_without, json_text
from sglite.constrained.lark import read_grammar
from sglite.constrained.limits import Limits
from sglite.constrained.regex import match_expr
from sglite.constrained.report import KeywordReport, Verdict
from sglite.constrained.spec import ConstraintError, ConstraintRefused, ConstraintSpec, Order, parse_json

# format type -> its fields, and what those mean that may only have one value
_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "const_string": {"value": ...},
    "any_text": {"excludes": ..., "max_tokens": None, "max_chars": None},
    "sequence": {"elements": ...},
    "or": {"elements": ...},
    "token": {"token": ...},
    "tag": {"begin": ..., "content": ..., "end": ...},
    "triggered_tags": {"triggers": ..., "tags": ..., "at_least_one": ..., "stop_after_first": ..., "excludes": ...},
    "tags_with_separator": {"tags": ..., "separator": ..., "at_least_one": ..., "stop_after_first": ...},
    "json_schema": {"json_schema": ..., "any_order": ..., "style": ..., "max_whitespace_cnt": None, "excludes": []},
    "regex": {"pattern": ...},
    "grammar": {"grammar": ..., "style": ..., "excludes": ...},
}


def lower_tag(
    spec: ConstraintSpec, limits: Limits, specials: Mapping[str, int] | None = None, budget: Budget | None = None
) -> tuple[Grammar, KeywordReport]:
    """The grammar of a `structural_tag` spec, and the verdict on each keyword of the schemas in it.

    `specials` are the special tokens that tags may be written with. Raises ConstraintError or ConstraintRefused.
    """
    tag = parse_json(spec.value, "structural tag")
    if not isinstance(tag, dict):
        raise ConstraintError(f"a structural tag is a JSON object, got {spec.value:.60}")
    lowering = _Lowering(spec, limits, Speller(specials or {}), budget or Budget())
    if "structures" in tag:
        root = lowering.flat(tag)
    elif set(tag) - {"type", "format"} or tag.get("type", "structural_tag") != "structural_tag" or "format" not in tag:
        raise ConstraintError("a structural tag has 'type': 'structural_tag' and a 'format', or 'structures'")
    else:
        root = lowering.format(tag["format"], "/format", 0, None)
    return lowering.joined.grammar(root), KeywordReport(lowering.verdicts, lowering.reasons)


@dataclass(frozen=True)
class _End:
    """What ends the text of a tag: one of `texts`, or of the tokens of `node`, which spells them too."""

    texts: tuple[str, ...]
    node: Node


@dataclass(frozen=True)
class _Tag:
    """A tag that has been lowered: how it begins, and the rule for the rest of it."""

    begin: str
    rest: Node
    pointer: str


class _Lowering:
    def __init__(self, spec: ConstraintSpec, limits: Limits, speller: Speller, budget: Budget) -> None:
        self._spec = spec
        self._limits = limits
        self._speller = speller
        self._budget = budget
        self.joined = Joined()
        self.verdicts: dict[str, Verdict] = {}
        self.reasons: dict[str, str] = {}

    def flat(self, tag: dict[str, Any]) -> Node:
        """The form with "structures" and "triggers"."""
        if set(tag) - {"type", "structures", "triggers"}:
            raise ConstraintError("a structural tag with 'structures' has that list and 'triggers', nothing else")
        tags = []
        for i, item in enumerate(_list(tag, "structures", "")):
            at = f"/structures/{i}"
            if not isinstance(item, dict) or set(item) != {"begin", "schema", "end"}:
                raise ConstraintError(f"{at}: expected an object with 'begin', 'schema' and 'end'")
            begin, end = _text(item, "begin", at), self._end([_text(item, "end", at)], f"{at}/end")
            content = self._schema(item["schema"], self._spec.order, f"{at}/schema")
            tags.append(_Tag(begin, self.joined.rule(seq(content, end.node)), at))
        return self._triggered({"triggers": tag.get("triggers")}, tags, "", None)

    def format(self, node: Any, pointer: str, depth: int, end: _End | None) -> Node:
        """The texts of a format, and of the end that follows it, when there is one."""
        self._budget.spend(pointer=pointer)
        if depth > self._limits.max_depth:
            raise ConstraintRefused(f"nested deeper than {self._limits.max_depth}", pointer=pointer)
        kind = node.get("type") if isinstance(node, dict) else None
        if not isinstance(kind, str):
            raise ConstraintError(f"{pointer}: expected an object with a 'type', got {node!r:.60}")
        _check_fields(node, kind, pointer)
        if kind == "or":
            return alt(self.format(part, at, depth + 1, end) for part, at in _elements(node, pointer))
        if kind == "sequence":
            parts = _elements(node, pointer)
            head = [self.format(part, at, depth + 1, None) for part, at in parts[:-1]]
            return seq(*head, self.format(*parts[-1], depth + 1, end))
        if kind == "any_text":
            return self._any_text(_excludes(node, pointer), pointer, end)
        if kind == "triggered_tags":
            return self._triggered(node, self._tags(node, pointer, depth), pointer, end)
        found = self._tagged(node, pointer, depth) if kind == "tag" else self._limited(node, kind, pointer, depth)
        return found if end is None else seq(found, end.node)

    def _limited(self, node: dict[str, Any], kind: str, pointer: str, depth: int) -> Node:
        """A format that ends by itself."""
        if kind == "const_string":
            return self._speller.spelled(_text(node, "value", pointer))
        if kind == "token":
            return self._token(node, pointer)
        if kind == "tags_with_separator":
            return self._separated(node, pointer, depth)
        if kind == "json_schema":
            order: Order = "any" if _flag(node, "any_order", pointer) else self._spec.order
            return self._schema(node.get("json_schema"), order, f"{pointer}/json_schema", _style(node, pointer))
        field = "pattern" if kind == "regex" else "grammar"
        text, at = _text(node, field, pointer), f"{pointer}/{field}"
        try:
            if kind == "grammar":
                grammar = read_grammar(text, self._limits, self._budget)
                if node.get("style", "text") not in ("text", "json"):
                    raise ConstraintError("a grammar's style is text or json")
                for text in _excludes(node, pointer):
                    check_without(grammar, text)
                return self.joined.add(json_text(grammar) if node.get("style") == "json" else grammar)
            found = match_expr(text, self._limits, budget=self._budget)
        except (ConstraintError, ConstraintRefused) as error:
            raise _moved(error, at) from None
        if found == NOTHING:
            raise ConstraintRefused(f"the regex {text!r:.60} matches nothing; correct it", pointer=at, keyword=field)
        return found

    def _schema(self, schema: Any, order: Order, at: str, style: str = "json") -> Node:
        whitespace, strict, limits = self._spec.whitespace, self._spec.strict, self._limits
        try:
            if style == "json":
                grammar, report = lower_parsed(schema, whitespace, strict, limits, order)
            else:
                grammar, report = lower_tagged(schema, style, whitespace, strict, limits, order, self._speller)
        except (ConstraintError, ConstraintRefused) as error:
            raise _moved(error, at) from None
        self.verdicts |= {at + pointer: report[pointer] for pointer in report}
        self.reasons |= {at + pointer: reason for pointer, reason in report.reasons.items()}
        return self.joined.add(grammar)

    def _any_text(self, excludes: Sequence[str], pointer: str, end: _End | None) -> Node:
        if end is None:
            return without(excludes)
        return self._free((), excludes, end, pointer)

    def _token(self, node: dict[str, Any], pointer: str) -> Node:
        token = node.get("token")
        id_ = self._speller.id_of(token) if isinstance(token, str) else token
        if not isinstance(id_, int) or isinstance(id_, bool) or not self._speller.known(id_):
            reason = f"{token!r:.60} is not a special token of this model; write the tag as text"
            raise ConstraintRefused(reason, pointer=f"{pointer}/token", keyword="token")
        return Special((id_,))

    # tags

    def _tags(self, node: dict[str, Any], pointer: str, depth: int) -> list[_Tag]:
        found = []
        for i, tag in enumerate(_list(node, "tags", pointer)):
            at = f"{pointer}/tags/{i}"
            if not isinstance(tag, dict) or tag.setdefault("type", "tag") != "tag":
                raise ConstraintError(f"{at}: expected a tag, got {tag!r:.60}")
            _check_fields(tag, "tag", at)
            found.append(_Tag(_text(tag, "begin", at), self._rest(tag, at, depth), at))
        return found

    def _tagged(self, node: dict[str, Any], pointer: str, depth: int) -> Node:
        begin = node.get("begin")
        if isinstance(begin, dict):
            head = self.format(begin, f"{pointer}/begin", depth + 1, None)
        else:
            head = self._speller.spelled(_text(node, "begin", pointer))
        return seq(head, self._rest(node, pointer, depth))

    def _rest(self, node: dict[str, Any], pointer: str, depth: int) -> Node:
        """Content and end of a tag, as a rule."""
        given, at = node.get("end"), f"{pointer}/end"
        if isinstance(given, dict):
            end = _End((), self.format(given, at, depth + 1, None))
        else:
            end = self._end(
                _texts(node, "end", pointer) if isinstance(given, list) else [_text(node, "end", pointer)], at
            )
        return self.joined.rule(self.format(node.get("content"), f"{pointer}/content", depth + 1, end))

    def _end(self, texts: Sequence[str], pointer: str) -> _End:
        if not texts:
            raise ConstraintError(f"{pointer}: expected at least one end")
        return _End(tuple(texts), alt(self._speller.spelled(text) for text in texts))

    def _separated(self, node: dict[str, Any], pointer: str, depth: int) -> Node:
        tags = self._tags(node, pointer, depth)
        whole = [seq(self._speller.spelled(tag.begin), tag.rest) for tag in tags]
        separator = self._speller.spelled(_text(node, "separator", pointer))
        once = alt(whole) if _flag(node, "stop_after_first", pointer) else joined(whole, separator)
        return once if _flag(node, "at_least_one", pointer) else alt([EMPTY, once])

    def _triggered(self, node: dict[str, Any], tags: Sequence[_Tag], pointer: str, end: _End | None) -> Node:
        triggers = _texts(node, "triggers", pointer)
        excludes = _excludes(node, pointer)
        barred = [*excludes, *(end.texts if end is not None else ())]
        self._check_triggers(triggers, tags, barred, pointer)
        entered = self.joined.rule(alt(self._entries(triggers, tags, barred)))
        free = self._free(triggers, excludes, end, pointer)
        closed = EMPTY if end is None else end.node
        first, once = (_flag(node, field, pointer) for field in ("at_least_one", "stop_after_first"))
        whole = alt(seq(self._speller.spelled(tag.begin), tag.rest) for tag in tags)
        if once:
            return seq(whole, closed) if first else alt([seq(entered, closed), free])
        return seq(whole if first else EMPTY, repeat(entered, 0, None), free)

    def _entries(self, triggers: Sequence[str], tags: Sequence[_Tag], barred: Sequence[str]) -> list[Node]:
        """Free text, then a tag: by its trigger as text, or by a special token that begins it."""
        found = []
        for trigger in triggers:
            mine = [tag for tag in tags if tag.begin.startswith(trigger)]
            rests = [seq(self._speller.spelled(tag.begin[len(trigger) :]), tag.rest) for tag in mine]
            found.append(seq(up_to_first(triggers, [trigger], barred), alt(rests)))
        for tag in tags:
            head = self._speller.after_text(tag.begin, [*triggers, *barred])
            found += [] if head is None else [seq(head, tag.rest)]
        return found

    def _free(self, triggers: Sequence[str], excludes: Sequence[str], end: _End | None, pointer: str) -> Node:
        """Free text that opens no tag, and what ends it."""
        if end is None:
            return without([*triggers, *excludes])
        if "" in end.texts:
            reason = "an empty 'end' after free text would never be seen; give the tag an end"
            raise ConstraintRefused(reason, pointer=pointer, keyword="end")
        for text in end.texts:
            for part in (*triggers, *excludes):
                if part in text:
                    reason = f"the end {text!r:.40} holds {part!r:.40}, which its text may not; use other ones"
                    raise ConstraintRefused(reason, pointer=pointer, keyword="end")
        barred = [*triggers, *excludes]
        found = [up_to_first(end.texts, end.texts, barred)] if end.texts else [seq(without(barred), end.node)]
        for text in end.texts:
            token = self._speller.after_text(text, [*barred, *end.texts])
            found += [] if token is None else [token]
        return alt(found)

    def _check_triggers(
        self, triggers: Sequence[str], tags: Sequence[_Tag], barred: Sequence[str], pointer: str
    ) -> None:
        self._budget.spend(len(triggers) * (len(triggers) + len(tags) + len(barred)), pointer)
        if not triggers or not tags:
            raise ConstraintError(f"{pointer or '/'}: expected at least one trigger and one tag")
        for i, trigger in enumerate(triggers):
            at = f"{pointer}/triggers/{i}"
            if not trigger:
                raise ConstraintError(f"{at}: a trigger is not empty")
            other = next((text for text in (*triggers, *barred) if text in trigger and text != trigger), None)
            if other is not None or trigger in barred:
                reason = (
                    f"the trigger {trigger!r:.40} holds {other or trigger!r:.40}, which comes first; use one of them"
                )
                raise ConstraintRefused(reason, pointer=at, keyword="triggers")
            if not any(tag.begin.startswith(trigger) for tag in tags):
                reason = f"no tag begins with the trigger {trigger!r:.40}; remove it"
                raise ConstraintRefused(reason, pointer=at, keyword="triggers")
        for tag in tags:
            if not any(tag.begin.startswith(trigger) for trigger in triggers):
                reason = f"{tag.begin!r:.40} begins with none of the triggers, so it could not open; add one"
                raise ConstraintRefused(reason, pointer=f"{tag.pointer}/begin", keyword="begin")


# reading what was sent


def _check_fields(node: dict[str, Any], kind: str, pointer: str) -> None:
    if kind not in _FIELDS:
        reason = f"the format {kind!r:.40} is not enforced; use one of {', '.join(_FIELDS)}"
        raise ConstraintRefused(reason, pointer=f"{pointer}/type", keyword="type")
    for key, value in node.items():
        wanted = ... if key == "type" else _FIELDS[kind].get(key, KeyError)
        if wanted is KeyError or (wanted is not ... and value != wanted):
            reason = f"{key!r:.40} is not enforced here; remove it"
            step = key.replace("~", "~0").replace("/", "~1")
            raise ConstraintRefused(reason, pointer=f"{pointer}/{step}", keyword=key)


def _elements(node: dict[str, Any], pointer: str) -> list[tuple[Any, str]]:
    found = [(part, f"{pointer}/elements/{i}") for i, part in enumerate(_list(node, "elements", pointer))]
    if not found:
        raise ConstraintError(f"{pointer}/elements: expected at least one")
    return found


def _list(node: dict[str, Any], field: str, pointer: str) -> list[Any]:
    found = node.get(field)
    if not isinstance(found, list):
        raise ConstraintError(f"{pointer}/{field}: expected an array, got {found!r:.60}")
    return found


def _texts(node: dict[str, Any], field: str, pointer: str) -> list[str]:
    found = _list({field: [], **node}, field, pointer)
    return list(dict.fromkeys(_checked(text, f"{pointer}/{field}/{i}") for i, text in enumerate(found)))


def _excludes(node: dict[str, Any], pointer: str) -> list[str]:
    found = _texts(node, "excludes", pointer)
    if "" in found:
        raise ConstraintError(f"{pointer}/excludes: an empty text is in every other one; remove it")
    return found


def _text(node: dict[str, Any], field: str, pointer: str) -> str:
    return _checked(node.get(field), f"{pointer}/{field}")


def _checked(text: Any, pointer: str) -> str:
    if not isinstance(text, str) or any(0xD800 <= ord(char) <= 0xDFFF for char in text):
        raise ConstraintError(f"{pointer}: expected a string that can be encoded, got {text!r:.60}")
    return text


def _style(node: dict[str, Any], pointer: str) -> str:
    found = node.get("style", "json")
    if not isinstance(found, str) or found not in ("json", *STYLES):
        reason = f"the style {found!r:.40} is not enforced; use one of json, {', '.join(STYLES)}"
        raise ConstraintRefused(reason, pointer=f"{pointer}/style", keyword="style")
    return found


def _flag(node: dict[str, Any], field: str, pointer: str) -> bool:
    found = node.get(field, False)
    if not isinstance(found, bool):
        raise ConstraintError(f"{pointer}/{field}: expected true or false, got {found!r:.60}")
    return found


def _moved(error: ConstraintError | ConstraintRefused, at: str) -> ConstraintError | ConstraintRefused:
    """The same, told from where the part that was read stands."""
    if isinstance(error, ConstraintRefused):
        return ConstraintRefused(error.reason, pointer=at + error.pointer, keyword=error.keyword)
    return ConstraintError(f"{at}: {error}")
