"""Vectors and scores over HTTP: what is accepted and what is refused, by name; nothing is left behind."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from served import Served, settles, start
from tiny_engines import tiny_engine
from tiny_models import make_checkpoint, make_embedding_checkpoint
from tokenizers import Tokenizer

import sglite as sgl
from sglite.runtime.serve.embed import normalized
from sglite.runtime.serve.openai.embeddings import spelled

CONTEXT = 64
TEXT = "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}
TURNS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
RERANKER = (
    '{%- set query = messages | selectattr("role", "eq", "query") | map(attribute="content") | first -%}\n'
    '{%- set document = messages | selectattr("role", "eq", "document") | map(attribute="content") | first -%}\n'
    '{%- set system = messages | selectattr("role", "eq", "system") | map(attribute="content") -%}\n'
    'Answer "yes" or "no". {{ system | first | default("fit") }}: {{ query }} / {{ document }}'
)


def serve(folder: Path, **arguments: Any) -> Iterator[Served]:
    with tiny_engine(folder, **arguments) as engine:
        running, url, thread = start(engine, served_model_name=("m",))
        with httpx.Client(base_url=url, timeout=60) as http:
            yield Served(url, engine, http)
            info = http.get("/server_info").json()
            assert info["num_open_requests"] == info["num_running"] == info["pages"]["held"] == 0
        running.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = make_embedding_checkpoint(tmp_path_factory.mktemp("e") / "m")
    (folder / "chat_template.jinja").write_text(TURNS)
    yield from serve(folder, context_length=CONTEXT)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A model that writes."""
    yield from serve(make_checkpoint(tmp_path_factory.mktemp("t") / "m"))


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = make_checkpoint(tmp_path_factory.mktemp("r") / "m")
    (folder / "chat_template.jinja").write_text(RERANKER)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens(["no", "yes"])
    tokenizer.save(str(folder / "tokenizer.json"))
    yield from serve(folder)


def refusal(server: Served, path: str, status: int = 400, **body: Any) -> dict[str, Any]:
    error = server.post(path, body, status)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return dict(error)


# --- vectors ----------------------------------------------------------------------------------------------------


def test_base64_and_numbers_say_the_same() -> None:
    vector = np.random.default_rng(0).normal(size=33).astype(np.float32)
    assert np.array_equal(np.frombuffer(base64.b64decode(spelled(vector, "base64")), "<f4"), vector)
    assert np.array_equal(np.array(spelled(vector, "float"), dtype=np.float32), vector)
    assert np.linalg.norm(normalized(vector)) == pytest.approx(1, abs=1e-6)
    assert not normalized(np.zeros(3, dtype=np.float32)).any()


@pytest.mark.parametrize(
    ("value", "rows"),
    [("the fox", 1), (["the fox"], 1), (["a", "b", "c"], 3), ([5, 6, 7], 1), ([[5], [6, 7]], 2)],
)
def test_text_ids_or_lists_of_either(vectors: Served, value: Any, rows: int) -> None:
    found = vectors.post("/v1/embeddings", {"model": "m", "input": value})
    assert found["object"] == "list" and found["model"] == "m"
    assert [entry["index"] for entry in found["data"]] == list(range(rows))
    assert all(math.fsum(x * x for x in entry["embedding"]) == pytest.approx(1, abs=1e-5) for entry in found["data"])
    assert found["usage"]["prompt_tokens"] == found["usage"]["total_tokens"] > 0


def test_vectors_have_length_one_in_either_spelling(vectors: Served) -> None:
    def length(**asked: Any) -> float:
        return math.hypot(*vectors.post("/v1/embeddings", {"input": "the fox", **asked})["data"][0]["embedding"])

    assert length(use_activation=True) == pytest.approx(1, abs=1e-5) == length(normalize=True)
    assert length(use_activation=False) == length(normalize=False) != pytest.approx(1, abs=1e-3)
    assert length(use_activation=False, normalize=False) == length(normalize=False)
    asked = {"input": "a", "use_activation": False, "normalize": True}
    assert refusal(vectors, "/v1/embeddings", **asked)["param"] == "use_activation"


