"""What a family's checkpoints call their tensors, and which of them nobody needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

_NEVER_NEEDED = ("*rotary_emb.inv_freq",)


@dataclass(frozen=True)
class NameTable:
    """From the names of a checkpoint to ours.

    Args:
        prefixes: theirs -> ours; the longest that fits a name is replaced.
        unused: patterns (``*`` is anything) of tensors that are left in the file: towers for images, parts that help
            to train or to draft.
    """

    prefixes: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()

    def of(self, name: str) -> str | None:
        """Our name of the checkpoint's tensor ``name``; ``None``: it is not used."""
        if any(fnmatchcase(name, pattern) for pattern in (*_NEVER_NEEDED, *self.unused)):
            return None
        theirs = max((prefix for prefix in self.prefixes if name.startswith(prefix)), key=len, default=None)
        return name if theirs is None else self.prefixes[theirs] + name.removeprefix(theirs)


IMAGE_TOWER = NameTable(
    prefixes={
        "language_model.model.": "model.",
        "language_model.lm_head.": "lm_head.",
        "model.language_model.": "model.",
    },
    unused=("vision_tower.*", "multi_modal_projector.*", "model.vision_tower.*", "model.multi_modal_projector.*"),
)
"""Decoders beside a tower for images that is not loaded, as checkpoints of two generations name them."""
