"""Decoding on one GPU: how near a whole step, host included, comes to the time that its bytes take.

    python -m benchmarks.gpu_decode --shapes 0.6B,8B --batches 1,64,256 --peer --out decode.json

Weights are random, of Qwen3's shapes, and made on the device; every request has ``--context`` tokens in the cache. The
time of a step is the difference of two runs of the same requests that differ in the number of output tokens, so that
prefill, queueing and the ends of requests are in both: the median of ``--rounds``. The floor is what a step has to
read, weights (of the embeddings only one row a request, unless they are the head too) and the cache of all requests,
what they share once, at the bandwidth of a copy inside the device that is measured right before.

    free            greedy; by the profiler the shares of time in which no kernel runs (idle), and in which none runs
                    for longer than kernels of a graph need to follow each other (waits: for the host, between steps)
    top-p           sampled
    constrained     by letters, so that no token is forced: what masks cost
    tool call       an object whose keys and names are forced: ms a token, jump-forward included
    shared prefix   requests that begin alike but for their last 64 tokens, cascade attention as measured at the start
    ... off, deterministic    the same with something turned off, or on
    transformers    its continuous batching, timed in the same way

The column *against* is how many times as long a step takes as that of free requests, without cascade attention as with
it. Without ``--attention-backend`` sglite's own attention kernels are measured, and FlashInfer's too where it is
installed; what is turned off is so with the first of them.

    TRITON_INTERPRET=1 python -m benchmarks.gpu_decode --shapes tiny --batches 2 --context 40 --steps 2 --rounds 1

goes through all of it without a GPU; times mean nothing then.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from benchmarks.peers.checkpoint import save_tokenizer, train
from benchmarks.shapes import DENSE, QWEN3
from sglite import Engine
from sglite.runtime.backend.kernels.device import INTERPRETED
from sglite.runtime.backend.timing import elapsed_on

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
LETTERS = "[a-z]+"
TOOL_CALL = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"const": "get_current_weather"},
            "arguments": {
                "type": "object",
                "properties": {
                    "location": {"type": "string", "pattern": "^[a-z]{4,12}$"},
                    "temperature_unit": {"enum": ["celsius", "fahrenheit"]},
                    "number_of_days": {"type": "integer", "minimum": 1, "maximum": 9},
                },
                "required": ["location", "temperature_unit", "number_of_days"],
                "additionalProperties": False,
            },
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
)
FEW = 16
"""Tokens of the shorter of two runs."""
OWN = 64
"""Tokens of a prompt that no other one has, where they share the rest."""
WAITS_US = 5.0
"""Kernels of a graph follow each other sooner."""
COPIED = 2**20 if INTERPRETED else 2**31
"""Bytes, to tell the bandwidth."""
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "intermediate_size": 64,
        "vocab_size": 600,
    },
    "0.6B": dict(DENSE["0.6B"]),
    "8B": {
        "hidden_size": 4096,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 12288,
        "vocab_size": 151936,
        "tie_word_embeddings": False,
    },
}


@dataclass
class Sample:
    """One measured configuration."""

    shape: str
    batch: int
    what: str
    step_ms: float
    """Of ``tool call``: of a token."""
    floor_ms: float
    bandwidth: float
    """Bytes a second."""
    attention: str = ""
    """Whose kernels attended."""
    against_ms: float | None = None
    """What the step is compared with."""
    idle: float | None = None
    """Share of the time in which no kernel runs."""
    waiting: float | None = None
    """Of that, in gaps longer than ``WAITS_US``."""
    kernels: str = ""
    """What the engine says of them, the rule for shared prefixes included."""

    @property
    def share(self) -> float:
        """Of the roofline."""
        return self.floor_ms / self.step_ms

    def line(self) -> str:
        """A row of the table."""
        cells = [self.shape, str(self.batch), self.what, self.attention, f"{self.step_ms:.3f}", f"{self.floor_ms:.3f}"]
        cells += [f"{self.bandwidth / 1e12:.2f}", f"{self.share:.2f}"]
        cells.append("" if self.against_ms is None else f"{self.step_ms / self.against_ms:.3f}")
        cells += ["" if share is None else f"{100 * share:.1f} %" for share in (self.idle, self.waiting)]
        return f"| {' | '.join(cells)} |"


HEADER = (
    "shape",
    "batch",
    "",
    "attention",
    "ms a step",
    "floor, ms",
    "TB/s",
    "of the roofline",
    "against",
    "idle",
    "waits",
)


def bandwidth() -> float:
    """Bytes a second that a copy inside the device reads and writes, the best of ten."""
    source, target = (torch.empty(COPIED, dtype=torch.uint8, device=DEVICE) for _ in range(2))
    timed = elapsed_on(DEVICE)
    return 2 * COPIED / min(timed(lambda: target.copy_(source)) for _ in range(10))


def floor_bytes(config: dict[str, Any], batch: int, context: int, shared: int = 0) -> int:
    """What a step reads at least: weights in bfloat16 and the cache, of which ``shared`` slots are those of all."""
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    heads, kv_heads, dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    attention = hidden * dim * (heads + 2 * kv_heads) + heads * dim * hidden
    weights = layers * (attention + 3 * hidden * inner) + config["vocab_size"] * hidden
    slots = shared + batch * (context - shared)
    return 2 * (weights + slots * layers * 2 * kv_heads * dim)


@cache
def tokenizer(vocab_size: int) -> Tokenizer:
    """Of the models that are measured."""
    return train(vocab_size)


def write_model(shape: str, folder: Path, context: int) -> dict[str, Any]:
    """A folder with a config and a tokenizer, no weights."""
    config: dict[str, Any] = {**QWEN3, **SHAPES[shape], "bos_token_id": None, "eos_token_id": 0}
    config["max_position_embeddings"] = max(8192, 2 * context)
    (folder / "config.json").write_text(json.dumps(config))
    save_tokenizer(tokenizer(config["vocab_size"]), folder)
    return config


def release() -> None:
    """Let go of what an engine that was shut down held on the device; threads of its that end hold it a moment more."""
    for _ in range(3):
        gc.collect()
        time.sleep(0.1)


@contextmanager
def engine_of(folder: Path, batch: int, **options: Any) -> Iterator[Engine]:
    """An engine that holds ``batch`` requests."""
    given: dict[str, Any] = {"device": "cuda", "dtype": "bfloat16", "load_format": "dummy", "show_progress": False}
    if INTERPRETED:
        given["max_total_tokens"] = 4096
    release()
    with Engine(str(folder), **given, max_running_requests=batch, cuda_graph_max_bs=batch, **options) as engine:
        yield engine


def prompts(batch: int, context: int, shared: int, vocab: int) -> list[list[int]]:
    """Ids of requests whose first ``shared`` tokens are the same."""
    generator = torch.Generator().manual_seed(batch)
    least = min(1000, vocab // 4)
    common = torch.randint(least, vocab // 2, (shared,), generator=generator).tolist()
    own = torch.randint(least, vocab // 2, (batch, context - shared), generator=generator).tolist()
    return [common + one for one in own]


def run_s(engine: Engine, ids: Sequence[list[int]], tokens: int, **sampling: Any) -> float:
    """Seconds of one run; the prompts are cached."""
    params = {"temperature": 0.0, "max_new_tokens": tokens, "ignore_eos": True, **sampling}
    started = time.perf_counter()
    results = engine.generate(input_ids=list(ids), sampling_params=params)
    took = time.perf_counter() - started
    assert all(len(result["output_ids"]) == tokens for result in results)
    return took


def step_ms(engine: Engine, ids: Sequence[list[int]], steps: int, rounds: int, **sampling: Any) -> float:
    """Milliseconds a step: the median over rounds of the difference of a short and a long run."""
    run_s(engine, ids, FEW, **sampling)
    found = []
    for _ in range(rounds):
        short = run_s(engine, ids, FEW, **sampling)
        found.append(1000 * (run_s(engine, ids, FEW + steps, **sampling) - short) / steps)
    return statistics.median(found)


def tool_call_ms(engine: Engine, ids: Sequence[list[int]], rounds: int) -> float:
    """Milliseconds a token of tool calls behind the first one: the median over rounds."""
    params = {"temperature": 0.0, "max_new_tokens": 200, "json_schema": TOOL_CALL}
    found = []
    for _ in range(rounds + 1):
        one = run_s(engine, ids, 1)
        started = time.perf_counter()
        results = engine.generate(input_ids=list(ids), sampling_params=params)
        took = time.perf_counter() - started
        tokens = [len(result["output_ids"]) for result in results]
        assert all(result["meta_info"]["finish_reason"]["type"] == "stop" for result in results)
        found.append(1000 * (took - one) / (max(tokens) - 1))
    return statistics.median(found[1:])


def kernel_spans(engine: Engine, ids: Sequence[list[int]], steps: int) -> list[tuple[float, float]]:
    """When kernels of a run began and ended, in microseconds; of none in Triton's interpreter."""
    activities = [torch.profiler.ProfilerActivity.CPU if INTERPRETED else torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run_s(engine, ids, steps)
    return [
        (event.time_range.start, event.time_range.end)
        for event in profile.events() or []
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]


def idle_shares(spans: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Shares of the time in which nothing runs, in all and in gaps longer than ``WAITS_US``: of the middle half of
    ``spans``, without the ends of the run."""
    spans = sorted(spans)
    first, last = spans[len(spans) // 4][0], spans[3 * len(spans) // 4][0]
    idle = waiting = 0.0
    at = first
    for start, end in spans:
        gap = min(start, last) - at
        if gap > 0:
            idle += gap
            waiting += gap if gap > WAITS_US else 0
        at = max(at, end)
    return idle / (last - first), waiting / (last - first)


def peer_step_ms(folder: Path, ids: Sequence[list[int]], steps: int, rounds: int) -> float:
    """Milliseconds a step of transformers' continuous batching over the same shape, prompts and numbers of tokens."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.from_pretrained(folder, attn_implementation="sdpa")
    release()
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).to(DEVICE).eval()

    def run(tokens: int) -> float:
        wanted = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1)
        started = time.perf_counter()
        results = model.generate_batch(
            inputs=list(ids), generation_config=wanted, progress_bar=False, persistent_manager=True
        )
        took = time.perf_counter() - started
        made = [len(result.generated_tokens) for result in results.values()]
        assert made == [tokens] * len(ids), f"transformers made {made} tokens in place of {tokens} each"
        return took

    run(FEW + steps)  # its caches and graphs are made for the first run's size, and kept
    found = statistics.median(1000 * (run(FEW + steps) - run(FEW)) / steps for _ in range(rounds))
    model.destroy_cached_continuous_batching_manager()
    return found


