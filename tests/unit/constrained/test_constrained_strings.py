"""Sets of strings: what they simplify to, what stays symbolic, and which texts each format has."""

from __future__ import annotations

import time

import pytest

from sglite.constrained import fsm
from sglite.constrained.charset import EVERY
from sglite.constrained.grammar import And, Chars, JsonString, Not, Repeat, Text
from sglite.constrained.json_schema.formats import NAMES, format_node
from sglite.constrained.json_schema.strings import StringSet
from sglite.constrained.spec import ConstraintError

ALL, NONE = StringSet.ALL, StringSet.NONE
ANY = Chars(EVERY)
WORD = StringSet.pattern("^[a-z]+$")


@pytest.mark.parametrize("strings", [ALL, NONE, WORD, StringSet.lengths(2, 5), StringSet.of(["a", "b"])])
def test_laws_that_need_no_automaton(strings: StringSet) -> None:
    assert strings & ALL == strings
    assert strings & NONE == NONE
    assert strings | NONE == strings
    assert strings | ALL == ALL
    assert strings & strings == strings | strings == ~~strings == strings


def test_lengths_merge() -> None:
    assert StringSet.lengths(2, 9) & StringSet.lengths(0, 5) == StringSet.lengths(2, 5)
    assert StringSet.lengths(2, 3) & StringSet.lengths(4, 5) == NONE
    assert StringSet.lengths(0, 3) | StringSet.lengths(4, None) == ALL
    assert ~StringSet.lengths(3, None) == StringSet.lengths(0, 2)


def test_the_expression_is_what_was_said() -> None:
    assert ALL.expr == Repeat(ANY, 0, None)
    assert StringSet.lengths(2, 10**9).node() == JsonString(Repeat(ANY, 2, 10**9))
    assert (WORD & StringSet.lengths(1, 64)).expr == And((WORD.expr, Repeat(ANY, 1, 64)))
    assert (~StringSet.of(["a"])).expr == Not(Text("a"))
    assert (~StringSet.of(["a"]) & ~StringSet.of(["b"])) == ~StringSet.of(["a", "b"])
    assert StringSet.pattern("") == StringSet.pattern("^") == ALL


def test_a_huge_length_costs_nothing() -> None:
    started = time.process_time()
    for _ in range(1000):
        strings = StringSet.lengths(0, 10**9) & StringSet.lengths(3, None)
        assert strings.contains("abc")
        assert not strings.is_empty()
        strings.node()
    assert time.process_time() - started < 1


def test_values_are_filtered_by_the_rest() -> None:
    values = StringSet.of(["a", "abc", "1", "\U0001f600"])
    assert values & WORD == StringSet.of(["a", "abc"])
    assert values & StringSet.lengths(2, None) == StringSet.of(["abc"])
    assert (values & ~WORD).finite(9) == ["1", "\U0001f600"]
    assert WORD | StringSet.of(["a"]) == WORD
    assert StringSet.of(["\ud800", "a"]) == StringSet.of(["a"])
    assert not ALL.contains("\ud800")


def test_what_dialects_disagree_on_is_in_neither_set() -> None:
    digit = StringSet.pattern(r"^\d$")
    for text, inside in (("5", True), ("a", False)):
        assert digit.contains(text) == inside
        assert (~digit).contains(text) != inside
    assert not digit.contains("٣")
    assert not (~digit).contains("٣")
    assert ~~digit == digit


def test_emptiness_and_listing() -> None:
    assert (WORD & ~WORD).is_empty()
    assert (WORD & StringSet.pattern("[0-9]")).is_empty()
    assert not (WORD & StringSet.lengths(3, 3)).is_empty()
    assert (StringSet.pattern("^a+$") & StringSet.lengths(0, 3)).finite(10) == ["a", "aa", "aaa"]
    assert (StringSet.pattern("^a+$") & StringSet.lengths(0, 3)).finite(2) is None
    assert StringSet.lengths(0, 0).finite(1) == [""]
    assert WORD.finite(1000) is None


