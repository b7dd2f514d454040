"""The tokenizer: byte-level BPE of 4096 tokens with Qwen's special tokens.

Numbers are cut into one or two digits, so that every number below 100 is one token (small sums become a table) and a
date is a few short pieces. The word lists are part of the training text: a whole-token name is copied in one step.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tools.demo_model import words
from tools.demo_model.data import dialogs
from tools.demo_model.dialog import render

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKERS = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<tools>",
    "</tools>",
]
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def corpus(seed: int, count: int) -> list[str]:
    texts = ["".join(p.text for p in render(d)) for d in itertools.islice(dialogs(seed), count)]
    for marker in SPECIAL + MARKERS:
        texts = [t.replace(marker, "\n") for t in texts]
    pools = [
        words.FIRST,
        words.LAST,
        words.CITIES,
        words.JOBS,
        words.ITEMS,
        words.FOODS,
        words.ANIMALS,
        words.COLORS,
        words.TOPICS,
        words.COMPANIES,
    ]
    for pool in pools:  # held-out words too: they are to be ordinary tokens that training never uses as values
        texts += [f'{w} {w}\n["{w}"]'.replace("\n", " \n") for w in pool] * 60
    texts += [f"{n}" for n in range(100)] * 60 + [f"{n:02d}" for n in range(10)] * 60
    return texts


def train(path: Path, vocab: int = 4096, seed: int = 7, count: int = 40_000) -> Tokenizer:
    """Train and save `tokenizer.json`."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab - len(SPECIAL) - len(MARKERS), min_frequency=2, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    tok.train_from_iterator(corpus(seed, count), trainer)
    tok.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    tok.add_tokens([AddedToken(m, special=False, normalized=False) for m in MARKERS])
    if tok.get_vocab_size() != vocab:
        raise RuntimeError(f"the tokenizer has {tok.get_vocab_size()} tokens, not {vocab}; give it more text")
    path.parent.mkdir(parents=True, exist_ok=True)
    tok.save(str(path))
    # Compact JSON: the file is shipped.
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")), ensure_ascii=False, separators=(",", ":")),
        encoding="utf-8",
    )
    return tok


def load(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))
