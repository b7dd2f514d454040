"""Text asked for ahead: one API call serves several gens of a program (``@function(num_api_spec_tokens=...)``).

Completion models write on past a gen's stop; what they wrote is the *surplus*. A literal that follows must be how the
surplus goes on, a gen takes from it up to its own stop. Chat models write a whole turn at a time, so the literals and
gens of the turn have to be known before: they are a pattern that the reply is matched with.

Values are those that one request each could have given: the request ahead is sampled as every gen it serves would be,
a gen that limits its tokens is served only text that cannot be longer, one with rules of its own is not served.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from sglite.lang.backends.base import GenCall
from sglite.lang.ir import Sampling

_TURN_BEGINS = re.compile(r"\n(SYSTEM|USER|ASSISTANT|TOOL): ")
"""What only the text between turns has (``formats.PLAIN``)."""


class Value(NamedTuple):
    """A gen's text and the stop that ended it; None: the model ended there."""

    text: str
    matched: str | None


def may_share(call: GenCall) -> bool:
    """Whether a gen can be part of a longer answer: one output, no rules, no tools, no log probabilities."""
    sampling = call.sampling
    rules = (sampling.regex, sampling.json_schema, sampling.ebnf, sampling.structural_tag, sampling.min_new_tokens)
    return (sampling.n or 1) == 1 and not any(rules) and not call.tools and not sampling.return_logprob


def manner(call: GenCall) -> Sampling:
    """How a gen is sampled, without what only says where it ends (and without the seed, one per request)."""
    return replace(call.sampling, stop=None, max_new_tokens=None, seed=None)


def take_value(text: str, ended: bool, call: GenCall) -> Value | None:
    """What ``call`` would have generated where ``text`` was: up to its first stop, or all of it if the model
    ``ended`` there. None where that is not known."""
    found = [(text.index(stop), -len(stop), stop) for stop in call.sampling.stop or () if stop and stop in text]
    if found:
        end, _, stop = min(found)
        value = Value(text[:end], stop)
    elif ended:
        value = Value(text, None)
    else:
        return None
    limit = call.sampling.max_new_tokens
    # No token is shorter than a byte: text of so many bytes has no more tokens than that.
    within = limit is None or limit < 0 or len(value.text.encode()) <= limit
    return value if within else None


class Surplus:
    """What a model wrote beyond what was asked of it. ``ended``: it would have written no more."""

    def __init__(self, text: str, ended: bool, sampled: Sampling) -> None:
        self._text = text
        self._ended = ended
        self._sampled = sampled

    def skip(self, literal: str) -> bool:
        """Goes past a literal; False where the model wrote something else."""
        if not self._text.startswith(literal):
            return False
        self._text = self._text[len(literal) :]
        return True

    def take(self, call: GenCall) -> Value | None:
        """Takes a gen's value, if the surplus has it."""
        if not self._text or not may_share(call) or manner(call) != self._sampled:
            return None
        value = take_value(self._text, self._ended, call)
        if value is not None:
            self._text = self._text[len(value.text) :]
        return value


class Step(NamedTuple):
    """A literal of a turn and the gen after it."""

    literal: str
    call: GenCall


def rest_of_turn(first: GenCall, opening: str, hints: Sequence[Step]) -> list[Step]:
    """The turn's steps, as far as known before it is written: ``opening`` and ``first``, then ``hints`` up to the end
    of the turn or the first gen that cannot be part of the same answer."""
    steps = [Step(opening, first)]
    for hint in hints:
        if _TURN_BEGINS.search(hint.literal) or not may_share(hint.call) or manner(hint.call) != manner(first):
            break
        steps.append(hint)
    return steps


def match_turn(reply: str, steps: Sequence[Step], ended: bool) -> list[Value] | None:
    """The gens' values in a turn that a model wrote; None if the turn is not what ``steps`` say.

    Literals have to stand where they belong; spaces around the reply and before its first literal do not count. A gen
    without a stop ends where the next literal begins.
    """
    text = reply.lstrip()
    opening = steps[0].literal.lstrip()
    if not text.startswith(opening.rstrip()):
        return None
    text = text[len(opening.rstrip()) :] if opening.strip() else text
    values = []
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        part, over = text, ended
        if following is not None and following.literal and following.literal in text:
            end = text.index(following.literal)
            part, over = (text[:end], True) if not step.call.sampling.stop else (text, ended)
        value = take_value(part, over, step.call)
        if value is None:
            return None
        values.append(value)
        text = text[len(value.text) :]
        if following is not None:
            if not text.startswith(following.literal):
                return None
            text = text[len(following.literal) :]
    return values
