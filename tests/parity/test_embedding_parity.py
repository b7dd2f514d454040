"""Vectors against transformers (the decoder alone, hidden state of the last token, normalised) on the same checkpoint:
alone and in company, cold and warm, in chunks, with shared beginnings, and on the way to a client."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from numpy.typing import NDArray
from served import Served, settles, start
from tiny_engines import tiny_engine
from tiny_models import CORPUS, make_embedding_checkpoint

from sglite import Engine

TOLERANCE = 1e-4
SAME = 1e-5
POOL: dict[str, Any] = {"pool": "last"}
WORDS = " ".join(CORPUS).split()


def some_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of 1 to 40 words, of which every second one begins as the one before it."""
    rng = random.Random(seed)
    texts: list[str] = []
    for i in range(count):
        shared = texts[-1].split()[: rng.randrange(1, 20)] if i % 2 else []
        texts.append(" ".join([*shared, *rng.choices(WORDS, k=rng.randrange(1, 21))]))
    return texts


class Reference:
    """What transformers gives."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(str(folder), padding_side="left")
        self.model = AutoModel.from_pretrained(str(folder), attn_implementation="eager", dtype=torch.float32).eval()

    @torch.inference_mode()
    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        """One row a text, in one padded batch."""
        batch = self.tokenizer(texts, padding=True, return_tensors="pt")
        hidden = self.model(**batch).last_hidden_state[:, -1]
        return np.asarray(torch.nn.functional.normalize(hidden, dim=1).numpy())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_embedding_checkpoint(tmp_path_factory.mktemp("embedding") / "model", seed=3)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return Reference(folder)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Served]:
    with tiny_engine(folder, chunked_prefill_size=16) as engine:
        running, url, thread = start(engine, served_model_name=("vectors",))
        with httpx.Client(base_url=url, timeout=60) as http:
            yield Served(url, engine, http)
            assert settles(lambda: http.get("/server_info").json()["num_open_requests"] == 0)
        running.should_exit = True
        thread.join(10)


def vectors_of(engine: Engine, ids: list[list[int]]) -> NDArray[np.float32]:
    """Vectors by way of the engine, all at once."""
    begun = [engine.submit(list(row), {"max_new_tokens": 0}, **POOL) for row in ids]
    rows = np.stack([np.frombuffer(one.result()["hidden"], "<f4") for one in begun])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def posted(server: Served, texts: Any, **fields: Any) -> NDArray[np.float32]:
    found = server.post("/v1/embeddings", {"model": "vectors", "input": texts, **fields})
    assert [entry["index"] for entry in found["data"]] == list(range(len(found["data"])))
    return np.array([entry["embedding"] for entry in found["data"]], dtype=np.float32)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"chunked_prefill_size": 7, "page_size": 1},
        {"chunked_prefill_size": 5, "disable_overlap_schedule": True, "max_running_requests": 3},
        {"disable_radix_cache": True, "max_prefill_tokens": 33},
        {"max_total_tokens": 320, "page_size": 8, "context_length": 320},
    ],
    ids=str,
)
def test_vectors_are_those_of_transformers(folder: Path, reference: Reference, arguments: dict[str, Any]) -> None:
    texts = some_texts(24)
    wanted = reference.embed(texts)
    with tiny_engine(folder, **arguments) as engine:
        assert engine.tokenizer is not None and not engine.config.generates
        ids = [engine.tokenizer.encode_whole(text) for text in texts]
        assert ids == [reference.tokenizer(text)["input_ids"] for text in texts]
        alone = np.concatenate([vectors_of(engine, [row]) for row in ids[:6]])
        cold = vectors_of(engine, ids)
        warm = vectors_of(engine, ids)
        engine.flush_cache()
        again = vectors_of(engine, [*ids, *ids])
    assert np.abs(cold - wanted).max() < TOLERANCE
    assert np.abs(alone - wanted[:6]).max() < TOLERANCE
    for other in (warm, again[:24], again[24:]):
        assert np.abs(other - cold).max() < SAME


def test_a_text_in_the_cache_costs_its_last_token_again_and_no_more(folder: Path) -> None:
    with tiny_engine(folder) as engine:
        ids = list(range(20, 60))
        metas = [engine.submit(list(ids), {"max_new_tokens": 0}, **POOL).result()["meta_info"] for _ in range(3)]
        keys = ("cached_tokens", "computed_prompt_tokens", "replayed_tokens", "forward_passes", "completion_tokens")
        assert [tuple(meta[key] for key in keys) for meta in metas] == [
            (0, 40, 0, 1, 0),
            (39, 1, 1, 1, 0),
            (39, 1, 1, 1, 0),
        ]


@pytest.mark.parametrize("width", [1, 3, 64])
def test_requests_of_any_width_at_the_same_time(server: Served, reference: Reference, width: int) -> None:
    texts = some_texts(width, seed=width)
    wanted = reference.embed(texts)
    with ThreadPoolExecutor(4) as pool:
        together = [pool.submit(partial(posted, server), texts) for _ in range(2)]
        single = [pool.submit(partial(posted, server), text) for text in texts[:8]]
        for one in together:
            assert np.abs(one.result() - wanted).max() < TOLERANCE
        for row, one in zip(wanted, single, strict=False):
            assert np.abs(one.result()[0] - row).max() < TOLERANCE


def test_what_the_openai_client_gets(server: Served, reference: Reference) -> None:
    """It asks for base64, and decodes it, unless floats are asked for."""
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    texts = some_texts(5, seed=9)
    packed = client.embeddings.create(model="vectors", input=texts)
    plain = client.embeddings.create(model="vectors", input=texts, encoding_format="float")
    rows = [np.array([entry.embedding for entry in found.data], dtype=np.float32) for found in (packed, plain)]
    assert np.abs(rows[0] - rows[1]).max() < SAME
    assert np.abs(rows[0] - reference.embed(texts)).max() < TOLERANCE
    counted = sum(len(reference.tokenizer(text)["input_ids"]) for text in texts)
    assert packed.usage.prompt_tokens == packed.usage.total_tokens == counted


def test_prompts_and_dimensions(server: Served, reference: Reference) -> None:
    begin = "Instruct: find what answers\nQuery:"
    wanted = reference.embed([begin + "the fox"])
    assert np.abs(posted(server, "the fox", prompt_name="query") - wanted).max() < TOLERANCE
    assert np.abs(posted(server, begin + "the fox") - wanted).max() < TOLERANCE
    short = wanted[:, :16] / np.linalg.norm(wanted[:, :16])
    assert np.abs(posted(server, begin + "the fox", dimensions=16) - short).max() < TOLERANCE


def test_texts_that_are_cut_keep_their_end_token(server: Served, reference: Reference) -> None:
    text = " ".join(["the quick brown fox"] * 30)
    ids = reference.tokenizer(text, truncation=True, max_length=20)["input_ids"]
    assert len(ids) == 20 and ids[-1] == 0
    assert np.abs(posted(server, text, truncate_prompt_tokens=20) - posted(server, ids)).max() < SAME


def test_the_relevance_of_texts_is_the_cosine_of_their_vectors(server: Served, reference: Reference) -> None:
    query, documents = "the dog sleeps", some_texts(7, seed=5)
    rows = reference.embed([query, *documents])
    wanted = rows[1:] @ rows[0]
    found = server.post("/v1/score", {"text_1": query, "text_2": documents})
    assert np.abs(np.array([entry["score"] for entry in found["data"]]) - wanted).max() < TOLERANCE
    ranked = server.post("/rerank", {"query": query, "documents": documents, "top_n": 3})["results"]
    assert [one["index"] for one in ranked] == [int(i) for i in np.argsort(-wanted)[:3]]
    assert [one["document"]["text"] for one in ranked] == [documents[one["index"]] for one in ranked]


def test_ollamas_and_sglangs_routes_give_the_same(server: Served) -> None:
    texts = some_texts(3, seed=2)
    wanted = posted(server, texts)
    embedded = server.post("/api/embed", {"model": "vectors", "input": texts})
    encoded = server.post("/encode", {"text": texts})
    assert np.abs(np.array(embedded["embeddings"]) - wanted).max() < SAME
    assert np.abs(np.array([one["embedding"] for one in encoded]) - wanted).max() < SAME
    assert embedded["prompt_eval_count"] == sum(one["meta_info"]["prompt_tokens"] for one in encoded)
