"""A server that speaks SGLang's native protocol (``POST /generate``), sglite's own or SGLang's.

Requests carry text: the server tokenises and finds the shared prefix in its cache. One connection pool with keep-alive
serves all programs; closing a request aborts it on the server.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, NamedTuple, cast

import httpx

from sglite.lang.backends.base import Backend, Conversation, GenCall, Hints, Output, Stream, scored_rows
from sglite.lang.choices import ChoiceScores, Rows, cost_of
from sglite.lang.errors import BackendError
from sglite.lang.formats import ChatFormat, TableFormat, UntoldFormat, named_format
from sglite.lang.ir import Media

_CONNECT_SECONDS = 10.0
_ASK_SECONDS = 60.0
_HEALING_TOKENS = 2
"""How far before the end of the prompt a choice may change the prompt's own tokens."""
_PREFILL_WORTH_CHARS = 64
"""A fork shares this much new text or less without computing it first."""
_IMAGE_TOKEN = "<image>"
"""What stands for an image in the text."""
_DEFAULTS = {"max_new_tokens": 128}
"""SGLang's front end spells its default out; servers of other makes may have none."""
_NOTHING_NEW = {"temperature": 0.0, "max_new_tokens": 0}
"""Sampling parameters of a request that only computes its prompt."""
_SCORE = {"sampling_params": _NOTHING_NEW, "return_logprob": True, "return_text_in_logprobs": True}


