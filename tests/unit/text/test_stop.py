"""Stops: found wherever the output is cut, first end first, never more held back than needed, never slow."""

from __future__ import annotations

import time

import pytest

from sglite.runtime.text.stop import StopError, StopHit, StopMatcher


def feed(matcher: StopMatcher, *pieces: str) -> list[StopHit | None]:
    return [matcher.push(piece.encode()) for piece in pieces]


def test_a_stop_is_found_across_pieces() -> None:
    matcher = StopMatcher(["<|end|>"])
    assert feed(matcher, "text <", "|en", "d|", "> more") == [None, None, None, StopHit("<|end|>", 5, 12)]


def test_the_earliest_end_wins_then_the_earliest_start() -> None:
    assert feed(StopMatcher(["abcde", "cd"]), "xabcdef") == [StopHit("cd", 3, 5)]
    assert feed(StopMatcher(["cd", "bcd", "d"]), "abcd") == [StopHit("bcd", 1, 4)]
    assert feed(StopMatcher(["d"], ["b.d"]), "abcd") == [StopHit("b.d", 1, 4)]
    assert feed(StopMatcher(["bcd"], ["c+d"]), "abcd") == [StopHit("bcd", 1, 4)]


def test_offsets_are_bytes_of_everything_pushed() -> None:
    assert feed(StopMatcher(["é"], ["ñ"]), "日本 ", "é") == [None, StopHit("é", 7, 9)]
    assert feed(StopMatcher([], ["ñ"]), "日本 ", "ñ") == [None, StopHit("ñ", 7, 9)]


def test_a_stop_inside_a_character_waits_for_it() -> None:
    matcher = StopMatcher([], ["é+!"])
    assert [matcher.push(bytes([byte])) for byte in "aé!".encode()] == [None, None, None, StopHit("é+!", 1, 4)]


def test_holdback_is_the_part_that_may_still_match() -> None:
    matcher = StopMatcher(["\n\nQ:", "end"])
    seen = []
    for piece in ("a", "\n", "\n", "\n", "Q", "x", "e", "n"):
        matcher.push(piece.encode())
        seen.append(matcher.holdback())
    assert seen == [0, 1, 2, 2, 3, 0, 1, 2]


def test_holdback_of_a_pattern_is_its_earliest_live_start() -> None:
    matcher = StopMatcher([], [r"ab*c", r"\d+;"])
    seen = []
    for piece in ("x", "a", "b", "b", "x", "1", "2", "x", b"\xe6"):
        matcher.push(piece if isinstance(piece, bytes) else piece.encode())
        seen.append(matcher.holdback())
    assert seen == [0, 1, 2, 3, 0, 1, 2, 0, 1]


def test_no_stops_hold_nothing() -> None:
    matcher = StopMatcher([])
    assert feed(matcher, "anything") == [None]
    assert matcher.holdback() == 0


def test_after_a_hit_that_is_not_wanted_later_ones_are_found() -> None:
    matcher = StopMatcher(["ab"], [r"\d"])
    assert feed(matcher, "ab ab", "ab", "7") == [StopHit("ab", 0, 2), StopHit("ab", 5, 7), StopHit(r"\d", 7, 8)]


def test_a_fork_goes_its_own_way() -> None:
    matcher = StopMatcher(["abc"], ["x+y"])
    feed(matcher, "ab", "xx"[:0])
    fork = matcher.fork()
    assert feed(fork, "c") == [StopHit("abc", 0, 3)]
    assert feed(matcher, "xx") == [None]
    other = matcher.fork()
    assert feed(matcher, "z") == [None]
    assert feed(other, "y") == [StopHit("x+y", 2, 5)]


