"""How to sample and what the text must be, in the spellings of OpenAI, SGLang and vLLM."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sglite.constrained.spec import ConstraintError, ConstraintSpec
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.fields import Fields

MAX_TOP_LOGPROBS = 20
NAMES = {"min_new_tokens": "min_tokens", "token_ids_logprob": "logprob_token_ids"}
"""Native names of parameters that have another one here."""
_SAME = (
    "temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty",
    "logit_bias", "stop", "stop_token_ids", "stop_regex", "ignore_eos", "skip_special_tokens",
    "spaces_between_special_tokens", "no_stop_trim", "n", "allowed_token_ids", "on_limit",
)  # fmt: skip
_OTHER = {
    "min_tokens": "min_new_tokens", "seed": "seed", "sampling_seed": "seed",
    "include_stop_str_in_output": "no_stop_trim",
}  # fmt: skip
_REFUSED = {
    "use_beam_search": "there is no beam search; use n and sampling",
    "logits_processors": "code in requests is not run; use logit_bias or a constraint",
    "custom_logit_processor": "code in requests is not run; use logit_bias or a constraint",
    "bad_words": "use logit_bias with -100, or a regex",
    "lora_path": "adapters are not served",
    "lora_id": "adapters are not served",
    "return_hidden_states": "hidden states are not given out",
    "bootstrap_host": "prefill and decode run in one engine",
    "kv_transfer_params": "prefill and decode run in one engine",
    "prompt_embeds": "send text or token ids",
    "vllm_xargs": "give the parameters by their own names",
    "custom_params": "code in requests is not run",
    "repetition_detection": "bound the answer with max_tokens, or use repetition_penalty",
}
_NEUTRAL = {"length_penalty": (1, 1.0), "early_stopping": (False,), "best_of": ()}
_GUIDED = {"guided_json": "json_schema", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "ebnf"}
"""vLLM's older spelling."""
_CONSTRAINTS = (
    "response_format", "json_schema", "regex", "ebnf", "choice", "structural_tag", "structured_outputs", *_GUIDED,
)  # fmt: skip
IGNORED = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "data_parallel_rank", "return_routed_experts",
)  # fmt: skip
"""Accepted, without effect, and named in the header."""


def read_sampling(fields: Fields) -> dict[str, Any]:
    """SGLang's sampling parameters, without the length and without a constraint; values are checked by the engine."""
    fields.refuse(_REFUSED)
    found = fields.given(_SAME)
    fields.integer("seed", -(2**63), 2**63 - 1)
    for name, value in fields.given(_OTHER).items():
        native = _OTHER[name]
        if native in found and found[native] != value:
            raise fields.wrong(name, f"and {native} say the same thing twice; give one")
        found[native] = value
    for name, value in fields.given(_NEUTRAL).items():
        allowed = (found.get("n") or 1,) if name == "best_of" else _NEUTRAL[name]
        if value not in allowed:
            raise fields.wrong(name, f"is not supported but for {allowed[0]}")
    bias = found.get("logit_bias")
    if bias is not None and not isinstance(bias, dict):
        raise fields.wrong("logit_bias", "must be an object of token ids and numbers")
    return found


def read_thinking_budget(fields: Fields) -> int | None:
    """Most tokens of thinking; -1 is vLLM's word for as many as it takes."""
    found = fields.integer("thinking_token_budget", -1, 2**31 - 1)
    return None if found == -1 else found


def stop_reason(matched: Any, sampling: Mapping[str, Any]) -> Any:
    """vLLM's: the stop string or token that the request named and that ended the text; else nothing."""
    asked = sampling.get("stop_token_ids")
    return matched if isinstance(matched, str) or (isinstance(asked, list) and matched in asked) else None


def read_options(fields: Fields) -> dict[str, Any]:
    """Options of ``Engine.submit`` that every generating route takes."""
    found: dict[str, Any] = {}
    for name in ("cache_salt", "extra_key"):
        value = fields.text(name, 256)
        if value:
            found[name] = value
    priority = fields.integer("priority", -(2**31) + 1, 2**31 - 1)
    if priority is not None:
        found["priority"] = priority
    for name in ("timeout_s", "queue_timeout_s"):
        limit = fields.number(name, 0.001, 86_400)
        if limit is not None:
            found[name] = limit
    return found


def read_rid(fields: Fields) -> str | None:
    """The client's name for the request."""
    return fields.text("rid", 256) or fields.text("request_id", 256)


# --- what the text must be --------------------------------------------------------------------------------------


