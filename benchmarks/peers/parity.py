"""Whether everybody computes the same model: greedy tokens held against transformers in float32.

Two correct programs in bf16 round differently, and where two tokens are nearly equal they may choose differently; from
there on their texts differ. So each token is judged in its own context: how far it is below transformers' first choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.peers.figures import OWN
from benchmarks.peers.workloads import Workload

SHOT = Workload(about="parity", prompts=4, own=96, max_new=32).shot("whole", "parity")
LEAST_FIRST = {"bf16": 0.8, "int8": 0.5}
"""Share of sglite's tokens that must be the first choice."""
MOST_BELOW = {"bf16": 0.75, "int8": 3.0}
"""Logits, whose spread is 3, that one may be below it."""


@dataclass(frozen=True)
class Verdict:
    """On what one peer wrote."""

    first: float
    """Share of the tokens that are the first choice."""
    below: float
    """Logits of the worst below it."""

    def agrees(self, precision: str) -> bool:
        return self.first >= LEAST_FIRST[precision] and self.below <= MOST_BELOW[precision]

    def __str__(self) -> str:
        return f"{self.first:.1%} of its greedy tokens are transformers' first choice, the worst {self.below:.2f} below"


def sequences(outputs: list[list[int]]) -> dict[str, list[list[int]] | list[int]]:
    """The question to the judge: prompts with what followed, and where that begins."""
    prompts = SHOT["prompts"]
    both = [prompt + output for prompt, output in zip(prompts, outputs, strict=True)]
    return {"sequences": both, "starts": [len(prompt) for prompt in prompts]}


def verdict(below: Sequence[Sequence[float]]) -> Verdict:
    """From the judge's answer."""
    every = [value for row in below for value in row]
    return Verdict(sum(value == 0 for value in every) / len(every), max(every))


def line(peer: str, found: Verdict, precision: str) -> str:
    """For the report."""
    wrong = "" if found.agrees(precision) else ": IT DOES NOT COMPUTE THE SAME MODEL"
    return f"{peer}: {found}{wrong}"


def is_fatal(peer: str, found: Verdict, precision: str) -> bool:
    """Figures of a wrong sglite are worth nothing."""
    return peer == OWN and not found.agrees(precision)
