"""A list given in pages, as OpenAI's clients ask for one: ``limit``, ``order`` and ``after`` in the query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sglite.runtime.serve.errors import Refused

MAX_LIMIT = 100
DEFAULT_LIMIT = 20


def page(items: Sequence[dict[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    """A page of ``items``, which are in order and have ids; the latest come first unless ``order`` is ``asc``."""
    order, after = query.get("order", "desc"), query.get("after")
    if order not in ("asc", "desc"):
        raise Refused(400, f"order must be asc or desc, got {order[:40]!r}", param="order")
    rows = list(items) if order == "asc" else list(reversed(items))
    places = {row["id"]: index for index, row in enumerate(rows)}
    if after is not None and after not in places:
        raise Refused(400, f"after {after[:80]!r} is no item of this list", param="after")
    first = 0 if after is None else places[after] + 1
    last = first + _limit(query.get("limit"))
    found = rows[first:last]
    ends = {"first_id": found[0]["id"], "last_id": found[-1]["id"]} if found else {"first_id": None, "last_id": None}
    return {"object": "list", "data": found, **ends, "has_more": last < len(rows)}


def _limit(given: str | None) -> int:
    if given is None:
        return DEFAULT_LIMIT
    limit = int(given) if given.isascii() and given.isdigit() and len(given) < 5 else 0
    if not 1 <= limit <= MAX_LIMIT:
        raise Refused(400, f"limit must be an integer in [1, {MAX_LIMIT}], got {given[:40]!r}", param="limit")
    return limit
