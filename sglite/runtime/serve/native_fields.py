"""The fields of ``POST /generate``: which are read, which have no effect here, and which cannot be honoured."""

from __future__ import annotations

from typing import Any

from sglite.runtime.sample.params import CONSTRAINTS, SamplingParams
from sglite.runtime.serve.body import check_names
from sglite.runtime.serve.errors import Refused

SWITCHES = ("return_logprob", "return_text_in_logprobs")
_COUNTS = ("logprob_start_len", "top_logprobs_num")
OPTIONS = (
    *SWITCHES, *_COUNTS, "token_ids_logprob", "priority", "cache_salt", "extra_key", "timeout_s", "queue_timeout_s",
    "constraint_after", "reasoning_budget",
)  # fmt: skip
"""Of ``Engine.submit``."""
IGNORED = (
    "log_metrics", "no_logs", "session_id", "conversation_id", "routing_key", "kv_router_hint", "custom_labels",
    "received_time", "external_trace_header", "stream_output",
)  # fmt: skip
"""Change no answer; named in a header."""
_UNSUPPORTED = frozenset({
    "image_data", "video_data", "audio_data", "modalities", "mm_hashes", "mm_content_hashes", "use_audio_in_video",
    "video_config", "images_config", "max_dynamic_patch", "min_dynamic_patch", "image_max_dynamic_patch",
    "video_max_dynamic_patch", "input_embeds", "positional_embed_overrides", "lora_path", "lora_id",
    "return_hidden_states", "return_routed_experts", "return_indexer_topk", "return_sampling_mask", "return_entropy",
    "return_bytes", "return_flat_raw_top_logprobs", "return_flat_raw_top_logprobs_b64",
    "custom_logit_processor", "bootstrap_host", "bootstrap_port", "bootstrap_room", "bootstrap_pair_key",
    "decode_tp_size", "data_parallel_rank", "routed_dp_rank", "disagg_prefill_dp_rank", "background",
    "multi_item_delimiter_indices", "max_thinking_tokens",
})  # fmt: skip
EXTRAS = ("require_reasoning", "return_prompt_token_ids")
"""Switches of the whole request: what outputs say beside their own."""
_FIELDS = frozenset({
    "text", "input_ids", "sampling_params", "stream", "rid", "session_params", "model", *EXTRAS, *OPTIONS, *IGNORED
})  # fmt: skip
_ELSEWHERE = {name: f"{name} belongs into sampling_params" for name in SamplingParams.__struct_fields__}
_INSTEAD = {
    "max_thinking_tokens": "give reasoning_budget with constraint_after",
    "input_embeds": "send text or input_ids",
}
_NOTHING: tuple[Any, ...] = (None, False, 0, "", [], {})
MAX_INTERVAL = 2**31 - 1


def check_fields(body: dict[str, Any]) -> list[str]:
    """``Refused`` names a field that is unknown or asks for what cannot be done. Returns those without effect."""
    for name in _UNSUPPORTED & body.keys():
        if asks(body.pop(name)):
            instead = _INSTEAD.get(name, "send text or input_ids, without it")
            raise Refused(400, f"{name} is not supported here: {instead}", param=name)
    check_names(body, _FIELDS, "/generate", _ELSEWHERE)
    return [name for name in IGNORED if asks(body.get(name)) and name != "log_metrics"]


def asks(value: Any) -> bool:
    """Whether a value asks for anything; in a batch every entry may say nothing."""
    if isinstance(value, list):
        return any(asks(item) for item in value)
    return value not in _NOTHING


def take_sampling(value: Any) -> tuple[dict[str, Any], int]:
    """One prompt's ``sampling_params`` as the engine takes them, and its ``stream_interval``: tokens an event."""
    if value is None:
        return {}, 1
    if not isinstance(value, dict):
        raise Refused(400, "sampling_params must be an object, or a list of them", param="sampling_params")
    sampling = dict(value)
    if asks(sampling.pop("custom_params", None)):
        message = "custom_params is not supported: there is no custom logit processor to read it; leave it out"
        raise Refused(400, message, param="custom_params")
    interval = sampling.pop("stream_interval", None)
    if interval is not None and (type(interval) is not int or not 1 <= interval <= MAX_INTERVAL):
        raise Refused(400, "stream_interval must be an integer of 1 or more", param="stream_interval")
    return sampling, interval or 1


def is_constrained(sampling: dict[str, Any]) -> bool:
    """Whether ``sampling_params`` say what the text must be."""
    return any(sampling.get(name) is not None for name in CONSTRAINTS)


def switch(name: str, value: Any) -> bool:
    """true or false; nothing is false."""
    if value is None or isinstance(value, bool):
        return bool(value)
    raise Refused(400, f"{name} must be true or false", param=name)


def checked(name: str, value: Any) -> Any:
    """The value of an option whose type the engine takes for granted."""
    if name in SWITCHES:
        return switch(name, value)
    if name in _COUNTS and type(value) is not int:
        raise Refused(400, f"{name} must be an integer", param=name)
    if name == "token_ids_logprob" and not _are_ids(value):
        message = f"{name} must be a flat list of integers, the token ids; in a batch, one such list a prompt"
        raise Refused(400, message, param=name)
    return value


def check_ids(where: str, value: Any) -> None:
    """``Refused`` unless it is a list of integers."""
    if not _are_ids(value):
        raise Refused(400, f"{where} must be a list of token ids", param=where.partition("[")[0])


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(token) is int for token in value)
