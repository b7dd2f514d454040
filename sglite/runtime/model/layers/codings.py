"""Which matrices of a model are coded, and how: as the checkpoint has them, or as was asked for while it is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from sglite.runtime.quant.codes import Coding, groups_of

Role = Literal["layer", "head", "embedding", "expert"]
"""What a matrix is for: products, the last of them, or rows alone. One that is embedding and head is a head."""


@dataclass(frozen=True)
class Codings:
    """``request``: ``int8``, ``int4`` or ``None``; ``kept``: names of weights that stay in the codes of their file;
    ``experts``: those may be coded.

    With ``int8`` all matrices have eight bits and a scale an output. With ``int4`` they have four, in groups of 128
    inputs, or of 64 or 32 where sizes ask for it, but the head, whose errors nothing evens out, has eight, and so has
    what cannot be cut into groups. An embedding that is no head stays as it is: its rows are read one by one.
    """

    request: str | None = None
    kept: Mapping[str, Coding] = field(default_factory=dict)
    experts: bool = False

    def of(self, names: Iterable[str], outputs: int, inputs: int, role: Role) -> Coding | None:
        """The coding of a matrix that is filled from several weights; ``None``: it is not coded."""
        if role == "expert" and not self.experts:
            return None
        kept = {self.kept.get(name) for name in names}
        if kept != {None}:
            (only, *others) = kept
            return None if others or only is None or not only.fits(outputs, inputs) else only
        if self.request is None or role == "embedding":
            return None
        group = groups_of(inputs) if self.request == "int4" and role != "head" else None
        coding = Coding(8) if group is None else Coding(4, group)
        return coding if coding.fits(outputs, inputs) else None
