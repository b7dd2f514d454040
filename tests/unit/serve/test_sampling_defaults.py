"""Requests that leave out how to sample get what the model recommends, unless the server is told not to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import served
from tiny_engines import tiny_engine
from tiny_models import make_checkpoint

from sglite import Engine
from sglite.runtime.config import ConfigError
from sglite.runtime.serve.anthropic.ask import read_ask as read_anthropic
from sglite.runtime.serve.banner import EngineFacts, banner
from sglite.runtime.serve.openai.chat_ask import read_chat
from sglite.runtime.serve.openai.completions import read_completion
from sglite.runtime.serve.options import ServeOptions
from sglite.runtime.serve.responses_api.ask import read_ask as read_response
from sglite.runtime.serve.responses_api.store import Store
from sglite.runtime.serve.serving import Serving, defaults_of

RECOMMENDED = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.05}
USER = [{"role": "user", "content": "hi"}]
ROUTES = ("chat", "completions", "responses", "anthropic")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = Path(make_checkpoint(tmp_path_factory.mktemp("defaults") / "m"))
    said = {**RECOMMENDED, "eos_token_id": [2, 0], "do_sample": False, "top_h": 3, "max_new_tokens": 7}
    (folder / "generation_config.json").write_text(json.dumps(said))
    with tiny_engine(folder) as engine:
        yield engine


@pytest.fixture(scope="module")
def serving(engine: Engine) -> Serving:
    return Serving.of(engine, ServeOptions())


def asked(serving: Serving, route: str, **fields: Any) -> dict[str, Any]:
    """The sampling parameters that a request to a route ends up with."""
    name = serving.models.name
    if route == "completions":
        return dict(asyncio.run(read_completion(serving, {"prompt": "hi", **fields})).rows[0].sampling)
    if route == "responses":
        return read_response(serving, Store(), {"model": name, "input": "hi", **fields}).call.sampling
    if route == "anthropic":
        body = {"model": name, "max_tokens": 8, "messages": USER, **fields}
        return read_anthropic(serving, body).call.sampling
    return read_chat(serving, {"messages": USER, **fields}).call.sampling


def shown(sampling: dict[str, Any]) -> dict[str, Any]:
    return {name: sampling[name] for name in RECOMMENDED if name in sampling}


@pytest.mark.parametrize("route", ROUTES)
def test_what_is_left_out_is_what_the_model_recommends(serving: Serving, route: str) -> None:
    assert shown(asked(serving, route)) == RECOMMENDED


@pytest.mark.parametrize("route", ROUTES)
def test_what_a_request_says_wins_field_by_field(serving: Serving, route: str) -> None:
    assert shown(asked(serving, route, temperature=1.0, top_p=None)) == {**RECOMMENDED, "temperature": 1.0}
    if route != "responses":
        assert shown(asked(serving, route, top_k=3)) == {**RECOMMENDED, "top_k": 3}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("greedy", [{"temperature": 0}, {"temperature": 0.0, "top_p": 0.5}, {"top_k": 1}])
def test_who_asks_for_the_likeliest_gets_nothing_else(serving: Serving, route: str, greedy: dict[str, Any]) -> None:
    assert shown(asked(serving, route, **greedy)) == greedy


@pytest.mark.parametrize("route", ROUTES)
def test_recommendations_can_be_left_alone(engine: Engine, route: str) -> None:
    plain = Serving.of(engine, ServeOptions(sampling_defaults="openai"))
    assert plain.sampling_defaults == {} and shown(asked(plain, route)) == {}


def test_a_response_tells_what_was_used(serving: Serving) -> None:
    body = {"model": serving.models.name, "input": "hi"}
    told = read_response(serving, Store(), body).echo
    assert (told["temperature"], told["top_p"]) == (0.6, 0.95)
    told = read_response(serving, Store(), {**body, "temperature": 0.2}).echo
    assert (told["temperature"], told["top_p"]) == (0.2, 0.95)


def test_what_is_so_anyway_is_no_recommendation() -> None:
    def of(**recommended: float) -> dict[str, float]:
        return defaults_of(cast(Engine, SimpleNamespace(recommended_sampling=recommended)), ServeOptions())

    assert of() == of(temperature=1.0, top_p=1, top_k=0, min_p=0, repetition_penalty=1.0) == of(top_k=-1) == {}
    assert of(temperature=1, top_k=50) == {"top_k": 50}
    with pytest.raises(ConfigError, match=r"generation_config\.json .* top_p.*--sampling-defaults openai"):
        of(top_p=0.0)


def test_servers_say_what_they_start_from(engine: Engine, serving: Serving) -> None:
    facts = EngineFacts.of(engine.model_path, engine.config)
    told = banner(facts, serving.options, "http://x", serving.formats, serving.sampling_defaults)
    assert "temperature 0.6, top_p 0.95, top_k 20, min_p 0.1, repetition_penalty 1.05 unless" in told
    assert "sampling" not in banner(facts, serving.options, "http://x", serving.formats, {})


def test_served_answers_are_those_of_the_recommendations(engine: Engine) -> None:
    import httpx

    server, url, thread = served.start(engine)
    try:
        with httpx.Client(base_url=url, timeout=30) as http:
            assert http.get("/server_info").json()["sampling_defaults"] == RECOMMENDED
            body = {"messages": USER, "seed": 5, "max_tokens": 24, "ignore_eos": True}
            plain = {**body, "temperature": 1, "top_p": 1, "top_k": -1, "min_p": 0, "repetition_penalty": 1}
            texts = [
                http.post("/v1/chat/completions", json=sent).json()["choices"][0]["message"]["content"]
                for sent in (body, {**body, **RECOMMENDED}, plain)
            ]
            native = {"sampling_params": {"sampling_seed": 5, "max_new_tokens": 24, "ignore_eos": True}}
            prompt = {"input_ids": [1, 9, 10]}
            wide = {"sampling_params": {**native["sampling_params"], "temperature": 1.0}}
            own = [http.post("/generate", json={**prompt, **sent}).json()["text"] for sent in (native, wide)]
    finally:
        server.should_exit = True
        thread.join(20)
    assert texts[0] == texts[1] != texts[2]
    assert own[0] == own[1], "the native route starts from SGLang's own defaults"
