"""``POST /inference/v1/generate``, vLLM's route without texts: token ids in, token ids out.

{"token_ids", "sampling_params": {"max_tokens", ...}}
    ->  {"request_id", "choices": [{"index", "token_ids", "logprobs", "finish_reason"}], "prompt_logprobs"}
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sglite.runtime.engine.presenter import Progress
from sglite.runtime.serve.body import check_names, read_object
from sglite.runtime.serve.context_length import check_length
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.fields import Fields, spelled
from sglite.runtime.serve.generations import Started, start
from sglite.runtime.serve.openai.completions import Ask, read_completion, respond
from sglite.runtime.serve.openai.logprobs import chat_rows, prompt_rows
from sglite.runtime.serve.openai.sampling import NAMES
from sglite.runtime.serve.openai.usage import usage_of
from sglite.runtime.serve.responses import sse
from sglite.runtime.serve.serving import Route, Serving

_PATH = "/inference/v1/generate"
_SHARED = ("model", "stream", "stream_options", "cache_salt", "priority", "request_id")
_FIELDS = ("token_ids", "sampling_params", *_SHARED)
_REFUSED = {
    "features": "this model takes text only; leave it out",
    "kv_transfer_params": "prefill and decode run in one engine; leave it out",
}
_NOT_HERE = ("prompt", "echo", "model", "stream", "stream_options", "return_token_ids", "return_tokens_as_token_ids")


class TokenCompletions:
    """The route."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def routes(self) -> list[Route]:
        """See the module."""
        return [Route(_PATH, ("POST",), self.generate)]

    async def generate(self, request: Request) -> Response:
        """Tokens that go on from the tokens."""
        ask = await read_completion(self._serving, _as_completion(self._serving, await read_object(request)))
        with spelled({**NAMES, "max_new_tokens": "max_tokens", "top_logprobs_num": "logprobs"}):
            started = await start(self._serving.engine, self._serving.in_flight, ask.rows)
        return await respond(self._serving, request, ask, started, _Answer(self._serving, ask, started))


def _as_completion(serving: Serving, body: dict[str, Any]) -> dict[str, Any]:
    """The request of ``/v1/completions`` that says the same."""
    body = {name: value for name, value in body.items() if value is not None}
    check_names(body, _FIELDS, _PATH, _REFUSED)
    fields = Fields(body)
    ids, size = fields.items("token_ids"), serving.engine.config.vocab_size
    if not ids or not all(type(token) is int and 0 <= token < size for token in ids):
        raise Refused(400, f"token_ids must be a list of ids in [0, {size - 1}], at least one", param="token_ids")
    sampling = dict(fields.object("sampling_params") or {})
    if not Fields(sampling).flag("detokenize", True) and sampling.get("stop"):
        raise Refused(
            400, "stop strings are found in text: leave detokenize out, or stop", param="sampling_params.stop"
        )
    sampling.pop("detokenize", None)
    for name in _NOT_HERE:
        if sampling.pop(name, None) is not None:
            raise Refused(400, f"sampling_params.{name} is no sampling parameter", param=f"sampling_params.{name}")
    limit = sampling.get("max_tokens")
    check_length(serving, len(ids), limit if type(limit) is int else None, "token_ids")
    if limit is None:
        sampling["max_tokens"] = serving.capacity - len(ids)
    return {**sampling, **{name: body[name] for name in _SHARED if name in body}, "prompt": ids}


class _Answer:
    """One answer, whole or in chunks."""

    def __init__(self, serving: Serving, ask: Ask, started: Started) -> None:
        assert serving.engine.tokenizer is not None
        self._tokenizer = serving.engine.tokenizer
        self._ask = ask
        self._started = started
        self._head = {"request_id": ask.rows[0].rid or started.rids[0]}
        self._latest: dict[int, Progress] = {}
        self._shown: dict[int, tuple[int, int]] = {}

    def whole(self, outcomes: list[Progress]) -> dict[str, Any]:
        """All of it."""
        meta, wanted = outcomes[0].event()["meta_info"], self._ask.prompt_logprobs
        rows, tops = meta.get("input_token_logprobs", []), meta.get("input_top_logprobs", [])
        return {
            **self._head,
            "choices": [self._choice(index, outcome) for index, outcome in enumerate(outcomes)],
            "prompt_logprobs": None if wanted is None else prompt_rows(self._tokenizer, rows, tops, wanted),
            "kv_transfer_params": None,
            "usage": usage_of([outcome.event() for outcome in outcomes], self._started.widths),
        }

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events."""
        async for index, progress in self._started.news():
            self._latest[index] = progress
            choice = self._choice(index, progress)
            if choice["token_ids"] or choice["finish_reason"] is not None:
                usage = {"usage": self._usage()} if self._ask.usage_always else {}
                yield sse({**self._head, "choices": [choice], **usage})
        if self._ask.include_usage:
            yield sse({**self._head, "choices": [], "usage": self._usage()})

    def _usage(self) -> dict[str, Any]:
        return usage_of([one.event() for one in self._latest.values()], [len(self._latest)])

    def _choice(self, index: int, progress: Progress) -> dict[str, Any]:
        """What ``progress`` adds to a choice."""
        ids, told = self._shown.get(index, (0, 0))
        self._shown[index] = progress.num_tokens, progress.num_rows
        reason = progress.finish_reason
        return {
            "index": index,
            "token_ids": progress.ids(ids),
            "logprobs": self._rows(progress, told),
            "finish_reason": None if reason is None else reason.type,
        }

    def _rows(self, progress: Progress, shown: int) -> dict[str, Any] | None:
        """Log probabilities of new tokens: of the likeliest, or of the token itself alone."""
        top = self._ask.logprobs
        if top is None:
            return None
        rows, tops = progress.logprobs(shown)
        if self._ask.given_logprobs is not None:
            tops = progress.given_logprobs(shown)
        elif top == 0:
            tops = [[row] for row in rows]
        else:
            tops = [None if one is None else one[:top] for one in tops]
        return {"content": chat_rows(self._tokenizer, rows, tops, as_ids=True)}
