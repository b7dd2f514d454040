"""Decoding on one GPU: how near a whole step, host included, comes to the time that its bytes take.

    python -m benchmarks.gpu_decode --shapes 0.6B,8B --batches 1,64,256 --out decode.json

Weights are random, of Qwen3's shapes, and made on the device; every request has ``--context`` tokens in the cache. The
time of a step is the difference of two runs of the same requests that differ in the number of output tokens, so that
prefill, queueing and the ends of requests are in both: the median of ``--rounds``. The floor is what a step has to
read, weights (of the embeddings only one row a request, unless they are the head too) and the cache of all requests, at
the bandwidth of a copy inside the device that is measured right before.

Idle is the share of the time between the first and the last kernel of a run in which no kernel runs, by the profiler.
Constrained requests follow a regular expression of single letters, so that no token is forced: what is compared with
free ones is the cost of masks. The peer is transformers' continuous batching, timed in the same way.

Without ``--attention-backend`` sglite's own attention kernels are measured, and FlashInfer's too where it is installed;
what is turned off is so with the first of them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.checkpoint import save_tokenizer, train
from benchmarks.shapes import DENSE, QWEN3
from sglite import Engine

LETTERS = "[a-z]{2000}"
SHAPES: dict[str, dict[str, Any]] = {
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
    floor_ms: float
    idle: float | None = None
    attention: str = ""
    """Whose kernels attended."""

    @property
    def share(self) -> float:
        """Of the roofline."""
        return self.floor_ms / self.step_ms


def bandwidth() -> float:
    """Bytes a second that a copy inside the device reads and writes, the best of ten."""
    size = 2**31
    source, target = (torch.empty(size, dtype=torch.uint8, device="cuda") for _ in range(2))
    best = 0.0
    for _ in range(10):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        target.copy_(source)
        ended.record()
        ended.synchronize()
        best = max(best, 2 * size / (began.elapsed_time(ended) / 1000))
    return best


def floor_bytes(config: dict[str, Any], batch: int, context: int) -> int:
    """What a step reads at least: weights in bfloat16 and the cache."""
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    heads, kv_heads, dim = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]
    attention = hidden * dim * (heads + 2 * kv_heads) + heads * dim * hidden
    weights = layers * (attention + 3 * hidden * inner) + config["vocab_size"] * hidden
    return 2 * (weights + batch * context * layers * 2 * kv_heads * dim)


def write_model(shape: str, folder: Path, context: int) -> dict[str, Any]:
    """A folder with a config and a tokenizer, no weights."""
    config: dict[str, Any] = {**QWEN3, **SHAPES[shape], "bos_token_id": None, "eos_token_id": 0}
    config["max_position_embeddings"] = max(8192, 2 * context)
    (folder / "config.json").write_text(json.dumps(config))
    save_tokenizer(train(config["vocab_size"]), folder)
    return config


@contextmanager
def engine_of(folder: Path, batch: int, **options: Any) -> Iterator[Engine]:
    """An engine that holds ``batch`` requests."""
    given: dict[str, Any] = {"device": "cuda", "dtype": "bfloat16", "load_format": "dummy", "show_progress": False}
    with Engine(str(folder), **given, max_running_requests=batch, cuda_graph_max_bs=batch, **options) as engine:
        yield engine


def prompts(batch: int, context: int, shared: int, vocab: int) -> list[list[int]]:
    """Ids of requests whose first ``shared`` tokens are the same."""
    generator = torch.Generator().manual_seed(batch)
    common = torch.randint(1000, vocab // 2, (shared,), generator=generator).tolist()
    own = torch.randint(1000, vocab // 2, (batch, context - shared), generator=generator).tolist()
    return [common + one for one in own]


def run_s(engine: Engine, ids: Sequence[list[int]], tokens: int, **sampling: Any) -> float:
    """Seconds of one run; the prompts are cached."""
    params = {"temperature": 0.0, "max_new_tokens": tokens, "ignore_eos": True, **sampling}
    torch.cuda.synchronize()
    started = time.perf_counter()
    results = engine.generate(input_ids=list(ids), sampling_params=params)
    took = time.perf_counter() - started
    assert all(len(result["output_ids"]) == tokens for result in results)
    return took


def step_ms(engine: Engine, ids: Sequence[list[int]], steps: int, rounds: int, **sampling: Any) -> float:
    """Milliseconds a step: the median over rounds of the difference of a short and a long run."""
    few = 16
    run_s(engine, ids, few, **sampling)
    found = []
    for _ in range(rounds):
        short = run_s(engine, ids, few, **sampling)
        found.append(1000 * (run_s(engine, ids, few + steps, **sampling) - short) / steps)
    return statistics.median(found)


def idle_share(engine: Engine, ids: Sequence[list[int]], steps: int) -> float:
    """The share of a run of ``steps`` decoding steps in which no kernel runs; its middle half, without the ends."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run_s(engine, ids, steps)
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profile.events() or []
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    first, last = spans[len(spans) // 4][0], spans[3 * len(spans) // 4][1]
    busy, at = 0.0, first
    for start, end in spans:
        start, end = max(start, at), min(end, last)
        if end > start:
            busy += end - start
            at = end
    return 1 - busy / (last - first)


def peer_step_ms(folder: Path, ids: Sequence[list[int]], steps: int, rounds: int) -> float:
    """Milliseconds a step of transformers' continuous batching over the same shape, prompts and numbers of tokens."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.from_pretrained(folder, attn_implementation="sdpa")
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).to("cuda").eval()

    def run(tokens: int) -> float:
        wanted = GenerationConfig(max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, eos_token_id=-1)
        torch.cuda.synchronize()
        started = time.perf_counter()
        model.generate_batch(inputs=list(ids), generation_config=wanted, progress_bar=False)
        return time.perf_counter() - started

    run(16)
    return statistics.median(1000 * (run(16 + steps) - run(16)) / steps for _ in range(rounds))


def measure(shape: str, batches: Sequence[int], given: argparse.Namespace) -> Iterator[Sample]:
    """All configurations of a shape."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = write_model(shape, folder, given.context)
        for batch in batches:
            ids = prompts(batch, given.context, 0, config["vocab_size"])
            floor = 1000 * floor_bytes(config, batch, given.context + given.steps // 2) / bandwidth()
            for kernels in given.attention_backend:
                with engine_of(folder, batch, attention_backend=kernels) as engine:
                    forked = prompts(batch, given.context, given.context - 64, config["vocab_size"])
                    for sample in measure_engine(engine, ids, forked, Sample(shape, batch, "", 1.0, floor), given):
                        yield replace(sample, attention=kernels)
            if given.quick:
                continue
            if given.peer:
                yield Sample(shape, batch, "transformers", peer_step_ms(folder, ids, given.steps, given.rounds), floor)
            kernels = given.attention_backend[0]
            for what, options in (
                ("overlap off", {"disable_overlap_schedule": True}),
                ("graphs off", {"disable_cuda_graph": True}),
                ("deterministic", {"enable_deterministic_inference": True}),
            ):
                if what == "deterministic" and kernels == "flashinfer":
                    continue  # which refuses it
                with engine_of(folder, batch, attention_backend=kernels, **options) as engine:
                    took = step_ms(engine, ids, given.steps, given.rounds)
                    yield Sample(shape, batch, what, took, floor, attention=kernels)


def measure_engine(
    engine: Engine, ids: Sequence[list[int]], forked: Sequence[list[int]], base: Sample, given: argparse.Namespace
) -> Iterator[Sample]:
    """What one engine is asked; ``forked``: requests that share most of their prompts."""
    steps, rounds = given.steps, given.rounds
    yield replace(base, what="free", step_ms=step_ms(engine, ids, steps, rounds))
    yield replace(base, what="profiled", idle=idle_share(engine, ids, steps))
    sampled = step_ms(engine, ids, steps, rounds, temperature=0.8, top_p=0.9, seed=1)
    yield replace(base, what="top-p", step_ms=sampled)
    yield replace(base, what="constrained", step_ms=step_ms(engine, ids, steps, rounds, regex=LETTERS))
    if base.batch > 1:
        yield replace(base, what="shared prefix", step_ms=step_ms(engine, forked, steps, rounds))


def attention_backends() -> list[str]:
    """Those that are there."""
    return ["triton", *(["flashinfer"] if importlib.util.find_spec("flashinfer") is not None else [])]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="0.6B,8B")
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
    given = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, copies {bandwidth() / 1e12:.2f} TB/s\n")
    print("| shape | batch | | attention | ms a step | floor, ms | share of the roofline | idle |")
    print("|---|---|---|---|---|---|---|---|")
    found: list[Sample] = []
    for shape in given.shapes.split(","):
        for sample in measure(shape, [int(batch) for batch in given.batches.split(",")], given):
            found.append(sample)
            if sample.idle is None:
                said = f"{sample.step_ms:.3f} | {sample.floor_ms:.3f} | {sample.share:.2f} | "
            else:
                said = f" | {sample.floor_ms:.3f} | | {100 * sample.idle:.1f} %"
            print(f"| {sample.shape} | {sample.batch} | {sample.what} | {sample.attention} | {said} |", flush=True)
            if given.out is not None:
                given.out.write_text(json.dumps([asdict(one) for one in found]))


if __name__ == "__main__":
    main()
