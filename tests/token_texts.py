"""Tokenizers trained on the spot, the published Qwen vocabulary where it is installed, and texts to try them on."""

from __future__ import annotations

import base64
import importlib.util
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sglite.constrained.vocab import Vocabulary

QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
CASES = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS = [
    *("name", "userName", "user_id", "createdAt", "types", "type", "true", "false", "null", "it's", "don't", "we'll"),
    *(
        "HTTPServer",
        "JSONValue",
        "中文",
        "中文B",
        "日本語",
        "Straße",
        "élan",
        "naïve",
        "😀",
        "👩\u200d💻",
        "3.14",
        "-17",
    ),
    *("2024-01-02T03:04:05Z", "1e10", "1000000", "foo.bar", "a@b.org", "https://x.y/z?q=1", "\\n", "\\u00e9"),
]
SPACES = ["", "", " ", " ", "  ", "\n", "\n  ", "\n\n", "\t", " \n", "   "]

ALPHABET = [*" \n\r\t'’{\"}:,/._-aAsStTlL1中あé😀", "  ", "\n\n", "'s", "'ll", "\u0301", "\u00a0"]


def value(rng: random.Random, depth: int = 2) -> Any:
    kind = rng.randrange(8 if depth else 6)
    if kind < 3:
        return rng.choice(["", " ", ", "]).join(rng.choices(WORDS, k=rng.randrange(4)))
    if kind < 5:
        return rng.choice([0, 1, 12, 2024, -3.5, 1234567, True, None])
    if kind == 5:
        return rng.choice(WORDS)
    if kind == 6:
        return [value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {rng.choice(WORDS): value(rng, depth - 1) for _ in range(rng.randrange(4))}


def text(rng: random.Random) -> str:
    """JSON in some layout, or words, signs and white space of any kind."""
    if rng.random() < 0.6:
        separators = rng.choice([(", ", ": "), (",", ":"), (" ,", " : ")])
        item = {rng.choice(WORDS): value(rng) for _ in range(rng.randrange(1, 4))}
        return json.dumps(item, separators=separators, indent=rng.choice([None, None, 2]), ensure_ascii=False)
    if rng.random() < 0.5:
        return "".join(rng.choices(ALPHABET, k=rng.randrange(1, 16)))
    parts = [rng.choice(WORDS + list("{}[]\"',.:;-/<>=*#_")) + rng.choice(SPACES) for _ in range(rng.randrange(1, 12))]
    return "".join(parts)


def family(rng: random.Random) -> list[str]:
    """A text and others that agree with it up to some place."""
    first = text(rng)
    found = [first]
    for _ in range(rng.randrange(4)):
        base = rng.choice(found)
        cut = rng.randrange(len(base) + 1)
        found.append(base[:cut] + rng.choice([text(rng), rng.choice(WORDS), base[cut + 1 :], rng.choice(SPACES)]))
    return list(dict.fromkeys(found))


def vocabulary(backend: Any) -> Vocabulary:
    """Of a `tokenizers.Tokenizer` that is byte-level, or marks spaces with U+2581 and may fall back to bytes."""
    byte_level = "ByteLevel" in repr(backend.decoder)
    letters = _byte_letters()
    pieces: list[bytes | None] = []
    for token_id in range(backend.get_vocab_size()):
        name = backend.id_to_token(token_id)
        if name in ("<s>", "<unk>"):
            pieces.append(None)
        elif byte_level:
            pieces.append(bytes(letters[char] for char in name))
        elif name.startswith("<0x"):
            pieces.append(bytes([int(name[3:5], 16)]))
        else:
            pieces.append(name.replace("\u2581", " ").encode())
    return Vocabulary(pieces, [pieces.index(None)], lambda t: backend.encode(t, add_special_tokens=False).ids)


def trained(kind: str) -> Vocabulary:
    """A tokenizer of that kind, of two thousand tokens, trained on the texts above."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    rng = random.Random(0)
    corpus = [text(rng) for _ in range(1500)]
    if kind in PATTERNS:
        backend = Tokenizer(models.BPE(ignore_merges=kind == "llama3"))
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(PATTERNS[kind]), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(vocab_size=2000, special_tokens=["<s>"], initial_alphabet=alphabet)
    elif kind == "sentencepiece-bpe":
        backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback()])
        named = ["<unk>", "<s>", *(f"<0x{i:02X}>" for i in range(256))]
        trainer = trainers.BpeTrainer(vocab_size=2000, special_tokens=named)
    else:
        backend = Tokenizer(models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        backend.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=1000, special_tokens=["<s>", "<unk>"], unk_token="<unk>")
    backend.train_from_iterator(corpus, trainer)
    if kind == "sentencepiece-bpe":  # a trained one makes tokens of its byte names only while it is not training
        backend = Tokenizer.from_str(_plain_bytes(backend.to_str()))
    return vocabulary(backend)


PATTERNS = {"qwen": QWEN, "gpt2": GPT2, "llama3": LLAMA3, "cases": CASES}
KINDS = [*PATTERNS, "sentencepiece-bpe", "unigram"]


def published() -> Vocabulary:
    """The Qwen vocabulary of the package `dashscope`; the test is skipped where it is not installed."""
    tiktoken = pytest.importorskip("tiktoken")
    spec = importlib.util.find_spec("dashscope")
    if spec is None or spec.origin is None:
        pytest.skip("the Qwen vocabulary comes with the package dashscope")
    ranks = {}
    for line in (Path(spec.origin).parent / "resources" / "qwen.tiktoken").read_bytes().splitlines():
        piece, rank = line.split()
        ranks[base64.b64decode(piece)] = int(rank)
    special = {"<|endoftext|>": len(ranks), "<|im_start|>": len(ranks) + 1, "<|im_end|>": len(ranks) + 2}
    encoding = tiktoken.Encoding("qwen", pat_str=QWEN, mergeable_ranks=ranks, special_tokens=special)
    pieces: list[bytes | None] = [None] * 151_936
    for piece, rank in ranks.items():
        pieces[rank] = piece
    encode: Callable[[str], list[int]] = encoding.encode_ordinary
    return Vocabulary(pieces, [special["<|im_end|>"]], encode)


def _byte_letters() -> dict[str, int]:
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [i for i in range(256) if i not in plain]
    return {chr(i): i for i in plain} | {chr(256 + n): i for n, i in enumerate(others)}


def _plain_bytes(data: str) -> str:
    described = json.loads(data)
    described["added_tokens"] = [t for t in described["added_tokens"] if not t["content"].startswith("<0x")]
    return json.dumps(described)
