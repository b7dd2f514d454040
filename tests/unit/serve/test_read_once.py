"""What is read once and remembered changes no answer: other messages, other values and other types are read anew."""

from __future__ import annotations

from typing import Any

import pytest
from served import Served

from sglite.runtime.engine.admission import Admission
from sglite.runtime.sample.params import InvalidParameter
from sglite.runtime.text.tokenizer import load_tokenizer

PATH = "/v1/chat/completions"


def chat(server: Served, text: str, **fields: Any) -> Any:
    body = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 4, **fields}
    return server.http.post(PATH, json=body)


def test_a_value_of_another_type_is_another_value() -> None:
    admission = Admission(384, (2,), None, None)
    for _ in range(2):
        assert admission.admit({"n": 1, "top_p": 1}, 3).sampling.n == 1
        assert admission.admit({"n": 1, "top_p": 0.5}, 3).sampling.top_p == 0.5
        assert admission.admit({"n": 2, "top_p": 1}, 3).sampling.n == 2
        with pytest.raises(InvalidParameter, match="n"):
            admission.admit({"n": True, "top_p": 1}, 3)
        with pytest.raises(InvalidParameter, match="n"):
            admission.admit({"n": 1.0, "top_p": 1}, 3)
    for seed in range(1000):
        assert admission.admit({"seed": seed}, 3).sampling.seed == seed


def test_a_chat_that_differs_in_its_messages_only(server: Served) -> None:
    first, again, other = (chat(server, text).json() for text in ("one", "one", "something else altogether"))
    assert first["choices"] == again["choices"] and first["usage"]["prompt_tokens"] == again["usage"]["prompt_tokens"]
    assert other["usage"]["prompt_tokens"] > first["usage"]["prompt_tokens"]
    assert first["id"] != again["id"]


def test_a_chat_that_differs_in_anything_else(server: Served) -> None:
    for _ in range(2):
        assert chat(server, "one").json()["usage"]["completion_tokens"] == 4
        assert chat(server, "one", max_tokens=2).json()["usage"]["completion_tokens"] == 2
        assert chat(server, "one", user="me").headers["x-sglite-ignored"] == "user"
        assert "x-sglite-ignored" not in chat(server, "one").headers
        assert chat(server, "one", n=True).status_code == 400
        assert chat(server, "one", n=1).status_code == 200
        assert chat(server, "one", seed=2**70).status_code == 400
        refused = server.http.post(PATH, json={"messages": [{"role": "king"}], "temperature": 0, "max_tokens": 4})
        assert refused.status_code == 400 and "messages[0].role" in refused.text
        nothing = server.http.post(PATH, json={"messages": [], "temperature": 0, "max_tokens": 4})
        assert nothing.status_code == 400


def test_a_name_is_given_anew(server: Served) -> None:
    for name in ("mine", "yours", "mine"):
        assert chat(server, "one", rid=name).json()["id"] == name


def test_pieces_are_what_joining_one_by_one_gives(server: Served) -> None:
    tokenizer = load_tokenizer(server.engine.folder)
    ids = range(tokenizer.vocab_size + 3)
    special = sorted(tokenizer.special_token_ids)
    for skip in (False, True):
        for shown in ((), special[:2]):
            expected = [
                tokenizer.join([i], skip_special_tokens=skip and i not in shown, at_start=False)[0] for i in ids
            ]
            assert tokenizer.pieces(ids, skip_special_tokens=skip, shown=shown) == expected
