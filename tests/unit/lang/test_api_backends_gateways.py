"""LiteLLM and Vertex AI: what they pass on, and what they need to be installed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from paid_api import Failure, PaidApi, ask, chat_answer

from sglite.lang.backends.api import ApiError
from sglite.lang.backends.litellm import LiteLLM
from sglite.lang.backends.retrying import RetryPolicy
from sglite.lang.backends.vertexai import VertexAI
from sglite.lang.errors import Unsupported


@pytest.fixture
def api() -> Iterator[PaidApi]:
    server = PaidApi()
    yield server
    server.close()


# --- LiteLLM ---


class Stub(ModuleType):
    """LiteLLM with one function. ``calls``: its arguments."""

    def __init__(self) -> None:
        super().__init__("litellm")
        self.calls: list[dict[str, Any]] = []

    async def acompletion(self, **arguments: Any) -> Any:
        self.calls.append(arguments)
        said = SimpleNamespace(content="ok", tool_calls=None)
        choice = SimpleNamespace(index=0, message=said, finish_reason="stop")
        usage = SimpleNamespace(prompt_tokens=2, completion_tokens=1)
        if not arguments.get("stream"):
            return SimpleNamespace(id="l", choices=[choice], usage=usage)

        async def chunks() -> Any:
            for text in ("o", "k"):
                delta = SimpleNamespace(content=text, tool_calls=None)
                yield SimpleNamespace(id="l", choices=[SimpleNamespace(index=0, delta=delta)], usage=None)
            yield SimpleNamespace(id="l", choices=[], usage=usage)

        return chunks()


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    module = Stub()
    monkeypatch.setitem(sys.modules, "litellm", module)
    return module


def test_litellm_is_called_with_what_was_asked_for(stub: Stub) -> None:
    backend = LiteLLM("groq/llama", api_key="k")
    assert ask(backend, top_k=3, temperature=0.5)[0].text == "ok"
    assert stub.calls == [
        {
            "model": "groq/llama",
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 128,
            "temperature": 0.5,
            "top_k": 3,
            "api_key": "k",
            "max_retries": 0,
            "num_retries": 0,
        }
    ]
    assert backend.token_usage.prompt_tokens == 2
    with pytest.raises(Unsupported, match="takes no min_p"):
        ask(backend, min_p=0.1)


def test_litellm_streams_and_repeats(stub: Stub) -> None:
    backend = LiteLLM("groq/llama")
    assert ask(backend, stream=True)[0].text == "ok" and backend.token_usage.completion_tokens == 1
    assert [o.text for o in ask(backend, n=2)] == ["ok", "ok"] and len(stub.calls) == 3


@pytest.mark.slow
def test_the_real_litellm_answers_and_its_errors_keep_their_status(api: PaidApi) -> None:
    pytest.importorskip("openai")
    before = dict(os.environ)
    try:
        backend = LiteLLM(
            "openai/gpt-4", api_base=f"{api.url}/v1", api_key="k", retry=RetryPolicy(max_tries=2, first_s=0.001)
        )
    except ImportError:
        pytest.skip("litellm is not installed")
    assert dict(os.environ) == before
    api.in_turn(Failure(503), chat_answer("ok"), Failure(400, "no such field"))
    assert ask(backend, max_new_tokens=5)[0].text == "ok" and backend.token_usage.retries == 1
    assert api.bodies[1]["max_tokens"] == 5 and "temperature" not in api.bodies[1]
    with pytest.raises(ApiError, match="no such field") as caught:
        ask(backend)
    assert caught.value.status == 400


def test_without_the_packages_the_lines_that_install_them_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "litellm", None)
    monkeypatch.setitem(sys.modules, "google.auth", None)
    with pytest.raises(ImportError, match=r"pip install 'sglite\[litellm\]'"):
        LiteLLM("a/b")
    with pytest.raises(ImportError, match=r"'google-auth'.*pip install 'sglite\[vertexai\]'"):
        VertexAI("gemini", "p")


# --- Vertex AI ---


class Credentials:
    """Credentials that are renewed twice before they stay valid."""

    def __init__(self) -> None:
        self.token: str | None = None
        self.renewals = 0

    @property
    def valid(self) -> bool:
        return self.renewals == 2

    def refresh(self, request: Any) -> None:
        assert request == "transport"
        self.renewals += 1
        self.token = f"token-{self.renewals}"


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> Credentials:
    """Stands in for google-auth, whose default credentials are these."""
    pytest.importorskip("openai")
    credentials = Credentials()
    auth = ModuleType("google.auth")
    auth.default = lambda scopes: (credentials, "p")  # type: ignore[attr-defined]
    requests = ModuleType("google.auth.transport.requests")
    requests.Request = lambda: "transport"  # type: ignore[attr-defined]
    for module in (auth, ModuleType("google.auth.transport"), requests):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return credentials


def test_vertex_is_asked_with_a_token_that_is_renewed_when_it_expires(api: PaidApi, google: Credentials) -> None:
    settings = [{"category": "c", "threshold": "t"}]
    backend = VertexAI("gemini-x", "p", base_url=f"{api.url}/v1", safety_settings=settings)
    assert google.renewals == 0  # nothing happens at construction
    tokens = []
    for _ in range(3):
        assert ask(backend)[0].text == "ok"
        tokens.append(api.headers["authorization"])
    assert tokens == ["Bearer token-1", "Bearer token-2", "Bearer token-2"]
    assert api.bodies[0]["model"] == "google/gemini-x"
    assert api.bodies[0]["extra_body"] == {"google": {"safety_settings": settings}}


def test_vertexs_address_comes_from_the_project(monkeypatch: pytest.MonkeyPatch, google: Credentials) -> None:
    for name in ("GCP_PROJECT_ID", "GOOGLE_CLOUD_PROJECT", "GCP_LOCATION"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="no project"):
        VertexAI("gemini")
    monkeypatch.setenv("GCP_PROJECT_ID", "mine")
    paths = [str(b._new_client().base_url) for b in (VertexAI("g"), VertexAI("m", "p", "global", endpoint="12"))]
    assert paths == [
        "https://us-central1-aiplatform.googleapis.com/v1/projects/mine/locations/us-central1/endpoints/openapi/",
        "https://aiplatform.googleapis.com/v1/projects/p/locations/global/endpoints/12/",
    ]