def test_ids_are_taken_as_they_are(vectors: Served) -> None:
    assert vectors.engine.tokenizer is not None
    ids = vectors.engine.tokenizer.encode_whole("the fox")
    assert ids[-1] == 0 and ids[:-1] == vectors.engine.tokenizer.encode("the fox")
    rows = [vectors.post("/v1/embeddings", {"input": one})["data"][0]["embedding"] for one in ("the fox", ids)]
    assert rows[0] == pytest.approx(rows[1], abs=1e-5)


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({}, "input", "must be text"),
        ({"input": ""}, "input", "input[0] is empty"),
        ({"input": []}, "input", "got a list"),
        ({"input": ["a", ""]}, "input", "input[1] is empty"),
        ({"input": ["a", [5]]}, "input", "mixture"),
        ({"input": [[5], []]}, "input", "input[1] is empty"),
        ({"input": [1.5]}, "input", "token ids"),
        ({"input": [True]}, "input", "token ids"),
        ({"input": {"text": "a"}}, "input", "an object"),
        ({"input": [5, 384]}, "input", "[0, 383]"),
        ({"input": [-1]}, "input", "[0, 383]"),
        ({"input": [10**40]}, "input", "[0, 383]"),
        ({"input": ["a"] * 2049}, "input", "at most 2048"),
        ({"input": "a \ud800"}, None, "not valid JSON"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "base64, float"),
        ({"input": "a", "dimensions": 0}, "dimensions", "[1, 64]"),
        ({"input": "a", "dimensions": 65}, "dimensions", "[1, 64]"),
        ({"input": "a", "dimensions": "8"}, "dimensions", "[1, 64]"),
        ({"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "-1 or in"),
        ({"input": "a", "truncate_prompt_tokens": CONTEXT + 1}, "truncate_prompt_tokens", f"{CONTEXT}]"),
        ({"input": "a", "prompt_name": "poem"}, "prompt_name", "document, query"),
        ({"input": "a", "messages": [{"role": "user", "content": "a"}]}, "input", "not both"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
        ({"messages": [{"role": "user", "content": "a " * 200}]}, "messages", "shorten"),
        ({"input": "a", "add_special_tokens": False}, "add_special_tokens", "token ids"),
        ({"input": "a", "priority": "high"}, "priority", "integer"),
    ],
)
def test_what_is_wrong_is_named(vectors: Served, body: dict[str, Any], param: str | None, says: str) -> None:
    if param is None:
        response = vectors.http.post("/v1/embeddings", content=b'{"input": "a \\ud800"}')
        assert response.status_code == 400 and "JSON" in response.json()["error"]["message"]
        return
    error = refusal(vectors, "/v1/embeddings", **body)
    assert error["param"] == param and says in error["message"], error


def test_a_conversation_is_one_text(vectors: Served) -> None:
    """That of the template, and its tokens alone; only what is asked for goes on from it."""
    messages = [{"role": "user", "content": "the quick fox"}, {"role": "assistant", "content": "sleeps"}]
    for more, text in (
        ({}, "<user>the quick fox\n<assistant>sleeps\n"),
        ({"add_generation_prompt": True}, "<user>the quick fox\n<assistant>sleeps\n<assistant>"),
        ({"continue_final_message": True}, "<user>the quick fox\n<assistant>sleeps"),
    ):
        found = vectors.post("/v1/embeddings", {"messages": messages, **more})
        ids = vectors.post("/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]
        expected = vectors.post("/v1/embeddings", {"input": ids})
        assert found["usage"]["prompt_tokens"] == len(ids)
        np.testing.assert_allclose(found["data"][0]["embedding"], expected["data"][0]["embedding"], atol=1e-4)
    whole = vectors.post("/invocations", {"messages": messages})
    assert whole["object"] == "list" and len(whole["data"]) == 1
    cut = vectors.post("/v1/embeddings", {"messages": messages, "truncate_prompt_tokens": 3})
    assert cut["usage"]["prompt_tokens"] == 3
    plain = vectors.post("/v1/embeddings", {"input": "a", "add_special_tokens": True})
    assert plain["data"] == vectors.post("/v1/embeddings", {"input": "a"})["data"]


def test_a_long_text_is_refused_or_cut_as_asked(vectors: Served) -> None:
    text = "the quick brown fox " * 40
    error = refusal(vectors, "/v1/embeddings", input=["a", text])
    assert error["code"] == "context_length_exceeded" and "input[1]" in error["message"]
    for keep, tokens in ((-1, CONTEXT), (7, 7), (1, 1)):
        found = vectors.post("/v1/embeddings", {"input": text, "truncate_prompt_tokens": keep})
        assert found["usage"]["prompt_tokens"] == tokens
    assert len(vectors.post("/api/embed", {"model": "m", "input": text})["embeddings"]) == 1
    refused = vectors.post("/api/embed", {"model": "m", "input": text, "truncate": False}, 400)
    assert str(CONTEXT) in refused["error"]


def test_models_and_fields_without_effect(vectors: Served) -> None:
    assert refusal(vectors, "/v1/embeddings", 404, model="gpt", input="a")["code"] == "model_not_found"
    response = vectors.http.post("/v1/embeddings", json={"input": "a", "user": "u", "zzz": 1})
    assert response.status_code == 200 and response.headers["X-Sglite-Ignored"] == "user, zzz"


def test_what_an_embedding_model_does_not_do(vectors: Served) -> None:
    path, body = TEXT
    error = refusal(vectors, path, **body)
    assert error["param"] == "model" and "no output head" in error["message"]
    assert "no output head" in refusal(vectors, "/generate", text="a")["message"]
    assert "no output head" in refusal(vectors, "/v1/score", query="a", items=["b"], label_token_ids=[5])["message"]
    assert vectors.http.get("/health_generate").status_code == 200
    info = vectors.http.get("/model_info").json()
    assert (info["is_generation"], info["is_embedding"]) == (False, True)
    assert vectors.post("/api/show", {"model": "m"})["capabilities"] == ["embedding"]


def test_encode_answers_in_its_own_shape(vectors: Served) -> None:
    one = vectors.post("/encode", {"text": "the fox", "rid": "mine"})
    assert len(one["embedding"]) == 64 and one["meta_info"]["id"] == "mine"
    many = vectors.post("/encode", {"input_ids": [[5, 6], [7]]})
    assert [row["meta_info"]["prompt_tokens"] for row in many] == [2, 1]
    assert refusal(vectors, "/encode", text="a", input_ids=[5])["param"] == "text"
    assert refusal(vectors, "/encode", text="a", image_data="x")["param"] == "image_data"


def test_ollamas_older_route_and_nothing_to_embed(vectors: Served) -> None:
    new = vectors.post("/api/embed", {"model": "m", "input": "the fox", "dimensions": 8})["embeddings"]
    assert len(new) == 1 and len(new[0]) == 8
    assert len(vectors.post("/api/embeddings", {"model": "m", "prompt": "the fox"})["embedding"]) == 64
    assert vectors.post("/api/embed", {"model": "m", "input": []})["embeddings"] == []
    assert vectors.post("/api/embeddings", {"model": "m", "prompt": ""})["embedding"] == []


def test_a_client_that_leaves_ends_its_requests(vectors: Served) -> None:
    vectors.engine.pause("in_place")
    try:
        with pytest.raises(httpx.ReadTimeout):
            vectors.http.post("/v1/embeddings", json={"input": ["a"] * 40}, timeout=0.3)
    finally:
        vectors.engine.resume()
    assert settles(lambda: vectors.info()["num_open_requests"] == 0 and vectors.engine.num_open == 0)
    assert vectors.info()["pages"]["held"] == 0


# --- models that write ------------------------------------------------------------------------------------------


def test_a_model_that_writes_says_what_to_do(texts: Served) -> None:
    error = refusal(texts, "/v1/embeddings", input="a")
    assert error["code"] == "embeddings_not_supported" and "--is-embedding" in error["message"]
    assert "--is-embedding" in refusal(texts, "/encode", text="a")["message"]
    assert "--is-embedding" in texts.post("/api/embed", {"model": "m", "input": "a"}, 501)["error"]
    error = refusal(texts, "/v1/rerank", query="a", documents=["b"])
    assert error["code"] == "scoring_not_supported" and "--chat-template" in error["message"]
    assert texts.post("/api/show", {"model": "m"})["capabilities"][0] == "completion"


def test_labels_after_query_and_item(texts: Served) -> None:
    """The scores are the probabilities that the model gives; the query is computed once."""
    tokenizer, query = texts.engine.tokenizer, "the quick brown fox jumps over the lazy dog and "
    assert tokenizer is not None
    items, labels = ["sleeps", "the sun", "jumps over"], [9, 300, 45]
    whole = [tokenizer.encode(query + item) for item in items]
    wanted = []
    for ids in whole:
        options = {"return_logprob": True, "token_ids_logprob": labels}
        event = texts.engine.generate(input_ids=ids, sampling_params={"max_new_tokens": 1}, **options)
        wanted.append([math.exp(row[0]) for row in event["meta_info"]["output_token_ids_logprobs"][0]])
    texts.engine.flush_cache()
    found = texts.post("/v1/score", {"query": query, "items": items, "label_token_ids": labels, "model": "m"})
    assert found["object"] == "scoring" and found["model"] == "m"
    for row, truth in zip(found["scores"], wanted, strict=True):
        assert row == pytest.approx(truth, rel=1e-4)
    computed, distinct = (
        found["usage"]["sglite"]["computed_prompt_tokens"],
        {tuple(i[: n + 1]) for i in whole for n in range(len(i))},
    )
    assert computed - found["usage"]["sglite"]["replayed_tokens"] == len(distinct)
    shares = texts.post("/score", {"query": query, "items": items, "label_token_ids": labels, "apply_softmax": True})
    for row, truth in zip(shares["scores"], wanted, strict=True):
        assert sum(row) == pytest.approx(1) and row == pytest.approx([one / sum(truth) for one in truth], rel=1e-4)


def test_ids_and_items_in_front(texts: Served) -> None:
    ids = {"query": [20, 21], "items": [[30], [31, 32]], "label_token_ids": [9]}
    after, before = texts.post("/v1/score", ids), texts.post("/v1/score", {**ids, "item_first": True})
    turned = texts.post("/v1/score", {"query": [], "items": [[30, 20, 21], [31, 32, 20, 21]], "label_token_ids": [9]})
    for row, other in zip(before["scores"], turned["scores"], strict=True):
        assert row == pytest.approx(other, rel=1e-4)
    assert after["scores"] != before["scores"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"query": "a", "items": ["b"]}, "label_token_ids"),
        ({"query": "a", "items": ["b"], "label_token_ids": []}, "label_token_ids"),
        ({"query": "a", "items": ["b"], "label_token_ids": [384]}, "label_token_ids"),
        ({"query": "a", "items": ["b"], "label_token_ids": ["yes"]}, "label_token_ids"),
        ({"query": "a", "items": [[5]], "label_token_ids": [5]}, "items"),
        ({"query": "a", "items": [], "label_token_ids": [5]}, "items"),
        ({"query": "", "items": [""], "label_token_ids": [5]}, "items"),
        ({"query": [5], "items": [[-1]], "label_token_ids": [5]}, None),
        ({"query": "a", "items": "b " * 600, "label_token_ids": [5]}, "items"),
        ({"text_1": "a"}, "text_2"),
        ({"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_1"),
        ({"text_1": "a", "text_2": [""]}, "text_2[0]"),
        ({"text_1": "a", "text_2": "b", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
    ],
)
def test_scores_that_cannot_be(texts: Served, body: dict[str, Any], param: str | None) -> None:
    assert refusal(texts, "/v1/score", **body)["param"] == param


# --- rerankers --------------------------------------------------------------------------------------------------


def test_a_reranker_answers_with_the_share_of_its_yes(reranker: Served) -> None:
    engine = reranker.engine
    assert engine.tokenizer is not None
    labels = [engine.tokenizer.id_of(word) for word in ("no", "yes")]
    query, documents = "which animal sleeps", ["the dog sleeps", "a quick fox", "London", "the sun"]
    wanted = []
    for document in documents:
        prompt = f'Answer "yes" or "no". fit: {query} / {document}'
        options = {"return_logprob": True, "token_ids_logprob": labels}
        event = engine.generate(prompt, {"max_new_tokens": 1}, **options)
        no, yes = (row[0] for row in event["meta_info"]["output_token_ids_logprobs"][0])
        wanted.append(math.exp(yes) / (math.exp(yes) + math.exp(no)))
    body = {"model": "m", "query": query, "documents": [documents[0], {"text": documents[1]}, *documents[2:]]}
    found = reranker.post("/v1/rerank", body)
    assert found["id"] and found["model"] == "m" and found["usage"]["total_tokens"] == found["usage"]["prompt_tokens"]
    scores = {one["index"]: one["relevance_score"] for one in found["results"]}
    assert [scores[i] for i in range(4)] == pytest.approx(wanted, abs=1e-5)
    assert [one["relevance_score"] for one in found["results"]] == sorted(scores.values(), reverse=True)
    assert all(one["document"] == {"text": documents[one["index"]]} for one in found["results"])
    two = reranker.post("/rerank", {**body, "top_n": 2, "return_documents": False})["results"]
    assert [set(one) for one in two] == [{"index", "relevance_score"}] * 2
    assert [one["index"] for one in two] == [one["index"] for one in found["results"][:2]]
    pairs = reranker.post("/score", {"queries": query, "documents": documents})["data"]
    assert [one["score"] for one in pairs] == pytest.approx(wanted, abs=1e-5)
    bare = reranker.post("/v1/rerank", {"query": query, "documents": documents})
    assert [one["index"] for one in bare] == sorted(scores, key=lambda i: -scores[i])
    assert [one["score"] for one in bare] == pytest.approx(sorted(scores.values(), reverse=True), abs=1e-5)
    assert [one["document"] for one in bare] == [documents[one["index"]] for one in bare]
    assert set(reranker.post("/v1/rerank", {"query": query, "documents": documents, "return_documents": False})[0]) == {
        "score", "index",
    }  # fmt: skip
    for path, where, key in (("/rerank", "results", "relevance_score"), ("/score", "data", "score")):
        asked = {"query" if path == "/rerank" else "queries": query, "documents": documents, "use_activation": False}
        raw = {one["index"]: one[key] for one in reranker.post(path, asked)[where]}
        assert [1 / (1 + math.exp(-raw[i])) for i in range(4)] == pytest.approx(wanted, abs=1e-5)
    other = reranker.post("/v2/rerank", {**body, "instruction": "rhyme"})["results"]
    assert {one["index"]: one["relevance_score"] for one in other} != scores


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"documents": ["a"]}, "query"),
        ({"query": "a"}, "documents"),
        ({"query": "a", "documents": []}, "documents"),
        ({"query": "a", "documents": ["b", 5]}, "documents[1]"),
        ({"query": "a", "documents": [{"title": "b"}]}, "documents[0]"),
        ({"query": "a", "documents": ["b"], "top_n": -1}, "top_n"),
        ({"query": "a", "documents": ["b"], "max_tokens_per_doc": 8}, "max_tokens_per_doc"),
        ({"query": "a", "documents": ["b"], "rank_fields": ["t"]}, "rank_fields"),
        ({"query": "a", "documents": ["b " * 600]}, "text"),
    ],
)
def test_rankings_that_cannot_be(reranker: Served, body: dict[str, Any], param: str) -> None:
    assert refusal(reranker, "/v1/rerank", **body)["param"] == param


def test_an_embedding_model_takes_no_instruction(vectors: Served) -> None:
    error = refusal(vectors, "/v1/rerank", query="a", documents=["b"], instruct="rhyme")
    assert error["param"] == "instruction"


def test_the_flag_declares_what_the_checkpoint_does_not(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m")
    with tiny_engine(folder, is_embedding=True) as engine:
        assert not isinstance(engine.pooling, str) and engine.pooling.normalize
        assert engine.generate("the", {"max_new_tokens": 2})["output_ids"]
    mean = make_embedding_checkpoint(tmp_path / "e", modes={"pooling_mode_mean_tokens": True})
    with pytest.raises(ValueError, match="declares mean pooling"):
        sgl.Engine(str(mean), is_embedding=True)
