"""What the metadata of a GGUF model says, put as the ``config.json`` that the model was converted from.

    general.architecture = "qwen3"                 architectures: ["Qwen3ForCausalLM"]
    qwen3.embedding_length = 1024           ──▶    hidden_size: 1024
    qwen3.rope.freq_base = 1e6                     rope_parameters: {"rope_theta": 1e6}

The readers of the families then check it as any other. A key of the architecture that is not known here is refused: it
may change results. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sglite.runtime.gguf import GGUF, GGUFError, open_gguf
from sglite.runtime.model.config import ModelConfig
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.gguf_families import FAMILIES
from sglite.runtime.model.gguf_keys import Keys

ROPE_DIVISORS = "rope_freqs.weight"
"""A tensor, [rotary_dim / 2]: what each frequency is divided by; how long contexts of Llama 3 are written down."""
_WITHOUT_EFFECT = ("context_length", "vocab_size", "tensor_data_layout", "pooling_type", "rope.scaling.finetuned")
"""Keys that change no result here; some are read where they belong."""
_ENDS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
_SIZES = {
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "context_length": "max_position_embeddings",
}


def read_gguf_config(path: Path, parse: Callable[[Mapping[str, Any], str], ModelConfig]) -> ModelConfig:
    """The config of a GGUF model; ``parse`` reads a ``config.json``. ModelError names the file and the key."""
    try:
        file = open_gguf(path)
        config = parse(hub_config(file), str(path))
        divisors = file.tensors.get(ROPE_DIVISORS)
        if divisors is None:
            return config
        if config.rope.rope_type != "default" or divisors.shape != (config.rotary_dim // 2,):
            raise ModelError(
                f"{path}: tensor {ROPE_DIVISORS} {list(divisors.shape)} does not go with rope of type "
                f"{config.rope.rope_type!r} over {config.rotary_dim} dimensions; convert the model again"
            )
        values = tuple(file.floats(divisors))
        if min(values) <= 0:
            raise ModelError(f"{path}: tensor {ROPE_DIVISORS} holds {min(values)}; all must be above 0")
        return replace(config, rope=replace(config.rope, divisors=values))
    except GGUFError as error:
        raise ModelError(str(error)) from None


def hub_config(file: GGUF) -> dict[str, Any]:
    """The fields of ``config.json`` that the metadata stand for. ModelError: they cannot be followed."""
    architecture = file.text("general.architecture") or "missing"
    if architecture not in FAMILIES:
        raise ModelError(
            f"{file.path}: general.architecture={architecture!r:.80} is not supported as GGUF; supported: "
            f"{', '.join(FAMILIES)}"
        )
    name, read_family = FAMILIES[architecture]
    keys = Keys(file, architecture)
    config: dict[str, Any] = {"num_hidden_layers": keys.size("block_count", limit=len(file.tensors))}
    config |= {ours: keys.size(theirs) for theirs, ours in _SIZES.items()}
    for key in _WITHOUT_EFFECT:
        keys.key(key)
    keys.must_be("attention.causal", True)
    config |= _shape_of_tensors(file)
    config |= {
        "architectures": [name],
        "model_type": architecture,
        "rms_norm_eps": _epsilon(keys),
        "dtype": _dtype(file),
        "bos_token_id": file.integer("tokenizer.ggml.bos_token_id"),
        "eos_token_id": [i for i in map(file.integer, _ENDS) if i is not None],
    }
    config |= read_family(keys, config)
    keys.refuse_others()
    return config


def _epsilon(keys: Keys) -> float:
    found = keys.number("attention.layer_norm_rms_epsilon")
    if found is None:
        raise ModelError(f"{keys.file.path}: {keys.prefix}attention.layer_norm_rms_epsilon is missing")
    return found


def _shape_of_tensors(file: GGUF) -> dict[str, Any]:
    """What no key says, but the tensors do."""
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelError(f"{file.path}: it has no tensor token_embd.weight, so it is no language model of its own")
    return {
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_output.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in file.tensors,
    }


def _dtype(file: GGUF) -> str:
    """What to compute in: the type of the matrices where none is packed."""
    kinds = {tensor.type.name for tensor in file.tensors.values() if len(tensor.shape) > 1}
    return {"F32": "float32", "F16": "float16"}.get(kinds.pop() if len(kinds) == 1 else "", "bfloat16")
