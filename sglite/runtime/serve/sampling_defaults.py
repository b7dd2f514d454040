"""What a request that says nothing of a sampling parameter gets: what the model's makers recommend, as with SGLang and
vLLM. A request for the likeliest tokens gets nothing of it, so that its answer does not depend on recommendations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sglite.runtime.config import ConfigError
from sglite.runtime.sample.params import GREEDY_BELOW, InvalidParameter, SamplingParams, parse_sampling_params


def checked_defaults(recommended: Mapping[str, float]) -> dict[str, float]:
    """``recommended`` without what is so anyway. ``ConfigError``: it cannot be applied."""
    try:
        params, _ = parse_sampling_params(recommended)
    except InvalidParameter as error:
        message = f"generation_config.json recommends what cannot be: {error} --sampling-defaults openai leaves it out"
        raise ConfigError(message) from None
    neutral = SamplingParams()
    changed = {name: value for name, value in recommended.items() if getattr(params, name) != getattr(neutral, name)}
    return {name: value for name, value in changed.items() if name != "top_k" or value > 0}


def with_defaults(defaults: Mapping[str, float], sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling parameters of a request, with ``defaults`` where it has none."""
    temperature = sampling.get("temperature")
    is_greedy = isinstance(temperature, int | float) and temperature < GREEDY_BELOW
    return dict(sampling) if is_greedy or sampling.get("top_k") == 1 else {**defaults, **sampling}
