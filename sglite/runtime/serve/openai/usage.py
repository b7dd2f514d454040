"""What a request cost, in OpenAI's ``usage``, with our own accounting beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglite.runtime.engine.presenter import Progress

_SUMS = ("forced_tokens", "resampled_tokens", "forward_passes", "replayed_tokens", "preemptions")
_TIMES = ("queue_ms", "compute_ms", "e2e_ms")


def usage_of_one(output: Progress, reasoning_tokens: int = 0) -> dict[str, Any]:
    """``usage_of`` the event of one output, without making the event."""
    cost, completion = output.accounting, output.num_tokens
    found: dict[str, Any] = {
        "prompt_tokens": cost.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": cost.prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": cost.cached_tokens},
        "sglite": {
            "computed_prompt_tokens": cost.computed_prompt_tokens,
            "forced_tokens": cost.forced_tokens,
            "resampled_tokens": cost.resampled_tokens,
            "forward_passes": cost.forward_passes,
            "replayed_tokens": cost.replayed_tokens,
            "preemptions": cost.preemptions,
            "queue_ms": round(cost.queue_ms, 3),
            "compute_ms": round(cost.compute_ms, 3),
            "e2e_ms": round(cost.e2e_ms, 3),
        },
    }
    return _with_reasoning(found, reasoning_tokens)


def usage_of(events: Sequence[dict[str, Any]], widths: Sequence[int], reasoning_tokens: int = 0) -> dict[str, Any]:
    """Of all outputs together. ``widths``: how many outputs each prompt has; a prompt counts once.

    ``sglite``: tokens of the prompts that were computed (not found in the cache), tokens that a grammar forced,
    steps, and the longest of the outputs' times, in milliseconds.
    """
    metas = [event["meta_info"] for event in events]
    firsts, at = [], 0
    for width in widths:
        firsts.append(metas[at : at + width])
        at += width
    prompt = sum(group[0]["prompt_tokens"] for group in firsts if group)
    cached = sum(max(meta["cached_tokens"] for meta in group) for group in firsts if group)
    completion = sum(meta["completion_tokens"] for meta in metas)
    found: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "sglite": {
            "computed_prompt_tokens": sum(meta["computed_prompt_tokens"] for meta in metas),
            **{name: sum(meta[name] for meta in metas) for name in _SUMS},
            **{name: round(max((meta[name] for meta in metas), default=0.0), 3) for name in _TIMES},
        },
    }
    return _with_reasoning(found, reasoning_tokens)


def cached_details(usage: dict[str, Any]) -> dict[str, Any]:
    """Where cached tokens were found, in SGLang's shape: there is one place. Nothing where there are none."""
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {"sglext": {"cached_tokens_details": {"device": cached, "host": 0}}} if cached else {}


def computed_with(first: Progress) -> dict[str, Any]:
    """What the weights were called that the first choice was computed with, in SGLang's shape."""
    spans = first.weight_versions()
    return {"metadata": {"weight_version": spans[-1]["version"], "weight_versions": spans}}


def last_fields(usage: dict[str, Any], include: bool, details: bool) -> dict[str, Any]:
    """What the last chunk of a stream has. ``include``: the usage; ``details``: ``cached_details``."""
    return {**({"usage": usage} if include else {}), **(cached_details(usage) if details else {})}


def _with_reasoning(usage: dict[str, Any], tokens: int) -> dict[str, Any]:
    return {**usage, "completion_tokens_details": {"reasoning_tokens": tokens}, "reasoning_tokens": tokens}
