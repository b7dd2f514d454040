"""What a mask costs on the CPU, one row of 151,936 logits, one thread: ``python -m benchmarks.constrained.apply_mask``.

Two columns apply a bitmask and nothing else: the backend, and xgrammar's CPU kernel where it is installed; a third
does it in plain torch, our specification. The last two are the whole sampler, greedy and drawn at temperature 1, which
among few allowed tokens never touches the others. The smallest of many runs, in microseconds.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sglite.constrained import bitmask
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.mask import apply_bitmask
from sglite.runtime.sample.params import SamplingParams
from sglite.runtime.sample.sampler import Sampler, SampleRow

WIDTH = 151_936
ALLOWED = {"1": 1, "10": 10, "1,000": 1000, "10,000": 10_000, "half": WIDTH // 2, "all but 5,000": WIDTH - 5000}
COLUMNS = ("backend", "xgrammar kernel", "plain torch", "sampler, greedy", "sampler, drawn")


def mask_of(allowed: int, seed: int = 0) -> Tensor:
    """A random row [1, words] with that many ids."""
    ids = np.random.default_rng(seed).permutation(WIDTH)[:allowed]
    return torch.from_numpy(bitmask.from_ids(ids, WIDTH).reshape(1, -1))


def best_of(repeats: int, call: Callable[[], object]) -> float:
    """Microseconds of the quickest call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return round(1e6 * min(times), 1)


def measure(repeats: int = 200) -> dict[str, dict[str, float | None]]:
    """Microseconds a row, by number of allowed ids and column."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {name: _row(mask_of(allowed), repeats) for name, allowed in ALLOWED.items()}
    finally:
        torch.set_num_threads(threads)


def _row(mask: Tensor, repeats: int) -> dict[str, float | None]:
    logits = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(0))
    work = logits.clone()
    backend, kernel = CPUBackend(), _xgrammar_kernel()
    sampler = Sampler(backend.sample)
    greedy, drawn = ([SampleRow(params=SamplingParams(temperature=heat), seed=1, position=1)] for heat in (0.0, 1.0))
    calls: dict[str, Callable[[], object] | None] = {
        "backend": lambda: backend.apply_mask(work, mask),
        "xgrammar kernel": None if kernel is None else lambda: kernel(work, mask),
        "plain torch": lambda: apply_bitmask(work, mask),
        "sampler, greedy": lambda: sampler.sample(logits, greedy, mask),
        "sampler, drawn": lambda: sampler.sample(logits, drawn, mask),
    }
    return {name: None if call is None else best_of(repeats, call) for name, call in calls.items()}


def _xgrammar_kernel() -> Any:
    """xgrammar's CPU kernel, or ``None`` without xgrammar."""
    if importlib.util.find_spec("xgrammar") is None:
        return None
    from xgrammar.kernels.apply_token_bitmask_inplace_cpu import apply_token_bitmask_inplace_cpu

    return apply_token_bitmask_inplace_cpu


def table(found: dict[str, dict[str, float | None]]) -> str:
    """The numbers as Markdown."""
    lines = ["| allowed ids | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, row in found.items():
        lines.append(f"| {name} | " + " | ".join("-" if row[c] is None else f"{row[c]:.0f}" for c in COLUMNS) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = measure(arguments.repeats)
    print(json.dumps(found) if arguments.json else table(found))


if __name__ == "__main__":
    main()
