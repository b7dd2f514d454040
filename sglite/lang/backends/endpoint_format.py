"""How a model's turns are spelled, as an sglite server tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sglite.lang.formats import ChatFormat, TableFormat, UntoldFormat, named_format


@dataclass(frozen=True)
class ToldFormat:
    """Tables of role -> (prefix, suffix): of a turn that opens the conversation, and of a later one.

    ``refused``: why a role has none, in the words of the model's own template.
    """

    first: Mapping[str, tuple[str, str]]
    later: Mapping[str, tuple[str, str]]
    refused: Mapping[str, str]
    default_system: str | None
    stop: tuple[str, ...]

    def turn(self, role: str, *, first: bool) -> tuple[str, str]:
        """See ChatFormat."""
        table = self.first if first else self.later
        if role not in table:
            known = ", ".join(table) or "no role"
            raise ValueError(self.refused.get(role) or f"the server's model knows no role {role!r}; it has {known}")
        return table[role]

    @staticmethod
    def from_dict(told: Mapping[str, Any]) -> ToldFormat:
        """Reads ``chat_format`` of ``/get_model_info``; ``first`` and ``refused`` may be missing."""
        later = _table(told["turns"])
        first = _table(told["first"]) if "first" in told else later
        refused = {str(role): str(why) for role, why in (told.get("refused") or {}).items()}
        return ToldFormat(first, later, refused, told.get("default_system"), tuple(told.get("stop") or ()))


def _table(told: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    return {str(role): (str(pair[0]), str(pair[1])) for role, pair in told.items()}


def format_of(name: str | None, told: Mapping[str, Any] | None, url: str) -> ChatFormat:
    """The format called ``name``, else the one the server tells, else plain turns with a warning."""
    if name is not None:
        return named_format(name)
    if told is None:
        return UntoldFormat(url)
    return ToldFormat.from_dict(told) if "first" in told or "refused" in told else TableFormat.from_dict(told)
