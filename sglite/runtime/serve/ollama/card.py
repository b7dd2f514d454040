"""A model as Ollama's clients look at it: size, digest, family, figures of its architecture. All read from its folder
or GGUF file.

Only ``config.json`` and the headers of the weight files are opened, within bounds; what is missing is left out.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sglite.runtime.gguf import GGUF, is_gguf, open_gguf

MAX_HEADER = 100 * 2**20
"""Bytes of a safetensors file's header."""
_PRECISIONS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_FIGURES = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "vocab_size": "vocab_size",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
}
"""Fields of ``config.json``, and how GGUF files, which is where Ollama has its names from, call them."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What is known of a checkpoint. ``digest``: of its configuration and of its weight files' names and sizes, not
    of their contents. ``figures``: GGUF names, without the architecture in front."""

    architecture: str
    size: int
    digest: str
    modified_at: str
    num_parameters: int
    precision: str
    figures: dict[str, Any]
    format: str = "safetensors"

    @classmethod
    def read(cls, folder: Path, dtype: str) -> Card:
        """Of the model in ``folder``, or of a GGUF file, which is computed in ``dtype``."""
        if is_gguf(folder):
            return cls._of_gguf(open_gguf(folder))
        raw = _bytes(folder / "config.json")
        config = json.loads(raw or b"{}")
        text = config.get("text_config") or config
        weights = sorted((file, file.stat()) for file in folder.glob("*.safetensors"))
        listed = [[file.name, stat.st_size] for file, stat in weights]
        quantised = (config.get("quantization_config") or {}).get("quant_method")
        stored = config.get("dtype") or config.get("torch_dtype") or dtype
        return cls(
            architecture=str(config.get("model_type") or "unknown"),
            size=sum(stat.st_size for _, stat in weights),
            digest=hashlib.sha256(raw + json.dumps(listed).encode()).hexdigest(),
            modified_at=_newest([stat for _, stat in weights]),
            num_parameters=sum(count for file, _ in weights for count in _sizes(file)),
            precision=str(quantised).upper() if quantised else _PRECISIONS.get(stored, str(stored)),
            figures={name: text[field] for field, name in _FIGURES.items() if text.get(field) is not None},
        )

    @classmethod
    def _of_gguf(cls, file: GGUF) -> Card:
        architecture = file.text("general.architecture") or "unknown"
        prefix = f"{architecture}."
        found = {key.removeprefix(prefix): file.scalar(key) for key in file if key.startswith(prefix)}
        weights = [(path, path.stat()) for path in file.paths]
        listed = json.dumps([found, [[path.name, stat.st_size] for path, stat in weights]], default=str)
        counts: Counter[str] = Counter()
        for tensor in file.tensors.values():
            counts[tensor.type.name] += math.prod(tensor.shape)
        return cls(
            architecture=architecture,
            size=sum(stat.st_size for _, stat in weights),
            digest=hashlib.sha256(listed.encode()).hexdigest(),
            modified_at=_newest([stat for _, stat in weights]),
            num_parameters=counts.total(),
            precision=counts.most_common(1)[0][0],
            figures={key: value for key, value in found.items() if value is not None},
            format="gguf",
        )

    def details(self) -> dict[str, Any]:
        """Ollama's ``details``."""
        return {
            "parent_model": "",
            "format": self.format,
            "family": self.architecture,
            "families": [self.architecture],
            "parameter_size": shortened(self.num_parameters),
            "quantization_level": self.precision,
        }


def shortened(count: int) -> str:
    """A number of parameters for people: ``5.8M``, ``8.0B``."""
    for letter, unit in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= unit:
            return f"{count / unit:.1f}{letter}"
    return str(count)


def _newest(stats: list[os.stat_result]) -> str:
    newest = max((stat.st_mtime for stat in stats), default=0.0)
    return datetime.fromtimestamp(newest, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _bytes(file: Path) -> bytes:
    return file.read_bytes() if file.is_file() and file.stat().st_size <= MAX_HEADER else b""


def _sizes(file: Path) -> Iterator[int]:
    """Elements of each tensor of a safetensors file."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length)) if length <= MAX_HEADER else {}
    for name, tensor in header.items():
        if name != "__metadata__":
            yield math.prod(tensor["shape"])
