"""From ``Sampling`` to what an API takes: only what was asked for, and nothing ignored.

A program's sampling is complete: it carries SGLang's defaults for whatever nobody set. Those are neutral (temperature
1.0, top_p 1.0, no stops ...) and not sent, which leaves the provider's own defaults in place. Everything else is taken
by name; what a provider has no field for is refused by name.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from sglite.lang.errors import Unsupported
from sglite.lang.ir import REST_OF_CONTEXT, Sampling

_NEUTRAL: tuple[tuple[str, object], ...] = (
    ("min_new_tokens", 0),
    ("n", 1),
    ("on_limit", "stop"),
    ("stop", ()),
    ("stop_token_ids", ()),
    ("stop_regex", ()),
    ("temperature", 1.0),
    ("top_p", 1.0),
    ("top_k", -1),
    ("min_p", 0.0),
    ("frequency_penalty", 0.0),
    ("presence_penalty", 0.0),
    ("repetition_penalty", 1.0),
    ("ignore_eos", False),
    ("return_logprob", False),
    ("logprob_start_len", -1),
    ("top_logprobs_num", 0),
    # The text of a token always comes with its log probability.
    ("return_text_in_logprobs", True),
    ("return_text_in_logprobs", False),
)


class Asked:
    """What a request asks for beyond the neutral. Take what the provider can do, then ``refuse_rest``."""

    def __init__(self, sampling: Sampling) -> None:
        given = ((f.name, getattr(sampling, f.name)) for f in fields(sampling))
        self._left = {k: v for k, v in given if v is not None and (k, v) not in _NEUTRAL}

    def take(self, name: str) -> Any:
        """The value of ``name``, None if nobody asked for it."""
        return self._left.pop(name, None)

    def take_into(self, body: dict[str, Any], names: dict[str, str]) -> None:
        """Moves values into ``body``, under the provider's names for them."""
        for name, theirs in names.items():
            if name in self._left:
                value = self._left.pop(name)
                body[theirs] = list(value) if isinstance(value, tuple) else value

    def take_limit(self, default: int | None) -> int | None:
        """The most tokens to generate: ``default`` where nobody says; None for as many as the provider allows."""
        limit = self._left.pop("max_new_tokens", default)
        return None if limit == REST_OF_CONTEXT else limit

    def refuse_rest(self, who: str, advice: str = "leave it out") -> None:
        """Unsupported, naming the first thing that was not taken."""
        for name, value in self._left.items():
            raise Unsupported(f"{who} takes no {name} ({value!r} was asked for); {advice}")
