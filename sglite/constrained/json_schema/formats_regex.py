"""The format "regex": a regular part of the patterns that ECMA-262 (u flag) and Python both compile, as a pattern.

Left out: groups more than two deep, lookahead inside a group, names, backreferences, lookbehind,
properties, ranges in classes but those from a, A, 0 or to z, Z, 9, and counts {n,m} but with one digit for n.
"""

from __future__ import annotations

_DEPTH = 2  # of groups inside groups
_QUANTIFIER = (
    rf"([*+?]|\{{({'|'.join(f'{n},[{n}-9]' for n in range(10))}|\d(,([1-9]\d{{1,2}})?)?|[1-9]\d{{1,2}},?)\}})\??"
)
_RANGE = "a-[b-z]|A-[B-Z]|0-[1-9]|[b-z]-z|[B-Z]-Z|[1-9]-9"

_ESCAPED = r"\\(x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|[dDwWsSnrtfv]|[$()*+./?\[\\\]^{|}])"
_LITERAL = r"[^\x00-\x1f\x7f\u2028\u2029$()*+.?\[\\\]^{|}]"


def regex_pattern() -> str:
    """A pattern that matches such patterns. Nothing is quantified twice, no class is empty, no range backwards."""
    item = rf"([^\x00-\x1f\x7f\u2028\u2029\[\\\]^-]|{_ESCAPED}|\\-|{_RANGE})"
    char_class = rf"\[\^?(-|-?{item}+-?)\]"
    assertion = r"[$^]|\\[bB]"
    inner = ""
    for depth in range(_DEPTH + 1):
        group = rf"|\((\?:)?{inner}\)" if inner else ""
        look = rf"|\(\?[=!]{inner}\)" if depth == _DEPTH else ""
        atom = rf"({_LITERAL}|\.|{_ESCAPED}|{char_class}{group})"
        term = rf"({assertion}{look}|{atom}({_QUANTIFIER})?)"
        inner = rf"({term}*(\|{term}*)*)"
    return inner
