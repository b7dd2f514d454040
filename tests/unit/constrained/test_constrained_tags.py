"""Structural tags: free text, triggers, ends, special tokens; the same as xgrammar's dispatch where both have it."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from typing import Any

import numpy as np
import pytest

from sglite.constrained.bitmask import to_ids
from sglite.constrained.compiler import ConstraintCompiler
from sglite.constrained.limits import Limits
from sglite.constrained.lower import lower
from sglite.constrained.spec import ConstraintError, ConstraintRefused, ConstraintSpec
from sglite.constrained.vocab import Vocabulary

CALL, END = 257, 258
VOCAB = Vocabulary(
    [*(bytes([i]) for i in range(256)), None, None, None],
    [256],
    lambda text: list(text.encode()),
    special_ids={"<call>": CALL, "</call>": END},
)


ENGINE = "native" if shutil.which("g++") else "reference"


@pytest.fixture(scope="module")
def compiler() -> Any:
    compiler = ConstraintCompiler(VOCAB, engine=ENGINE)
    yield compiler
    compiler.close()


@pytest.fixture(scope="module")
def plain() -> Any:
    """The same without special tokens."""
    vocab = Vocabulary([*(bytes([i]) for i in range(256)), None], [256], lambda text: list(text.encode()))
    compiler = ConstraintCompiler(vocab, engine=ENGINE)
    yield compiler
    compiler.close()


def nested(form: Any, **options: Any) -> ConstraintSpec:
    return ConstraintSpec.structural_tag({"type": "structural_tag", "format": form}, **options)


def tag(begin: str, end: Any, content: Any = None) -> Any:
    content = content or {"type": "const_string", "value": "x"}
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def ids(*parts: str | int) -> list[int]:
    return [i for part in parts for i in ([part] if isinstance(part, int) else part.encode())]


def accepts(compiler: ConstraintCompiler, spec: ConstraintSpec, tokens: list[int]) -> bool:
    matcher = compiler.compile(spec).matcher()
    return matcher.accept_run(tokens) == len(tokens) and matcher.accepting


TAGS = {"type": "triggered_tags", "triggers": ["<a"], "tags": [tag("<a>", "</a>"), tag("<ab>", "</ab>")]}
ANY = {"type": "any_text"}
FORMS: list[Any] = [
    TAGS,
    {**TAGS, "at_least_one": True},
    {**TAGS, "stop_after_first": True},
    {**TAGS, "stop_after_first": True, "at_least_one": True},
    {**TAGS, "excludes": ["x<"]},
    tag("<t>", "</t>", ANY),
    tag("<t>", ["</t>", "</u>"], ANY),
    tag("<t>", "</t>", TAGS),
    tag("<t>", "", {"type": "regex", "pattern": "x{1,2}"}),
    {"type": "sequence", "elements": [ANY, {"type": "const_string", "value": "</t>"}]},
    {"type": "sequence", "elements": [tag("<t>", "</t>", ANY), TAGS]},
    {"type": "or", "elements": [{"type": "const_string", "value": "x"}, tag("<a>", "</a>")]},
    {"type": "any_text", "excludes": ["<a", "xx"]},
    *(
        {"type": "tags_with_separator", "tags": TAGS["tags"], "separator": separator, **more}
        for separator in ("x", "")
        for more in ({}, {"at_least_one": True}, {"stop_after_first": True})
    ),
]
PIECES = ["<a>", "</a>", "<t>", "</t>", "x", "<", "<ab>x</ab>", "</u>"]
TEXTS = ["".join(parts) for n in range(4) for parts in itertools.product(PIECES, repeat=n)]


@pytest.mark.parametrize("form", FORMS, ids=lambda f: json.dumps(f)[:60])
def test_texts_are_those_of_xgrammar(plain: ConstraintCompiler, form: Any) -> None:
    xgrammar = pytest.importorskip("xgrammar")
    pieces = [bytes([i]) for i in range(256)] + [b""]
    info = xgrammar.TokenizerInfo(pieces, xgrammar.VocabType.RAW, vocab_size=257, stop_token_ids=[256])
    theirs = xgrammar.GrammarCompiler(info, cache_enabled=False).compile_structural_tag(
        json.dumps({"type": "structural_tag", "format": form})
    )
    compiled = plain.compile(nested(form))
    for text in TEXTS:
        matcher, other = compiled.matcher(), xgrammar.GrammarMatcher(theirs)
        expected = all(other.accept_token(byte) for byte in text.encode()) and other.is_completed()
        found = matcher.accept_run(list(text.encode())) == len(text.encode()) and matcher.accepting
        assert found == expected, text


CALLS = {
    "type": "triggered_tags",
    "triggers": ["<call>"],
    "tags": [tag("<call>\n", "</call>", {"type": "json_schema", "json_schema": {"type": "integer", "maximum": 99}})],
}


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (ids("hi <call>\n12</call>"), True),
        (ids("hi ", CALL, "\n12</call>"), True),
        (ids("hi ", CALL, "\n12", END, " bye"), True),
        (ids(CALL, "\n1</call>", CALL, "\n2", END), True),
        (ids("hi <call", CALL, "\n2</call>"), True),
        (ids("hi ", CALL, "no"), False),
        (ids("hi ", CALL, "\n123</call>"), False),
        (ids("hi ", END), False),
        (ids("hi ", CALL), False),
    ],
)
def test_a_tag_is_written_with_its_special_token_or_its_text(
    compiler: ConstraintCompiler, tokens: list[int], expected: bool
) -> None:
    assert accepts(compiler, nested(CALLS), tokens) == expected


def test_free_text_holds_no_special_token(compiler: ConstraintCompiler) -> None:
    inside = nested(tag("<call>", "</call>", ANY))
    for tokens in (ids(CALL, "a", END), ids("<call>a</call>"), ids(CALL, "</call>"), ids("<call>", END)):
        assert accepts(compiler, inside, tokens)
    for tokens in (ids(CALL, CALL, END), ids(CALL, "a", END, "b"), ids(CALL, "</call>", END)):
        assert not accepts(compiler, inside, tokens)
    assert not accepts(compiler, nested(ANY), ids(CALL))
    forms = [{"type": "token", "token": "<call>"}, {"type": "token", "token": CALL}]
    spec = nested({"type": "sequence", "elements": [*forms, tag("x", {"type": "token", "token": END}, ANY)]})
    assert accepts(compiler, spec, ids(CALL, CALL, "xyz", END)) and not accepts(compiler, spec, ids(CALL, "<call>"))


def test_a_begin_with_several_specials_is_spelled_either_way(compiler: ConstraintCompiler) -> None:
    form = {"type": "triggered_tags", "triggers": ["["], "tags": [tag("[<call>-</call>", "]")]}
    for first, second in itertools.product((CALL, "<call>"), (END, "</call>")):
        assert accepts(compiler, nested(form), ids("a[", first, "-", second, "x] b"))
    assert not accepts(compiler, nested(form), ids("a", CALL, "-", END, "x]"))


def test_texts_with_special_tokens_end_within_their_budget(compiler: ConstraintCompiler) -> None:
    thought = tag("<call>", "</call>", ANY)
    value = {"type": "json_schema", "json_schema": {"type": "array", "items": {"type": "boolean"}}}
    compiled = compiler.compile(
        nested({"type": "or", "elements": [value, {"type": "sequence", "elements": [thought, value]}]})
    )
    assert compiled.shortest_tokens() == len("[]")
    for seed in range(20):
        rng, budget = random.Random(seed), 12 + seed
        matcher, written = compiled.matcher(close_at=budget), [CALL]
        assert matcher.accept(CALL)
        while not matcher.finished:
            mask = np.zeros(VOCAB.words, dtype=np.int32)
            matcher.fill(mask)
            free = [i for i in to_ids(mask).tolist() if i not in VOCAB.eos_ids]
            written.append(rng.choice(free) if free else VOCAB.eos_ids[0])
            assert matcher.accept(written[-1])
        assert len(written) - 1 <= budget, "the end of the sequence is not counted"
    only = compiler.compile(nested({"type": "token", "token": "<call>"}))
    with pytest.raises(ConstraintRefused, match="too long to be ended"):
        only.shortest_tokens()


def test_the_flat_form_and_the_pointers_of_its_schemas(compiler: ConstraintCompiler) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "boolean"}}, "required": ["n"], "title": "t"}
    flat = {"structures": [{"begin": "<f>", "schema": schema, "end": "</f>"}], "triggers": ["<f"]}
    spec = ConstraintSpec.structural_tag(flat, whitespace="compact")
    assert accepts(compiler, spec, ids('a<f>{"n":true}</f>b'))
    assert not accepts(compiler, spec, ids('a<f>{"n": true}</f>b'))
    report = lower(spec, Limits()).report
    assert report["/structures/0/schema/properties/n/type"] == "enforced"
    assert report["/structures/0/schema/title"] == "annotation"


def test_any_order_is_asked_for_by_the_format_or_the_spec(compiler: ConstraintCompiler) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "null"}, "b": {"type": "null"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    turned = ids('{"b": null, "a": null}')
    assert not accepts(compiler, nested({"type": "json_schema", "json_schema": schema}), turned)
    assert accepts(compiler, nested({"type": "json_schema", "json_schema": schema, "any_order": True}), turned)
    assert accepts(compiler, nested({"type": "json_schema", "json_schema": schema}, order="any"), turned)


def test_contents_share_no_rules(compiler: ConstraintCompiler) -> None:
    grammars = [{"type": "grammar", "grammar": f'root ::= x\nx ::= "{letter}" x?'} for letter in "ab"]
    spec = nested({"type": "sequence", "elements": [*grammars, {"type": "json_schema", "json_schema": {"const": 1}}]})
    assert accepts(compiler, spec, ids("aab1")) and not accepts(compiler, spec, ids("aaa1"))


REFUSED: list[tuple[Any, str]] = [
    ({"type": "star", "content": ANY}, "/format/type"),
    ({"type": "any_text", "max_tokens": 5}, "/format/max_tokens"),
    ({"type": "json_schema", "json_schema": {}, "style": "minimax_xml"}, "/format/style"),
    ({"type": "json_schema", "json_schema": {"$ref": "x.json"}}, "/format/json_schema/$ref"),
    ({"type": "regex", "pattern": r"(.+)\1"}, "/format/pattern"),
    ({"type": "grammar", "grammar": 'root ::= a\na ::= root "b" | "c"'}, "/format/grammar"),
    ({"type": "token", "token": "<other>"}, "/format/token"),
    ({"type": "token", "token": 5}, "/format/token"),
    (tag("<a>", "", ANY), "/format/content"),
    ({**TAGS, "triggers": ["<a", "<b"]}, "/format/triggers/1"),
    ({**TAGS, "triggers": ["<a", "<ab"]}, "/format/triggers/1"),
    ({**TAGS, "triggers": ["<ab"]}, "/format/tags/0/begin"),
    ({**TAGS, "excludes": ["<"]}, "/format/triggers/0"),
    (tag("<t>", "</a", {**TAGS, "triggers": ["<a", "/a"]}), "/format/content/triggers/1"),
    ({**TAGS, "nonsense": 1}, "/format/nonsense"),
]


@pytest.mark.parametrize(("form", "pointer"), REFUSED, ids=lambda v: str(v)[:50])
def test_what_is_not_enforced_is_refused_with_its_pointer(form: Any, pointer: str) -> None:
    with pytest.raises(ConstraintRefused) as caught:
        lower(nested(form), Limits(), specials=VOCAB.special_ids)
    assert caught.value.pointer == pointer and caught.value.reason


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "a structural tag is a JSON object"),
        ({"type": "structural_tag"}, "'type': 'structural_tag' and a 'format'"),
        ({"structures": [], "triggers": ["<"], "x": 1}, "that list and 'triggers', nothing else"),
        ({"structures": [], "triggers": ["<"]}, "at least one trigger and one tag"),
        ({"structures": [{"begin": "<"}], "triggers": ["<"]}, "/structures/0: expected an object with 'begin'"),
        ({"format": {"type": "or", "elements": []}}, "/format/elements: expected at least one"),
        ({"format": 3}, "/format: expected an object with a 'type'"),
        ({"format": {"type": "regex", "pattern": "(a"}}, "/format/pattern: regex"),
        (
            {"format": {"type": "const_string", "value": "\ud800"}},
            "/format/value: expected a string that can be",
        ),
        ({"format": {**TAGS, "at_least_one": 1}}, "/format/at_least_one: expected true or false"),
        ({"format": {**TAGS, "triggers": [""]}}, "/format/triggers/0: a trigger is not empty"),
        ({"format": {"type": "any_text", "excludes": [""]}}, "/format/excludes: an empty text"),
        ({"format": tag("<a>", [])}, "/format/end: expected at least one end"),
        ({"format": {**TAGS, "tags": [3]}}, "/format/tags/0: expected a tag"),
    ],
)
def test_what_is_malformed_is_told_with_its_place(value: Any, message: str) -> None:
    with pytest.raises(ConstraintError, match=message):
        lower(ConstraintSpec("structural_tag", json.dumps(value)), Limits())


def test_a_large_tag_is_refused_in_time() -> None:
    many = [f"<{i}>" for i in range(9000)]
    flat = {"structures": [{"begin": t, "schema": {}, "end": ""} for t in many[:2000]], "triggers": many}
    deep: Any = ANY
    for _ in range(500):
        deep = tag("<a>", "</a>", deep)
    for spec in (ConstraintSpec.structural_tag(flat), nested(deep)):
        with pytest.raises(ConstraintRefused):
            lower(spec, Limits(max_bytes=10**7))
