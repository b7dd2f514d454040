"""What is measured: prompts of random ids, and how many tokens follow. A shot is one call of a peer; see ``loop``.

No prompt occurs twice, so that nothing is found in a cache that does not belong to the same call.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

LOWEST_ID, HIGHEST_ID = 300, 8000
"""Ordinary words in every checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Shots of one kind: ``whole``, ``first`` (the same with one token) and, with a schema, ``free`` (without)."""

    about: str
    prompts: int
    own: int
    """Tokens of a prompt that no other has."""
    shared: int = 0
    """Tokens before them that all have."""
    max_new: int
    n: int = 1
    temperature: float = 0.0
    schema: bool = False
    shots: tuple[str, ...] = ("whole", "first")

    def shot(self, kind: str, seed: str) -> dict[str, Any]:
        """One call; other seeds are other prompts."""
        draw = random.Random(f"{seed}/{kind}/{self.about}")
        shared = _ids(draw, self.shared)
        return {
            "prompts": [shared + _ids(draw, self.own) for _ in range(self.prompts)],
            "max_new": 1 if kind == "first" else self.max_new,
            "n": self.n,
            "temperature": self.temperature,
            "schemas": [schema(i) for i in range(self.prompts)] if self.schema and kind == "whole" else None,
        }

    def shortened(self, by: int) -> Workload:
        """The same with lengths divided."""
        lengths = {"own": self.own // by, "shared": self.shared // by, "max_new": max(1, self.max_new // by)}
        return replace(self, **lengths)


WORKLOADS = {
    "W1": Workload(about="decode, one request, 128 in, 128 out", prompts=1, own=128, max_new=128),
    "W2": Workload(about="prefill of 2,048", prompts=1, own=2048, max_new=1, shots=("whole",)),
    "W3": Workload(about="16 at once, 256 in, 128 out", prompts=16, own=256, max_new=128),
    "W4": Workload(about="16 that share 1,024, 64 of their own, 32 out", prompts=16, shared=1024, own=64, max_new=32),
    "W5": Workload(
        about="8 at once, a JSON schema each, 128 in, 96 out", prompts=8, own=128, max_new=96, schema=True,
        shots=("whole", "free"),
    ),
    "W6": Workload(
        about="8 outputs of one prompt, 512 in, 64 out", prompts=1, own=512, max_new=64, n=8, temperature=1.0,
        shots=("whole",),
    ),
}  # fmt: skip
WEIGHT_OF_A_SAMPLE = {"29M": 4, "0.6B": 1}
"""Shots that make up one sample, so that it takes a while."""


def schema(index: int) -> dict[str, Any]:
    """Records that no 96 tokens can end, everything in them bounded; each request has names of its own."""
    field = ("order", "ticket", "device", "invoice", "member", "sensor", "parcel", "lesson")[index % 8]
    record = {
        f"{field}_id": {"type": "integer", "minimum": 1, "maximum": 999},
        "title": {"type": "string", "minLength": 1, "maxLength": 12},
        "status": {"enum": ["pending", "approved", "rejected"]},
        f"{field}_tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 1, "maxItems": 3},
        "verified": {"type": "boolean"},
    }
    item = {"type": "object", "properties": record, "required": list(record), "additionalProperties": False}
    return {"type": "array", "items": item, "minItems": 24, "maxItems": 48}


def _ids(draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(LOWEST_ID, HIGHEST_ID) for _ in range(count)]
