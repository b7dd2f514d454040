"""Reading what clients send: bounded, as JSON, with every field known by name."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Collection
from itertools import chain
from typing import Any

import msgspec
from starlette.requests import Request

from sglite.runtime import garbage
from sglite.runtime.serve.errors import Refused

MAX_BODY = 32 * 2**20
"""Bytes of a request's body."""
_LARGE = 2**20
"""Bodies of more bytes than this are decoded beside the loop."""
MAX_DEPTH = 200
"""Lists and objects within each other: nothing that reads them further on may run out of stack."""


async def read_bytes(request: Request, limit: int) -> bytes:
    """The body; 413 as soon as more than ``limit`` bytes are announced or have come."""
    for name, announced in request.scope["headers"]:
        if name == b"content-length":
            if announced.isdigit() and len(announced) < 19 and int(announced) > limit:
                raise too_large(limit)
            break
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "the connection ended before the body was complete")
        part, more = message.get("body", b""), message.get("more_body", False)
        size += len(part)
        if size > limit:
            raise too_large(limit)
        parts.append(part)
    return b"".join(parts)


def too_large(limit: int) -> Refused:
    """The refusal of a body of more than ``limit`` bytes."""
    return Refused(413, f"the body has more than {limit} bytes; send less")


async def read_object(request: Request, limit: int = MAX_BODY) -> dict[str, Any]:
    """The body as a JSON object; an empty body is an empty object. What is sent to OpenAI's and Anthropic's routes as
    something else than JSON is refused, as they do."""
    kind = request.headers.get("content-type", "application/json")
    if request.scope["path"].startswith("/v1/") and "json" not in kind.lower():
        told = f"content type {kind[:60]!a}; send the body as Content-Type: application/json"
        raise Refused(400, told, code="unsupported_content_type")
    data = await read_bytes(request, limit)
    if not data:
        return {}
    value = await asyncio.to_thread(_decode_large, data) if len(data) > _LARGE else decode(data)
    if not isinstance(value, dict):
        raise Refused(400, f"the body must be a JSON object, not {_kind(value)}")
    return value


def decode(data: bytes) -> Any:
    """JSON text as values: UTF-8 without half characters, finite numbers, nested ``MAX_DEPTH`` deep at most."""
    try:
        value = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise Refused(400, f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise _too_deep() from None
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _is_deep(value):
        raise _too_deep()
    return value


def _decode_large(data: bytes) -> Any:
    with garbage.overlooked():
        return decode(data)


def _is_deep(value: Any) -> bool:
    lists: list[list[Any]] = [[value]]
    dicts: list[dict[str, Any]] = []
    for _ in range(MAX_DEPTH + 1):
        inside = [*chain.from_iterable(lists), *chain.from_iterable(map(dict.values, dicts))]
        lists = [item for item in inside if type(item) is list]
        dicts = [item for item in inside if type(item) is dict]
        if not lists and not dicts:
            return False
    return True


def _too_deep() -> Refused:
    return Refused(400, f"the body is nested deeper than {MAX_DEPTH} levels; flatten it")


def check_names(body: dict[str, Any], known: Collection[str], where: str, elsewhere: dict[str, str]) -> None:
    """Refuses fields that nobody reads, all by name. ``elsewhere``: names that belong somewhere else, and where."""
    unknown = [name for name in body if name not in known]
    if not unknown:
        return
    name = unknown[0][:64]
    near = difflib.get_close_matches(name, known, 1)
    hint = elsewhere.get(name) or (f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}")
    names = ", ".join(ascii(found[:64]) for found in unknown[:8])
    raise Refused(400, f"{where} has no field {names}; {hint}", param=name)


def _kind(value: Any) -> str:
    return {list: "a list", str: "text", bool: "a boolean", type(None): "null"}.get(type(value), "a number")