def read_constraint(fields: Fields) -> ConstraintSpec | None:
    """The one constraint of a request, however it is spelled."""
    found = [
        (name, spec)
        for name, value in fields.given(_CONSTRAINTS).items()
        if (spec := _constraint(fields, name, value)) is not None
    ]
    if len(found) > 1:
        message = f"{found[0][0]} and {found[1][0]} both say what the text must be; give one"
        raise Refused(400, message, param=found[1][0])
    return found[0][1] if found else None


def response_format(value: Any) -> ConstraintSpec | None:
    """OpenAI's ``response_format``, with SGLang's structural tags."""
    if value is None:
        return None
    where = "response_format"
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise Refused(400, f"{where} must be an object with a type", param=where)
    kind = value["type"]
    if kind == "text":
        return None
    if kind == "json_object":
        schema = value.get("schema")
        return ConstraintSpec.json_object() if schema is None else _schema(schema, f"{where}.schema")
    if kind == "json_schema":
        return schema_format(value.get("json_schema"), f"{where}.json_schema")
    if kind == "structural_tag":
        return _made("structural_tag", {k: v for k, v in value.items() if v is not None}, where)
    message = f"{where}.type {kind[:40]!r} is not one of text, json_object, json_schema, structural_tag"
    raise Refused(400, message, param=f"{where}.type")


def schema_format(value: Any, where: str) -> ConstraintSpec:
    """``{"name", "schema", "strict"}``. Without ``strict``, keywords that cannot be enforced are left to the model."""
    if not isinstance(value, dict) or value.get("schema", value.get("schema_")) is None:
        raise Refused(400, f"{where} must be an object with a schema", param=where)
    strict = value.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise Refused(400, f"{where}.strict must be true or false", param=f"{where}.strict")
    return _schema(value.get("schema", value.get("schema_")), f"{where}.schema", strict is not False)


def _schema(schema: Any, where: str, strict: bool = True) -> ConstraintSpec:
    if not isinstance(schema, (dict, bool)):
        raise Refused(400, f"{where} must be a JSON schema, an object", param=where)
    try:
        return ConstraintSpec.json_schema(schema, strict=strict)
    except ConstraintError as error:
        raise Refused(400, f"{where}: {error}", param=where) from None


def _constraint(fields: Fields, name: str, value: Any) -> ConstraintSpec | None:
    """What one of ``_CONSTRAINTS`` asks for; nothing, where its value is none."""
    if name == "response_format":
        return response_format(value)
    if name == "structured_outputs":
        return _structured(fields.object(name))
    if name in _GUIDED:
        return _made(_GUIDED[name], value, name)
    return None if value == "" else _made(name, value, name)


def _structured(value: Mapping[str, Any] | None) -> ConstraintSpec | None:
    """vLLM's ``structured_outputs``."""
    if value is None:
        return None
    names = {"json": "json_schema", "regex": "regex", "choice": "choice", "grammar": "ebnf",
             "structural_tag": "structural_tag"}  # fmt: skip
    fields = Fields(value, "structured_outputs.")
    found = [(name, native, fields.raw(name)) for name, native in names.items()]
    given = [(name, native, one) for name, native, one in found if one is not None]
    if fields.flag("json_object"):
        given.append(("json_object", "json_schema", {"type": "object"}))
    for name in ("disable_fallback", "disable_any_whitespace", "disable_additional_properties", "whitespace_pattern"):
        if fields.raw(name) not in (None, False):
            raise fields.wrong(name, "is not supported; white space is fixed and the schema is taken as it is")
    if fields.unread():
        raise Refused(400, f"structured_outputs has no field {fields.unread()[0][:64]!r}", param="structured_outputs")
    if len(given) != 1:
        message = f"structured_outputs must have exactly one of {', '.join([*names, 'json_object'])}"
        raise Refused(400, message, param="structured_outputs")
    name, native, one = given[0]
    return _made(native, one, f"structured_outputs.{name}")


def _made(kind: str, value: Any, where: str) -> ConstraintSpec:
    """A constraint of SGLang's name ``kind``."""
    shapes: dict[str, tuple[type, ...]] = {"regex": (str,), "ebnf": (str,), "choice": (list,)}
    if not isinstance(value, shapes.get(kind, (str, dict, bool))):
        raise Refused(400, f"{where} has the wrong type ({type(value).__name__})", param=where)
    try:
        json.dumps(value, ensure_ascii=False).encode()
        made: ConstraintSpec = getattr(ConstraintSpec, kind)(value)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"{where}: {error}", param=where) from None
    return made
