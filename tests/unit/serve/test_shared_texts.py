"""Short bodies that ask for many long prompts, all of which share a text: nothing is made that will not be computed."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from served import Served

from sglite.runtime.serve.context_length import MAX_MADE_TOKENS, made_prompts
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.serving import Serving

_MB = 2**20


@pytest.fixture
def peak() -> Iterator[Any]:
    """Bytes allocated at most since the test began."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


@pytest.mark.parametrize("query", ["word " * 100_000, [41] * 60_000], ids=["text", "ids"])
def test_a_long_query_of_many_items_is_not_joined_with_each(server: Served, peak: Any, query: Any) -> None:
    items = ["a"] * 500 if isinstance(query, str) else [[42]] * 500
    error = server.post("/v1/score", {"query": query, "items": items, "label_token_ids": [5]}, 400)["error"]
    assert error["param"] == "items" and error["code"] == "context_length_exceeded"
    assert peak() < 60 * _MB


def test_a_long_text_of_many_choices_is_not_joined_with_each(server: Served, peak: Any) -> None:
    nodes = [
        {"op": "open", "seq": "0"},
        {"op": "extend", "seq": "0", "text": "word " * 40_000},
        {"op": "score", "seq": "0", "id": "s", "choices": [f"choice {i}" for i in range(1000)]},
        {"op": "close", "seq": "0"},
    ]
    answer = server.http.post("/program", json={"version": 1, "program": "long", "nodes": nodes})
    assert "too many for the context" in answer.text
    assert peak() < 60 * _MB


def test_what_is_made_of_shared_texts_is_bounded_together() -> None:
    made = []

    def prompts() -> Iterator[list[int]]:
        for index in range(10):
            made.append(index)
            yield [7] * (MAX_MADE_TOKENS // 3)

    serving = cast(Serving, SimpleNamespace(capacity=MAX_MADE_TOKENS))
    with pytest.raises(Refused, match="items make prompts of more than") as refused:
        made_prompts(serving, prompts(), "items")
    assert refused.value.status == 400 and made == [0, 1, 2, 3]
    with pytest.raises(Refused, match="items has 8 tokens"):
        made_prompts(cast(Serving, SimpleNamespace(capacity=8)), iter([[7], [7] * 8]), "items")
