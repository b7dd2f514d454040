"""Regular expressions: what a pattern matches, spelling by spelling; what is refused; what a large one costs."""

from __future__ import annotations

import time

import pytest

from sglite.constrained import charset
from sglite.constrained.fsm import includes, matches
from sglite.constrained.grammar import Chars
from sglite.constrained.limits import Limits
from sglite.constrained.regex import match_expr, search_expr
from sglite.constrained.spec import ConstraintError, ConstraintRefused

# pattern, texts that it matches as a whole, texts that it does not
WHOLE: list[tuple[str, list[str], list[str]]] = [
    (r"(?!foo)[a-z]+", ["bar", "fo", "fob"], ["foo", "foobar", ""]),
    (r"[a-z]+(?<!ing)", ["walk", "ingo"], ["walking", "ing"]),
    (r"^(?=.*[A-Z])(?=.*\d)[A-Za-z\d]{8,12}$", ["Abcdefg1", "1AAAAAAAAAAA"], ["abcdefg1", "Abcdefgh", "Ab1"]),
    (r"\bcat\b", ["cat"], ["cats", "a cat"]),
    (r".*\bcat\b.*", ["a cat!", "cat"], ["cats", "concat", "écat"]),
    (r"\Bat", [], ["at", "cat"]),
    (r"c\Bat", ["cat"], []),
    (r"(?:(?!END).)*END", ["END", "abcEND", "ENEND"], ["ENDEND", "abc"]),
    (r"/\*(?:(?!\*/)[\s\S])*\*/", ["/* a\n* b */", "/**/"], ["/* */ */", "/* "]),
    (r"(?:\bfoo\b ?)+", ["foo", "foo foo ", "foo foo"], ["foofoo", ""]),
    (r"a(?=b)(?=.c)bc", ["abc"], ["ab"]),
    (r"(?<=a)b|a(?<!b)", ["a"], ["b", "ab"]),
    (r"a(?<=^a)b", ["ab"], []),
    (r"x(?!y|z$)[yz]?.?", ["x", "xzz"], ["xy", "xyz", "xz"]),
    (r"(?=(?:ab|c)+$)[a-z]{4}", ["abab", "cccc", "cabc"], ["abca", "aabb"]),
    (r"(?<![a-z]{2}|\d)x", ["x"], []),
    (r"^a$|^b$", ["a", "b"], ["ab", ""]),
    (r"a^b", [], ["ab", "a\nb"]),
    (r"(?m)a$\n^b", ["a\nb"], ["ab"]),
    (r"(?m)(?:^- .*$\n?)+", ["- a\n- b", "- "], ["a", "- a\nb"]),
    (r"a(?:$|b)", ["a", "ab"], ["abb"]),
    (r"(['\"])[a-z]*\1", ["'a'", '"b"', '""'], ["'a\"", "a"]),
    (r"(?P<q>a|b)-(?P=q)-(?P=q)", ["a-a-a", "b-b-b"], ["a-b-a"]),
    (r"(?<q>a|b)\k<q>", ["aa", "bb"], ["ab"]),
    (r"(?:(a|b)\1)+", ["aa", "aabb"], ["ab", "aab"]),
    (r"(a{1,3})-\1", ["a-a", "aaa-aaa"], ["a-aa"]),
    (r"\d++5?", ["12"], [""]),
    (r"\d++5", [], ["15", "5"]),
    (r"[a-z]*+\d", ["ab1", "1"], ["ab"]),
    (r"(?>foo|foobar)baz", ["foobaz"], ["foobarbaz"]),
    (r"(?>ab|cd)+", ["abcd"], ["a"]),
    (r"a{2}+a?", ["aa", "aaa"], ["a"]),
    (r"(?:ab){1,2}+(?:ab)?", ["ab", "abab", "ababab"], ["a"]),
    (r"(?i)straße", ["STRAßE", "straße"], ["strasse"]),
    (r"(?i:ab)c", ["ABc", "abc"], ["ABC"]),
    (r"(?s).(?-s:.)", ["\na"], ["a\n"]),
    (r"(?s:.).", ["\na"], ["a\n"]),
    (r"(?i)(?s)a.", ["A\n"], ["b\n"]),
    (r"\p{Lu}\p{Ll}*", ["Émile", "A"], ["émile"]),
    (r"\P{L}+", ["12!"], ["a"]),
    (r"[\p{Script=Greek}\p{Nd}]+", ["αβ3"], ["a"]),
    (r"\p{sc=Cyrillic}\p{Han}\pN", ["д中5"], ["d中5"]),
    (r"[^\p{L}\s]+", ["-1-"], ["a", " "]),
    (r"\p{Emoji_Presentation}", ["😀"], ["1"]),
    (r"\u0041\x42\u{43}\u{1F600}\ud83d\ude00", ["ABC😀😀"], ["ABC"]),
    (r"\cA\0\011[\cB\x03]", ["\x01\0\t\x02", "\x01\0\t\x03"], ["A\0\t\x02"]),
    (r"[\s\S]{3}[\w\W][\d\D]", ["\n\u3000\u2028é٣"], ["\n"]),
    (r"a*?b+?c??", ["b", "aabbc"], ["ac"]),
    (r"x{,2}y{2,}", ["yy", "xxyyy"], ["xxxyy", "xy"]),
    (r"(?#a comment)a", ["a"], [""]),
    (r"(?=)a(?!)|b", ["b"], ["a"]),
    (r"(?=a)*b", ["b"], ["ab"]),
    (r"(?:(?=a)|b){2,5}a", ["a", "ba", "bbbbba"], ["", "bbbbbba"]),
]


