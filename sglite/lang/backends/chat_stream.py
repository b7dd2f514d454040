"""A sequence in a chat API: the API keeps none, so every request carries the whole conversation as messages.

The text that is appended only matters for turns that one call writes ahead (``speculation``).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from sglite.lang.backends.base import Conversation, GenCall, Hints, Output, Stream
from sglite.lang.backends.conversations import finished_turns, media_type, must_open_turn
from sglite.lang.backends.deciding import Chat, decide_by_asking, last, must_not_need_scores
from sglite.lang.backends.speculation import Step, Value, match_turn, may_share, rest_of_turn
from sglite.lang.choices import ChoiceScores
from sglite.lang.errors import BackendError
from sglite.lang.ir import Media
from sglite.lang.messages import Message

_TURN_TRIES = 3


class ChatModel(Chat, Protocol):
    """What a ``ChatStream`` asks. ``n_at_once``: whether one request gives several outputs; others make several."""

    provider: str
    n_at_once: bool


class _Ready(NamedTuple):
    """An output that an earlier call brought, for when exactly ``step`` is asked for."""

    step: Step
    output: Output


class ChatStream(Stream):
    """See the module. ``images``: by the mark that stands for it in the text."""

    def __init__(self, model: ChatModel, images: dict[str, str] | None = None, ahead: int = 0, since: str = "") -> None:
        self._model = model
        self._images = dict(images or {})
        self._ahead = ahead
        self._since = since
        """What was appended since the last gen."""
        self._hints: deque[Step] = deque()
        self._ready: deque[_Ready] = deque()

    def append(self, text: str) -> None:
        """See Stream; the conversation has the text."""
        self._since += text

    def attach(self, media: Media) -> str:
        """Images become parts of their message; videos are refused."""
        if media.kind != "image":
            return super().attach(media)
        media_type(media.data)
        mark = f"<image {len(self._images) + 1}>"
        self._images[mark] = media.data
        self.append(mark)
        return mark

    def speculate(self, num_tokens: int) -> None:
        """One call, of up to ``num_tokens``, writes a whole assistant's turn with all its gens."""
        self._ahead = num_tokens

    def prepare(self, text: str, call: GenCall) -> None:
        """See Stream. Of use only for turns that one call writes."""
        if self._ahead:
            self._hints.append(Step(text, call))

    async def generate(self, call: GenCall) -> AsyncGenerator[tuple[Output, ...], None]:
        """See Stream. Unsupported unless the gen opens the assistant's turn."""
        step, self._since = Step(self._since, call), ""
        output = self._from_ready(step)
        if output is not None:
            yield (output,)
            return
        messages = finished_turns(call.conversation, self._images)
        turn = self._whole_turn(step)
        if turn:
            yield (await self._write_turn(messages, call, turn),)
            return
        must_open_turn(call.conversation, "a gen")
        if (call.sampling.n or 1) > 1 and not self._model.n_at_once:
            yield await _several(self._model, messages, call)
            return
        steps = self._model.chat(messages, call)
        try:
            async for outputs in steps:
                yield outputs
        finally:
            await steps.aclose()

    # --- turns that one call writes ---

    def _from_ready(self, step: Step) -> Output | None:
        if self._ready and self._ready[0].step == step:
            return self._ready.popleft().output
        self._ready.clear()
        if step in self._hints:
            while self._hints.popleft() != step:
                pass  # what came before was asked for otherwise
        return None

    def _whole_turn(self, step: Step) -> list[Step]:
        """The steps of the turn that ``step`` begins; none if it is an ordinary one, or may not be written ahead."""
        conversation = step.call.conversation
        if not self._ahead or conversation is None or conversation.role != "assistant" or not may_share(step.call):
            return []
        if not step.literal.endswith(conversation.open_text):
            return []  # a gen stands before it in the turn
        steps = rest_of_turn(step.call, conversation.open_text, tuple(self._hints))
        return steps if len(steps) > 1 or steps[0].literal.strip() else []

    async def _write_turn(self, messages: list[Message], call: GenCall, steps: list[Step]) -> Output:
        """Has one call write the turn; keeps the outputs of the gens after ``call``."""
        whole = replace(call, stream=False, sampling=replace(call.sampling, stop=None, max_new_tokens=self._ahead))
        for _ in range(_TURN_TRIES):
            (reply,) = await last(self._model.chat(messages, whole))
            ended = reply.meta.get("finish_reason", {}).get("type") != "length"
            values = match_turn(reply.text, steps, ended)
            if values is not None:
                first, *rest = map(_output, values)
                self._ready = deque(_Ready(*pair) for pair in zip(steps[1:], rest, strict=True))
                for _ in rest:
                    self._hints.popleft()
                return Output(first.text, {**reply.meta, **first.meta})
        raise BackendError(
            f"{_TURN_TRIES} calls did not bring a turn of the form {_form(steps)}; the last was {reply.text[:200]!r}. "
            "Show the form in the prompt, allow more num_api_spec_tokens, leave max_tokens out, or drop "
            "num_api_spec_tokens"
        )

    # --- choices, branches ---

    async def score(
        self,
        name: str | None,
        choices: Sequence[str],
        *,
        unconditional: bool,
        conversation: Conversation | None = None,
        hints: Hints = Hints(),  # noqa: B008  (frozen)
    ) -> ChoiceScores:
        """See Stream; degraded: a decision, no scores (see ``deciding``)."""
        must_not_need_scores(unconditional, self._model.provider)
        messages = finished_turns(conversation, self._images)
        opening = ""
        if conversation is not None and conversation.role == "assistant":
            opening = conversation.open_text
        else:
            must_open_turn(conversation, "a select")
        self._ready.clear()
        return await decide_by_asking(self._model, messages, name, choices, opening)

    def mark(self) -> object:
        """See Stream; the conversation is what is taken back, by who keeps it."""
        return dict(self._images), self._since

    def rewind(self, mark: object) -> None:
        """See Stream."""
        assert isinstance(mark, tuple)
        self._images, self._since = dict(mark[0]), mark[1]
        self._ready.clear()
        self._hints.clear()

    async def fork(self, n: int) -> list[Stream]:
        """See Stream; nothing is shared but the provider's own prompt cache."""
        return [ChatStream(self._model, self._images, self._ahead, self._since) for _ in range(n)]

    async def aclose(self) -> None:
        """Nothing to give back: the API keeps no sequences."""


def _output(value: Value) -> Output:
    reason: dict[str, Any] = {"type": "stop"}
    if value.matched is not None:
        reason["matched"] = value.matched
    return Output(value.text, {"finish_reason": reason, "speculated": True})


def _form(steps: Sequence[Step]) -> str:
    return " ".join(f"{step.literal!r} <{step.call.name or 'text'}>" for step in steps)


async def _several(model: Chat, messages: list[Message], call: GenCall) -> tuple[Output, ...]:
    """``n`` requests at once for an API that gives one output each; the first failure stops the others."""
    n = call.sampling.n or 1
    one = replace(call, stream=False, sampling=replace(call.sampling, n=None))
    tasks = [asyncio.ensure_future(last(model.chat(messages, one))) for _ in range(n)]
    try:
        return tuple(outputs[0] for outputs in await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
