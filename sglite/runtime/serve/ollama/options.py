"""``options`` of Ollama's requests: how to sample, and much about the machine that is settled when a server starts.

What works is translated; what asks for something that cannot be done is refused by name; what has no effect here is
named in the answer's header.
"""

from __future__ import annotations

from typing import Any

from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.fields import Fields

DEFAULTS = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}
"""Ollama's own. Its penalty of repetitions is left out: unasked, it would change what a model finds likeliest."""
NAMES = {
    "repetition_penalty": "options.repeat_penalty", "max_new_tokens": "options.num_predict", "seed": "options.seed",
    "temperature": "options.temperature", "top_k": "options.top_k", "top_p": "options.top_p", "min_p": "options.min_p",
    "presence_penalty": "options.presence_penalty", "frequency_penalty": "options.frequency_penalty",
    "stop": "options.stop", "top_logprobs_num": "top_logprobs",
}  # fmt: skip
"""Native names of parameters, and what Ollama's clients call them."""
_SAME = ("temperature", "min_p", "presence_penalty", "frequency_penalty", "stop")
_WITHOUT_EFFECT = frozenset({
    "num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "numa", "low_vram", "f16_kv", "logits_all",
    "vocab_only", "use_mmap", "use_mlock", "embedding_only", "num_keep", "penalize_newline", "mirostat_tau",
    "mirostat_eta", "repeat_last_n",
})  # fmt: skip
_NEUTRAL = {"mirostat": 0, "typical_p": 1, "tfs_z": 1}
_MOST = 2**31 - 1


def read_options(fields: Fields) -> tuple[dict[str, Any], list[str]]:
    """SGLang's sampling parameters, and the names of what has no effect."""
    given = fields.object("options") or {}
    own = Fields({name: _whole(value) for name, value in given.items()}, "options.")
    for name, neutral in _NEUTRAL.items():
        value = own.number(name, -1e9, 1e9)
        if value is not None and value != neutral:
            message = f"options.{name} is not supported, but for {neutral}; use temperature, top_k, top_p and min_p"
            raise Refused(400, message, param=f"options.{name}")
    found: dict[str, Any] = {**DEFAULTS, "max_new_tokens": _limit(own)}
    found |= {name: value for name in _SAME if (value := own.raw(name)) is not None}
    top_k, top_p = own.integer("top_k", -_MOST, _MOST), own.number("top_p", 0, 1)
    if top_k is not None:
        found["top_k"] = max(top_k, 0)
    if top_p is not None:
        found["top_p"] = top_p
    if top_p == 0:  # nothing but the likeliest
        found |= {"top_p": 1.0, "top_k": 1}
    penalty, window = own.raw("repeat_penalty"), own.integer("repeat_last_n", -1, _MOST)
    if penalty is not None and window != 0:
        found["repetition_penalty"] = penalty
    seed = own.integer("seed", -(2**63), 2**63 - 1)
    if seed is not None and seed >= 0:
        found["seed"] = seed
    idle = [name for name in given if name in _WITHOUT_EFFECT and given[name] is not None]
    if window in (-1, 0):
        idle.remove("repeat_last_n")
    unknown = [name for name in own.unread() if name not in _WITHOUT_EFFECT]
    return found, [f"options.{name}" for name in (*idle, *unknown)]


def _limit(own: Fields) -> int | None:
    """Tokens of the answer; 0 and less: as many as the context has room for."""
    limit = own.integer("num_predict", -2, _MOST)
    return limit if limit is not None and limit > 0 else None


def _whole(value: Any) -> Any:
    """Whole numbers as integers: Ollama's server reads every number as a float, so clients send 42.0."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value
