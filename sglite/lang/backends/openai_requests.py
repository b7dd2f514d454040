"""Bodies of OpenAI's chat and completion requests, and of the same requests to servers that speak more of them.

A ``Dialect`` says what a server takes beyond OpenAI's own fields. Field names: platform.openai.com/docs/api-reference,
docs.vllm.ai (structured outputs, since 0.12), docs.sglang.io (OpenAI APIs).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sglite.lang.backends.api import DEFAULT_LIMIT
from sglite.lang.backends.api_params import Asked
from sglite.lang.backends.base import GenCall
from sglite.lang.backends.schemas import Shape, is_closed, parsed_schema, shape_of
from sglite.lang.messages import Message

_SHARED = {
    "temperature": "temperature",
    "top_p": "top_p",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "stop": "stop",
    "seed": "seed",
    "n": "n",
}
_SERVERS_OWN = {
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "min_new_tokens": "min_tokens",
    "stop_token_ids": "stop_token_ids",
    "ignore_eos": "ignore_eos",
}


@dataclass(frozen=True)
class Dialect:
    """``extra``: sampling values a server takes beyond OpenAI's, and its names for them. ``rules``: the same for what
    constrains the text, inside of ``rules_in`` where that is given. ``any_schema``: every JSON Schema is enforced, not
    only closed ones of objects; ``completion_schema``: the rule that carries one in a completion request."""

    name: str
    extra: Mapping[str, str] = field(default_factory=dict)
    rules: Mapping[str, str] = field(default_factory=dict)
    rules_in: str | None = None
    any_schema: bool = False
    completion_schema: str | None = None
    advice: str = "leave it out; server='vllm' or 'sglang' says that the server behind base_url takes more"


_DIALECTS = (
    Dialect("openai"),
    Dialect(
        "vllm",
        _SERVERS_OWN,
        {"regex": "regex", "ebnf": "grammar", "structural_tag": "structural_tag"},
        rules_in="structured_outputs",
        any_schema=True,
        completion_schema="json",
        advice="leave it out",
    ),
    Dialect(
        "sglang",
        {**_SERVERS_OWN, "stop_regex": "stop_regex"},
        {"regex": "regex", "ebnf": "ebnf"},
        any_schema=True,
        completion_schema="json_schema",
        advice="leave it out",
    ),
)


def named_dialect(name: str) -> Dialect:
    """The dialect called ``name``; ValueError with the known ones otherwise."""
    for dialect in _DIALECTS:
        if dialect.name == name:
            return dialect
    raise ValueError(f"server={name!r} is not known; it is one of {', '.join(d.name for d in _DIALECTS)}")


@dataclass(frozen=True)
class Request:
    """``body``: keyword arguments of the client's ``create``. ``shape``: where the wanted text is in the answer."""

    body: dict[str, Any]
    shape: Shape | None = None


def takes_completions(model_name: str) -> bool:
    """Whether a name is that of a model behind OpenAI's completions API rather than its chat API."""
    base = model_name.rpartition("/")[2].removeprefix("ft:")
    return base.startswith(("gpt-3.5-turbo-instruct", "davinci", "babbage", "text-davinci", "text-babbage"))


def reasons(model_name: str) -> bool:
    """Whether a name is that of an OpenAI model that reasons first: its limit counts the reasoning."""
    base = model_name.rpartition("/")[2]
    return re.match(r"(o\d|gpt-5)(?!.*chat)", base) is not None


def chat_request(call: GenCall, messages: list[Message], model: str, dialect: Dialect, who: str) -> Request:
    """The chat request for ``call``; Unsupported for what the dialect has no field for."""
    asked = Asked(call.sampling)
    body: dict[str, Any] = {"model": model, "messages": messages}
    thinks = dialect.name == "openai" and reasons(model)
    limit = asked.take_limit(None if thinks else DEFAULT_LIMIT)
    if limit is not None:
        body["max_completion_tokens" if thinks else "max_tokens"] = limit
    asked.take_into(body, _SHARED)
    if asked.take("return_logprob"):
        body["logprobs"] = True
        asked.take_into(body, {"top_logprobs_num": "top_logprobs"})
    shape = _shape(asked, call, dialect)
    if shape is not None:
        body["response_format"] = response_format(shape.schema)
    if call.tools:
        body["tools"] = [tool.to_dict() for tool in call.tools]
        body["tool_choice"] = tool_choice(call.tool_choice)
    _take_extras(asked, body, dialect)
    asked.refuse_rest(who, dialect.advice)
    return Request(body, shape)


def completion_body(call: GenCall, prompt: str, model: str, dialect: Dialect, who: str) -> dict[str, Any]:
    """The completion request for ``call``; Unsupported for what the dialect has no field for."""
    asked = Asked(call.sampling)
    body: dict[str, Any] = {"model": model, "prompt": prompt}
    limit = asked.take_limit(DEFAULT_LIMIT)
    if limit is not None:
        body["max_tokens"] = limit
    asked.take_into(body, _SHARED)
    if asked.take("return_logprob"):
        body["logprobs"] = asked.take("top_logprobs_num") or 0
    if dialect.completion_schema is not None:
        schema = asked.take("json_schema")
        if schema is not None:
            _add_rule(body, dialect, dialect.completion_schema, schema)
    _take_extras(asked, body, dialect)
    asked.refuse_rest(who, dialect.advice)
    return body


def response_format(schema: dict[str, Any]) -> dict[str, Any]:
    """The field that asks for JSON of ``schema``; ``strict``, that is enforced, where the schema is closed."""
    told = {"name": "answer", "schema": schema, "strict": is_closed(schema)}
    return {"type": "json_schema", "json_schema": told}


def tool_choice(choice: str) -> Any:
    """``auto``, ``none``, ``required``, or the name of the tool to call."""
    if choice in ("auto", "none", "required"):
        return choice
    return {"type": "function", "function": {"name": choice}}


def _shape(asked: Asked, call: GenCall, dialect: Dialect) -> Shape | None:
    if not dialect.any_schema:
        return shape_of(asked, call)
    schema = asked.take("json_schema")
    return None if schema is None else Shape(parsed_schema(schema))


def _take_extras(asked: Asked, body: dict[str, Any], dialect: Dialect) -> None:
    extra: dict[str, Any] = {}
    asked.take_into(extra, dict(dialect.extra))
    if extra:
        body["extra_body"] = {**body.get("extra_body", {}), **extra}
    for name, theirs in dialect.rules.items():
        value = asked.take(name)
        if value is not None:
            _add_rule(body, dialect, theirs, value)


def _add_rule(body: dict[str, Any], dialect: Dialect, name: str, value: Any) -> None:
    extra = body.setdefault("extra_body", {})
    target = extra if dialect.rules_in is None else extra.setdefault(dialect.rules_in, {})
    target[name] = value
