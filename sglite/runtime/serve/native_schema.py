"""What the bodies of the native routes look like, as JSON Schemas for ``/openapi.json``.

They describe; what is checked, and said when it is wrong, is where the bodies are read.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_TEXTS: Schema = {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": 2048}
_IDS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_FLAG: Schema = {"type": "boolean"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_OBJECT: Schema = {"type": "object"}


def _object(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    found: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**found, "required": list(required)} if required else found


def _or_list(schema: Schema) -> Schema:
    """One for all prompts, or one each."""
    return {"anyOf": [schema, {"type": "array", "items": schema}]}


_SAMPLING = _object(
    max_new_tokens={"type": ["integer", "null"], "minimum": 0, "default": 128},
    min_new_tokens=_COUNT,
    temperature={"type": "number", "minimum": 0, "default": 1},
    top_p={"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    top_k={"type": "integer", "minimum": -1},
    min_p={"type": "number", "minimum": 0, "maximum": 1},
    frequency_penalty={"type": "number", "minimum": -2, "maximum": 2},
    presence_penalty={"type": "number", "minimum": -2, "maximum": 2},
    repetition_penalty={"type": "number", "exclusiveMinimum": 0, "maximum": 2},
    logit_bias={"type": "object", "additionalProperties": {"type": "number"}},
    n={"type": "integer", "minimum": 1, "maximum": 128},
    seed={"type": "integer"},
    sampling_seed={"type": "integer"},
    stop={"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "maxItems": 32}]},
    stop_token_ids=_IDS,
    stop_regex={"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "maxItems": 32}]},
    allowed_token_ids=_IDS,
    ignore_eos=_FLAG,
    skip_special_tokens=_FLAG,
    spaces_between_special_tokens=_FLAG,
    no_stop_trim=_FLAG,
    stream_interval={"type": "integer", "minimum": 1},
    json_schema={"type": ["string", "object", "boolean"]},
    regex=_TEXT,
    ebnf=_TEXT,
    choice=_TEXTS,
    structural_tag={"type": ["string", "object"]},
    on_limit={"enum": ["stop", "close", "try_close"]},
)
_SESSION = _object(("id",), id=_TEXT, rid=_TEXT, offset={"type": "integer"}, replace=_FLAG, drop_previous_output=_FLAG)
GENERATE = _object(
    text={"anyOf": [_TEXT, _TEXTS]},
    input_ids={"anyOf": [_IDS, {"type": "array", "items": _IDS}]},
    sampling_params=_or_list(_SAMPLING),
    stream=_FLAG,
    rid=_or_list(_TEXT),
    session_params=_SESSION,
    model=_TEXT,
    require_reasoning=_FLAG,
    return_prompt_token_ids=_FLAG,
    return_logprob=_or_list(_FLAG),
    logprob_start_len=_or_list({"type": "integer"}),
    top_logprobs_num=_or_list(_COUNT),
    token_ids_logprob={"anyOf": [_IDS, {"type": "array", "items": _IDS}]},
    return_text_in_logprobs=_or_list(_FLAG),
    priority=_or_list({"type": "integer"}),
    cache_salt=_or_list(_TEXT),
    extra_key=_or_list(_TEXT),
    timeout_s=_or_list({"type": "number", "exclusiveMinimum": 0}),
    queue_timeout_s=_or_list({"type": "number", "exclusiveMinimum": 0}),
    constraint_after={"anyOf": [_TEXT, _TEXTS, _IDS]},
    reasoning_budget=_or_list(_COUNT),
)
VERTEX = _object(
    ("instances",), instances={"type": "array", "items": _object(text=_TEXT, input_ids=_IDS)}, parameters=_OBJECT
)
OPEN_SESSION = _object(capacity_of_str_len=_COUNT, session_id=_TEXT, streaming=_FLAG, timeout={"type": "number"})
CLOSE_SESSION = _object(("session_id",), session_id=_TEXT)
_MESSAGES: Schema = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "object", "properties": {"role": _TEXT}, "required": ["role"]},
}
RENDER = _object(
    ("messages",),
    messages=_MESSAGES,
    tools={"type": "array", "items": _OBJECT},
    add_generation_prompt=_FLAG,
    chat_template_kwargs=_OBJECT,
)
TOKENIZE = _object(
    model=_TEXT,
    prompt={"anyOf": [_TEXT, _TEXTS]},
    messages=_MESSAGES,
    tools={"type": "array", "items": _OBJECT},
    tool_choice={"anyOf": [_TEXT, _OBJECT]},
    reasoning_effort={"anyOf": [_TEXT, {"type": "number"}]},
    add_special_tokens=_FLAG,
    return_token_strs=_FLAG,
    add_generation_prompt=_FLAG,
    continue_final_message=_FLAG,
    chat_template=_TEXT,
    chat_template_kwargs=_OBJECT,
)
DETOKENIZE = _object(
    ("tokens",),
    model=_TEXT,
    tokens={"anyOf": [_IDS, {"type": "array", "items": _IDS}]},
    skip_special_tokens=_FLAG,
)
PARSE_CALLS = _object(("text",), text=_TEXT, tools={"type": "array", "items": _OBJECT}, tool_call_parser=_TEXT)
SEPARATE = _object(("text",), text=_TEXT, reasoning_parser=_TEXT)
ABORT = _object(rid=_TEXT, abort_all=_FLAG, abort_message=_TEXT)
PAUSE = _object(mode={"enum": ["abort", "retract", "in_place"]})
CONTINUE = _object(torch_empty_cache=_FLAG)
_UPDATE = {
    "load_format": {"enum": ["auto", "safetensors", None]},
    "abort_all_requests": _FLAG,
    "weight_version": _TEXT,
    "flush_cache": {"type": "boolean", "default": True},
    "torch_empty_cache": _FLAG,
}
UPDATE_FROM_DISK = _object(
    ("model_path",),
    model_path=_TEXT,
    is_async=_FLAG,
    keep_pause=_FLAG,
    recapture_cuda_graph=_FLAG,
    token_step=_COUNT,
    manifest=_OBJECT,
    **_UPDATE,
)
UPDATE_FROM_TENSOR = _object(
    ("serialized_named_tensors",),
    serialized_named_tensors={
        "type": "array", "minItems": 1, "maxItems": 1, "items": {"type": "string", "contentEncoding": "base64"}
    },
    disable_draft_model=_FLAG,
    **_UPDATE,
)  # fmt: skip
WEIGHT_VERSION = _object(("new_version",), new_version=_TEXT, abort_all_requests={"type": "boolean", "default": True})
READ_WEIGHTS = _object(("name",), name=_TEXT, truncate_size={"type": "integer", "minimum": 1, "default": 100})
