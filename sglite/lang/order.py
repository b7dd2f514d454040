"""In which order to write texts whose order does not matter, so that runs share the most.

Runs share a prefix only up to the first text in which they differ. So the texts that most runs of the program have had
come first: among those seen equally often, as written. Counts are kept per program, bounded, and never wrong in more
than cost: the author has said that any order will do.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from hashlib import blake2b

_REMEMBERED = 4096
"""Texts that are counted; the least recently seen is forgotten first."""


class BlockOrder:
    """Counts the texts of one program's unordered blocks. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: OrderedDict[bytes, int] = OrderedDict()

    def ordered(self, texts: list[str]) -> list[str]:
        """``texts`` with those seen most often in front; they count as seen once more."""
        keys = [blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts]
        with self._lock:
            seen = {key: self._counts.get(key, 0) for key in keys}
            for key in dict.fromkeys(keys):
                self._counts[key] = seen[key] + 1
                self._counts.move_to_end(key)
            while len(self._counts) > _REMEMBERED:
                self._counts.popitem(last=False)
        order = sorted(range(len(texts)), key=lambda i: (-seen[keys[i]], i))
        return [texts[i] for i in order]
