"""Python types as what a model may write, and what it wrote as values of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TypeSpec:
    """How values of ``type`` are written. At most one of ``regex`` and ``json_schema`` is given; neither: any text."""

    type: Any
    regex: str | None = None
    json_schema: str | None = None

    def parse(self, text: str) -> Any:
        """The value of a whole text; ValueError (pydantic's ValidationError is one) where it is none."""
        raise NotImplementedError

    def partial(self, text: str) -> Any:
        """The value of the beginning of a text, as far as it is known; None where nothing is."""
        raise NotImplementedError


def type_spec(type: Any) -> TypeSpec:
    """The spec of a type; TypeError with the reason and what to use for a type that has none."""
    raise NotImplementedError
