"""Classifiers and reward models against transformers, or against their definition, on the same random checkpoint: raw
scores from the engine, labels and probabilities, relevance of pairs from the server."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from served import listening
from tiny_engines import tiny_engine
from tiny_models import make_checkpoint, make_tokenizer
from torch import Tensor

from sglite import Engine
from sglite.runtime.model.architectures import parse_config
from sglite.runtime.model.errors import ModelError
from sglite.runtime.serve.app import create_app
from sglite.runtime.serve.options import ServeOptions

TOLERANCE = 1e-4
TEXTS = ["the quick brown fox", "jumps over the lazy dog and then", "sleeps", "the quick brown dog"]
LABELS = {"0": "no", "1": "maybe", "2": "yes"}


def make_classifier(folder: Path, family: str, labels: dict[str, str], architecture: str = "") -> Path:
    """A dense checkpoint whose output head is one that scores texts."""
    name = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[family]
    architecture = architecture or f"{name}ForSequenceClassification"
    make_checkpoint(folder, family, seed=5, tokenizer=False, head_dim=None if family == "qwen2" else 16)
    make_tokenizer(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": [architecture], "id2label": labels, "label2id": {v: int(k) for k, v in labels.items()}}
    config["pad_token_id"] = 0
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    generator = torch.Generator().manual_seed(7)
    if architecture == "Qwen2ForRewardModel":
        shapes = {"score.0.weight": (64, 64), "score.0.bias": (64,), "score.2.weight": (1, 64), "score.2.bias": (1,)}
    else:
        shapes = {"score.weight": (len(labels), 64)}
    tensors |= {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@contextmanager
def served(engine: Engine) -> Iterator[str]:
    """URL of a server over ``engine``."""
    with listening(create_app(engine, ServeOptions())) as port:
        yield f"http://127.0.0.1:{port}"


@torch.inference_mode()
def scores_of_transformers(folder: Path, rows: list[list[int]]) -> list[Tensor]:
    from transformers import AutoModelForSequenceClassification

    load: Any = AutoModelForSequenceClassification.from_pretrained
    model = load(folder, attn_implementation="eager", dtype=torch.float32).eval()
    return [model(torch.tensor([row])).logits[0] for row in rows]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_scores_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / "m", family, LABELS)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with tiny_engine(folder) as engine:
        assert engine.tokenizer is not None and engine.config.labels == ("no", "maybe", "yes")
        assert not engine.config.generates
        rows = [engine.tokenizer.encode_whole(text) for text in TEXTS]
        expected = torch.stack(scores_of_transformers(folder, rows))
        with served(engine) as server:
            raw = httpx.post(f"{server}/classify", json={"text": TEXTS}).json()
            ours = np.array([row["embedding"] for row in raw])
            np.testing.assert_allclose(ours, expected.numpy(), atol=TOLERANCE)
            shown = httpx.post(f"{server}/v1/classify", json={"input": TEXTS}).json()
            probs = np.array([row["probs"] for row in shown["data"]])
            np.testing.assert_allclose(probs, expected.softmax(-1).numpy(), atol=TOLERANCE)
            assert [row["label"] for row in shown["data"]] == [LABELS[str(int(row.argmax()))] for row in expected]
            assert shown["usage"]["prompt_tokens"] == sum(map(len, rows))
            plain = httpx.post(f"{server}/classify", json={"input": rows[0], "use_activation": False}).json()
            np.testing.assert_allclose(plain["data"][0]["probs"], expected[0].numpy(), atol=TOLERANCE)
            cut = httpx.post(f"{server}/classify", json={"input": TEXTS[1], "truncate_prompt_tokens": 3}).json()
            known = httpx.post(f"{server}/classify", json={"input": rows[1][:3]}).json()
            assert cut["usage"]["prompt_tokens"] == 3
            np.testing.assert_allclose(cut["data"][0]["probs"], known["data"][0]["probs"], atol=TOLERANCE)
            for route in ("/classify", "/invocations"):
                one = httpx.post(server + route, json={"messages": [{"role": "user", "content": TEXTS[0]}]}).json()
                np.testing.assert_allclose(one["data"][0]["probs"], probs[0], atol=TOLERANCE)
            for route, body, words in (
                ("/v1/embeddings", {"input": "a"}, "it scores texts; use /classify"),
                ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}, "no output head"),
                ("/v1/rerank", {"query": "a", "documents": ["b"]}, "3 labels, none of which is relevance"),
                ("/classify", {"text": "a", "dimensions": 1}, "scores are given whole"),
                ("/classify", {"input": "a", "truncate_prompt_tokens": 10**6}, "truncate_prompt_tokens"),
            ):
                answer = httpx.post(server + route, json=body)
                assert answer.status_code == 400 and words in answer.text


def test_one_score_ranks_documents(tmp_path: Path) -> None:
    """A cross-encoder: query and document in one text, the sigmoid of what comes of it."""
    folder = make_classifier(tmp_path / "m", "qwen3", {"0": "LABEL_0"})
    with tiny_engine(folder) as engine, served(engine) as server:
        assert engine.tokenizer is not None
        ids = [engine.tokenizer.encode_whole(text) for text in TEXTS]
        expected = [
            1 / (1 + math.exp(-float(score[0])))
            for score in scores_of_transformers(folder, [ids[0] + document for document in ids[1:]])
        ]
        found = httpx.post(f"{server}/rerank", json={"query": TEXTS[0], "documents": TEXTS[1:]}).json()
        assert [row["index"] for row in found["results"]] == sorted(range(3), key=lambda i: -expected[i])
        for row in found["results"]:
            assert row["relevance_score"] == pytest.approx(expected[row["index"]], abs=TOLERANCE)


def test_a_reward_model_has_a_head_of_two_layers(tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / "m", "qwen2", {"0": "LABEL_0"}, "Qwen2ForRewardModel")
    plain = make_classifier(tmp_path / "plain", "qwen2", {str(i): str(i) for i in range(64)})
    tensors = load_file(plain / "model.safetensors")
    save_file({**tensors, "score.weight": torch.eye(64)}, plain / "model.safetensors", metadata={"format": "pt"})
    head = load_file(folder / "model.safetensors")
    rows = [[5, 9, 30], list(range(8, 60))]
    hidden = scores_of_transformers(plain, rows)
    with tiny_engine(folder) as engine, served(engine) as server:
        raw = httpx.post(f"{server}/classify", json={"input_ids": rows}).json()
    for answer, last in zip(raw, hidden, strict=True):
        inner = torch.relu(last @ head["score.0.weight"].T + head["score.0.bias"])
        expected = inner @ head["score.2.weight"].T + head["score.2.bias"]
        np.testing.assert_allclose(answer["embedding"], expected.numpy(), atol=TOLERANCE)


def test_labels_that_make_no_sense_are_refused() -> None:
    base: dict[str, Any] = json.loads(
        '{"architectures": ["Qwen3ForSequenceClassification"], "hidden_size": 64, "num_attention_heads": 4,'
        '"num_hidden_layers": 1, "vocab_size": 8, "intermediate_size": 8, "max_position_embeddings": 8}'
    )
    assert parse_config(base).labels == ("LABEL_0", "LABEL_1")
    assert parse_config({**base, "num_labels": 1}).labels == ("LABEL_0",)
    with pytest.raises(ModelError, match=r"id2label has ids \['1'\]; they must be 0 to 0"):
        parse_config({**base, "id2label": {"1": "a"}})