class RuntimeEndpoint(Backend):
    """The server at ``base_url``; BackendError if none answers there.

    ``api_key``: sent as bearer token. ``verify``: False or a path of certificates, as for httpx.
    ``chat_template_name``: how turns are spelled, unless the server tells (see ``formats``).
    ``max_connections``: requests at a time; more wait here.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        verify: bool | str = True,
        chat_template_name: str | None = None,
        max_connections: int = 512,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._tls = httpx.create_ssl_context(verify) if self.base_url.startswith("https") else False
        self._max_connections = max_connections
        self._connections: _Connections | None = None
        self.model_info: dict[str, Any] = _check(self._ask("GET", "/get_model_info")).json()
        self._format = self._find_format(chat_template_name)

    def _find_format(self, name: str | None) -> ChatFormat:
        told = self.model_info.get("chat_format")
        if name is not None:
            return named_format(name)
        return UntoldFormat(self.base_url) if told is None else TableFormat.from_dict(told)

    def get_model_name(self) -> str:
        """The path or name of the model, as the server gives it."""
        return str(self.model_info.get("model_path", ""))

    def chat_format(self) -> ChatFormat:
        """The named format, the server's, or plain turns."""
        return self._format

    def open(self, program_id: str) -> Stream:
        """See Backend."""
        return EndpointStream(self)

    async def prefill(self, text: str) -> None:
        """See Backend."""
        await self.post({"text": text, "sampling_params": _NOTHING_NEW})

    def flush_cache(self) -> bool:
        """See Backend."""
        return self._ask("POST", "/flush_cache").is_success

    def get_server_info(self) -> dict[str, Any]:
        """See Backend."""
        response = self._ask("GET", "/server_info")
        if response.status_code == 404:
            response = self._ask("GET", "/get_server_info")
        return dict(_check(response).json())

    def _ask(self, method: str, path: str) -> httpx.Response:
        """The answer to a request from the caller's own thread."""
        try:
            with httpx.Client(headers=self._headers, verify=self._tls, timeout=_ASK_SECONDS) as client:
                return client.request(method, self.base_url + path)
        except httpx.HTTPError as error:
            raise _unreachable(self.base_url, error) from error

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[httpx.AsyncClient]:
        """A free connection of the running loop (a forked process has a new loop), or a new one."""
        loop = asyncio.get_running_loop()
        if self._connections is None or self._connections.loop is not loop:
            self._connections = _Connections(loop, asyncio.Semaphore(self._max_connections), [])
        slots, idle = self._connections.slots, self._connections.idle
        async with slots:
            client = idle.pop() if idle else self._new_connection()
            try:
                yield client
            except httpx.HTTPError as error:
                raise _unreachable(self.base_url, error) from error
            finally:
                idle.append(client)

    def _new_connection(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.base_url,
            headers=self._headers,
            verify=self._tls,
            timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1),
        )

    async def post(self, body: dict[str, Any]) -> Any:
        """The server's answer to one ``/generate`` request; BackendError with its message if it refuses."""
        async with self._connection() as client:
            return _check(await client.post("/generate", json=body)).json()

    async def post_stream(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The events of one streamed ``/generate`` request; BackendError where it fails."""
        request = {**body, "stream": True}
        async with self._connection() as client, client.stream("POST", "/generate", json=request) as response:
            if response.is_error:
                await response.aread()
            _check(response)
            async for event in _events(response):
                if "error" in event:
                    raise BackendError(f"{self.base_url}: {_message(event)}")
                yield event


class _Connections(NamedTuple):
    """Keep-alive connections, which belong to one loop. ``slots`` bounds the requests in flight.

    Each connection is a client of its own: one client's pool looks at all its connections for every request, which
    with hundreds of them takes longer than the request.
    """

    loop: asyncio.AbstractEventLoop
    slots: asyncio.Semaphore
    idle: list[httpx.AsyncClient]


class EndpointStream(Stream):
    """A sequence that the server knows as text. ``computed``: how many characters it has seen in a request."""

    def __init__(
        self, endpoint: RuntimeEndpoint, text: str = "", computed: int = 0, images: tuple[str, ...] = ()
    ) -> None:
        self._endpoint = endpoint
        self._text = text
        self._computed = computed
        self._images = images

    def _body(self, text: str | list[str], **fields: Any) -> dict[str, Any]:
        body = {"text": text, **fields}
        if self._images:
            images = self._images[0] if len(self._images) == 1 else list(self._images)
            body["image_data"] = images if isinstance(text, str) else [images] * len(text)
        return body

    def append(self, text: str) -> None:
        """See Stream."""
        self._text += text

    def attach(self, media: Media) -> str:
        """Images go with every request; videos are refused, and so are images the server says it cannot understand."""
        if media.kind != "image" or self._endpoint.model_info.get("has_image_understanding") is False:
            return super().attach(media)
        self._images += (media.data,)
        self._text += _IMAGE_TOKEN
        return _IMAGE_TOKEN

    async def generate(self, call: GenCall) -> AsyncGenerator[tuple[Output, ...], None]:
        """See Stream."""
        body = self._body(self._text, sampling_params={**_DEFAULTS, **call.params()}, **call.logprob_options())
        outputs = [Output("")] * (call.sampling.n or 1)
        if call.stream:
            async with aclosing(self._endpoint.post_stream(body)) as events:
                async for event in events:
                    outputs[event.get("index", 0)] = _output(event)
                    yield tuple(outputs)
        else:
            answer = await self._endpoint.post(body)
            outputs = [_output(one) for one in (answer if isinstance(answer, list) else [answer])]
            yield tuple(outputs)
        self._text += outputs[0].text
        self._computed = len(self._text)

    async def fork(self, n: int) -> list[Stream]:
        """See Stream. Much new text is computed first, so that no two branches compute it."""
        if n > 1 and len(self._text) - self._computed > _PREFILL_WORTH_CHARS:
            await self._prefill()
        return [EndpointStream(self._endpoint, self._text, self._computed, self._images) for _ in range(n)]

    def mark(self) -> object:
        """See Stream."""
        return len(self._text), self._images

    def rewind(self, mark: object) -> None:
        """See Stream."""
        length: int
        length, self._images = cast(tuple[int, tuple[str, ...]], mark)
        self._text = self._text[:length]
        self._computed = min(self._computed, length)

    async def _prefill(self) -> int:
        """Computes the text so far; returns its number of tokens."""
        answer = await self._endpoint.post(self._body(self._text, sampling_params=_NOTHING_NEW))
        self._computed = len(self._text)
        return int(answer["meta_info"]["prompt_tokens"])

    async def aclose(self) -> None:
        """Nothing to give back: the server keeps no sequences."""

    async def score(
        self,
        name: str | None,
        choices: Sequence[str],
        *,
        unconditional: bool,
        conversation: Conversation | None = None,
        hints: Hints = Hints(),  # noqa: B008  (frozen)
    ) -> ChoiceScores:
        """See Stream. Two requests: the prompt, then all choices at once, from just before the prompt's end, since a
        choice may change the prompt's last tokens."""
        num_prompt = await self._prefill() if self._text else 0
        start = max(num_prompt - _HEALING_TOKENS, 0)
        body = self._body([self._text + choice for choice in choices], logprob_start_len=start, **_SCORE)
        answers = await self._endpoint.post(body)
        inputs = [
            _choice_rows(self._text, choice, answer["meta_info"]["input_token_logprobs"], num_prompt - start)
            for choice, answer in zip(choices, answers, strict=True)
        ]
        outputs = [answer["meta_info"].get("output_token_logprobs") or [] for answer in answers]
        cost = cost_of([answer["meta_info"] for answer in answers])
        alone = None
        if unconditional:
            ids = [[row[1] for row in rows] for rows in inputs]
            answers = await self._endpoint.post({"input_ids": ids, "logprob_start_len": 0, **_SCORE})
            alone = [answer["meta_info"]["input_token_logprobs"] for answer in answers]
        return ChoiceScores(inputs, outputs, alone, cost)


def _choice_rows(prompt: str, choice: str, rows: Rows, boundary: int) -> Rows:
    """The rows of the tokens that hold text of ``choice``.

    Found by the tokens' texts; where those do not spell the text (parts of characters), by the number of the prompt's
    tokens, ``boundary`` of which are in ``rows``.
    """
    texts = [row[2] or "" for row in rows]
    spelled = "".join(texts)
    first = boundary
    if (prompt[-len(spelled) :] + choice).endswith(spelled):
        first, missing = len(rows), len(choice)
        while missing > 0 and first > 0:
            first -= 1
            missing -= len(texts[first])
    return scored_rows(choice, rows[first:])


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The JSON events of a server-sent stream. Lines end at \\n alone: text may hold other separators, unescaped."""
    rest = b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if line.startswith(b"data:") and data != b"[DONE]":
                yield json.loads(data)


def _output(event: dict[str, Any]) -> Output:
    return Output(event["text"], event.get("meta_info") or {})


def _check(response: httpx.Response) -> httpx.Response:
    if response.is_error:
        try:
            said = _message(response.json())
        except ValueError:
            said = response.text[:500] or response.reason_phrase
        raise BackendError(f"{response.url}: HTTP {response.status_code}: {said}")
    return response


def _message(body: Any) -> str:
    """What went wrong, wherever a server's error body says it."""
    if isinstance(body, dict):
        for key in ("error", "message", "detail"):
            if body.get(key):
                return _message(body[key])
    return body if isinstance(body, str) else json.dumps(body)


def _unreachable(url: str, error: httpx.HTTPError) -> BackendError:
    return BackendError(f"{url}: {type(error).__name__}: {error}; is the server running there?")
