"""Checkpoints that every peer can load: random weights of a fixed seed, a tokenizer learnt from the standard library.

    python -m benchmarks.peers.checkpoint 29M FOLDER

The weights give logits with a clear first choice almost everywhere (their spread is 3, where the usual start of a
training gives 0.6), so that greedy tokens of two correct programs agree up to rounding. Tokens are bytes and merges of
them as in Qwen2, whose pattern splits the text; every id of the vocabulary is one.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from benchmarks.shapes import DENSE, QWEN3

COMMON = {**QWEN3, "attention_dropout": 0.0, "use_sliding_window": False}
SEED = 20240601
LOGIT_SPREAD = 3.0
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MAX_LEARNT = 40_000
"""Tokens learnt from the standard library, which has no more; the rest are made of two of them each."""
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make(name: str, folder: Path) -> None:
    """Write a checkpoint of shape ``name``; a folder that has one is left alone."""
    if (folder / "complete").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    config = {**COMMON, **DENSE[name]}
    tokenizer = train(config["vocab_size"])
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.token_to_id(SPECIALS[2])}
    _write(folder / "config.json", {**config, **ends})
    _write(folder / "generation_config.json", {"do_sample": False, **ends})
    save_tokenizer(tokenizer, folder)
    save_file(weights(config), str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "complete").touch()


def weights(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Tensors by their names in a checkpoint: what a layer adds is as large as the embeddings it is added to."""
    generator = torch.Generator().manual_seed(SEED)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    width = config["head_dim"]
    q, kv = config["num_attention_heads"] * width, config["num_key_value_heads"] * width

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=generator) / columns**0.5).bfloat16()

    def norm(size: int, scale: float = 1.0) -> torch.Tensor:
        return (scale * (1 + 0.1 * torch.randn(size, generator=generator))).bfloat16()

    found = {"model.embed_tokens.weight": torch.randn(config["vocab_size"], hidden, generator=generator).bfloat16()}
    for i in range(config["num_hidden_layers"]):
        layer, attention = f"model.layers.{i}", f"model.layers.{i}.self_attn"
        found[f"{layer}.input_layernorm.weight"] = norm(hidden)
        found[f"{layer}.post_attention_layernorm.weight"] = norm(hidden)
        for head, rows in (("q", q), ("k", kv), ("v", kv)):
            found[f"{attention}.{head}_proj.weight"] = matrix(rows, hidden)
        found[f"{attention}.o_proj.weight"] = matrix(hidden, q)
        found[f"{attention}.q_norm.weight"] = norm(width)
        found[f"{attention}.k_norm.weight"] = norm(width)
        found[f"{layer}.mlp.gate_proj.weight"] = matrix(inner, hidden)
        found[f"{layer}.mlp.up_proj.weight"] = matrix(inner, hidden)
        found[f"{layer}.mlp.down_proj.weight"] = 2 * matrix(hidden, inner)
    # With the same sign everywhere the head, which is the embeddings, would choose the last token again and again.
    signs = torch.randn(hidden, generator=generator).sign().bfloat16()
    found["model.norm.weight"] = signs * norm(hidden, LOGIT_SPREAD / hidden**0.5)
    return found


def train(vocab_size: int) -> Tokenizer:
    """A byte-level BPE of ``vocab_size`` ids, the special ones last; the same sources give the same merges."""
    tokenizer = _empty(models.BPE())
    size = vocab_size - len(SPECIALS)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=min(size, MAX_LEARNT), initial_alphabet=alphabet, show_progress=False)
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    tokenizer.train([str(path) for path in sources], trainer)
    learnt = json.loads(tokenizer.to_str())["model"]
    vocab, merges = learnt["vocab"], [tuple(pair) for pair in learnt["merges"]]
    fill(vocab, merges, size)
    tokenizer = _empty(models.BPE(vocab, merges))
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    return tokenizer


def fill(vocab: dict[str, int], merges: list[tuple[str, str]], size: int) -> None:
    """Add merges of two words each, of the lowest rank, until ``vocab`` has ``size`` tokens."""
    words = [token for token in vocab if token.lstrip("\u0120").isascii() and token.lstrip("\u0120").isalpha()]
    endings = [word for word in words if word.islower() and word.isascii()]
    for ending in endings:
        for word in words:
            if len(vocab) == size:
                return
            if word + ending not in vocab:
                vocab[word + ending] = len(vocab)
                merges.append((word, ending))


def _empty(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """``tokenizer.json`` and what libraries read beside it."""
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": SPECIALS[2],
        "pad_token": SPECIALS[0],
        "model_max_length": COMMON["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(text)): {
                "content": text, "special": True, "normalized": False,
                "lstrip": False, "rstrip": False, "single_word": False,
            }
            for text in SPECIALS
        },
        "chat_template": CHAT_TEMPLATE,
    }  # fmt: skip
    _write(folder / "tokenizer_config.json", settings)


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", choices=DENSE)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    make(given.name, given.folder)


if __name__ == "__main__":
    main()
