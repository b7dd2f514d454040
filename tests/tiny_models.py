"""Tiny random checkpoints in Hugging Face layout, written by hand: no model library is needed to make one.

    folder = make_checkpoint(tmp_path / "m")                                    a Qwen3 with tokenizer
    folder = make_checkpoint(tmp_path / "m", "llama", tie_word_embeddings=True)  any config field can be overridden

Weights are scaled so that logits spread over several units: greedy choices are clear and tests may compare tokens.
The vocabulary (384) is larger than the tokenizer's, as in real checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import Tensor

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
)
VOCAB_SIZE = 384
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = (
    "the quick brown fox jumps over the lazy dog and then the dog sleeps in the sun",
    '{"name": "Ada", "age": 36, "city": "London"} {"name": "Alan", "age": 41}',
    "def add(a: int, b: int) -> int:\n    return a + b\n",
    "system user assistant tool true false null yes no",
)
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def tiny_config(family: str = "qwen3", **overrides: Any) -> dict[str, Any]:
    """The config.json of a tiny model; ``overrides`` replace or add fields, ``None`` removes one."""
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "dtype": "float32",
        "bos_token_id": 0,
        "eos_token_id": 2,
    }
    config.update(overrides)
    return {name: value for name, value in config.items() if value is not None}


def make_checkpoint(
    folder: str | Path,
    family: str = "qwen3",
    *,
    seed: int = 0,
    shards: int = 1,
    tokenizer: bool = True,
    **overrides: Any,
) -> Path:
    """Write config, weights, generation config and tokenizer; ``overrides`` are config fields. Returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(family, **overrides)
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {"eos_token_id": [2, 0], "temperature": 0.7, "top_p": 0.9})
    write_weights(folder, random_weights(config, seed), shards)
    if tokenizer:
        make_tokenizer(folder)
    return folder


def make_embedding_checkpoint(
    folder: str | Path, *, seed: int = 0, bare: bool = True, modes: Mapping[str, bool] | None = None, **overrides: Any
) -> Path:
    """A checkpoint in the layout of Qwen3-Embedding: last-token pooling, normalised, and an end token after each text.

    ``bare``: the decoder's weights alone, without head and without ``model.`` before their names. ``modes``: in place
    of last-token pooling.
    """
    folder = make_checkpoint(folder, seed=seed, **overrides)
    if bare:
        config = tiny_config(**overrides)
        tensors = random_weights(config, seed)
        tensors.pop("lm_head.weight", None)
        write_weights(folder, {name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    kinds = ("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 64, "include_prompt": True, **(modes or {"pooling_mode_lasttoken": True})}
    _write_json(folder / "1_Pooling" / "config.json", pooling)
    prompts = {"query": "Instruct: find what answers\nQuery:", "document": ""}
    _write_json(folder / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": None})
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    end = SPECIAL_TOKENS[0]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def random_weights(config: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Every tensor the config's architecture has, by its Hugging Face name."""
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, config.get("dtype") or config.get("torch_dtype") or "float32")
    tensors: dict[str, Tensor] = {}
    for name, shape in tensor_shapes(config).items():
        values = torch.randn(shape, generator=generator)
        if name.endswith("norm.weight"):
            values = 1.0 + 0.1 * values
        elif name.endswith("bias"):
            values = 0.1 * values
        elif name == "model.embed_tokens.weight":
            values = values * (2.0 * shape[1] ** -0.5 if config.get("tie_word_embeddings") else 1.0)
        else:
            values = values * (2.0 if name == "lm_head.weight" else 1.0) * shape[1] ** -0.5
        tensors[name] = values.to(dtype)
    return tensors


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint, written out from the architectures' definitions."""
    hidden, ff, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    family = config["architectures"][0]
    bias = config.get("attention_bias", False)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for name, (out, inp, biased) in {
            "self_attn.q_proj": (q, hidden, bias or family.startswith("Qwen2")),
            "self_attn.k_proj": (kv, hidden, bias or family.startswith("Qwen2")),
            "self_attn.v_proj": (kv, hidden, bias or family.startswith("Qwen2")),
            "self_attn.o_proj": (hidden, q, bias),
            "mlp.gate_proj": (ff, hidden, config.get("mlp_bias", False)),
            "mlp.up_proj": (ff, hidden, config.get("mlp_bias", False)),
            "mlp.down_proj": (hidden, ff, config.get("mlp_bias", False)),
        }.items():
            shapes[f"{layer}.{name}.weight"] = (out, inp)
            if biased:
                shapes[f"{layer}.{name}.bias"] = (out,)
        if family.startswith("Qwen3"):
            shapes[f"{layer}.self_attn.q_norm.weight"] = shapes[f"{layer}.self_attn.k_norm.weight"] = (dim,)
        shapes[f"{layer}.input_layernorm.weight"] = shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def write_weights(folder: Path, tensors: dict[str, Tensor], shards: int = 1) -> None:
    """One file, or several with an index, tensors dealt out in turn."""
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    files = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    weight_map = {name: files[i % shards] for i, name in enumerate(tensors)}
    for file in files:
        part = {name: tensor for name, tensor in tensors.items() if weight_map[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def make_tokenizer(folder: str | Path) -> Path:
    """A byte-level BPE that can spell any text, with chat specials (ids 0 to 6) and a short ChatML template."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCAB_SIZE - 20,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "chat_template": CHAT_TEMPLATE,
    }
    _write_json(folder / "tokenizer_config.json", settings)
    return folder


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
