"""OpenAI's chat API over HTTP, as much of it as a conversation needs."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx

_CONNECT_SECONDS = 10.0
_SILENT_SECONDS = 600.0
_MAX_ERROR = 400


class ChatFailed(ValueError):
    """What the server said instead of an answer, in one line."""


@dataclass(frozen=True)
class Piece:
    """A part of an answer; ``usage`` comes once, at its end, from servers that tell."""

    content: str = ""
    reasoning: str = ""
    finish: str | None = None
    usage: Mapping[str, Any] | None = None


class ChatServer:
    """A server and one of its models. ChatFailed if none answers at ``url``."""

    def __init__(self, url: str, api_key: str | None = None, model: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.url = url
        timeout = httpx.Timeout(_SILENT_SECONDS, connect=_CONNECT_SECONDS)
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout)
        self.model = model or self._first_model()

    def answer(self, messages: list[dict[str, str]], fields: Mapping[str, Any]) -> Generator[Piece, None, None]:
        """The pieces of the next turn. ChatFailed; closing the iterator stops the answer."""
        body = {"model": self.model, "messages": messages, "stream": True, **fields}
        body["stream_options"] = {"include_usage": True}
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    response.read()
                    raise ChatFailed(_refusal(response))
                for line in response.iter_lines():
                    if line.startswith("data:"):
                        data = line[5:].strip()
                        if data == "[DONE]":
                            return
                        yield from _pieces(data)
        except httpx.HTTPError as error:
            raise ChatFailed(f"{self.url} failed: {error or type(error).__name__}") from None

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> ChatServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _first_model(self) -> str:
        try:
            response = self._http.get("/v1/models")
        except httpx.HTTPError as error:
            raise ChatFailed(f"no server answers at {self.url}: {error or type(error).__name__}") from None
        if response.status_code != 200:
            raise ChatFailed(_refusal(response))
        try:
            return str(response.json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError):
            raise ChatFailed(f"{self.url} names no model at /v1/models; give --served-model NAME") from None


def _pieces(data: str) -> Iterator[Piece]:
    try:
        event = json.loads(data)
    except ValueError:
        raise ChatFailed(f"the server sent an event that is no JSON: {data[:80]!r}") from None
    if not isinstance(event, dict):
        raise ChatFailed(f"the server sent an event that is no object: {data[:80]!r}")
    if event.get("error"):
        raise ChatFailed(_message(event))
    for choice in (event.get("choices") or [])[:1]:
        delta = choice.get("delta") or {}
        thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
        yield Piece(delta.get("content") or "", thought, choice.get("finish_reason"))
    if event.get("usage"):
        yield Piece(usage=event["usage"])


def _refusal(response: httpx.Response) -> str:
    try:
        said = _message(response.json())
    except ValueError:
        said = " ".join(response.text.split())[:_MAX_ERROR]
    hint = "; give --api-key or set SGLITE_API_KEY" if response.status_code == 401 else ""
    return f"{response.request.url} answered {response.status_code}: {said}{hint}"


def _message(body: Any) -> str:
    """What an error's body says, in OpenAI's form or near it."""
    error = body.get("error", body) if isinstance(body, dict) else body
    said = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(said).split())[:_MAX_ERROR]
