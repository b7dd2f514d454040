"""A server as a benchmark sees it: streamed requests whose events are timed, and its own counters."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from sglite.bench.load import Answer

NATIVE = "/generate"
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
_ACCOUNTING = ("forced_tokens", "forward_passes", "computed_prompt_tokens", "queue_ms", "compute_ms")
_COUNTERS = ("num_finished", "num_steps", "step_tokens", "preemptions", "evicted_pages")


class Server:
    """The server at ``url``. ValueError, in one line, if none answers."""

    def __init__(self, url: str, api_key: str | None, model: str | None, timeout: float, connections: int) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self.url = url
        self._http = httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout, limits=limits)
        self._model = model

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def model(self) -> str:
        """The name that requests give."""
        if self._model is None:
            listed = await self._get("/v1/models")
            try:
                self._model = str((listed or {})["data"][0]["id"])
            except (LookupError, TypeError):
                raise ValueError(f"{self.url} names no model at /v1/models; give --served-model NAME") from None
        return self._model

    async def vocab_size(self) -> int:
        """Of the model, where the server tells. ValueError."""
        found = (await self._get("/get_model_info") or {}).get("vocab_size")
        if not isinstance(found, int):
            raise ValueError(f"{self.url} does not tell the vocabulary's size; give --route completions or chat")
        return found

    async def counters(self) -> dict[str, float]:
        """The server's sums since it started, by name; empty for servers that keep none we know."""
        found = await self._get("/server_info") or {}
        sums = {name: found[name] for name in _COUNTERS if isinstance(found.get(name), (int, float))}
        totals = found.get("totals")
        numbers = totals.items() if isinstance(totals, dict) else ()
        return {**sums, **{name: value for name, value in numbers if isinstance(value, (int, float))}}

    async def flush(self) -> bool:
        """Has the server forget what it cached; whether it did."""
        try:
            return (await self._http.post("/flush_cache")).is_success
        except httpx.HTTPError:
            return False

    async def send(self, answer: Answer, now: Callable[[], float]) -> None:
        """Streams a job's answer; see ``load.Send``."""
        reader = _Native(answer) if answer.job.path == NATIVE else _OpenAI(answer)
        try:
            async with self._http.stream("POST", answer.job.path, json=answer.job.body) as response:
                if response.status_code != 200:
                    await response.aread()
                    answer.status, answer.error = str(response.status_code), " ".join(response.text.split())[:300]
                    return
                answer.status = "cut off"
                async for line in response.aiter_lines():
                    if line.startswith("data:"):
                        data = line[5:].strip()
                        if data == "[DONE]":
                            answer.status = "ok"
                            break
                        _timed(answer, reader.read(json.loads(data)), now())
        except (httpx.HTTPError, ValueError, LookupError, TypeError, AttributeError) as error:
            answer.status, answer.error = type(error).__name__, str(error)[:300]

    async def _get(self, path: str) -> dict[str, Any] | None:
        try:
            response = await self._http.get(path)
        except httpx.HTTPError as error:
            raise ValueError(f"no server answers at {self.url}: {error or type(error).__name__}") from None
        if response.status_code in (401, 403):
            raise ValueError(f"{self.url}{path} answered {response.status_code}; give --api-key or set SGLITE_API_KEY")
        if response.status_code != 200:
            return None
        found = response.json()
        return found if isinstance(found, dict) else None


class StreamFailed(ValueError):
    """An event that says that something went wrong."""


def _timed(answer: Answer, tokens: int, at: float) -> None:
    """Takes the time of an event that brought ``tokens``."""
    if tokens <= 0:
        return
    if answer.first is None:
        answer.first = at
    elif answer.last is not None:
        answer.gaps.append((at - answer.last, tokens))
    answer.last = at


class _Native:
    """SGLang's cumulative events."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._count = 0

    def read(self, event: dict[str, Any]) -> int:
        """Takes an event in; how many tokens it brought."""
        if "error" in event:
            raise StreamFailed(str(event["error"]))
        meta = event["meta_info"]
        self._answer.text = event.get("text", "")
        reason = meta.get("finish_reason")
        self._answer.finish = reason.get("type") if isinstance(reason, dict) else reason
        self._answer.counts = _numbers(meta, ("prompt_tokens", "cached_tokens", "completion_tokens", *_ACCOUNTING))
        new, self._count = meta["completion_tokens"] - self._count, meta["completion_tokens"]
        return int(new)


class _OpenAI:
    """Deltas of chat or completions; an event counts as one token, the sums come with the last."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def read(self, event: dict[str, Any]) -> int:
        """As ``_Native.read``."""
        if event.get("error"):
            raise StreamFailed(str(event["error"]))
        usage = event.get("usage")
        if usage:
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            own = _numbers(usage.get("sglite") or {}, _ACCOUNTING)
            self._answer.counts = {
                **_numbers(usage, ("prompt_tokens", "completion_tokens")),
                "cached_tokens": cached,
                **own,
            }
        brought = 0
        for choice in event.get("choices") or []:
            delta = choice.get("delta") or {}
            content = delta.get("content") or choice.get("text") or ""
            thought = delta.get("reasoning_content") or delta.get("reasoning") or ""
            calls = delta.get("tool_calls") or []
            for call in calls:
                function = call.get("function") or {}
                kept = self._answer.calls.setdefault(call.get("index", 0), {"name": "", "arguments": ""})
                kept["name"] += function.get("name") or ""
                kept["arguments"] += function.get("arguments") or ""
            self._answer.text += content
            self._answer.finish = choice.get("finish_reason") or self._answer.finish
            brought += bool(content or thought or calls)
        return brought


def _numbers(found: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, float]:
    return {name: found[name] for name in names if isinstance(found.get(name), (int, float))}
