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

CLASSES: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen2moe": "Qwen2MoeForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3moe": "Qwen3MoeForCausalLM",
}
"""``general.architecture`` -> the class that serves it."""
ROPE_DIVISORS = "rope_freqs.weight"
"""A tensor, [rotary_dim / 2]: what each frequency is divided by; how long contexts of Llama 3 are written down."""
MAX_EXPERTS = 2**16
_WITHOUT_EFFECT = ("context_length", "vocab_size", "tensor_data_layout", "pooling_type", "rope.scaling.finetuned")
"""Keys that change no result here; some are read where they belong."""
_ENDS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
_SIZES = {
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "context_length": "max_position_embeddings",
}


class _Keys:
    """The keys of one architecture, each of which somebody must have asked for in the end."""

    def __init__(self, file: GGUF, architecture: str) -> None:
        self.file = file
        self.prefix = f"{architecture}."
        self._asked: set[str] = set()

    def key(self, name: str) -> str:
        """The whole key, which counts as asked for."""
        self._asked.add(self.prefix + name)
        return self.prefix + name

    def integer(self, name: str) -> int | None:
        """A whole number, the same for all layers where it is listed by layer; ``None`` when absent."""
        key = self.key(name)
        if not self.file.is_array(key):
            return self.file.integer(key)
        listed = self.file.numbers(key) or []
        if len(set(listed)) != 1 or type(listed[0]) is not int:
            raise ModelError(
                f"{self.file.path}: {key} differs between layers ({listed[:4]} ...), which is not supported"
            )
        return listed[0]

    def size(self, name: str, limit: int = 2**30) -> int:
        """A whole number from 1 to ``limit`` that must be there."""
        found = self.integer(name)
        if found is None or not 1 <= found <= limit:
            raise ModelError(f"{self.file.path}: {self.prefix}{name} is {found}; it must be from 1 to {limit}")
        return found

    def number(self, name: str) -> float | None:
        """A finite number; ``None`` when absent."""
        return self.file.number(self.key(name))

    def text(self, name: str) -> str | None:
        """A text; ``None`` when absent."""
        return self.file.text(self.key(name))

    def flag(self, name: str) -> bool | None:
        """True or false; ``None`` when absent."""
        return self.file.flag(self.key(name))

    def must_be(self, name: str, *values: object) -> None:
        """A key that is served with these values, and absent, only."""
        key = self.key(name)
        found = (
            None if key not in self.file else self.file.flag(key) if name == "attention.causal" else self.number(name)
        )
        if found is not None and found not in values:
            raise ModelError(f"{self.file.path}: {key}={found} is not supported; only {values[0]} is")

    def refuse_others(self) -> None:
        """ModelError names a key that nobody asked for."""
        for key in self.file:
            if key.startswith(self.prefix) and key not in self._asked:
                raise ModelError(
                    f"{self.file.path}: key {key!r:.80} is not known for this architecture and may change results; "
                    "use the model in safetensors format"
                )


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
    if architecture not in CLASSES:
        raise ModelError(
            f"{file.path}: general.architecture={architecture!r:.80} is not supported as GGUF; supported: "
            f"{', '.join(CLASSES)}"
        )
    keys = _Keys(file, architecture)
    config: dict[str, Any] = {"num_hidden_layers": keys.size("block_count", limit=len(file.tensors))}
    config |= {ours: keys.size(theirs) for theirs, ours in _SIZES.items()}
    for name in _WITHOUT_EFFECT:
        keys.key(name)
    keys.must_be("attention.causal", True)
    config |= _heads(keys, config) | _feed_forward(keys) | _shape_of_tensors(file)
    config |= {
        "architectures": [CLASSES[architecture]],
        "model_type": architecture,
        "rms_norm_eps": _epsilon(keys),
        "rope_parameters": _rope(keys),
        "dtype": _dtype(file),
        "bos_token_id": file.integer("tokenizer.ggml.bos_token_id"),
        "eos_token_id": [i for i in map(file.integer, _ENDS) if i is not None],
    }
    keys.refuse_others()
    return config


def _epsilon(keys: _Keys) -> float:
    found = keys.number("attention.layer_norm_rms_epsilon")
    if found is None:
        raise ModelError(f"{keys.file.path}: {keys.prefix}attention.layer_norm_rms_epsilon is missing")
    return found


def _heads(keys: _Keys, config: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of attention. All of a head is rotated, and keys are as large as values."""
    head_dim = keys.integer("attention.key_length")
    if head_dim is None:
        head_dim = config["hidden_size"] // config["num_attention_heads"]
    keys.must_be("attention.value_length", head_dim)
    keys.must_be("rope.dimension_count", head_dim)
    kv_heads = keys.integer("attention.head_count_kv")
    return {
        "num_key_value_heads": config["num_attention_heads"] if kv_heads is None else kv_heads,
        "head_dim": head_dim,
    }


def _feed_forward(keys: _Keys) -> dict[str, Any]:
    """Sizes of dense layers and of experts. Layers of one model are all of a kind: other mixtures have no name here."""
    found: dict[str, Any] = {"intermediate_size": keys.size("feed_forward_length")}
    if not keys.integer("expert_count"):
        keys.must_be("expert_used_count", 0)
        return found
    experts = keys.size("expert_count", limit=MAX_EXPERTS)
    if keys.prefix not in ("qwen2moe.", "qwen3moe."):
        raise ModelError(f"{keys.file.path}: {keys.prefix}expert_count={experts} is not supported; only 0 is")
    normalised = keys.flag("expert_weights_norm")
    keys.must_be("expert_weights_scale", 1.0, 0.0)
    keys.must_be("expert_gating_func", 1)
    keys.must_be("expert_shared_count", 1, 0)
    return found | {
        "num_experts": experts,
        "num_experts_per_tok": keys.size("expert_used_count"),
        "moe_intermediate_size": keys.size("expert_feed_forward_length"),
        "shared_expert_intermediate_size": keys.integer("expert_shared_feed_forward_length"),
        # The converter writes no such key for these two: what normalises is settled by the architecture.
        "norm_topk_prob": keys.prefix == "qwen3moe." if normalised is None else normalised,
    }


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


def _rope(keys: _Keys) -> dict[str, Any]:
    kind, factor = keys.text("rope.scaling.type") or "none", keys.number("rope.scaling.factor")
    theta = keys.number("rope.freq_base")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0 if theta is None else theta}
    keys.must_be("rope.scale_linear", 1.0)
    original = keys.integer("rope.scaling.original_context_length")
    keys.must_be("rope.scaling.attn_factor", 1.0)
    keys.must_be("rope.scaling.yarn_attn_factor", 1.0)
    keys.must_be("rope.scaling.yarn_ext_factor", 1.0)
    fast, slow = keys.number("rope.scaling.yarn_beta_fast"), keys.number("rope.scaling.yarn_beta_slow")
    if kind == "none" or (kind == "linear" and factor in (None, 0.0, 1.0)):
        return rope
    if kind not in ("linear", "yarn"):
        raise ModelError(
            f"{keys.file.path}: {keys.prefix}rope.scaling.type={kind!r:.40} is not supported; none, linear and yarn are"
        )
    scaled = {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original}
    return rope | scaled | {"beta_fast": fast, "beta_slow": slow}


def _dtype(file: GGUF) -> str:
    """What to compute in: the type of the matrices where none is packed."""
    kinds = {tensor.type.name for tensor in file.tensors.values() if len(tensor.shape) > 1}
    return {"F32": "float32", "F16": "float16"}.get(kinds.pop() if len(kinds) == 1 else "", "bfloat16")
