"""Texts in pieces: what is shown of an output while it is being written, and how long texts are where no tokenizer
counts."""

from __future__ import annotations

import re


def words(text: str) -> int:
    """Runs of characters that are no white space."""
    return len(text.split())


def growing(texts: list[str]) -> list[list[str]]:
    """What there is of ``texts`` before they are complete, word by word, all at the same pace."""
    ends = [[match.end() for match in re.finditer(r"\s*\S+", text)] for text in texts]
    steps = max((len(one) for one in ends), default=0)
    cuts = [
        [text[: one[i]] if i < len(one) else text for text, one in zip(texts, ends, strict=True)] for i in range(steps)
    ]
    return [cut for cut in cuts if cut != texts]
