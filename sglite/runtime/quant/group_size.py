"""How many inputs share a scale, as configurations say it."""

from __future__ import annotations

from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.fields import Fields


def read_group_size(fields: Fields, default: int | None = None) -> int | None:
    """``group_size``, or ``q_group_size`` of older files; ``None``: one group of all inputs, which they write as -1."""
    name = fields.named("group_size", "q_group_size")
    size = fields.get(name)
    if size is None:
        return default
    if isinstance(size, bool) or not isinstance(size, int) or (size < 1 and size != -1):
        raise ModelError(f"{fields.where}: field {name!r} is {size!r:.80}; it must be a positive integer or -1")
    return None if size == -1 else size