@pytest.mark.parametrize(
    ("strings", "extendable"),
    [
        (ALL, True),
        (StringSet.lengths(3, None), True),
        (StringSet.lengths(0, 3), False),
        (WORD, True),
        (StringSet.pattern("^x-"), True),
        (StringSet.pattern("^x-") & WORD & ~StringSet.of(["x"]), True),
        (~StringSet.of(["a", "b"]), True),
        (StringSet.of(["a"]), False),
        (StringSet.pattern("^ab?$"), False),
        (WORD | StringSet.lengths(4, None), True),
        (WORD | StringSet.of(["1"]), False),
    ],
)
def test_extendable(strings: StringSet, extendable: bool) -> None:
    assert strings.extendable == extendable


def test_a_broken_pattern_is_an_error_at_once() -> None:
    with pytest.raises(ConstraintError, match="regex"):
        StringSet.pattern("(")


# Formats: what the RFCs and the standard's own test suite call valid and invalid.

FORMATS = {
    "date": (
        ["2024-02-29", "2000-02-29", "1963-06-19", "0001-01-01", "2022-06-30"],
        ["2023-02-29", "1900-02-29", "2022-06-31", "2024-13-01", "2022-01-32", "2013-350", "2022-1-1", "1963-06-1৪"],
    ),
    "time": (
        ["10:00:00Z", "08:30:06.283185Z", "23:59:60Z", "23:59:60.5Z", "10:20:30+00:00", "08:30:06-08:00", "08:30:06z"],
        [
            "25:00:00Z",
            "08:30:06",
            "12:00:60Z",
            "22:59:60Z",
            "08:30:06#Z",
            "01:02:03+24:00",
            "01:02:03Z+00:30",
            "24:00:00Z",
        ],
    ),
    "date-time": (
        ["2022-01-01T12:00:00Z", "2022-01-15T12:00:00.000Z", "1963-06-19t08:30:06.283185z", "1998-12-31T23:59:60Z"],
        [
            "2022-01-01",
            "2022-01-01 12:00:00",
            "2022-01-01T12:00:00",
            "2022-01-01T12:00:61.000Z",
            "1990-02-31T15:59:59Z",
        ],
    ),
    "duration": (
        ["P4DT12H30M5S", "P4Y", "PT0S", "P0D", "P1M", "PT1M", "PT36H", "P1DT12H", "P2W", "P1Y2M3DT4H5M6S"],
        ["PT1D", "4DT12H", "P", "P1YT", "PT", "P2D1Y", "P1D2H", "P2S", "P1Y2W", "P1", "P২Y", "PT0.5S"],
    ),
    "email": (
        [
            "joe.bloggs@example.com",
            "te~st@example.com",
            "~test@example.com",
            "a@b.com",
            '"joe bloggs"@example.com',
            '"joe..bloggs"@example.com',
            '"joe@bloggs"@example.com',
            "joe@[127.0.0.1]",
            "riedgar+guidance@example.com",
        ],
        [
            "2962",
            ".test@example.com",
            "test.@example.com",
            "te..st@example.com",
            "joe@invalid=domain.com",
            "a@b@c",
            "",
            "joe@[127.0.0.300]",
            "joe bloggs@example.com",
            "a@",
            "a@-b.com",
        ],
    ),
    "idn-email": (["실례@실례.테스트", "joe.bloggs@example.com"], ["2962", "실례@"]),
    "hostname": (
        ["www.example.com", "a.b.com", "ns1.example.com", "localhost", "h0stn4me", "a" * 63, "1host", "a-b.c"],
        [
            "-a-",
            "Invalid Hostname",
            "ns1 example.com",
            "a" * 64,
            "host_name",
            "a..b",
            ".a",
            "a.",
            "",
            "xn--X",
            "hostname-",
        ],
    ),
    "idn-hostname": (["실례.테스트", "example.com", "bücher.example"], ["a b", "-실례", "실례-", "ab--실례", "〮실례"]),
    "ipv4": (
        ["192.168.0.1", "0.0.0.0", "255.255.255.255"],
        ["256.1.1.1", "1.2.3", "1.2.3.4.5", "01.2.3.4", "0x7f.1.1.1"],
    ),
    "ipv6": (
        ["::1", "::", "2001:db8::1", "1:2:3:4:5:6:7:8", "::abcd:1.2.3.4", "1:2:3:4:5:6:1.2.3.4", "::ffff:192.168.0.1"],
        [
            "12345::",
            "1:2:3:4:5:6:7",
            "1::2::3",
            ":2:3:4:5:6:7:8",
            "1:2:3:4:5:6:7:8:9",
            "fe80::a%eth1",
            "::1/64",
            "1.2.3.4",
        ],
    ),
    "uri": (
        [
            "http://foo.bar/?baz=qux#quux",
            "ftp://ftp.is.co.za/rfc/rfc1808.txt",
            "ldap://[2001:db8::7]/c=GB?objectClass?one",
            "mailto:John.Doe@example.com",
            "tel:+1-816-555-1212",
            "urn:oasis:names:specification:docbook:dtd:xml:4.1.2",
            "http://-.~_!$&'()*+,;=:%40:80%2f::::::@example.com",
            "https://json-schema.org/draft-07/schema#",
            "http://localhost:8086",
            "http://192.168.1.1",
        ],
        [
            "//foo.bar/?baz=qux",
            "/abc",
            "\\\\WINDOWS\\fileshare",
            "abc",
            "http:// shouldfail.com",
            ":// should fail",
            "bar,baz:buz",
            "https://[@example.org/test.txt",
            "https://example.org/foobar\\.txt",
            "http://a.b/%zz",
            "http://ƒøø",
        ],
    ),
    "uri-reference": (
        ["/abc", "//foo.bar/x", "#frag", "", "abc", "?q", "./a:b", "http://a/b"],
        ["\\\\WIN", "invalid Id", "#a\\b"],
    ),
    "iri": (["http://ƒøø.ßår/?∂éœ=πîx#πîüx", "http://a.b"], ["/abc", "http:// x", "âππ"]),
    "iri-reference": (["âππ", "/âππ", "#ƒrägmênt", "http://ƒøø"], ["\\\\WINDOWS\\filëßåré", "#ƒräg\\mênt"]),
    "uri-template": (
        ["http://example.com/dictionary/{term:1}/{term}", "http://example.com/{+path,x*}", "a{?q}", ""],
        ["http://example.com/dictionary/{term:1}/{term", "{}", "{a b}", "a b", "{term:0}"],
    ),
    "uuid": (
        ["2EB8AA08-AA98-11EA-B4AA-73B441D16380", "123e4567-e89b-12d3-a456-426614174000"],
        [
            "123",
            "2eb8aa08-aa98-11ea-b4aa-73b441d1638",
            "2eb8aa08aa9811eab4aa73b441d16380",
            "2eb8-aa08-aa98-11ea-b4aa73b44-1d16380",
        ],
    ),
    "json-pointer": (["", "/", "/a~1b", "/m~0n", "/foo//bar", "/a\nb", "/c%d"], ["a", "/~", "/~2", "#/a", "foo/bar"]),
    "relative-json-pointer": (
        ["1", "0/foo/bar", "2/0/baz/1/zip", "0#", "120/x"],
        ["/foo", "-1/x", "+1/x", "0##", "01/a", "01#", ""],
    ),
    "regex": (
        [
            "^a+$",
            "([abc])+\\s+$",
            "^[a-zA-Z0-9_-]+$",
            r"^\d{4}-\d{2}-\d{2}$",
            "^(https?|ftp)://[^\\s/$.?#].[^\\s]*$",
            "^(?!x).*$",
            r"\bfoo\b",
            "a{2,3}?",
            "",
            "(a|(?:b|c)*)?",
        ],
        ["((", "^(abc]", "a**", "[z-a]", "a{3,2}", "*a", ")", "[]", "\\", "(?P<a>b)"],
    ),
}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_formats_have_what_their_rfc_says(name: str) -> None:
    strings = StringSet.format(name)
    assert strings is not None
    valid, invalid = FORMATS[name]
    assert [text for text in valid if not strings.contains(text)] == []
    assert [text for text in invalid if strings.contains(text)] == []


def test_other_formats_say_nothing_of_the_text() -> None:
    for name in ("password", "byte", "binary", "float", "int32", "foo", "", "Date"):
        assert StringSet.format(name) is None


@pytest.mark.parametrize(
    ("name", "states"),
    [("date", 60), ("date-time", 110), ("time", 70), ("email", 700), ("uuid", 40), ("ipv4", 40), ("uri", 240)],
)
def test_common_formats_are_small_automata(name: str, states: int) -> None:
    node = format_node(name)
    assert node is not None
    assert len(fsm.compile_expr(node).accepting) <= states
