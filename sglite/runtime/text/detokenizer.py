"""Text out of a growing run of token ids.

Promise: for any ids, in any chunks, the deltas and `finish()` concatenate to `tokenizer.decode(all ids)`; no
delta ends inside a character; each token is looked at once.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from sglite.runtime.text.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """The text of one sequence, as it grows.

    A character whose last bytes are still missing waits for them; bytes that can no longer become a
    character are U+FFFD at once, exactly as in `Tokenizer.decode`. With `at_start=False` the ids continue a
    text, and a leading space is theirs to keep.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True, at_start: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = at_start
        self._parts: list[str] = []

    def push(self, ids: Sequence[int]) -> str:
        """Append `ids`; the text that they complete."""
        data, self._at_start = self._tokenizer.join(ids, skip_special_tokens=self._skip, at_start=self._at_start)
        return self._emit(self._utf8.decode(data))

    def finish(self) -> str:
        """The rest: U+FFFD when the ids stop inside a character, else nothing. A second call adds nothing."""
        return self._emit(self._utf8.decode(b"", True))

    @property
    def text(self) -> str:
        """Everything emitted so far."""
        self._parts = ["".join(self._parts)]
        return self._parts[0]

    def _emit(self, delta: str) -> str:
        if delta:
            self._parts.append(delta)
        return delta
