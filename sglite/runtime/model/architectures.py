"""What ``config.json`` says of a model, by its ``architectures`` entry."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sglite.runtime.model.config import ModelConfig
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.fields import Fields, read_json
from sglite.runtime.model.readers.dense import read_dense
from sglite.runtime.model.readers.moe import read_qwen2_moe, read_qwen3_moe

Reader = Callable[[Fields], ModelConfig]

READERS: Mapping[str, Reader] = MappingProxyType(
    {
        "LlamaForCausalLM": read_dense,
        "Qwen2ForCausalLM": read_dense,
        "Qwen2MoeForCausalLM": read_qwen2_moe,
        "Qwen3ForCausalLM": read_dense,
        "Qwen3MoeForCausalLM": read_qwen3_moe,
    }
)
"""Who reads the config of which class; ``registry`` says who builds it."""


def read_config(folder: Path) -> ModelConfig:
    """The config of a model folder; ModelError names the file and the field of whatever is wrong."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} is not a model folder: it has no config.json; give a folder in Hugging Face layout")
    return parse_config(read_json(path), str(path))


def parse_config(raw: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """As ``read_config``, from the JSON object; ``where`` stands for it in messages."""
    name = architecture(raw, where)
    inner = Fields(raw, where).mapping("text_config")
    return READERS[name](Fields({**raw, **inner, "architectures": [name]}, where))


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
    near = difflib.get_close_matches(whole, READERS, 1)
    hint = f"the nearest that is: {near[0]}; " if near else ""
    raise ModelError(f"{where}: architecture {name!r:.80} is not supported; {hint}supported: {', '.join(READERS)}")
