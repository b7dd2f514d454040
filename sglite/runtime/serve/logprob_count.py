"""How many log probabilities a request asks for: each takes some hundred bytes until the answer is sent.

(1 + alternatives) x (prompt positions from logprob_start_len on + output tokens) x outputs
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sglite.runtime.sample.params import SamplingParams

MAX_LOGPROBS = 2**21
"""Of one HTTP request."""
MAX_OPEN_LOGPROBS = 2**22
"""Of all that are open."""
_DEFAULT_TOKENS = SamplingParams().max_new_tokens


def count_logprobs(num_prompt: int, sampling: Mapping[str, Any], options: Mapping[str, Any], longest: int) -> int:
    """At most so many, of all its outputs together. What is no number is left to the engine to refuse.

    ``longest``: tokens of the longest sequence there can be.
    """
    if not options.get("return_logprob"):
        return 0
    top, given, start = (options.get(name) for name in ("top_logprobs_num", "token_ids_logprob", "logprob_start_len"))
    each = 1 + (_count(top) or 0) + (len(given) if isinstance(given, list) else 0)
    first = _count(start)
    from_prompt = 0 if first is None else max(0, num_prompt - first)
    room = max(0, longest - num_prompt)
    wanted = _count(sampling.get("max_new_tokens", sampling.get("max_tokens", _DEFAULT_TOKENS)))
    outputs = _count(sampling.get("n")) or 1
    return each * outputs * (from_prompt + (room if wanted is None else min(wanted, room)))


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None
