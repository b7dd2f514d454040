"""The reference engine against definitions: membership by recursion over the grammar, and JSON equality by hand."""

from __future__ import annotations

import itertools
import json
import random

import pytest
from constrained_walks import allowed_ids, tiny_vocabulary
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sglite.constrained.charset import EVERY, contains, of
from sglite.constrained.engines.reference import ReferenceEngine, ReferenceMatcher
from sglite.constrained.engines.reference_leaf import Leaf
from sglite.constrained.grammar import (
    Alt,
    And,
    Chars,
    Grammar,
    Guard,
    JsonString,
    Node,
    Not,
    Ref,
    Repeat,
    Scope,
    Seq,
    Shuffle,
    Special,
    Text,
    Unique,
    normalise,
)
from sglite.constrained.spec import ConstraintRefused

VOCAB = tiny_vocabulary()
ENGINE = ReferenceEngine(VOCAB)
LETTERS = "ab0"
LONGEST = 5
CHECKS = (lambda text: len(text) % 2 == 0, lambda text: "b" not in text)
ANY = Repeat(Chars(EVERY), 0, None)


def ends(node: Node, text: str, start: int, rules: dict[str, Node]) -> set[int]:
    """Where a text of `node` that begins at `start` may end: what each docstring of the grammar says, literally."""
    if isinstance(node, Text):
        return {start + len(node.text)} if text.startswith(node.text, start) else set()
    if isinstance(node, Chars):
        return {start + 1} if start < len(text) and contains(node.ranges, ord(text[start])) else set()
    if isinstance(node, Alt | And):
        found = [ends(item, text, start, rules) for item in node.items]
        return set.union(set(), *found) if isinstance(node, Alt) else set.intersection(*found)
    if isinstance(node, Seq):
        return follow(node.items, text, {start}, rules)
    if isinstance(node, Not):
        return set(range(start, len(text) + 1)) - ends(node.item, text, start, rules)
    if isinstance(node, Repeat):
        most = node.low + len(text) + 1 if node.high is None else node.high
        return set.union(
            set(),
            *(follow((node.item,) * n, text, {start}, rules) for n in range(node.low, min(most, node.low + 8) + 1)),
        )
    if isinstance(node, Guard):
        return {end for end in ends(node.item, text, start, rules) if CHECKS[node.check](text[start:end])}
    if isinstance(node, Shuffle):
        return shuffled(node, text, start, rules)
    assert isinstance(node, Ref)
    return ends(rules[node.name], text, start, rules)


def follow(items: tuple[Node, ...], text: str, starts: set[int], rules: dict[str, Node]) -> set[int]:
    for item in items:
        starts = {end for start in starts for end in ends(item, text, start, rules)}
    return starts


def shuffled(node: Shuffle, text: str, start: int, rules: dict[str, Node]) -> set[int]:
    found: set[int] = set()
    most = len(text) + 1 if node.high is None else node.high
    entries = [*range(len(node.items)), *([-1] if node.rest is not None else [])]
    for count in range(node.low, min(most, 4) + 1):
        for order in itertools.product(entries, repeat=count):
            listed = [i for i in order if i >= 0]
            if len(set(listed)) == len(listed) and node.required <= set(listed):
                bodies = [node.items[i] if i >= 0 else node.rest for i in order]
                parts = [part for body in bodies for part in (node.separator, body)][1:]
                found |= follow(tuple(p for p in parts if p is not None), text, {start}, rules)
    return found


SPANS = st.sampled_from([(0, 1), (0, 2), (1, 2), (2, 2), (0, None), (1, None), (0, 0)])
LEAVES = st.sampled_from([Text("a"), Text("ab"), Text(""), Text("0"), Chars(of("ab")), Chars(of("b0")), Chars(EVERY)])


