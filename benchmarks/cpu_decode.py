"""Time of a decode step on the CPU: plain torch, native kernels, quantised weights, side by side in one process.

    python -m benchmarks.cpu_decode --shapes 29M 0.6B --batches 1 16 --context 256 --threads 2
    python -m benchmarks.cpu_decode --only native --quantization int8 int4
    python -m benchmarks.cpu_decode --batches 16 --context 1120 --shared 1024 --only native

A step is plan, forward, logits and arg-max of random weights; no scheduler, sampler or server. All take turns, so that
load from elsewhere meets all; the least of all rounds is printed, CPU seconds of the process beside wall time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.shapes import DENSE, QWEN3
from sglite.runtime.backend.base import Backend, BatchLayout, ForwardContext
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.cpu_native import cpu_backend
from sglite.runtime.config import CACHE_DTYPES
from sglite.runtime.executor.build import in_cache_dtype
from sglite.runtime.model.loader import LoadedModel, load_model
from sglite.runtime.quant.methods import WHILE_LOADING

PAGE = 16
_EXPERTS = {
    "hidden_size": 1024,
    "num_hidden_layers": 8,
    "intermediate_size": 384,
    "moe_intermediate_size": 384,
    "num_experts_per_tok": 8,
    "vocab_size": 16384,
}
SHAPES: dict[str, dict[str, object]] = {
    **DENSE,
    "moe": {
        **_EXPERTS,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_experts": 32,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "norm_topk_prob": True,
    },
    "latents": {
        **_EXPERTS,
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "n_routed_experts": 32,
        "n_shared_experts": 1,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
        "first_k_dense_replace": 1,
        "intermediate_size": 3072,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "q_lora_rank": 384,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
    },
    "recurrent": {
        **_EXPERTS,
        "architectures": ["Qwen3NextForCausalLM"],
        "model_type": "qwen3_next",
        "num_experts": 32,
        "shared_expert_intermediate_size": 384,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "partial_rotary_factor": 0.25,
        "linear_num_key_heads": 8,
        "linear_num_value_heads": 16,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        "norm_topk_prob": True,
    },
}


@dataclass
class Runner:
    """A model with ``batch`` rows that have ``context`` tokens, of which ``shared`` are on the same pages."""

    loaded: LoadedModel
    backend: Backend
    batch: int
    context: int
    shared: int = 0
    cache_dtype: str = "auto"

    def __post_init__(self) -> None:
        self.per_row = -(-(self.context + 1) // PAGE)
        self.states = [group.name for group in self.loaded.groups if group.kind == "state"]
        self.pool = self.backend.allocate_pool(
            in_cache_dtype(self.loaded.groups, self.cache_dtype),
            num_pages=self.batch * self.per_row,
            page_size=PAGE,
            num_states=self.batch if self.states else 0,
        )
        for tensor in self.pool.paged(False):
            tensor.random_(-127, 128) if tensor.dtype == torch.int8 else tensor.normal_(0.0, 0.5)

    def layout(self, tokens: int) -> BatchLayout:
        """The last ``tokens`` tokens of every row."""
        start = self.context + 1 - tokens
        common = list(range(self.shared // PAGE))
        tables = [[*common, *range(r * self.per_row + len(common), (r + 1) * self.per_row)] for r in range(self.batch)]
        return BatchLayout(
            query_starts=[r * tokens for r in range(self.batch + 1)],
            starts=[start] * self.batch,
            seq_lens=[self.context + 1] * self.batch,
            positions=list(range(start, self.context + 1)) * self.batch,
            slot_mapping=[
                table[i // PAGE] * PAGE + i % PAGE for table in tables for i in range(start, self.context + 1)
            ],
            page_tables=tables,
            page_size=PAGE,
            state_slots=[dict.fromkeys(self.states, row) for row in range(self.batch)],
        )

    def step(self, tokens: int = 1) -> torch.Tensor:
        """Ids of the rows' next tokens."""
        layout = self.layout(tokens)
        context = ForwardContext(self.backend, self.backend.plan(layout), self.pool)
        ids = torch.arange(len(layout.positions)) % self.loaded.vocab_size
        hidden = self.loaded.model.forward(ids, torch.tensor(layout.positions), context)
        return self.loaded.model.logits(hidden[tokens - 1 :: tokens]).argmax(-1)


def timed(runner: Runner, tokens: int) -> tuple[float, float]:
    """Wall and CPU milliseconds of a step."""
    wall, cpu = time.perf_counter(), time.process_time()
    runner.step(tokens)
    return (time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3


def bandwidth() -> float:
    """GB/s of reading memory with torch, now."""
    data = torch.ones(2**27, dtype=torch.float32)
    least = min(_seconds(data) for _ in range(3))
    return data.nbytes / least / 1e9


def _seconds(data: torch.Tensor) -> float:
    start = time.perf_counter()
    data.sum()
    return time.perf_counter() - start


def compare(name: str, runners: dict[str, Runner], tokens: int, rounds: int) -> None:
    """Print one line; the ratios of wall time are to the first runner."""
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in runners}
    for _ in range(rounds + 1):
        for kind, runner in runners.items():
            found[kind].append(timed(runner, tokens))
    best = {kind: [min(column) for column in zip(*times[1:], strict=True)] for kind, times in found.items()}
    told = "   ".join(f"{kind} {wall:8.2f} ms ({cpu:8.2f} CPU)" for kind, (wall, cpu) in best.items())
    first, *others = (wall for wall, _ in best.values())
    ratios = "".join(f"   {first / wall:5.2f}x" for wall in others)
    one = next(iter(runners.values()))
    print(f"{name:9} batch {one.batch:3} x {tokens:4} at {one.context:5}   {told}{ratios}", flush=True)


def main() -> None:
    """Load every shape in all forms, then time each batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--shared", type=int, default=0, help="tokens that all rows have in common, in whole pages")
    parser.add_argument("--cache-dtype", default="auto", choices=CACHE_DTYPES)
    parser.add_argument("--tokens", type=int, default=1, help="that every row computes in the step")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--only", choices=("plain", "native"))
    parser.add_argument("--quantization", nargs="*", choices=WHILE_LOADING, default=[])
    given = parser.parse_args()
    backends = {"plain": CPUBackend(given.threads), "native": cpu_backend(given.threads, given.kernels)}
    print(f"native: {backends['native'].describe()}; memory {bandwidth():.1f} GB/s")
    for name in given.shapes:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps({**QWEN3, **SHAPES[name]}))
            models = {
                kind: load_model(folder, backend=backend, dtype=given.dtype, load_format="dummy")
                for kind, backend in backends.items()
                if given.only in (None, kind)
            }
            for form in given.quantization:
                models[form] = load_model(
                    folder, backend=backends["native"], dtype=given.dtype, load_format="dummy", quantization=form
                )
        print(name, ", ".join(f"{kind} {loaded.weight_bytes / 1e6:.0f} MB" for kind, loaded in models.items()))
        for batch in given.batches:
            runners = {
                kind: Runner(loaded, loaded.model.backend, batch, given.context, given.shared, given.cache_dtype)
                for kind, loaded in models.items()
            }
            compare(name, runners, given.tokens, given.rounds)


if __name__ == "__main__":
    main()