@pytest.mark.parametrize(("pattern", "inside", "outside"), WHOLE, ids=lambda v: str(v)[:40])
def test_the_whole_text_is_matched(pattern: str, inside: list[str], outside: list[str]) -> None:
    node = match_expr(pattern)
    assert [text for text in inside if not matches(node, text)] == []
    assert [text for text in outside if matches(node, text)] == []


@pytest.mark.parametrize(
    ("pattern", "inside", "outside"),
    [
        (r"b+", ["abc", "b"], ["a", ""]),
        (r"^a|b$", ["ab", "ac", "cb"], ["ca", "bc"]),
        (r"\bcat\b", ["a cat!", "cat"], ["cats", "concat"]),
        (r"^(?!.*foo)", ["bar", ""], ["a foo b"]),
        (r"(?<!\d)\d{2}(?!\d)", ["a12b", "12", "123 45"], ["123", "1"]),
        (r"(?m)^b$", ["a\nb\nc", "b"], ["ab", "a\nbc"]),
        (r"$", ["", "a"], []),
        (r"(?<=\bfoo)bar", ["foobar", "a foobar"], ["xfoobar", "bar"]),
        (r"^[^\s]+$", ["ab"], ["a b", ""]),
    ],
)
def test_a_search_finds_a_match_anywhere(pattern: str, inside: list[str], outside: list[str]) -> None:
    node = search_expr(pattern)
    assert [text for text in inside if not matches(node, text)] == []
    assert [text for text in outside if matches(node, text)] == []


@pytest.mark.parametrize("pattern", [r"\d\w\s", r"\W+", r"[^\d]", r"(?i)k[^s]", r"a$", r"\bé\b", r"x.", r"(?!\w)."])
def test_the_outer_sense_holds_what_some_dialect_matches(pattern: str) -> None:
    inner, outer = search_expr(pattern), search_expr(pattern, sense="outer")
    assert includes(outer, inner) and not includes(inner, outer)


def test_senses_by_character() -> None:
    assert matches(match_expr(r"\d", sense="outer"), "٣") and not matches(match_expr(r"\d"), "٣")
    assert matches(match_expr(r"(?!\d).", sense="outer"), "٣") and not matches(match_expr(r"(?!\d)."), "٣")
    assert matches(match_expr("a$", sense="outer"), "a") and matches(search_expr("a$", sense="outer"), "a\n")
    assert match_expr(r"[\s\S]") == Chars(charset.EVERY)


