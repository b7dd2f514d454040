"""From vocabulary pieces to the bytes they stand for.

A vocabulary spells its tokens in one of two alphabets: GPT-2's, where every byte is one printable character,
and SentencePiece's, where U+2581 is a space and `<0xNN>` a byte. `PieceRule` reads which one from the
decoder that the tokenizer declares, and refuses decoders that are not a plain concatenation of bytes.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from tokenizers import Tokenizer as Backend
from tokenizers import models

from sglite.runtime.text.folder import TokenizerError

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def gpt2_alphabet() -> dict[int, str]:
    """Byte -> character of the byte-level alphabet: printable Latin-1 stands for itself, the others follow U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(rest)}


def _inverse_table() -> dict[int, int]:
    """For `str.translate`: alphabet character -> byte, and Latin-1 outside the alphabet -> something unencodable."""
    alphabet = gpt2_alphabet()
    table = dict.fromkeys(range(256), 0xFFFF)
    table.update({ord(char): byte for byte, char in alphabet.items()})
    return table


@dataclass(frozen=True)
class PieceRule:
    """How the pieces of one vocabulary become bytes.

    `lead` says what happens to the space that SentencePiece puts before the first word: "keep" it, "strip"
    one space from the start of the text, or "drop" every space marker of the first token.
    """

    alphabet: Literal["gpt2", "sentencepiece"]
    lead: Literal["keep", "strip", "drop"] = "keep"
    space: str = "\u2581"
    byte_fallback: bool = False

    @classmethod
    def of(cls, backend: Backend) -> PieceRule:
        """The rule that `backend`'s decoder declares. Raises `TokenizerError` for a decoder of another nature."""
        if backend.decoder is None:
            raise TokenizerError(
                "the tokenizer declares no decoder; ByteLevel, Metaspace or a SentencePiece sequence is needed"
            )
        state = json.loads(backend.decoder.__getstate__())
        steps = state["decoders"] if state["type"] == "Sequence" else [state]
        kinds = [step["type"] for step in steps]
        if "ByteLevel" in kinds and set(kinds) <= {"ByteLevel", "Fuse"}:
            return cls("gpt2")
        if kinds == ["Metaspace"]:
            never = steps[0].get("prepend_scheme") == "never" or steps[0].get("add_prefix_space") is False
            return cls("sentencepiece", "keep" if never else "drop", steps[0]["replacement"])
        if kinds and set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip"}:
            return cls._of_sequence(steps)
        raise TokenizerError(
            f"decoder {' + '.join(kinds)} is not supported; ByteLevel, Metaspace and SentencePiece sequences are"
        )

    @classmethod
    def _of_sequence(cls, steps: list[dict[str, Any]]) -> PieceRule:
        kinds = [step["type"] for step in steps]
        spaces = [s["pattern"].get("String") for s in steps if s["type"] == "Replace" and s["content"] == " "]
        if len(spaces) != 1 or kinds.count("Replace") != 1 or not spaces[0] or len(spaces[0]) != 1:
            raise TokenizerError(
                f"decoder {' + '.join(kinds)} does not replace exactly one space marker; it cannot be followed"
            )
        strips = [step for step in steps if step["type"] == "Strip"]
        if strips:
            strip = strips[0]
            one_space = strip["content"] == " " and strip["start"] == 1 and strip["stop"] == 0
            if len(strips) > 1 or not one_space or kinds[-2:] != ["Fuse", "Strip"]:
                raise TokenizerError(
                    "decoder strips something other than one leading space of the text; it cannot be followed"
                )
        return cls("sentencepiece", "strip" if strips else "keep", spaces[0], "ByteFallback" in kinds)

    def table(self, backend: Backend) -> list[bytes | None]:
        """Bytes of every id, special tokens included; None where an id has no token. Added tokens are plain text."""
        vocabulary = backend.get_vocab(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        pieces: list[bytes | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
        to_bytes = self._gpt2_bytes() if self.alphabet == "gpt2" else self._sentencepiece_bytes
        for piece, token_id in vocabulary.items():
            pieces[token_id] = piece.encode("utf-8") if token_id in added else to_bytes(piece)
        if self.alphabet == "sentencepiece":
            # The decoder sees added tokens too, so a space marker in their name prints as a space.
            for token_id, token in added.items():
                pieces[token_id] = token.content.replace(self.space, " ").encode("utf-8")
        return pieces

    def _gpt2_bytes(self) -> Any:
        inverse = _inverse_table()

        def to_bytes(piece: str) -> bytes:
            try:
                return piece.translate(inverse).encode("latin-1")
            except UnicodeEncodeError:
                return piece.encode("utf-8")

        return to_bytes

    def _sentencepiece_bytes(self, piece: str) -> bytes:
        if self.byte_fallback and (match := _BYTE_PIECE.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        return piece.replace(self.space, " ").encode("utf-8")


def without_special_tokens(backend: Backend) -> Backend:
    """A copy of `backend` for which the names of special tokens are ordinary text.

    A Unigram model, or a BPE model that takes whole words from the vocabulary, would still find such a name
    among its pieces, so there the pieces themselves are renamed to something that no text contains.
    """
    if isinstance(backend.model, models.BPE) and not backend.model.ignore_merges:
        return _reading_special_as_text(backend.to_str())
    state = json.loads(backend.to_str())
    special = {token["content"] for token in state["added_tokens"] if token["special"]}
    model = state["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [[_hidden(text) if text in special else text, score] for text, score in model["vocab"]]
    else:
        model["vocab"] = {_hidden(text) if text in special else text: i for text, i in model["vocab"].items()}
    for token in state["added_tokens"]:
        token["content"] = _hidden(token["content"]) if token["content"] in special else token["content"]
    return _reading_special_as_text(json.dumps(state))


def _reading_special_as_text(state: str) -> Backend:
    backend = Backend.from_str(state)
    backend.encode_special_tokens = True
    return backend


def _hidden(text: str) -> str:
    return f"\ufdd0{text}\ufdd0"  # a Unicode noncharacter
