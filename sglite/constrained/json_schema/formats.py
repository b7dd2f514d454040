"""Formats as patterns. Each generates a subset of what its RFC allows, and nothing outside it.

Dates know the length of every month and leave out 29 February, which is a date only in some years.
"""

from __future__ import annotations

from types import MappingProxyType

_MONTH_DAY = r"(0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31"
_DATE = rf"(000[1-9]|00[1-9]\d|0[1-9]\d\d|[1-9]\d{{3}})-({_MONTH_DAY})"  # no year 0: RFC 3339 has it, Python not
_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
_OCTET = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = rf"{_OCTET}(\.{_OCTET}){{3}}"
_H16 = r"[0-9A-Fa-f]{1,4}"
_LS32 = rf"({_H16}:{_H16}|{_IPV4})"
_IPV6 = "|".join(  # RFC 3986, section 3.2.2
    [
        rf"({_H16}:){{6}}{_LS32}",
        rf"::({_H16}:){{5}}{_LS32}",
        rf"({_H16})?::({_H16}:){{4}}{_LS32}",
        rf"(({_H16}:)?{_H16})?::({_H16}:){{3}}{_LS32}",
        rf"(({_H16}:){{0,2}}{_H16})?::({_H16}:){{2}}{_LS32}",
        rf"(({_H16}:){{0,3}}{_H16})?::{_H16}:{_LS32}",
        rf"(({_H16}:){{0,4}}{_H16})?::{_LS32}",
        rf"(({_H16}:){{0,5}}{_H16})?::{_H16}",
        rf"(({_H16}:){{0,6}}{_H16})?::",
    ]
)
_LABEL = r"[A-Za-z0-9]{1,30}(-[A-Za-z0-9]{1,30})?"
_HOST = rf"{_LABEL}(\.{_LABEL}){{0,6}}"
_ATOM = r"[A-Za-z0-9_+-]{1,20}"
_CHAR = r"([A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-F]{2})"
_TAIL = rf"(\?({_CHAR}|[/?])*)?(#({_CHAR}|[/?])*)?"
_DURATION_TIME = r"T(\d{1,6}H(\d{1,6}M(\d{1,6}S)?)?|\d{1,6}M(\d{1,6}S)?|\d{1,6}S)"
_DURATION_DATE = r"(\d{1,6}Y(\d{1,6}M(\d{1,6}D)?)?|\d{1,6}M(\d{1,6}D)?|\d{1,6}D)"

FORMATS = MappingProxyType(
    {
        "date": _DATE,
        "time": _TIME,
        "date-time": rf"({_DATE})T({_TIME})",
        "duration": rf"P(\d{{1,6}}W|{_DURATION_DATE}({_DURATION_TIME})?|{_DURATION_TIME})",
        "email": rf"{_ATOM}(\.{_ATOM}){{0,2}}@{_HOST}",
        "hostname": _HOST,
        "ipv4": _IPV4,
        "ipv6": _IPV6,
        "uuid": r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
        "uri": rf"[A-Za-z][A-Za-z0-9+.-]{{0,20}}:(//{_HOST}(:\d{{1,5}})?(/{_CHAR}*)*|{_CHAR}+(/{_CHAR}*)*){_TAIL}",
        "json-pointer": r"(/([^~/\x00-\x1f]|~[01])*)*",
    }
)

# Formats that say how a value is shown, stored or entered, and constrain nothing that text could break.
HINTS = frozenset({"password", "textarea", "markdown", "html", "color-picker"})
