"""Random walks over token masks, and the small byte-level vocabulary they use."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from sglite.constrained import bitmask
from sglite.constrained.engines.reference import ReferenceEngine
from sglite.constrained.matcher import Matcher
from sglite.constrained.vocab import Vocabulary

MERGES = [
    ", ",
    ": ",
    '":',
    '": ',
    '{"',
    '"}',
    '"]',
    '["',
    "[]",
    "{}",
    "]}",
    "}}",
    "},",
    "],",
    '":"',
    '",',
    '\\"',
    "\\n",
]
MERGES += [
    "\\u",
    "00",
    "12",
    "10",
    "-1",
    "0.",
    ".5",
    "e+",
    "-0",
    "T0",
    'Z"',
    "+0",
    "20",
    "19",
    "  ",
    "\n  ",
    "com",
    "://",
]
MERGES += [
    "true",
    "false",
    "null",
    "ab",
    "abc",
    "the",
    "th",
    "he",
    'a"',
    ':"',
    "aa",
    "aaa",
    "name",
    "id",
    "age",
    "kind",
]
MERGES += ["é", "ü", "中文", "中", "😀", "\u200d", "🏽", "Å"]


def small_vocabulary() -> Vocabulary:
    """256 bytes, a hundred merges (one of them cut inside a character), two end ids, two reserved, three padding."""
    pieces: list[bytes | None] = [bytes([i]) for i in range(256)]
    pieces += sorted({m.encode() for m in MERGES} - set(pieces))
    pieces += ["中".encode()[:2], "é".encode()[1:] + b"a", None, None, b"", None]
    eos = (len(pieces) - 4, len(pieces) - 3)
    return Vocabulary(pieces, eos, lambda text: list(text.encode()), size=len(pieces) + 3)


def tiny_vocabulary() -> Vocabulary:
    """Eighty tokens over a handful of characters: merges, characters cut in two, two end ids, two reserved, padding.

    Small enough for the reference engine to try every one of them at every step.
    """
    pieces: list[bytes | None] = [
        bytes([b]) for b in b'ab01"\\/nu{}[]:, -.\n\x01\xc3\xa9\xe4\xb8\xad\xf0\x9f\x98\x80Dd8cC'
    ]
    merges = [
        "ab",
        "aa",
        "aaa",
        "bab",
        'a"',
        '"a',
        '"b"',
        '", "',
        '": ',
        '["',
        "[0",
        "0]",
        "1, ",
        ", 1",
        "]]",
        "{}",
        "01",
    ]
    merges += [
        '{"a"',
        '"}',
        "\\n",
        '\\"',
        "\\u0",
        "00",
        "é",
        "éa",
        "中",
        "中é",
        "😀",
        "b,",
        "0.1",
        "-1",
        '"a": ',
        "1}",
        "u000",
    ]
    pieces += [merge.encode() for merge in merges]
    pieces += [
        "中".encode()[:2],
        "é".encode()[1:] + b"a",
        b"a\xc3",
        b'\xb8\xad"',
        "😀".encode()[1:3],
        None,
        None,
        b"",
        None,
        None,
    ]
    eos = (len(pieces) - 2, len(pieces) - 1)
    return Vocabulary(pieces, eos, lambda text: list(text.encode()), size=len(pieces) + 3)


def allowed_ids(vocab: Vocabulary, matcher: Matcher) -> list[int]:
    """The ids that the mask allows, padding bits left out."""
    mask = np.zeros(vocab.words, dtype=np.int32)
    matcher.fill(mask)
    return [int(i) for i in bitmask.to_ids(mask) if i < vocab.size]


def walk(
    vocab: Vocabulary, matcher: Matcher, rng: random.Random, patience: int = 40, limit: int = 3000
) -> bytes | None:
    """Tokens at random until the end; after `patience` tokens prefer to end and to close. None if cut off."""
    text = b""
    for step in range(limit):
        ids = allowed_ids(vocab, matcher)
        assert ids, f"a dead end after {text!r}"
        ends = [i for i in ids if i in vocab.eos_ids]
        assert bool(ends) == matcher.accepting, f"end of sequence and accepting disagree after {text!r}"
        if ends and (len(ends) == len(ids) or step > patience or rng.random() < 0.15):
            assert matcher.accept(ends[0])
            assert matcher.finished
            return text
        texts = [i for i in ids if i not in vocab.eos_ids]
        token = closing(vocab, texts, rng) if step > patience else rng.choice(texts)
        assert matcher.accept(token)
        text += vocab.token_bytes[token] or b""
    return None


def closing(vocab: Vocabulary, ids: list[int], rng: random.Random) -> int:
    """A token that is likely to bring a JSON text to its end."""
    wanted = [i for i in ids if (vocab.token_bytes[i] or b"")[-1:] in b'"}]']
    shortest = [i for i in ids if len(vocab.token_bytes[i] or b"") == 1]
    return rng.choice(wanted if wanted and rng.random() < 0.8 else shortest or ids)


def engine_named(name: str, vocab: Vocabulary) -> Any:
    """A constraint engine by its name; the test is skipped where it cannot be built."""
    if name == "reference":
        return ReferenceEngine(vocab)
    native = pytest.importorskip("sglite.constrained.engines.native")
    return native.NativeEngine(vocab)
