"""A sequence that the server knows as text only: for servers that speak SGLang's native protocol and nothing more.

Every request carries all text so far; the server tokenises it and finds the shared prefix in its cache.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, cast

from sglite.lang.backends.base import Conversation, GenCall, Hints, Output, Stream, scored_rows
from sglite.lang.backends.endpoint_http import Http
from sglite.lang.choices import ChoiceScores, Rows, cost_of
from sglite.lang.ir import Media

_HEALING_TOKENS = 2
"""How far before the end of the prompt a choice may change the prompt's own tokens."""
_PREFILL_WORTH_CHARS = 64
"""A fork shares this much new text or less without computing it first."""
_IMAGE_TOKEN = "<image>"
"""What stands for an image in the text."""
DEFAULTS = {"max_new_tokens": 128}
"""SGLang's front end spells its default out; servers of other makes may have none."""
NOTHING_NEW = {"temperature": 0.0, "max_new_tokens": 0}
"""Sampling parameters of a request that only computes its prompt."""
_SCORE = {"sampling_params": NOTHING_NEW, "return_logprob": True, "return_text_in_logprobs": True}
_GENERATE = "/generate"


class TextStream(Stream):
    """See the module. ``computed``: how many characters the server has seen in a request; ``sees``: takes images."""

    def __init__(self, http: Http, sees: bool, text: str = "", computed: int = 0, images: tuple[str, ...] = ()) -> None:
        self._http = http
        self._sees = sees
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
        if media.kind != "image" or not self._sees:
            return super().attach(media)
        self._images += (media.data,)
        self._text += _IMAGE_TOKEN
        return _IMAGE_TOKEN

    async def generate(self, call: GenCall) -> AsyncGenerator[tuple[Output, ...], None]:
        """See Stream."""
        body = self._body(self._text, sampling_params={**DEFAULTS, **call.params()}, **call.logprob_options())
        outputs = [Output("")] * (call.sampling.n or 1)
        if call.stream:
            async with aclosing(self._http.post_events(_GENERATE, {**body, "stream": True})) as events:
                async for event in events:
                    outputs[event.get("index", 0)] = _output(event)
                    yield tuple(outputs)
        else:
            answer = await self._http.post(_GENERATE, body)
            outputs = [_output(one) for one in (answer if isinstance(answer, list) else [answer])]
            yield tuple(outputs)
        self._text += outputs[0].text
        self._computed = len(self._text)

    async def fork(self, n: int) -> list[Stream]:
        """See Stream. Much new text is computed first, so that no two branches compute it."""
        if n > 1 and len(self._text) - self._computed > _PREFILL_WORTH_CHARS:
            await self._prefill()
        return [TextStream(self._http, self._sees, self._text, self._computed, self._images) for _ in range(n)]

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
        answer = await self._http.post(_GENERATE, self._body(self._text, sampling_params=NOTHING_NEW))
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
        answers = await self._http.post(_GENERATE, body)
        inputs = [
            _choice_rows(self._text, choice, answer["meta_info"]["input_token_logprobs"], num_prompt - start)
            for choice, answer in zip(choices, answers, strict=True)
        ]
        outputs = [answer["meta_info"].get("output_token_logprobs") or [] for answer in answers]
        cost = cost_of([answer["meta_info"] for answer in answers])
        alone = None
        if unconditional:
            ids = [[row[1] for row in rows] for rows in inputs]
            answers = await self._http.post(_GENERATE, {"input_ids": ids, "logprob_start_len": 0, **_SCORE})
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


def _output(event: dict[str, Any]) -> Output:
    return Output(event["text"], event.get("meta_info") or {})
