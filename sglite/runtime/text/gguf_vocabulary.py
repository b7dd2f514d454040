r"""The vocabulary of a GGUF file as a `tokenizers` backend.

Two kinds are read: byte-level BPE (`tokenizer.ggml.model` "gpt2"), whose pieces and merges are in the file and whose
splitting pattern is known by a name (`tokenizer.ggml.pre`); and SentencePiece's BPE ("llama"), pieces with scores. The
patterns are facts of the published tokenizers that the names stand for. A name that is not known is refused: with
another pattern the model would see other tokens than it was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from sglite.runtime.gguf import GGUF, GGUFError, open_gguf
from sglite.runtime.text.folder import TokenizerError
from sglite.runtime.text.spm import SentencePieceModel, sentencepiece_backend

Piece = tuple[str, float, int]
"""Text, score and type of a token."""
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_SPACE = "\u2581"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""


@dataclass(frozen=True)
class Splitting:
    """What a pre-tokenizer's name stands for: patterns that cut one after the other; none: GPT-2's own."""

    patterns: tuple[str, ...] = ()
    nfc: bool = False
    whole_words: bool = False
    """A word that is in the vocabulary is not cut, whatever the merges say."""


_LLAMA3 = Splitting((rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}|{_REST}",), whole_words=True)
_QWEN2 = Splitting((rf"{_CONTRACTION}|{_WORD}|\p{{N}}|{_REST}",), nfc=True)
SPLITTINGS: Mapping[str, Splitting] = {
    "gpt-2": Splitting(),
    "smollm": Splitting((r"\p{N}", r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "deepseek-v3": Splitting(
        (
            r"\p{N}{1,3}",
            "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
            rf"{_PUNCTUATION}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
    ),
    "gpt-4o": Splitting(
        (
            rf"{_LEAD}{_UPPER}*{_LOWER}+{_CONTRACTION}?|{_LEAD}{_UPPER}+{_LOWER}*{_CONTRACTION}?|\p{{N}}{{1,3}}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        whole_words=True,
    ),
    "tekken": Splitting(
        (
            rf"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*|\p{{N}}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        whole_words=True,
    ),
}
"""By `tokenizer.ggml.pre`."""


def load_gguf_vocabulary(path: Path) -> Backend:
    """The backend of a GGUF file's vocabulary. Raises `TokenizerError` for one that cannot be followed."""
    try:
        file = open_gguf(path)
        kind = file.text("tokenizer.ggml.model")
        if kind not in ("gpt2", "llama"):
            raise TokenizerError(
                f"{path}: tokenizer.ggml.model={kind!r:.40} is not supported; gpt2 and llama are; pass the model's "
                "original tokenizer with tokenizer_path"
            )
        pieces = _pieces(file)
        backend = _byte_level(file, pieces) if kind == "gpt2" else _sentencepiece(file, pieces)
        return _ending(file, backend)
    except GGUFError as error:
        raise TokenizerError(str(error)) from None
    except TokenizerError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(f"{path}: its vocabulary is not usable ({error}); convert the model again") from None


def _pieces(file: GGUF) -> list[Piece]:
    """Text, score and type of every id; padding at the end of the vocabulary is left out."""
    texts = file.texts("tokenizer.ggml.tokens") or []
    kinds = file.numbers("tokenizer.ggml.token_type") or [_NORMAL] * len(texts)
    scores = file.numbers("tokenizer.ggml.scores") or [0.0] * len(texts)
    if not texts or len(kinds) != len(texts) or len(scores) < len(texts):
        raise TokenizerError(
            f"{file.path}: {len(texts)} tokens, {len(kinds)} types and {len(scores)} scores do not go together; "
            "convert the model again"
        )
    if len(set(texts)) < len(texts):
        raise TokenizerError(f"{file.path}: a token is in the vocabulary twice; convert the model again")
    size = max((i + 1 for i, kind in enumerate(kinds) if kind != _UNUSED), default=0)
    return list(zip(texts[:size], scores, kinds, strict=False))