OFF: dict[str, dict[str, Any]] = {
    "overlap off": {"disable_overlap_schedule": True},
    "graphs off": {"disable_cuda_graph": True},
    "deterministic": {"enable_deterministic_inference": True},
    "cascade off": {"cascade_attention": "never"},
}


class Bench:
    """One shape and batch."""

    def __init__(self, shape: str, batch: int, folder: Path, config: dict[str, Any], given: argparse.Namespace) -> None:
        self._folder, self._given, self._batch = folder, given, batch
        self._shared = given.context - min(OWN, given.context // 2)
        self._ids = prompts(batch, given.context, 0, config["vocab_size"])
        self._forked = prompts(batch, given.context, self._shared, config["vocab_size"])
        speed, end = bandwidth(), given.context + given.steps // 2
        floors = [1000 * floor_bytes(config, batch, end, shared) / speed for shared in (0, self._shared)]
        self._apart, self._alike = (Sample(shape, batch, "", 0.0, floor, speed) for floor in floors)

    def samples(self) -> Iterator[Sample]:
        """All configurations."""
        against: dict[str, float] = {}
        for kernels in self._given.attention_backend:
            for sample in self._engine(kernels):
                against.setdefault(sample.what, sample.step_ms)
                yield sample
        if self._given.peer:
            took = peer_step_ms(self._folder, self._ids, self._given.steps, self._given.rounds)
            yield replace(self._apart, what="transformers", step_ms=took, against_ms=against["free"])
        kernels = self._given.attention_backend[0]
        for what, options in {} if self._given.quick else OFF.items():
            forks = "cascade_attention" in options
            if forks and self._batch == 1:
                continue
            if kernels == "flashinfer" and what in ("deterministic", "cascade off"):
                continue  # the first it refuses, the second it always is
            base = self._alike if forks else self._apart
            took, said = self._turned(kernels, self._forked if forks else self._ids, options)
            compared = against["shared prefix" if forks else "free"]
            yield replace(base, what=what, step_ms=took, attention=kernels, against_ms=compared, kernels=said)

    def _engine(self, kernels: str) -> Iterator[Sample]:
        """What one engine is asked."""
        steps, rounds = self._given.steps, self._given.rounds
        with engine_of(self._folder, self._batch, attention_backend=kernels) as engine:
            apart, alike = (
                replace(base, attention=kernels, kernels=engine.config.kernels) for base in (self._apart, self._alike)
            )
            free = step_ms(engine, self._ids, steps, rounds)
            spans = kernel_spans(engine, self._ids, steps)
            idle, waiting = idle_shares(spans) if spans else (None, None)
            yield replace(apart, what="free", step_ms=free, idle=idle, waiting=waiting)
            apart.against_ms = free
            sampled = step_ms(engine, self._ids, steps, rounds, temperature=0.8, top_p=0.9, seed=1)
            yield replace(apart, what="top-p", step_ms=sampled)
            masked = step_ms(engine, self._ids, steps, rounds, regex=LETTERS)
            yield replace(apart, what="constrained", step_ms=masked)
            yield replace(apart, what="tool call", step_ms=tool_call_ms(engine, self._ids, rounds))
            if self._batch > 1:
                forked = step_ms(engine, self._forked, steps, rounds)
                yield replace(alike, what="shared prefix", step_ms=forked, against_ms=free)

    def _turned(self, kernels: str, ids: Sequence[list[int]], options: dict[str, Any]) -> tuple[float, str]:
        """A step with something turned off, and what the engine says of its kernels."""
        with engine_of(self._folder, self._batch, attention_backend=kernels, **options) as engine:
            return step_ms(engine, ids, self._given.steps, self._given.rounds), engine.config.kernels


def attention_backends() -> list[str]:
    """Those that are there."""
    return ["triton", *(["flashinfer"] if importlib.util.find_spec("flashinfer") is not None else [])]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="0.6B,8B", help=f"of {', '.join(SHAPES)}, with commas between them")
    parser.add_argument("--batches", default="1,64,256")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--attention-backend",
        type=lambda names: names.split(","),
        default=attention_backends(),
        help="triton, flashinfer or auto, or several with commas between them; default: all that are installed",
    )
    parser.add_argument("--quick", action="store_true", help="leave out engines with something turned off")
    parser.add_argument("--peer", action="store_true", help="time transformers too")
    parser.add_argument("--out", type=Path, help="a file for the samples, as JSON")
    given = parser.parse_args(argv)
    if not INTERPRETED and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU; TRITON_INTERPRET=1 goes through it without one")
    name = "Triton's interpreter" if INTERPRETED else torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}, {given.context} tokens of context\n")
    print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
    found: list[Sample] = []
    for shape in given.shapes.split(","):
        for batch in map(int, given.batches.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                config = write_model(shape, Path(folder), given.context)
                for sample in Bench(shape, batch, Path(folder), config, given).samples():
                    found.append(sample)
                    print(sample.line(), flush=True)
                    if given.out is not None:
                        given.out.write_text(json.dumps([asdict(one) for one in found]))
    print()
    for said in dict.fromkeys(f"{one.shape}, batch {one.batch}, {one.kernels}" for one in found if one.kernels):
        print(said)


if __name__ == "__main__":
    main()
