"""Formats of JSON Schema as regular languages.

Each is the grammar of its RFC, read so that every text of it is accepted by whoever reads the RFC: dates exist (leap
years counted), a leap second is where UTC has one, IPv4 parts have no leading zeros. Narrower than the RFC, to stay
small automata: a fraction of a second has at most 12 digits, and a leap second is written in UTC; a year is not 0000;
the numbers of a duration have at most 9 digits; a host name has up to 3 labels of 63 characters or up to 6 of 40, and
no label is punycode; an international one has labels of 14 characters at most, of scripts without context rules; a mail
address has no IPv6 domain, and an IPv6 address in a URI no IPv4 part. "regex" is what ECMA-262 (u flag) and Python both
compile, see `formats_regex`. The part of a mail address before the @ has at most 64 characters; its domain may be of
any length.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import MappingProxyType

from sglite.constrained.grammar import And, Node, Not
from sglite.constrained.json_schema.formats_regex import regex_pattern
from sglite.constrained.regex import match_expr

# RFC 3339

_LEAP_YEAR = r"(\d\d(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
_MONTH_DAY = r"((0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31)"
_YEAR = r"(000[1-9]|00[1-9]\d|0[1-9]\d\d|[1-9]\d{3})"
_DATE = rf"({_YEAR}-{_MONTH_DAY}|{_LEAP_YEAR}-02-29)"
_FRACTION = r"(\.\d{1,12})?"
_HOUR = r"([01]\d|2[0-3])"


_TIME = rf"({_HOUR}:[0-5]\d:[0-5]\d{_FRACTION}([Zz]|[+-]{_HOUR}:[0-5]\d)|23:59:60{_FRACTION}([Zz]|[+-]00:00))"

_N = r"\d{1,9}"
_DURATION_TIME = rf"T({_N}H({_N}M({_N}S)?)?|{_N}M({_N}S)?|{_N}S)"
_DURATION_DATE = rf"({_N}Y({_N}M({_N}D)?)?|{_N}M({_N}D)?|{_N}D)"
_DURATION = rf"P({_N}W|{_DURATION_DATE}({_DURATION_TIME})?|{_DURATION_TIME})"

# Addresses: RFC 2673, 4291, 5321, 6531

_OCTET = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = rf"{_OCTET}(\.{_OCTET}){{3}}"
_H16 = r"[0-9A-Fa-f]{1,4}"


def _ipv6(ending: str) -> str:
    """RFC 3986, section 3.2.2, with what the last 32 bits may be."""
    before = [rf"(({_H16}:){{0,{most}}}{_H16})?::" for most in range(7)]
    forms = [rf"({_H16}:){{6}}{ending}", rf"::({_H16}:){{5}}{ending}", rf"({_H16})?::({_H16}:){{4}}{ending}"]
    forms += [rf"{before[n]}({_H16}:){{{4 - n}}}{ending}" for n in range(1, 5)]
    return "|".join([*forms, before[5] + _H16, before[6]])


_IPV6 = _ipv6(rf"({_H16}:{_H16}|{_IPV4})")
_IPV6_IN_URI = _ipv6(rf"{_H16}:{_H16}")


def _mail(more: str) -> str:
    """An address; `more` are the characters beyond ASCII that its parts may have."""
    atom = rf"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~{more}-]+"
    quoted = rf'"([ !#-\[\]-~{more}]|\\[ -~])*"'
    label = rf"[A-Za-z0-9{more}]([A-Za-z0-9{more}-]*[A-Za-z0-9{more}])?"
    short = r'(?=[^@"]{1,64}@|"(\\.|[^"\\]){0,62}"@)'
    return rf"{short}({atom}(\.{atom})*|{quoted})@({label}(\.{label})*|\[{_IPV4}\])"


# Host names: RFC 1123, 5890. A label whose third and fourth character are hyphens is punycode or reserved.

_LOWER = "ß-öø-ÿа-яёα-ρσ-ω"  # letters whose IDNA status is valid, right-to-left and joining scripts left out
_WIDE = _LOWER + "ぁ-ゖァ-ヺ一-龥가-힣"


def _host(label: Callable[[int], str]) -> Node:
    long, short = label(63), label(40)
    names = match_expr(rf"{long}(\.{long}){{0,2}}|{short}(\.{short}){{0,5}}")
    return And((names, Not(match_expr(r"(.*\.)?..--.*"))))


def _ascii_label(length: int) -> str:
    return rf"[A-Za-z0-9]([A-Za-z0-9-]{{0,{length - 2}}}[A-Za-z0-9])?"


def _wide_label(length: int) -> str:
    return rf"({_ascii_label(length)}|[a-z0-9{_WIDE}]([a-z0-9{_WIDE}-]{{0,12}}[a-z0-9{_WIDE}])?)"


# RFC 3986 and 3987

_UCS = "\xa0-\ud7ff\uf900-\ufdcf\ufdf0-\uffef" + "".join(
    f"{chr(plane << 16 if plane < 14 else 0xE1000)}-{chr((plane << 16) + 0xFFFD)}" for plane in range(1, 15)
)
_PRIVATE = "\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd"
_PCT = r"%[0-9A-Fa-f]{2}"


def _reference(more: str, private: str, *, relative: bool) -> str:
    """RFC 3986 with `more` characters; `private` ones in a query only."""
    free = rf"A-Za-z0-9._~!$&'()*+,;=\-{more}"
    segment = rf"([{free}:@]|{_PCT})"
    path = rf"(/{segment}*)*"
    literal = rf"\[({_IPV6_IN_URI}|[vV][0-9A-Fa-f]+\.[A-Za-z0-9._~!$&'()*+,;=:-]+)\]"
    authority = rf"(([{free}:]|{_PCT})*@)?({literal}|([{free}]|{_PCT})*)(:\d{{0,5}})?"
    tail = rf"(\?([{free}:@/?{private}]|{_PCT})*)?(#([{free}:@/?]|{_PCT})*)?"
    rooted = rf"//{authority}{path}|/({segment}+{path})?"
    whole = rf"[A-Za-z][A-Za-z0-9+.-]*:({rooted}|({segment}+{path})?){tail}"
    if not relative:
        return whole
    return rf"{whole}|({rooted}|(([{free}@]|{_PCT})+{path})?){tail}"


# RFC 6570, 6901, 4122 and the draft of relative pointers

_NAME = rf"([A-Za-z0-9_]|{_PCT})+(\.([A-Za-z0-9_]|{_PCT})+)*(:[1-9]\d{{0,3}}|\*)?"
_TEMPLATE = rf"([!#$&'()*+,./0-;=?@A-Z\[\]_a-z~{_UCS}{_PRIVATE}-]|{_PCT}|\{{[+#./;?&]?{_NAME}(,{_NAME})*\}})*"
_POINTER = r"(/([^~/]|~[01])*)*"
_UUID = r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"

_MAKERS: MappingProxyType[str, Callable[[], str | Node]] = MappingProxyType(
    {
        "date": lambda: _DATE,
        "time": lambda: _TIME,
        "date-time": lambda: rf"{_DATE}[Tt]{_TIME}",
        "duration": lambda: _DURATION,
        "email": lambda: _mail(""),
        "idn-email": lambda: _mail(_UCS),
        "hostname": lambda: _host(_ascii_label),
        "idn-hostname": lambda: _host(_wide_label),
        "ipv4": lambda: _IPV4,
        "ipv6": lambda: _IPV6,
        "uri": lambda: _reference("", "", relative=False),
        "uri-reference": lambda: _reference("", "", relative=True),
        "iri": lambda: _reference(_UCS, _PRIVATE, relative=False),
        "iri-reference": lambda: _reference(_UCS, _PRIVATE, relative=True),
        "uri-template": lambda: _TEMPLATE,
        "uuid": lambda: _UUID,
        "json-pointer": lambda: _POINTER,
        "relative-json-pointer": lambda: rf"(0|[1-9]\d{{0,8}})(#|{_POINTER})",
        "regex": regex_pattern,
    }
)

NAMES = frozenset(_MAKERS)


@lru_cache(maxsize=64)
def format_node(name: str) -> Node | None:
    """The texts that have a format, as a regular node; None for a name that says nothing of the text."""
    made = _MAKERS[name]() if name in _MAKERS else None
    return match_expr(made) if isinstance(made, str) else made
