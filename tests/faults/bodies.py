"""Valid bodies of every route that takes one, and ways to spoil them. Everything depends on the seed alone."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello there."}]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 1}, "b": {"enum": ["x", "y"]}},
    "required": ["a"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": SCHEMA}}
_CALLED = [
    *TALK,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "a stone"},
]
_SAMPLING = {"max_new_tokens": 4, "temperature": 0.7, "top_p": 0.9, "top_k": 20, "stop": ["."], "n": 1}
_LARK = 'start: command ("|" command)~0..2\ncommand: /[a-c]+/ | "\\""\n%import common.WS_INLINE\n%ignore WS_INLINE\n'
_TYPED: list[Any] = [
    {"role": "user", "content": "x"},
    {"role": "assistant", "tool_calls": [{"id": "1", "type": "custom", "custom": {"name": "sh", "input": "a"}}]},
    {"role": "tool", "tool_call_id": "1", "content": "b"},
]
_IMAGE = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": "http://localhost/a.png"}}]

BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {"model": "default", "messages": TALK, "max_tokens": 4, "temperature": 0.5, "seed": 1, "stop": ["x"]},
        {"messages": TALK, "max_tokens": 4, "stream": True, "stream_options": {"include_usage": True}, "n": 2},
        {"messages": TALK, "max_tokens": 8, "logprobs": True, "top_logprobs": 2, "logit_bias": {"42": 1.5}},
        {"messages": _CALLED, "max_tokens": 8, "tools": [TOOL], "tool_choice": "required", "stream": True},
        {
            "messages": TALK,
            "max_tokens": 40,
            "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA, "strict": True}},
        },
        {
            "messages": _TYPED,
            "max_tokens": 20,
            "tools": [
                {
                    "type": "custom",
                    "custom": {
                        "name": "sh",
                        "format": {"type": "grammar", "grammar": {"syntax": "lark", "definition": _LARK}},
                    },
                }
            ],
            "tool_choice": "required",
        },
        {"messages": [{"role": "user", "content": _IMAGE}], "max_tokens": 2, "structured_outputs": {"regex": "[ab]+"}},
    ],
    "/v1/completions": [
        {"model": "default", "prompt": "Once", "max_tokens": 4, "echo": True, "logprobs": 1},
        {"prompt": ["Once", "Twice"], "max_tokens": 4, "stream": True, "n": 2, "best_of": 2},
        {"prompt": [[41, 42], [43]], "max_tokens": 4, "regex": "[0-9]+", "stop_token_ids": [2]},
    ],
    "/v1/responses": [
        {"model": "default", "input": "Hello", "max_output_tokens": 16, "store": True},
        {"input": [{"role": "user", "content": "Hi"}], "stream": True, "max_output_tokens": 16},
        {"input": "x", "max_output_tokens": 16, "tools": [{"type": "function", "name": "look", "parameters": SCHEMA}]},
        {
            "input": "x",
            "max_output_tokens": 20,
            "tool_choice": "required",
            "tools": [
                {"type": "custom", "name": "sh", "format": {"type": "grammar", "syntax": "lark", "definition": _LARK}}
            ],
        },
        {
            "input": "x",
            "max_output_tokens": 40,
            "text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}},
        },
    ],
    "/v1/responses/input_tokens": [{"input": "Hello"}],
    "/v1/messages": [
        {"model": "default", "max_tokens": 8, "messages": [{"role": "user", "content": "Hi"}], "system": "Be brief."},
        {
            "model": "default",
            "max_tokens": 8,
            "stream": True,
            "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
            "tools": [{"name": "look", "input_schema": SCHEMA}],
            "tool_choice": {"type": "any"},
        },
    ],
    "/v1/messages/count_tokens": [{"model": "default", "messages": [{"role": "user", "content": "Hi"}]}],
    "/api/chat": [
        {"model": "default", "messages": TALK, "stream": False, "options": {"num_predict": 4, "temperature": 0.1}},
        {"model": "default", "messages": TALK, "options": {"num_predict": 40}, "format": SCHEMA, "tools": [TOOL]},
    ],
    "/api/generate": [
        {"model": "default", "prompt": "Once", "stream": False, "options": {"num_predict": 4, "seed": 3}},
        {"model": "default", "prompt": "Once", "raw": True, "options": {"num_predict": 8, "stop": ["x"]}},
    ],
    "/api/embed": [{"model": "default", "input": ["a", "b"]}],
    "/api/embeddings": [{"model": "default", "prompt": "a"}],
    "/api/show": [{"model": "default"}],
    "/api/pull": [{"model": "x"}],
    "/api/push": [{"model": "x"}],
    "/api/create": [{"model": "x", "from": "y"}],
    "/api/copy": [{"source": "x", "destination": "y"}],
    "/api/blobs/sha256:00": [{}],
    "/generate": [
        {"text": "Once", "sampling_params": _SAMPLING, "return_logprob": True, "top_logprobs_num": 2},
        {"input_ids": [[41, 42], [43]], "sampling_params": [_SAMPLING, {"max_new_tokens": 2}], "stream": True},
        {"text": "x", "sampling_params": {"max_new_tokens": 30, "json_schema": json.dumps(SCHEMA)}, "rid": "r"},
        {"text": "x", "sampling_params": {"max_new_tokens": 8, "ebnf": 'root ::= "a" | "b" root', "stop_regex": "b+"}},
    ],
    "/vertex_generate": [{"instances": [{"text": "x"}], "parameters": {"sampling_params": _SAMPLING}}],
    "/open_session": [{"capacity_of_str_len": 100, "session_id": "s", "timeout": 1.5}],
    "/close_session": [{"session_id": "s"}],
    "/tokenize": [{"model": "default", "prompt": "Once", "add_special_tokens": True}, {"messages": TALK}],
    "/detokenize": [{"tokens": [41, 42, 43]}],
    "/program": [
        {
            "version": 1,
            "program": "p",
            "lease_s": 1,
            "nodes": [
                {"op": "open", "seq": "0"},
                {"op": "extend", "seq": "0", "text": "Once"},
                {"op": "generate", "seq": "0", "id": "a", "sampling_params": {"max_new_tokens": 4}, "stream": True},
                {"op": "fork", "seq": "0", "into": ["1"]},
                {"op": "score", "seq": "1", "id": "c", "choices": ["a", "b"]},
                {"op": "truncate", "seq": "0", "after": "a"},
                {"op": "close", "seq": "0"},
                {"op": "close", "seq": "1"},
            ],
        }
    ],
    "/program/renew": [{"programs": ["p"]}],
    "/program/close": [{"programs": {"p": ["0"]}}],
    "/parse_function_call": [
        {"text": '<tool_call>\n{"name": "look", "arguments": {"a": 1}}\n</tool_call>', "tools": []}
    ],
    "/separate_reasoning": [{"text": "<think>a</think>b", "reasoning_parser": "deepseek-r1"}],
    "/flush_cache": [{}],
    "/abort_request": [{"rid": "r"}],
    "/render": [{"messages": TALK, "tools": [TOOL], "chat_template_kwargs": {"enable_thinking": False}}],
    "/v1/rerank": [{"query": "a", "documents": ["b", "c"]}],
    "/v1/score": [{"text_1": "a", "text_2": ["b"]}],
    "/v1/embeddings": [{"model": "default", "input": "a"}],
}
"""A body or several by path. For every other POST route an empty object will do."""

_SOME_SCHEMAS: list[Any] = [
    {"$ref": "#"},
    {"$ref": "http://127.0.0.1:9/x"},
    {"pattern": "(a+)+$", "type": "string"},
    {"type": "array", "minItems": 10**9},
    {"enum": []},
    {"type": "nothing"},
    {"allOf": [{"type": "string"}, {"type": "integer"}]},
    {"not": {}},
]
_WEIRD: list[Any] = [
    None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e308, -1e308, 10**20, -(10**20), 10**50, 2**31, 2**63, 2**64, "", " ",
    "0", "a", "\u0000", "\ufeff", "\u202e", "é" * 50, "𝕏" * 20, "x" * 5000, "auto", "none", "null", "../../etc/passwd",
    "file:///etc/passwd", "http://127.0.0.1:9/", "data:image/png;base64,AAAA", "{{ 7*7 }}", "{% for i in range(9) %}",
    "<|im_end|>", "<tool_call>", "</think>", "(a+)+$", "[[:alpha:]", "(?=", "root ::= root", "\\", "%s%s%n", [], [[]],
    [None], {}, {"": ""}, {"a": {}}, [1, "a", None], [0] * 2000, ["a"] * 100, {str(i): i for i in range(200)},
    {"type": "json_schema"}, {"type": "text"}, {"type": "function", "function": {}}, *_SOME_SCHEMAS,
]  # fmt: skip


def spoiled(rng: random.Random, body: dict[str, Any]) -> bytes:
    """Some bytes that began as ``body``: mostly valid JSON of another shape, sometimes not even that."""
    found = copy.deepcopy(body)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        found = _spoil_once(rng, found)
    data = json.dumps(found, allow_nan=True).encode()
    return _spoil_bytes(rng, data) if rng.random() < 0.1 else data


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        found += _places(item, (*path, name))
    return found


def _spoil_once(rng: random.Random, body: Any) -> Any:
    path = rng.choice(_places(body))
    if not path:
        return rng.choice(_WEIRD) if rng.random() < 0.2 else _more(rng, body)
    holder = body
    for name in path[:-1]:
        holder = holder[name]
    name, act = path[-1], rng.random()
    if act < 0.55:
        holder[name] = copy.deepcopy(rng.choice(_WEIRD))
    elif act < 0.7:
        del holder[name]
    elif act < 0.8:
        holder[name] = [holder[name]] if rng.random() < 0.5 else {"value": holder[name]}
    elif act < 0.9 and isinstance(holder[name], str):
        holder[name] = _text(rng, holder[name])
    else:
        return _more(rng, body)
    return body


def _text(rng: random.Random, text: str) -> str:
    at = rng.randrange(len(text) + 1)
    return text[:at] + rng.choice(("\u0000", "\ud800", "😀", "\\", '"', "<|im_start|>", "\n" * 50)) + text[at:]


_FIELDS = sorted({name for bodies in BODIES.values() for body in bodies for name in body} | {
    "timeout_s", "priority", "cache_salt", "response_format", "guided_json", "structural_tag", "chat_template",
    "min_tokens", "logprob_start_len", "session_params", "input_embeds", "image_data", "lora_path", "user", "metadata",
    "suffix", "parallel_tool_calls", "previous_response_id", "background", "include", "keep_alive", "think", "thinking",
    "constraint_after", "reasoning_budget", "extra_key", "truncation", "top_k", "min_p", "ignore_eos", "on_limit",
})  # fmt: skip


def _more(rng: random.Random, body: Any) -> Any:
    if not isinstance(body, dict):
        return body
    return {**body, rng.choice(_FIELDS): copy.deepcopy(rng.choice(_WEIRD))}


def _spoil_bytes(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    ways: list[Callable[[], bytes]] = [
        lambda: data[:at],
        lambda: data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :],
        lambda: b"",
        lambda: data + data,
        lambda: b"\xff\xfe" + data,
        lambda: b"[" * 20_000,
        lambda: b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
        lambda: b"\x80\x04\x95" + data,
        lambda: data.decode().encode("utf-16"),
        lambda: b'{"messages": ' + b"9" * 5_000 + b"}",
        lambda: b"null",
    ]
    return rng.choice(ways)()
