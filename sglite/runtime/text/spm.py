"""SentencePiece models (`tokenizer.model`) as a `tokenizers` backend.

The file is one protocol-buffer message; the dozen fields that matter are read here, so neither protobuf nor
a slow tokenizer is needed. Format: sentencepiece_model.proto of github.com/google/sentencepiece.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from sglite.runtime.text.folder import TokenizerError, TokenizerFiles, read_bytes

_SPACE = "\u2581"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_UNIGRAM, _BPE = 1, 2


@dataclass(frozen=True)
class SentencePieceModel:
    """The fields of a model file that decide ids. `pieces` are (text, score, type), indexed by id."""

    pieces: list[tuple[str, float, int]]
    model_type: int
    byte_fallback: bool
    ids: dict[str, int]  # "unk", "bos", "eos", "pad"; negative: none
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool

    @classmethod
    def parse(cls, data: bytes) -> SentencePieceModel:
        """Read a serialized ModelProto. Raises `ValueError` when it is none or uses what cannot be followed."""
        message = _Message(data)
        pieces = [_piece(_Message(raw)) for raw in message.all_bytes(1)]
        trainer, normalizer = _Message(message.bytes(2)), _Message(message.bytes(3))
        if not pieces:
            raise ValueError("it holds no pieces")
        if trainer.number(24, 0) or not normalizer.number(5, 1):
            raise ValueError("space as a suffix or unescaped spaces are not supported")
        names = {"unk": (40, 0), "bos": (41, 1), "eos": (42, 2), "pad": (43, -1)}
        return cls(
            pieces=pieces,
            model_type=trainer.number(3, _UNIGRAM),
            byte_fallback=bool(trainer.number(35, 0)),
            ids={name: _signed(trainer.number(field, default)) for name, (field, default) in names.items()},
            charsmap=normalizer.bytes(2),
            add_dummy_prefix=bool(normalizer.number(3, 1)),
            remove_extra_whitespaces=bool(normalizer.number(4, 1)),
        )

    def named(self, name: str) -> str | None:
        """Text of the piece that plays the role `name`, or None."""
        token_id = self.ids[name]
        return self.pieces[token_id][0] if 0 <= token_id < len(self.pieces) else None


def load_sentencepiece(path: Path, files: TokenizerFiles) -> tuple[Backend, TokenizerFiles]:
    """The backend of a `tokenizer.model`, and `files` completed with the names that the model itself gives.

    As in the current Llama tokenizer the space before the first word is added once, at the start of the
    text; a configuration with `"legacy": true` adds it after each special token as well.
    """
    try:
        model = SentencePieceModel.parse(read_bytes(path))
        backend = sentencepiece_backend(model, legacy=bool(files.tokenizer_config.get("legacy", False)))
    except TokenizerError:
        raise
    except (ValueError, IndexError, struct.error) as error:
        raise TokenizerError(f"{path}: not a usable SentencePiece model ({error}); download the file again") from None
    named = {f"{name}_token": model.named(name) for name in ("bos", "eos", "unk", "pad")}
    return backend, files.with_defaults({**named, "add_bos_token": model.named("bos") is not None})


def sentencepiece_backend(model: SentencePieceModel, *, legacy: bool) -> Backend:
    """The backend of a model; `legacy`: see `load_sentencepiece`. Raises `ValueError` for an unknown type."""
    vocabulary = {text: token_id for token_id, (text, _, _) in enumerate(model.pieces)}
    unknown = model.named("unk")
    if model.model_type == _BPE:
        merges = _merges(model, vocabulary)
        core: models.Model = models.BPE(
            vocab=vocabulary,
            merges=merges,
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=model.byte_fallback,
        )
    elif model.model_type == _UNIGRAM:
        scored = [(text, score) for text, score, _ in model.pieces]
        core = models.Unigram(scored, unk_id=max(model.ids["unk"], 0), byte_fallback=model.byte_fallback)
    else:
        raise ValueError(f"model type {model.model_type} is neither unigram (1) nor BPE (2)")
    backend = Backend(core)
    backend.normalizer = _normalizer(model)
    scheme = ("always" if legacy else "first") if model.add_dummy_prefix else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme=scheme, split=False)
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if model.add_dummy_prefix else [])])
    special = [text for text, _, kind in model.pieces if kind in (_CONTROL, _UNKNOWN)]
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    defined = [text for text, _, kind in model.pieces if kind == _USER_DEFINED]
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in defined])
    return backend


def _normalizer(model: SentencePieceModel) -> normalizers.Normalizer | None:
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.remove_extra_whitespaces:
        # One space at the front may stay: the pre-tokenizer takes it for the space it would add there.
        strip = normalizers.Strip(left=not model.add_dummy_prefix, right=True)
        steps += [normalizers.Replace(Regex(" {2,}"), " "), strip]
    return normalizers.Sequence(steps) if steps else None


def _merges(model: SentencePieceModel, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to join two pieces into a third, best score first: what SentencePiece's BPE does at run time."""
    ordinary = {text for text, _, kind in model.pieces if kind == _NORMAL}
    ranked: list[tuple[float, int, int, str, str]] = []
    for text, score, _ in model.pieces:
        if text not in ordinary:
            continue
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in ordinary and right in ordinary:
                ranked.append((-score, vocabulary[text], cut, left, right))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]


def _piece(message: _Message) -> tuple[str, float, int]:
    scores = [value for field, value in message.fields if field == 2 and isinstance(value, bytes)]
    score = struct.unpack("<f", scores[-1])[0] if scores else 0.0
    return message.bytes(1).decode("utf-8"), score, message.number(3, _NORMAL)


def _signed(value: int) -> int:
    """int32 fields travel as 64-bit two's complement."""
    return value - (1 << 64) if value >= 1 << 63 else value


class _Message:
    """The fields of one protocol-buffer message: varints as int, everything else as bytes."""

    def __init__(self, data: bytes) -> None:
        self.fields: list[tuple[int, int | bytes]] = list(_fields(data))

    def all_bytes(self, field: int) -> list[bytes]:
        return [value for number, value in self.fields if number == field and isinstance(value, bytes)]

    def bytes(self, field: int) -> bytes:
        return b"".join(self.all_bytes(field)[-1:])

    def number(self, field: int, default: int) -> int:
        found = [value for number, value in self.fields if number == field and isinstance(value, int)]
        return found[-1] if found else default


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {at}")
        if size > len(data) - at:
            raise ValueError(f"field {tag >> 3} at byte {at} runs past the end")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
        if shift >= 70:
            raise ValueError(f"number at byte {at} is too long")
