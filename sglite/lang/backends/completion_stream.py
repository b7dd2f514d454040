"""A sequence in a completion API: every request carries the text so far as prompt."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from sglite.lang.backends.api import ApiError
from sglite.lang.backends.base import Conversation, GenCall, Hints, Output, Stream, scored_rows
from sglite.lang.backends.conversations import matching_choice
from sglite.lang.backends.deciding import decided, last, must_not_need_scores, refused_as_unknown
from sglite.lang.backends.speculation import Surplus, manner, may_share
from sglite.lang.choices import ChoiceScores, Rows, cost_of
from sglite.lang.errors import Unsupported
from sglite.lang.ir import Sampling

_ROOM_TOKENS = 8


class Echo(NamedTuple):
    """Prompts' tokens with their log probabilities. ``rows``: ``[logprob | None, None, text]``; ``meta``: counters."""

    rows: list[Rows]
    meta: dict[str, Any]


class CompletionModel(Protocol):
    """What a ``CompletionStream`` asks."""

    provider: str
    model_name: str

    def complete(self, prompt: str, call: GenCall) -> AsyncGenerator[tuple[Output, ...], None]:
        """The outputs so far, cumulative; at least once."""
        ...

    async def echoed(self, prompts: list[str]) -> Echo | None:
        """The tokens of each prompt; None where the server gives none."""
        ...


class CompletionStream(Stream):
    """See the module. ``ahead``: tokens to ask for at once (``speculation``), 0 to ask for each gen."""

    def __init__(self, model: CompletionModel, text: str = "", ahead: int = 0) -> None:
        self._model = model
        self._text = text
        self._ahead = ahead
        self._surplus: Surplus | None = None

    def append(self, text: str) -> None:
        """See Stream. Text that is not how the surplus goes on ends it."""
        self._text += text
        if self._surplus is not None and not self._surplus.skip(text):
            self._surplus = None

    def speculate(self, num_tokens: int) -> None:
        """Asks for ``num_tokens`` at once, past the stops of the gen at hand, for the gens that follow."""
        self._ahead = num_tokens

    async def generate(self, call: GenCall) -> AsyncGenerator[tuple[Output, ...], None]:
        """See Stream. A gen that the surplus serves makes no request (``speculated`` in its meta)."""
        outputs: tuple[Output, ...] = ()
        output = self._take(call, {"speculated": True})
        if output is None and self._ahead and may_share(call):
            output = await self._ask_ahead(call)
        if output is not None:
            outputs = (output,)
            yield outputs
        else:
            self._surplus = None
            steps = self._model.complete(self._text, call)
            try:
                async for outputs in steps:
                    yield outputs
            finally:
                await steps.aclose()
        self._text += outputs[0].text

    async def _ask_ahead(self, call: GenCall) -> Output | None:
        """The call's output from an answer longer than it asked for, whose rest stays; None if it has no end there."""
        sampling = replace(call.sampling, stop=None, max_new_tokens=self._ahead)
        (written,) = await last(self._model.complete(self._text, replace(call, stream=False, sampling=sampling)))
        ended = written.meta.get("finish_reason", {}).get("type") != "length"
        self._surplus = Surplus(written.text, ended, manner(call))
        return self._take(call, written.meta)

    def _take(self, call: GenCall, meta: dict[str, Any]) -> Output | None:
        value = None if self._surplus is None else self._surplus.take(call)
        if value is None:
            return None
        reason = {"type": "stop"} if value.matched is None else {"type": "stop", "matched": value.matched}
        return Output(value.text, {**meta, "finish_reason": reason})

    async def score(
        self,
        name: str | None,
        choices: Sequence[str],
        *,
        unconditional: bool,
        conversation: Conversation | None = None,
        hints: Hints = Hints(),  # noqa: B008  (frozen)
    ) -> ChoiceScores:
        """See Stream. By the choices' own probabilities where the server echoes prompts with them, in one request;
        else by what the model writes (degraded: a decision, no scores)."""
        self._surplus = None
        echo = await self._echoed([self._text + choice for choice in choices])
        if echo is None:
            must_not_need_scores(unconditional, self._model.provider)
            return await self._decide(name, choices)
        inputs = [scored_rows(c, _ending(c, rows)) for c, rows in zip(choices, echo.rows, strict=True)]
        none: list[Rows] = [[] for _ in choices]
        if not unconditional:
            return ChoiceScores(inputs, none, None, cost_of([echo.meta]))
        bare = await self._echoed(list(choices))
        if bare is None:
            raise Unsupported(f"{self._model.provider} gives no probabilities of {list(choices)} without a prompt")
        alone = [_same_tokens(c, rows, mine) for c, rows, mine in zip(choices, bare.rows, inputs, strict=True)]
        return ChoiceScores(inputs, none, alone, cost_of([echo.meta, bare.meta]))

    async def _echoed(self, prompts: list[str]) -> Echo | None:
        try:
            return await self._model.echoed(prompts)
        except ApiError as error:
            if refused_as_unknown(error):
                return None
            raise

    async def _decide(self, name: str | None, choices: Sequence[str]) -> ChoiceScores:
        room = _ROOM_TOKENS + max(len(choice.encode()) for choice in choices)
        call = GenCall(name=name, sampling=Sampling(temperature=0.0, max_new_tokens=room))
        outputs = await last(self._model.complete(self._text, call))
        return decided(choices, matching_choice(outputs[0].text, choices), outputs)

    def mark(self) -> object:
        """See Stream."""
        return len(self._text)

    def rewind(self, mark: object) -> None:
        """See Stream."""
        assert isinstance(mark, int)
        self._text = self._text[:mark]
        self._surplus = None

    async def fork(self, n: int) -> list[Stream]:
        """See Stream; nothing is shared but the provider's own prompt cache."""
        return [CompletionStream(self._model, self._text, self._ahead) for _ in range(n)]

    async def aclose(self) -> None:
        """Nothing to give back: the API keeps no sequences."""


def _ending(choice: str, rows: Rows) -> Rows:
    """The rows of the tokens at the end that hold ``choice``; the first may hold the end of the prompt as well."""
    first, missing = len(rows), len(choice)
    while missing > 0 and first > 0:
        first -= 1
        missing -= len(rows[first][2])
    return rows[first:]


def _same_tokens(choice: str, alone: Rows, beside: Rows) -> Rows:
    """The rows of ``choice`` without the prompt; Unsupported where it is spelled with other tokens then."""
    rows = _ending(choice, alone)
    if [row[2] for row in rows] != [row[2] for row in beside]:
        raise Unsupported(
            f"choice {choice!r} is spelled with other tokens without the prompt ({[r[2] for r in rows]}) than after it "
            f"({[r[2] for r in beside]}), so they cannot be compared; use another choices_method"
        )
    return rows
