"""Tiny tokenizers, trained on the spot, as checkpoint folders."""

from __future__ import annotations

import base64
import functools
import json
import tempfile
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from sglite.runtime.text.pieces import gpt2_alphabet

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "The river runs past the old mill, and the mill turns when the river is high.",
    "def add(a, b):\n    return a + b\n\nprint(add(1, 2))  # 3\n",
    "It's a fine day; we'll walk, they've gone, I'm here.",
    "Der Fluss fließt über die Brücke. Größe, Maß, Käse.",
    "Ça coûte 12,50 € à l'hôtel près de la forêt.",
    "河水流过老磨坊。水位高的时候,磨坊就转动。",
    "Погода сегодня хорошая, мы пойдём гулять.",
    '{"name": "mill", "height": 12.5, "open": true, "tags": ["old", "river"]}',
    "one  two   three    four\t\ttabs\n\n\nlines   ",
    "😀 smiles 🎉 and 👩‍👩‍👧 families",
] * 4
TEXTS = [
    *dict.fromkeys(CORPUS),
    "",
    "a",
    "unseen: 𓀀 ☃ \u0301 ﷽ zzz",
    "tabs\tand\r\nreturns",
    "we'LL shout 123456 TIMES",
    "x" * 300,
]


def byte_level_backend(normalizer: object = None) -> Tokenizer:
    """A byte-level BPE of some 400 tokens, with ChatML tokens."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens(["<tool_call>", "</tool_call>"])
    return backend


@functools.cache
def _keep() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


def _folder(name: str, files: dict[str, object]) -> Path:
    folder = Path(_keep().name) / name
    folder.mkdir()
    for file, value in files.items():
        (folder / file).write_text(json.dumps(value), encoding="utf-8")
    return folder


@functools.cache
def byte_level_folder() -> Path:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    folder = _folder(
        "byte_level", {"tokenizer_config.json": config, "config.json": {"model_type": "qwen3", "eos_token_id": 0}}
    )
    byte_level_backend().save(str(folder / "tokenizer.json"))
    return folder


@functools.cache
def nfc_folder() -> Path:
    """As Qwen: text is composed before it is encoded."""
    folder = _folder("nfc", {"tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"}})
    byte_level_backend(normalizers.NFC()).save(str(folder / "tokenizer.json"))
    return folder


@functools.cache
def bos_folder() -> Path:
    """As Llama 3: the post-processor adds a BOS, no file says so."""
    backend = byte_level_backend()
    backend.add_special_tokens(["<|begin_of_text|>"])
    bos = backend.token_to_id("<|begin_of_text|>")
    backend.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", bos)]
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|endoftext|>",
    }
    folder = _folder("bos", {"tokenizer_config.json": config})
    backend.save(str(folder / "tokenizer.json"))
    return folder


@functools.cache
def sentencepiece_folder(kind: str) -> Path:
    """kind "bpe": as Llama 2 (byte fallback, spaces kept); "bpe_nfkc", "unigram": spaces squeezed, NFKC, no bytes."""
    folder = _folder(
        f"spm_{kind}",
        {"config.json": {"model_type": "llama"}, "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer"}},
    )
    llama = {"byte_fallback": True, "remove_extra_whitespaces": False, "normalization_rule_name": "identity"}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in CORPUS for line in text.splitlines() if line.strip()),
        model_prefix=str(folder / "tokenizer"),
        vocab_size={"bpe": 420, "bpe_nfkc": 160, "unigram": 150}[kind],
        model_type=kind.removesuffix("_nfkc"),
        character_coverage=0.999,
        user_defined_symbols=["<tool>"],
        control_symbols=["<|im_end|>"],
        minloglevel=2,
        num_threads=1,
        **(llama if kind == "bpe" else {}),
    )
    (folder / "tokenizer.vocab").unlink()
    return folder


@functools.cache
def qwen_ranks() -> dict[bytes, int]:
    """Single bytes, then merges in the order they were learned: what a tiktoken vocabulary is."""
    inverse = {char: byte for byte, char in gpt2_alphabet().items()}
    vocabulary = byte_level_backend().get_vocab(with_added_tokens=False)
    tokens = [
        bytes(inverse[char] for char in piece)
        for piece, _ in sorted(vocabulary.items(), key=lambda item: item[1])
        if piece not in SPECIAL
    ]
    tokens.sort(key=lambda token: len(token) > 1)
    return {token: rank for rank, token in enumerate(tokens)}


@functools.cache
def qwen_folder() -> Path:
    folder = _folder(
        "qwen", {"config.json": {"model_type": "qwen"}, "tokenizer_config.json": {"tokenizer_class": "QWenTokenizer"}}
    )
    lines = (b"%s %d" % (base64.b64encode(token), rank) for token, rank in qwen_ranks().items())
    (folder / "qwen.tiktoken").write_bytes(b"\n".join(lines) + b"\n")
    return folder


ALL_FOLDERS = {
    "byte_level": byte_level_folder,
    "nfc": nfc_folder,
    "bos": bos_folder,
    "spm_bpe": functools.partial(sentencepiece_folder, "bpe"),
    "spm_bpe_nfkc": functools.partial(sentencepiece_folder, "bpe_nfkc"),
    "spm_unigram": functools.partial(sentencepiece_folder, "unigram"),
    "qwen": qwen_folder,
}