REFUSED = [
    (r"(a|b)*\1", "a group with many texts, or one that may not have matched"),
    (r"<([a-z]+)>\1", "a group with many texts"),
    (r"(a)?\1", "may not have matched"),
    (r"(?i)(a)\1", "a backreference that ignores case"),
    (r"(?<=(a|b)\1)c", "a backreference in lookbehind"),
    (r"(?<=a++)b", "a possessive quantifier in lookbehind"),
    (r"(a|ab)++c", "drops some of its matches"),
    (r"(?>a*?)b", "a lazy quantifier in an atomic group"),
    (r"(?(1)a|b)", "a conditional group"),
    (r"a(?i)b", "flags that are not at the start"),
    (r"(?x)a", "the flag 'x'"),
    (r"[]a]", r"a class that begins with \]"),
    (r"[[:alpha:]]", "a POSIX class name"),
    (r"\p{Nonsense}", "the Unicode property 'Nonsense'"),
    (r"\X", "a grapheme cluster"),
    (r"\ud800", "no character"),
    ("a{1,100000}", "a repetition of 100000"),
    ("(" * 60 + ")" * 60, "nesting deeper than 48"),
    ("^" * 2000, "more than 1024 anchors"),
]


@pytest.mark.parametrize(("pattern", "reason"), REFUSED, ids=lambda v: v[:30])
def test_what_is_not_enforced_is_refused(pattern: str, reason: str) -> None:
    with pytest.raises(ConstraintRefused, match=reason) as caught:
        match_expr(pattern)
    assert caught.value.keyword == "regex" and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(a", "missing [)] at position 0"),
        ("a)", "unmatched [)] at position 1"),
        ("[a", "missing ]"),
        ("[b-a]", "the wrong way round"),
        (r"[\d-z]", "cannot bound a range"),
        ("*a", "nothing to repeat at position 0"),
        ("a**", "a quantifier follows a quantifier"),
        ("a{3,2}", "the wrong way round"),
        (r"\1(a)", "a group that is not there, or not closed before"),
        (r"(a\1)", "not closed before"),
        (r"\k<x>", "not there"),
        (r"\q", r"unknown escape \\q"),
        ("\\", "ends in a backslash"),
        (r"\x4", "cut short"),
        (r"\u{zz}", "not a hexadecimal number"),
        ("(?<1>a)", "bad group name"),
        ("(?", "missing [)]"),
        ("(?i", "missing [)]"),
        ("(?#a", "missing [)]"),
        ("(?P<a", "missing >"),
        (r"\p{L", "missing }"),
    ],
)
def test_a_broken_pattern_is_told_with_its_place(pattern: str, message: str) -> None:
    with pytest.raises(ConstraintError, match=message):
        match_expr(pattern)


BOMBS = [
    r"(?:(?!a{1,1000}b).)*",
    r"(?:(?=.*a)(?=.*b)(?=.*c)(?=.*d)(?=.*e).)*",
    "(?=" * 40 + "a" + ")" * 40,
    r"(?:\b(a|b)\b.)*" * 10,
    "(a|b|c|d)" * 10 + "".join(f"\\{i}" for i in range(1, 11)),
    "a++" * 70,
    "(?>" * 40 + "a" + ")" * 40,
    "(?>" + "|".join("a" * i + "b" for i in range(1, 200)) + ")",
    "(" * 45 + "(?=a)|b" + ")*" * 45,
    "(?:(?=a)|b){2,1000}",
    r"(?:(?!\bfoo\b|\bbar\b|\bbaz\b).)*",
    r"(?s)(?:(?!<script>).)*(?:(?!</script>).)*x(?<=abc.{1,30})",
    r"(?:(?:(?!a).)*(?:(?!b).)*)*c",
    r"\b" * 200,
    "(?=a|b(?=c|d(?=e|f)))" * 20,
    "|".join(f"(?!x{i})y" for i in range(250)),
    "|".join(f"^a{i}$" for i in range(450)),
    "(?=(?:(?:(?:a{1,100}){1,100}){1,100}){1,100}b)a*b",
    "(?=.{1,300}$)(?!.{10,200}a)[ab]*(?<!c{3,200})",
    "(" * 100_000,
    "[a-z]" * 30_000,
    "(a*)*" * 1000,
    "(a?){1000}" * 20 + "(?=b)",
    "(a{1,500}){1,500}",
    "(?:a(?=b{1,100}c)|b|c(?<=b{1,100}c)){1,}",
]


@pytest.mark.parametrize("pattern", BOMBS, ids=lambda p: p[:30])
def test_a_large_pattern_is_lowered_or_refused_in_a_second(pattern: str) -> None:
    start = time.process_time()
    for lower in (match_expr, search_expr):
        try:
            lower(pattern, Limits())
        except ConstraintRefused as error:
            assert error.reason
    assert time.process_time() - start < 4, "for both, on a busy machine"