@pytest.mark.parametrize(
    ("pattern", "text", "span"),
    [
        (r"\n\s*Q\d{1,2}:", "x\n  Q12:", (1, 8)),
        (r"(?i)the (end|fin)\.", "At THE END.", (3, 11)),
        (r"[^\W\d]+\.", "12ab.", (2, 5)),
        (r"a{2,3}b", "aaaab", (1, 5)),
        (r"a{2,}b", "aaaab", (0, 5)),
        (r"a{,2}b", "aaab", (1, 4)),
        (r"(?:ab|c)+?d", "zabcabd", (1, 7)),
        (r"^ab|bb", "ab", (0, 2)),
        (r"\Aab|bb", "cabb", (2, 4)),
        (r"[]x-]+;", "a]-x;", (1, 5)),
        (r"[\]a]b", "]b", (0, 2)),
        (r"\x41\u00e9\.", "AÉAé.", (3, 7)),
        (r"(?s)a.b", "a\nb", (0, 3)),
        (r"a.b", "a\nb acb", (4, 7)),
        (r"(?P<n>x)(?#note)y", "xy", (0, 2)),
        (r"(?i:x)y", "Xy", (0, 2)),
        (r"(?i)(?-i:x)Y", "Xy xy", (3, 5)),
        (r"a{x}", "a{x}", (0, 4)),
        (r"(|a)b", "ab", (0, 2)),
        (r"\t\\\*", "\t\\*", (0, 3)),
        (r"\d", "٣", (0, 2)),
        (r"(?a)\d", "٣4", (2, 3)),
        (r"a{0}b", "ab", (1, 2)),
        (r"[.!?]\s*$", "Oh. Yes", (2, 3)),
        (r"x\Z|ab$", "cab", (1, 3)),
        (r"\$", "a$", (1, 2)),
    ],
)
def test_patterns_mean_what_they_mean_in_python(pattern: str, text: str, span: tuple[int, int]) -> None:
    for cut in range(len(text.encode()) + 1):
        matcher = StopMatcher([], [pattern])
        data = text.encode()
        hit = matcher.push(data[:cut]) or matcher.push(data[cut:])
        assert hit == StopHit(pattern, *span)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a*", "matches the empty string"),
        ("(a|b?)", "matches the empty string"),
        ("^", "matches the empty string"),
        ("(a", r"does not compile: missing \), unterminated subpattern at position 0"),
        ("[z-a]", "does not compile: bad character range"),
        ("(?=a)b", r"at 0: '\(\?='"),
        ("(?<!a)b", r"at 0: '\(\?<'"),
        (r"(a)\1", r"at 3: '\\\\1' is not understood"),
        (r"a\b", r"at 1: '\\\\b' is not understood"),
        ("a$b", r"at 1: '\$' is not understood here"),
        ("(a$)", r"at 2: '\$' is not understood here"),
        ("$", "matches the empty string"),
        ("(^a)", r"at 1: '\^' is not understood here"),
        ("(?m)^a", "flag 'm' is not understood"),
        ("(?x)a b", "flag 'x' is not understood"),
        ("a{300}", "more than 256 characters"),
        ("((a?){100}){100}b", "more than 256 characters|too ambiguous"),
        ("(" * 500 + "a" + ")" * 500, "does not compile"),
        ("a" * 1025, "1025 characters; 1024 are allowed"),
    ],
)
def test_patterns_that_cannot_be_kept_are_refused(pattern: str, message: str) -> None:
    with pytest.raises(StopError, match=message) as caught:
        StopMatcher([], [pattern])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("stops", "message"),
    [
        ([""], "stop string of 0 bytes"),
        (["x" * 4097], "stop string of 4097 bytes"),
        (["a\ud800"], "lone surrogate at index 1"),
        (["x"] * 257, "257 stops are more than the 256 allowed"),
    ],
)
def test_strings_that_cannot_be_kept_are_refused(stops: list[str], message: str) -> None:
    with pytest.raises(StopError, match=message):
        StopMatcher(stops)


@pytest.mark.parametrize(
    "pattern", [r"(a|a)*(a|aa)+b", r"(a+)+b", r"(.*x){20}y", r"(.*)*(.*)*(.*)*=", r"(a?){60}(a){60}b"]
)
def test_hostile_patterns_cost_what_friendly_ones_do(pattern: str) -> None:
    matcher = StopMatcher([], [pattern])
    began = time.perf_counter()
    assert matcher.push(b"ax" * 500) is None
    assert matcher.push(b"a" * 1000) is None
    assert time.perf_counter() - began < 3


def test_many_long_stops_stay_linear() -> None:
    matcher = StopMatcher(["a" * n + "b" for n in range(1, 200)])
    began = time.perf_counter()
    assert matcher.push(b"a" * 100_000) is None
    assert time.perf_counter() - began < 2
    assert matcher.holdback() == 199
