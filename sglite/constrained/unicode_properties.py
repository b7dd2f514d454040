"""What `\\p{...}` names: general categories, scripts, and a few binary properties.

A property is given as two sets, as everywhere in `charset`: what it holds for surely, and what it may hold for. They
differ only where the standard library does not tell a property exactly.
"""

from __future__ import annotations

from functools import cache

from sglite.constrained import charset
from sglite.constrained.charset import Ranges
from sglite.constrained.unicode_tables import EMOJI, SCRIPTS

_GROUPS = {
    "L": "Letter", "Lu": "Uppercase_Letter", "Ll": "Lowercase_Letter", "Lt": "Titlecase_Letter",
    "Lm": "Modifier_Letter", "Lo": "Other_Letter", "M": "Mark", "Mn": "Nonspacing_Mark", "Mc": "Spacing_Mark",
    "Me": "Enclosing_Mark", "N": "Number", "Nd": "Decimal_Number", "Nl": "Letter_Number", "No": "Other_Number",
    "P": "Punctuation", "Pc": "Connector_Punctuation", "Pd": "Dash_Punctuation", "Ps": "Open_Punctuation",
    "Pe": "Close_Punctuation", "Pi": "Initial_Punctuation", "Pf": "Final_Punctuation", "Po": "Other_Punctuation",
    "S": "Symbol", "Sm": "Math_Symbol", "Sc": "Currency_Symbol", "Sk": "Modifier_Symbol", "So": "Other_Symbol",
    "Z": "Separator", "Zs": "Space_Separator", "Zl": "Line_Separator", "Zp": "Paragraph_Separator", "C": "Other",
    "Cc": "Control", "Cf": "Format", "Co": "Private_Use", "Cn": "Unassigned",
}  # fmt: skip
_CATEGORIES = {name.lower(): short for short, long in _GROUPS.items() for name in (short, long)}
_SHORT_SCRIPTS = {
    "latn": "Latin", "grek": "Greek", "cyrl": "Cyrillic", "hani": "Han", "hira": "Hiragana", "kana": "Katakana",
    "hang": "Hangul", "arab": "Arabic", "hebr": "Hebrew", "deva": "Devanagari", "beng": "Bengali", "taml": "Tamil",
}  # fmt: skip
_SCRIPT_NAMES = {name.lower(): name for name in SCRIPTS} | _SHORT_SCRIPTS
# binary property -> categories it holds for surely, and further ones some of whose characters have it
_BINARY = {
    "alphabetic": (("L", "Nl"), ("Mn", "Mc", "So")),
    "uppercase": (("Lu",), ("Nl", "So")),
    "lowercase": (("Ll",), ("Lm", "Lo", "Mn", "Nl", "So")),
}


@cache
def find(text: str) -> tuple[Ranges, Ranges] | None:
    """The sure and the possible members of the property between the braces, or None when it is not known."""
    name, _, value = text.partition("=")
    plain = value.lower() if value else name.lower()
    if value and name.lower() not in ("general_category", "gc", "script", "sc"):
        return None
    may_be_category = not value or name.lower() in ("general_category", "gc")
    may_be_script = not value or not may_be_category
    if may_be_category and plain in _CATEGORIES:
        exact = charset.category(_CATEGORIES[plain])
        return exact, exact
    if may_be_script and plain in _SCRIPT_NAMES:
        exact = _read(SCRIPTS[_SCRIPT_NAMES[plain]])
        return exact, exact
    return None if value else _binary(plain)


def _binary(name: str) -> tuple[Ranges, Ranges] | None:
    if name in _BINARY:
        sure, more = (charset.union(*(charset.category(c) for c in names)) for names in _BINARY[name])
        return sure, charset.union(sure, more)
    exact: dict[str, Ranges] = {"any": charset.EVERY, "ascii": ((0, 0x7F),)}
    exact |= {key.lower(): _read(EMOJI[key]) for key in EMOJI if key.lower() == name}
    return (exact[name], exact[name]) if name in exact else None


def _read(text: str) -> Ranges:
    ends = (part.partition("-") for part in text.split())
    return charset.make((int(low, 16), int(high or low, 16)) for low, _, high in ends)
