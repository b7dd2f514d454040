"""Token bytes and an encode callable: all that a constraint knows of a tokenizer."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType


class Vocabulary:
    """The bytes of every token id.

    `token_bytes[i]` is the byte string that token i adds to the text, or None for an id that adds no text (special
    and reserved ids); such an id is never allowed inside a constraint, unless it is one of `eos_ids`. An empty byte
    string counts as None: it would let a text grow for ever without advancing. `size` is the width of the logits,
    at least len(token_bytes); ids past the end are never allowed. `encode` is the tokenizer's own encoding of text
    without added specials. `special_ids` names the special tokens that a structural tag may be written with, by the
    text they stand for; they may have no bytes. One that ends the sequence is left out: it cannot stand inside a text.
    """

    def __init__(
        self,
        token_bytes: Sequence[bytes | None],
        eos_ids: Sequence[int],
        encode: Callable[[str], list[int]],
        size: int | None = None,
        special_ids: Mapping[str, int] | None = None,
    ) -> None:
        self.token_bytes: tuple[bytes | None, ...] = tuple(b or None for b in token_bytes)
        self.eos_ids: tuple[int, ...] = tuple(sorted(set(eos_ids)))
        self.encode = encode
        self.size = len(self.token_bytes) if size is None else size
        if self.size < len(self.token_bytes):
            raise ValueError(f"size {self.size} is less than the {len(self.token_bytes)} tokens; pass the logits width")
        if not self.eos_ids:
            raise ValueError("eos_ids is empty: a constrained text could never end")
        if self.eos_ids[0] < 0 or self.eos_ids[-1] >= self.size:
            raise ValueError(f"eos_ids {self.eos_ids} are not all inside the vocabulary of {self.size}")
        specials = {text: id_ for text, id_ in (special_ids or {}).items() if id_ not in self.eos_ids}
        self.special_ids: Mapping[str, int] = MappingProxyType(specials)
        for text, id_ in specials.items():
            if not text or not 0 <= id_ < self.size:
                raise ValueError(f"special_ids has {text!r:.40} for {id_}, which is not inside {self.size}, or no text")
        self.words = (self.size + 31) // 32
        self.fingerprint = self._fingerprint()

    def content(self, token_id: int) -> bytes | None:
        """The bytes of an id, or None when it carries no text (special, end of sequence, padding, unknown)."""
        if not 0 <= token_id < len(self.token_bytes) or token_id in self.eos_ids:
            return None
        return self.token_bytes[token_id]

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(struct.pack(f"<q{len(self.eos_ids)}q", self.size, *self.eos_ids))
        lengths = [-1 if piece is None else len(piece) for piece in self.token_bytes]
        digest.update(struct.pack(f"<{len(lengths)}i", *lengths))
        digest.update(b"".join(filter(None, self.token_bytes)))
        for text, token_id in sorted(self.special_ids.items()):
            digest.update(struct.pack("<qi", token_id, len(text)) + text.encode("utf-8", "surrogatepass"))
        return digest.hexdigest()