def plain(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    some = st.lists(inner, min_size=1, max_size=3).map(tuple)
    return st.one_of(
        st.builds(Seq, some), st.builds(Alt, some), st.builds(lambda i, span: Repeat(i, *span), inner, SPANS)
    )


def regular(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    return plain(inner) | st.builds(And, st.tuples(inner, inner)) | st.builds(Not, inner)


def mixed(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    entry = st.builds(lambda mark, item: Seq((Text(mark), item)), st.sampled_from("ab"), inner)
    shuffle = st.builds(
        lambda items, need, low, rest: Shuffle(
            tuple(items), frozenset(need) & frozenset(range(len(items))), Text("0"), low, 3, rest
        ),
        st.lists(entry, min_size=1, max_size=2),
        st.sets(st.integers(0, 1)),
        st.integers(0, 2),
        st.none() | entry,
    )
    return plain(inner) | st.builds(Guard, inner, st.integers(0, 1)) | shuffle


REGULAR: st.SearchStrategy[Node] = st.recursive(LEAVES, regular, max_leaves=5)
NODES: st.SearchStrategy[Node] = st.recursive(REGULAR | st.just(Ref("one")), mixed, max_leaves=4)


def take(matcher: ReferenceMatcher, text: str) -> bool:
    return all(matcher.accept(VOCAB.token_bytes.index(bytes([byte]))) for byte in text.encode())


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(root=NODES, one=REGULAR)
def test_the_language_is_what_the_docstrings_say(root: Node, one: Node) -> None:
    grammar = Grammar({"root": root, "one": one}, checks=CHECKS)
    try:
        program = ENGINE.compile(normalise(grammar))
    except ConstraintRefused:
        assume(False)
    rules = dict(grammar.rules)
    for length in range(LONGEST):
        for letters in itertools.product(LETTERS, repeat=length):
            text, matcher = "".join(letters), program.raw_matcher()
            member = len(text) in ends(root, text, 0, rules)
            assert (take(matcher, text) and matcher.accepting) == member, text


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(node=REGULAR, seed=st.integers(0, 99))
def test_every_state_of_a_leaf_is_as_far_from_its_end_as_it_says(node: Node, seed: int) -> None:
    for wrapped in (node, JsonString(node)):
        leaf, rng = Leaf(wrapped), random.Random(seed)
        state = leaf.start
        assume(state is not None)
        for _ in range(8):
            assert state is not None
            steps = {byte: to for byte in range(256) if (to := leaf.next(state, byte)) is not None}
            near = [1 + leaf.distance(to) for to in steps.values()]
            assert leaf.distance(state) == (0 if leaf.accepting(state) else min(near))
            assert leaf.over(state) == (not steps)
            if not steps:
                break
            state = steps[rng.choice(sorted(steps))]


STRINGS = [
    '""',
    '"a"',
    '"\\n"',
    '"\\/"',
    '"\\u0061"',
    '"\\ud83d\\ude00"',
    '"\\ud83d"',
    '"\\udc00a"',
    '"é中😀"',
    '"\x01"',
    '"\\x"',
]


@pytest.mark.parametrize("text", STRINGS)
def test_a_free_string_is_every_json_string_without_half_characters(text: str) -> None:
    leaf = Leaf(JsonString(ANY))
    state = leaf.start
    for byte in text.encode():
        state = None if state is None else leaf.next(state, byte)
    try:
        json.loads(text).encode()
        valid = True
    except ValueError:
        valid = False
    assert (state is not None and leaf.accepting(state)) == valid


def test_a_constant_string_is_spelled_in_its_shortest_ways() -> None:
    grammar = Grammar({"root": JsonString(Text('a/"\n\x1f'))})
    for text, member in (
        ('"a/\\"\\n\\u001f"', True),
        ('"a/\\"\\u000A\\u001F"', True),
        ('"a\\/\\"\\n\\u001f"', False),
        ('"\\u0061/\\"\\n\\u001f"', False),
    ):
        matcher = ENGINE.compile(grammar).raw_matcher()
        pieces = [VOCAB.token_bytes.index(bytes([b])) for b in text.encode() if bytes([b]) in VOCAB.token_bytes]
        if len(pieces) == len(text.encode()):
            assert all(map(matcher.accept, pieces)) == member


def items_of(value: Node, brackets: str = "[]") -> Grammar:
    more = Repeat(Seq((Text(", "), value)), 0, None)
    return Grammar({"root": Scope(Seq((Text(brackets[0]), value, more, Text(brackets[1]))))}, checks=CHECKS)


def test_items_differ_as_json_values() -> None:
    number = Repeat(Chars(of("01-.")), 1, 4)
    for unique in (Unique(number), Unique(Guard(number, 0))):
        program = ENGINE.compile(items_of(unique))
        for text, member in (
            ("[10, 01]", None),
            ("[10, 11]", True),
            ("[10, 10.0]", False),
            ("[-0, 00]", None),
            ("[1.00, 10]", True),
        ):
            matcher = program.raw_matcher()
            if member is not None:
                assert (take(matcher, text) and matcher.accepting) == member, text


def test_names_differ_and_scopes_are_their_own() -> None:
    string, inner = (
        JsonString(Repeat(Chars(of("ab")), 0, 2)),
        items_of(Unique(JsonString(Chars(of("a"))))).rules["root"],
    )
    member = Seq((Unique(string), Text(": "), Alt((inner, Text("0")))))
    program = ENGINE.compile(items_of(member, "{}"))
    for text, good in (('{"a": ["a"], "b": ["a"]}', True), ('{"a": 0, "a": 0}', False), ('{"a": ["a", "a"]}', False)):
        matcher = program.raw_matcher()
        assert (take(matcher, text) and matcher.accepting) == good, text


def test_a_value_that_cannot_go_on_is_asked_at_its_last_byte() -> None:
    program = ENGINE.compile(
        Grammar({"root": Seq((Guard(Alt((Text("a"), Text("ab0"))), 0), Text(":")))}, checks=CHECKS)
    )
    matcher = program.raw_matcher()
    assert take(matcher, "a") and matcher.held() == 1
    assert [VOCAB.content(i) for i in allowed_ids(VOCAB, matcher)] == [b"b"]  # "a" has an odd length: it may not end
    assert not matcher.fork().accept(VOCAB.token_bytes.index(b":"))
    assert take(matcher, "b") and not take(matcher, "0") and matcher.held() == 2


def test_special_tokens_stand_for_themselves() -> None:
    special = VOCAB.eos_ids[0] - 3
    program = ENGINE.compile(Grammar({"root": Seq((Text("a"), Special((special,)), Text("b")))}))
    matcher = program.raw_matcher()
    assert not matcher.accept(special)
    assert take(matcher, "a") and allowed_ids(VOCAB, matcher) == [special] and matcher.shortest() is None
    assert matcher.forced_text().text == b"" and matcher.accept(special) and take(matcher, "b")
    assert matcher.text == b"ab" and matcher.num_accepted == 3 and matcher.accepting


def test_what_forces_and_what_crosses() -> None:
    program = ENGINE.compile(Grammar({"root": Seq((Text("0"), Chars(of("ab")), Text(", ")))}))
    forced = program.raw_matcher().forced_text()
    assert forced.text == b"0" and forced.crossings == ()
    program = ENGINE.compile(Grammar({"root": Seq((Text('a"'), Alt((Text("b"), Text(": ")))))}))
    assert program.raw_matcher().forced_text().crossings == (1,)  # the token `": ` starts there; `"b"` is not allowed


def test_refusals() -> None:
    with pytest.raises(ConstraintRefused, match="left recursion"):
        ENGINE.compile(Grammar({"root": Alt((Seq((Ref("root"), Text("a"))), Text("b")))}))
    with pytest.raises(ConstraintRefused, match="matches nothing"):
        ENGINE.compile(Grammar({"root": And((Text("a"), Text("b")))}))
    with pytest.raises(ConstraintRefused, match="too large"):
        ENGINE.compile(Grammar({"root": Repeat(Chars(of("a")), 5000, 5000)}))
    with pytest.raises(ValueError, match="cannot roll back 1"):
        ENGINE.compile(Grammar({"root": Text("a")})).raw_matcher().rollback(1)
