"""Character automata against their definitions: brute force, `re`, `json`, and the native code against Python."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from constrained_automata import (
    ANY,
    ODD_LEAVES,
    PLAIN_LEAVES,
    Native,
    NativeRefused,
    assert_same,
    language,
    native_automata,
    nodes,
    smallest,
    words,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sglite.constrained import charset, fsm
from sglite.constrained.grammar import Alt, And, Chars, Node, Not, Repeat, Seq, Text

WORDS = words("abc", 4)
DRAWN = nodes([*PLAIN_LEAVES, Chars(()), Chars(charset.complement(charset.of("a")))])
SPELLED = nodes([*PLAIN_LEAVES, *ODD_LEAVES], max_leaves=5)


@pytest.fixture(scope="module")
def native() -> Native:
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    return native_automata()


@settings(max_examples=300, deadline=None)
@given(DRAWN)
def test_every_answer_follows_from_the_language(node: Node) -> None:
    texts = language(node, WORDS)
    table = fsm.compile_expr(node)
    assert {w for w in WORDS if table.matches(w)} == texts
    assert {w for w in WORDS if fsm.matches(node, w)} == texts
    assert fsm.is_empty(node) == table.is_empty()
    example = fsm.shortest(node)
    assert (example is None) == table.is_empty()
    low, high = fsm.lengths(node)
    if example is not None:
        assert table.matches(example) and len(example) == low <= (low if high is None else high)
        assert not any(len(w) < low or (high is not None and len(w) > high) for w in texts)
    listed = fsm.finite(node, 40)
    if listed is not None:
        assert WORDS & set(listed) == texts and len(set(listed)) == len(listed) <= 40
        assert all(table.matches(text) for text in listed)
        assert (low, high) == (min(map(len, listed)), max(map(len, listed))) if listed else (low, high) == (1, 0)


@settings(max_examples=200, deadline=None)
@given(DRAWN, DRAWN)
def test_relations_between_two_languages(left: Node, right: Node) -> None:
    a, b = language(left, WORDS), language(right, WORDS)
    if a & b:
        assert fsm.intersects(left, right)
    if b - a:
        assert not fsm.includes(left, right)
    assert fsm.includes(left, right) == fsm.is_empty(And((right, Not(left))))
    assert fsm.includes(left, And((left, right))) and fsm.includes(Alt((left, right)), right)
    assert fsm.intersects(left, right) != fsm.includes(Not(left), right)


def as_pattern(node: Node) -> str:
    if isinstance(node, Text):
        return re.escape(node.text)
    if isinstance(node, Chars):
        return (
            "[" + "".join(f"\\U{low:08x}-\\U{high:08x}" for low, high in node.ranges) + "]" if node.ranges else "(?!)"
        )
    if isinstance(node, Seq):
        return "".join(map(as_pattern, node.items))
    if isinstance(node, Alt):
        return f"(?:{'|'.join(map(as_pattern, node.items))})" if node.items else "(?!)"
    assert isinstance(node, Repeat)
    return f"(?:{as_pattern(node.item)}){{{node.low},{'' if node.high is None else max(node.high, node.low)}}}"


def is_plain(node: Node) -> bool:
    if isinstance(node, And | Not):
        return False
    items = node.items if isinstance(node, Seq | Alt) else (node.item,) if isinstance(node, Repeat) else ()
    return all(map(is_plain, items)) and not (isinstance(node, Repeat) and node.high == 0 and node.low)


@settings(max_examples=300, deadline=None)
@given(DRAWN.filter(is_plain), st.lists(st.text("abé\n", max_size=8), min_size=1, max_size=6))
def test_plain_expressions_agree_with_re(node: Node, texts: list[str]) -> None:
    pattern = re.compile(as_pattern(node))
    table = fsm.compile_expr(node)
    for text in texts:
        wanted = pattern.fullmatch(text) is not None
        if not (isinstance(node, Repeat) and node.high is not None and node.high < node.low):
            assert fsm.matches(node, text) == table.matches(text)
            assert table.matches(text) == wanted or contradictory(node)


def contradictory(node: Node) -> bool:
    """Whether a count is impossible somewhere, which `re` cannot say."""
    items = node.items if isinstance(node, Seq | Alt) else (node.item,) if isinstance(node, Repeat) else ()
    return any(map(contradictory, items)) or (isinstance(node, Repeat) and (node.high or node.low) < node.low)


@settings(max_examples=60, deadline=None)
@given(SPELLED, st.booleans())
def test_native_automata_are_those_of_python_and_smallest(native: Native, node: Node, as_json: bool) -> None:
    table = fsm.compile_expr(node)
    assume(len(table.accepting) <= 30)
    if table.is_empty():
        with pytest.raises(NativeRefused, match="matches nothing"):
            native.build(node, as_json)
        return
    dfa = native.build(node, as_json)
    assert_same(dfa, table, as_json)
    assert smallest(dfa) == dfa.states
    for state, distance in enumerate(dfa.distance):
        following = [dfa.distance[to] for to in dfa.rows[state] if to >= 0]
        assert distance == (0 if dfa.accepting[state] else 1 + min(following))


def escaped(char: str, way: int) -> str:
    if way == 0:
        return json.dumps(char, ensure_ascii=False)[1:-1]
    units = char.encode("utf-16-be")
    codes = [units[i : i + 2].hex() for i in range(0, len(units), 2)]
    return "".join("\\u" + (code.upper() if way == 1 else code) for code in codes)


TEXTS = st.text(st.sampled_from('ab"\\/\b\n\x00\x1f\x7fé中😀\U0010ffff'), max_size=5)


@settings(max_examples=150, deadline=None)
@given(SPELLED, st.lists(TEXTS, max_size=8), st.randoms(use_true_random=False))
def test_a_json_string_belongs_exactly_if_its_value_does(native: Native, node: Node, texts: list[str], random) -> None:
    table = fsm.compile_expr(node)
    assume(not table.is_empty())
    plain, dfa = fsm.ByteFsm(table, json=True), native.build(node, json=True)
    example = fsm.shortest(node)
    for text in [*texts, *([example] if example is not None else [])]:
        spelled = json.dumps(text, ensure_ascii=False).encode()
        assert plain.matches(spelled) == dfa.matches(spelled) == table.matches(text)
        other = '"' + "".join(escaped(char, random.randrange(3)) for char in text) + '"'
        assert json.loads(other) == text
        accepted = plain.matches(other.encode())
        assert accepted == dfa.matches(other.encode())
        assert table.matches(text) or not accepted
        assert not table.alike() or accepted == table.matches(text)  # every escape there is


@settings(max_examples=150, deadline=None)
@given(SPELLED, st.booleans(), st.randoms(use_true_random=False))
def test_what_the_native_automaton_writes_is_a_member(native: Native, node: Node, as_json: bool, random) -> None:
    table = fsm.compile_expr(node)
    assume(not table.is_empty())
    dfa = native.build(node, as_json)
    bytes_of: dict[int, list[int]] = {}
    for byte, number in enumerate(dfa.class_of):
        bytes_of.setdefault(number, []).append(byte)
    for _ in range(5):
        state, written = dfa.start, bytearray()
        while not dfa.accepting[state] or random.random() < 0.7:
            steps = [(number, to) for number, to in enumerate(dfa.rows[state]) if to >= 0]
            if len(written) > 60:  # enough of it: the shortest way out
                steps = [step for step in steps if dfa.distance[step[1]] < dfa.distance[state]]
            if not steps:
                break
            number, state = random.choice(steps)
            written.append(random.choice(bytes_of[number]))
        text = json.loads(written.decode()) if as_json else written.decode()
        assert table.matches(text)


def test_texts_that_are_not_unicode_are_texts_of_nothing() -> None:
    assert not fsm.matches(Not(Text("a")), "\ud800")
    assert not fsm.matches(Repeat(ANY, 0, None), "\udfff")
