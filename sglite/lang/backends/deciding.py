"""``select`` where an API gives no probabilities of given text: the model is asked to name one of the choices.

What comes back is a decision, not scores: the chosen one gets probability 1, the others (almost) none, so every rule
picks it, and ``meta_info`` has ``degraded: 1``. The request is constrained to the choices by a JSON Schema where the
API takes that; otherwise the answer is compared with them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol

from sglite.lang.backends.api import ApiError
from sglite.lang.backends.base import GenCall, Output
from sglite.lang.backends.conversations import matching_choice
from sglite.lang.choices import ChoiceScores, cost_of
from sglite.lang.errors import Unsupported
from sglite.lang.ir import Sampling
from sglite.lang.messages import Message

_NOT_CHOSEN = -1e4
_ROOM_TOKENS = 32
_NOT_TAKEN = (400, 404, 415, 422, 501)
"""Statuses with which servers answer fields they do not know."""


class Chat(Protocol):
    """What answers conversations. ``decides``: how it is sampled to decide as surely as it can."""

    decides: Sampling

    def chat(self, messages: list[Message], call: GenCall) -> AsyncGenerator[tuple[Output, ...], None]:
        """The outputs so far, cumulative; at least once."""
        ...


def refused_as_unknown(error: ApiError) -> bool:
    """Whether a server may have refused a request for a field it does not take."""
    return error.status in _NOT_TAKEN


def must_not_need_scores(unconditional: bool, who: str) -> None:
    """Unsupported for the rule that needs probabilities without the prompt."""
    if unconditional:
        raise Unsupported(
            f"{who} gives no probabilities of given text, which unconditional_likelihood_normalized compares; "
            "use another choices_method"
        )


def decided(choices: Sequence[str], chosen: str, outputs: Sequence[Output]) -> ChoiceScores:
    """Scores by which ``chosen`` wins under every rule."""
    rows = [[[0.0 if choice == chosen else _NOT_CHOSEN, None, choice]] for choice in choices]
    cost = {**cost_of([output.meta for output in outputs]), "degraded": 1}
    return ChoiceScores(rows, [[] for _ in choices], None, cost)


async def last(steps: AsyncGenerator[tuple[Output, ...], None]) -> tuple[Output, ...]:
    """The complete outputs of a request."""
    async with aclosing(steps):
        return [outputs async for outputs in steps][-1]


async def decide_by_asking(
    model: Chat, messages: list[Message], name: str | None, choices: Sequence[str], opening: str
) -> ChoiceScores:
    """Asks ``model`` to decide; ``opening``: what the assistant has already said in this turn."""
    limit = model.decides.max_new_tokens or _ROOM_TOKENS + max(len(choice.encode()) for choice in choices)
    sampling = replace(model.decides, max_new_tokens=limit)
    asked = [*messages, {"role": "user", "content": _told(opening)}] if opening.strip() else messages
    strict = GenCall(name=name, sampling=replace(sampling, json_schema=json.dumps(_schema(choices))))
    try:
        outputs = await last(model.chat(asked, strict))
    except (ApiError, Unsupported) as error:
        if isinstance(error, ApiError) and not refused_as_unknown(error):
            raise
        asked = [*messages, {"role": "user", "content": _told(opening) + _listed(choices)}]
        outputs = await last(model.chat(asked, GenCall(name=name, sampling=sampling)))
    return decided(choices, matching_choice(_answer(outputs[0].text), choices), outputs)


def _schema(choices: Sequence[str]) -> dict[str, object]:
    choice = {"type": "string", "enum": list(dict.fromkeys(choices)), "description": "the choice that fits best"}
    return {"type": "object", "properties": {"choice": choice}, "required": ["choice"], "additionalProperties": False}


def _told(opening: str) -> str:
    return f"Your reply begins with {json.dumps(opening, ensure_ascii=False)}; choose how it goes on. " * bool(opening)


def _listed(choices: Sequence[str]) -> str:
    return f"Reply with exactly one of {json.dumps(list(choices), ensure_ascii=False)} and nothing else."


def _answer(text: str) -> str:
    """The decision in a reply that is JSON, as it should be, or free text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return str(value["choice"]) if isinstance(value, dict) and "choice" in value else text