def _byte_level(file: GGUF, pieces: list[Piece]) -> Backend:
    name = file.text("tokenizer.ggml.pre")
    splitting = SPLITTINGS.get(name or "")
    if splitting is None:
        raise TokenizerError(
            f"{file.path}: tokenizer.ggml.pre={name!r:.40} is not known; known: {', '.join(SPLITTINGS)}; "
            "pass the model's original tokenizer with tokenizer_path"
        )
    merges = [
        (text[:at], text[at + 1 :])
        for text in file.texts("tokenizer.ggml.merges") or []
        if (at := text.find(" ", 1)) > 0
    ]
    vocabulary = {text: i for i, (text, _, _) in enumerate(pieces)}
    backend = Backend(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=splitting.whole_words))
    if splitting.nfc:
        backend.normalizer = normalizers.NFC()
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in splitting.patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not splitting.patterns)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*steps, byte_level])
    backend.decoder = decoders.ByteLevel()
    _add(backend, pieces, (_CONTROL, _UNKNOWN), special=True)
    _add(backend, pieces, (_USER_DEFINED,), special=False)
    return backend


def _add(
    backend: Backend, pieces: list[Piece], kinds: tuple[int, ...], *, special: bool, normalized: bool = False
) -> None:
    found = [AddedToken(text, special=special, normalized=normalized) for text, _, kind in pieces if kind in kinds]
    (backend.add_special_tokens if special else backend.add_tokens)(found)


def _sentencepiece(file: GGUF, pieces: list[Piece]) -> Backend:
    """As GGUF's own readers do, a space is put before the first word and after each special token."""
    names = {"unk": ("unknown", 0), "bos": ("bos", 1), "eos": ("eos", 2), "pad": ("padding", -1)}
    found = {name: (file.integer(f"tokenizer.ggml.{key}_token_id"), default) for name, (key, default) in names.items()}
    prefix = file.flag("tokenizer.ggml.add_space_prefix")
    if file.flag("tokenizer.ggml.remove_extra_whitespaces"):
        raise TokenizerError(f"{file.path}: tokenizer.ggml.remove_extra_whitespaces=true is not supported; false is")
    # Tokens that users defined are found in the text when its spaces are marked: Gemma has runs of them. With a space
    # added in front, that would be part of their names, so there they are found before.
    spaces_marked = prefix is False
    model = SentencePieceModel(
        pieces=[(text, score, _UNUSED if kind == _USER_DEFINED else kind) for text, score, kind in pieces],
        model_type=2,
        byte_fallback=any(kind == _BYTE for _, _, kind in pieces),
        ids={name: default if given is None else given for name, (given, default) in found.items()},
        charsmap=b"",
        add_dummy_prefix=prefix is None or prefix,
        remove_extra_whitespaces=False,
    )
    backend = sentencepiece_backend(model, legacy=False)
    # What that one cuts with is replaced: the space comes before a text whether or not it begins with one itself.
    first = [normalizers.Prepend(_SPACE)] if model.add_dummy_prefix else []
    backend.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", _SPACE)])
    backend.pre_tokenizer = None
    _add(backend, pieces, (_USER_DEFINED,), special=False, normalized=spaces_marked)
    return backend


def _ending(file: GGUF, backend: Backend) -> Backend:
    """Texts that stand alone end with a token where the file says so."""
    end = file.integer("tokenizer.ggml.eos_token_id")
    if file.flag("tokenizer.ggml.add_eos_token") and end is not None:
        text = backend.id_to_token(end)
        if text is None:
            raise TokenizerError(f"{file.path}: tokenizer.ggml.eos_token_id={end} is no token; convert the model again")
        backend.post_processor = processors.TemplateProcessing(single=f"$A {text}", special_tokens=[(text, end)])
    return backend
