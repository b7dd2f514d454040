"""Decoders with a head that scores a whole text, in place of the one that scores tokens: classifiers, reward models."""

from __future__ import annotations

from dataclasses import replace

from sglite.runtime.model.config import ModelConfig
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.fields import Fields
from sglite.runtime.model.readers.dense import read_dense

MAX_LABELS = 10_000


def read_classifier(fields: Fields) -> ModelConfig:
    """A dense decoder and one linear layer; labels by ``id2label``."""
    return replace(read_dense(fields), labels=_labels(fields), has_head=False, tie_word_embeddings=False)


def read_reward(fields: Fields) -> ModelConfig:
    """A dense decoder and a head of two layers that gives one number (Qwen2.5-Math-RM)."""
    config = read_dense(fields)
    return replace(config, labels=("reward",), score_layers=2, has_head=False, tie_word_embeddings=False)


def _labels(fields: Fields) -> tuple[str, ...]:
    """Names in the order of their ids; ``LABEL_0`` ... where the config only says how many, two if not even that."""
    named = fields.mapping("id2label")
    count = len(named) or fields.positive_int("num_labels", 2)
    if count > MAX_LABELS:
        raise ModelError(f"{fields.where}: {count} labels are more than {MAX_LABELS}; is it the right file?")
    if named and sorted(named) != sorted(map(str, range(count))):
        raise ModelError(f"{fields.where}: id2label has ids {sorted(named)[:5]}; they must be 0 to {count - 1}")
    return tuple(str(named.get(str(i), f"LABEL_{i}"))[:200] for i in range(count))
