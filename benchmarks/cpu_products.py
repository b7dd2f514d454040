"""Products of packed weights on one thread of the CPU, beside torch's on the same numbers.

    python benchmarks/cpu_products.py --shapes qkv head --rows 1 16 512

Both take turns in one process and CPU time is counted, so that load from elsewhere meets both; the least of all rounds
is printed. Weights are rotated over copies on huge pages, so that few rows read them from memory; where they should
stay in a cache, give --memory 0. Few rows are told in GB/s of weights, many in GFLOP/s; "read" is a plain read of as
many bytes in turn.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable

import torch
from torch import Tensor

from sglite.runtime.backend.base import Backend
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.cpu_native import cpu_backend
from sglite.runtime.backend.weights import Matrix

SHAPES = {
    "qkv": (4096, 1024),
    "o": (1024, 2048),
    "gate_up": (6144, 1024),
    "down": (1024, 3072),
    "head": (151936, 1024),
    "29M qkv": (1024, 512),
    "29M o": (512, 512),
    "29M gate_up": (3072, 512),
    "29M down": (512, 1536),
    "29M head": (8192, 512),
}
"""[outs, ins] of the products of a Qwen3-0.6B shape and of one of 29M."""
FEW = 32
"""Rows up to which a product is told by the bytes of its weights."""
LEAST_SECONDS = 0.02
"""That a round takes at least."""


class Bench:
    """Products of one shape, a call after the other with the next copy of the weights."""

    def __init__(self, outs: int, ins: int, dtype: torch.dtype, memory: int, backends: dict[str, Backend]) -> None:
        self.outs, self.ins = outs, ins
        size = outs * ins * dtype.itemsize
        self.weights = {name: [] for name in backends}  # type: dict[str, list[Matrix]]
        self.backends = backends
        for name, backend in backends.items():
            for _ in range(max(1, -(-memory // size))):
                weight = Matrix(torch.empty(outs, ins, dtype=dtype))
                backends["native"].place(weight)
                weight.tensor.normal_()
                backend.pack(weight)
                self.weights[name].append(weight)
        self.bytes = size

    def call(self, name: str, x: Tensor) -> Callable[[], object]:
        """A call of a backend, each time with the next weight."""
        weights, backend = itertools.cycle(self.weights[name]), self.backends[name]
        return lambda: backend.matmul(x, next(weights))

    def reading(self) -> Callable[[], object]:
        """A plain read of as many bytes."""
        tensors = itertools.cycle([weight.tensor.view(torch.int32) for weight in self.weights["native"]])
        return lambda: next(tensors).max()


def seconds(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """CPU seconds of one call each, the least of all rounds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    counts = dict.fromkeys(calls, 0)
    for _ in range(rounds + 1):
        for name, call in calls.items():
            count, start = counts[name] or 1, time.process_time()
            for _ in range(count):
                call()
            spent = time.process_time() - start
            if counts[name]:
                times[name].append(spent / count)
            counts[name] = max(1, round(LEAST_SECONDS * count / max(spent, 1e-6)))
    return {name: min(found) for name, found in times.items()}


def compare(name: str, bench: Bench, rows: int, dtype: torch.dtype, rounds: int) -> None:
    """Print one line."""
    x = torch.randn(rows, bench.ins, dtype=dtype)
    calls = {kind: bench.call(kind, x) for kind in bench.backends}
    if rows <= FEW:
        calls["read"] = bench.reading()
    spent = seconds(calls, rounds)
    scale, unit = (bench.bytes, "GB/s") if rows <= FEW else (2 * rows * bench.outs * bench.ins, "GFLOP/s")
    told = "   ".join(
        f"{kind} {taken * 1e6:9.0f} us {scale / taken / 1e9:7.1f} {unit}" for kind, taken in spent.items()
    )
    print(f"{name:12} {rows:5} rows   {told}   {spent['torch'] / spent['native']:5.2f}x", flush=True)


def main() -> None:
    """Every shape with every number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 4, 16, 64, 512, 2048])
    parser.add_argument("--memory", type=int, default=256, help="MiB that the copies of a weight take at least")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--kernels", default="auto")
    given = parser.parse_args()
    backends: dict[str, Backend] = {"native": cpu_backend(1, given.kernels), "torch": CPUBackend(1)}
    print(f"native: {backends['native'].describe()}")
    dtype = getattr(torch, given.dtype)
    for name in given.shapes:
        bench = Bench(*SHAPES[name], dtype, given.memory << 20, backends)
        for rows in given.rows:
            compare(name, bench, rows, dtype, given.rounds)


if __name__ == "__main__":
    main()
