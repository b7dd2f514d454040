"""KeywordReport: what became of every keyword of a constraint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

Verdict = Literal["enforced", "annotation", "unenforced"]


@dataclass(frozen=True)
class KeywordReport:
    """JSON pointer of each keyword -> verdict, and for an unenforced one the reason.

    A refused keyword never gets this far: it raises ConstraintRefused. "unenforced" appears with strict=False only.
    """

    verdicts: Mapping[str, Verdict] = field(default_factory=lambda: MappingProxyType({}))
    reasons: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def __getitem__(self, pointer: str) -> Verdict:
        return self.verdicts[pointer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.verdicts)

    def with_verdict(self, verdict: Verdict) -> list[str]:
        """Pointers with this verdict, in the order of the schema walk."""
        return [pointer for pointer, v in self.verdicts.items() if v == verdict]
