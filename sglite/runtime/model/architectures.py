"""What ``config.json`` says of a model, by its ``architectures`` entry."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sglite.runtime.gguf import is_gguf
from sglite.runtime.model.config import ModelConfig
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.fields import Fields, read_json
from sglite.runtime.model.gguf_config import read_gguf_config
from sglite.runtime.model.readers.classifier import read_classifier, read_reward
from sglite.runtime.model.readers.deepseek import (
    read_deepseek,
    read_deepseek_v2,
    read_deepseek_v3,
    read_deepseek_v32,
)
from sglite.runtime.model.readers.dense import read_dense
from sglite.runtime.model.readers.hybrid import read_qwen3_5, read_qwen3_5_moe, read_qwen3_next
from sglite.runtime.model.readers.moe import read_qwen2_moe, read_qwen3_moe
from sglite.runtime.model.readers.qwen import read_qwen
from sglite.runtime.model.readers.sliding import read_gemma3, read_gpt_oss, read_mistral, read_mixtral
from sglite.runtime.quant.methods import exported_settings

Reader = Callable[[Fields], ModelConfig]
WHOLE = ("tie_word_embeddings", "eos_token_id")
"""Fields that are the whole model's to say where its text part says otherwise."""

READERS: Mapping[str, Reader] = MappingProxyType(
    {
        "DeepseekForCausalLM": read_deepseek,
        "DeepseekV2ForCausalLM": read_deepseek_v2,
        "DeepseekV3ForCausalLM": read_deepseek_v3,
        "DeepseekV32ForCausalLM": read_deepseek_v32,
        "Gemma3ForCausalLM": read_gemma3,
        "Gemma3ForConditionalGeneration": read_gemma3,
        "GptOssForCausalLM": read_gpt_oss,
        "LlamaForCausalLM": read_dense,
        "LlamaForSequenceClassification": read_classifier,
        "Mistral3ForConditionalGeneration": read_mistral,
        "MistralForCausalLM": read_mistral,
        "MixtralForCausalLM": read_mixtral,
        "Olmo2ForCausalLM": read_dense,
        "QWenLMHeadModel": read_qwen,
        "Qwen2ForCausalLM": read_dense,
        "Qwen2ForRewardModel": read_reward,
        "Qwen2ForSequenceClassification": read_classifier,
        "Qwen2MoeForCausalLM": read_qwen2_moe,
        "Qwen3ForCausalLM": read_dense,
        "Qwen3ForSequenceClassification": read_classifier,
        "Qwen3MoeForCausalLM": read_qwen3_moe,
        "Qwen3NextForCausalLM": read_qwen3_next,
        "Qwen3_5ForCausalLM": read_qwen3_5,
        "Qwen3_5ForConditionalGeneration": read_qwen3_5,
        "Qwen3_5MoeForCausalLM": read_qwen3_5_moe,
        "Qwen3_5MoeForConditionalGeneration": read_qwen3_5_moe,
    }
)
"""Who reads the config of which class; ``registry`` says who builds it."""


def read_config(folder: Path) -> ModelConfig:
    """The config of a model folder or a GGUF file; ModelError names the file and the field of whatever is wrong."""
    if is_gguf(folder):
        return read_gguf_config(folder, parse_config)
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} is not a model folder: it has no config.json; give a folder in Hugging Face layout")
    config = parse_config(read_json(path), str(path))
    return config if config.quantization is not None else replace(config, quantization=exported_settings(folder))


def family(folder: Path) -> dict[str, Any]:
    """``model_type`` and ``architectures`` of a model, as transformers calls them."""
    if is_gguf(folder):
        return {"model_type": None, "architectures": [read_config(folder).architecture]}
    raw = read_json(folder / "config.json")
    return {name: raw.get(name) for name in ("model_type", "architectures")}


def parse_config(raw: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """As ``read_config``, from the JSON object; ``where`` stands for it in messages."""
    name = architecture(raw, where)
    inner = Fields(raw, where).mapping("text_config")
    outer = {name: raw[name] for name in WHOLE if raw.get(name) is not None}
    return READERS[name](Fields({**raw, **inner, **outer, "architectures": [name]}, where))


def architecture(raw: Mapping[str, Any], where: str) -> str:
    """The class that serves a config; ModelError lists what is supported, the nearest name first.

    ``Qwen3Model`` and the like are what transformers calls the same decoder without its head.
    """
    names = raw.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ModelError(f"{where}: field 'architectures' is {names!r:.80}; it must be a list with the class name")
    name = names[0]
    whole = f"{name.removesuffix('Model')}ForCausalLM" if name.endswith("Model") and name not in READERS else name
    if whole in READERS:
        return whole
    near = ", ".join(difflib.get_close_matches(whole, READERS, 3, cutoff=0.0))
    raise ModelError(
        f"{where}: architecture {name!r:.80} is not supported; nearest of the {len(READERS)} that are: {near} "
        "(docs/models.md has all)"
    )
