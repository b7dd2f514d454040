"""Training by the clock: the schedule depends on the share of `--minutes` that has passed, so it always ends decayed.

    python -m tools.demo_model.train --run build/demo --minutes 90

Checkpoints are safetensors plus a small JSON; running the same command again goes on from the last one.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from tools.demo_model import data, tokenizer
from tools.demo_model.model import Shape, TinyQwen3
from tools.demo_model.wiring import wire_copying

COPIES = 1.0
"""A random-repeat loss below this means that the model copies (a model that does not is at 8.3)."""


@dataclass
class Progress:
    step: int = 0
    tokens: int = 0
    repeat_loss: float = 9.0  # running mean on random-repeat batches: the sign that copying has begun
    seconds: float = 0.0
    cpu_seconds: float = 0.0


@dataclass(frozen=True)
class Plan:
    """What to do at a given share of the time."""

    repeat: float  # share of random-repeat batches
    tokens: int  # padded tokens a step
    longest: int  # longest example


def plan(share: float, repeat_loss: float) -> Plan:
    """Copying first, on short texts, until it is sure (at most 35 % of the time); then everything, in growing steps."""
    if repeat_loss > COPIES and share < 0.35:
        return Plan(0.20, 4096, 160)
    return Plan(0.04, 4096, 288) if share < 0.35 else Plan(0.03, 6144, 400)


def rate(share: float, step: int) -> float:
    """Learning-rate factor: warm-up, constant until 60 % of the time, then linear down to 2 %."""
    return min(1.0, (step + 1) / 40) * min(1.0, max(0.02, 1 - 0.98 * (share - 0.6) / 0.4))


def optimizers(model: TinyQwen3) -> list[torch.optim.Optimizer]:
    """Muon on matrices, AdamW on the rest. What `wire_copying` has set learns slowly, or it would be lost in noise."""
    named = {n: p for n, p in model.named_parameters() if p.ndim == 2 and n != "embed"}
    wired = [p for n, p in named.items() if n.split(".")[1] in "01" and n.split(".")[2] in "qkvo"]
    rest = [p for n, p in model.named_parameters() if n not in named]
    free = [p for p in named.values() if all(p is not w for w in wired)]
    return [
        torch.optim.Muon(free, lr=0.006, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.Muon(wired, lr=0.002, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def save(run: Path, model: TinyQwen3, opts: list[torch.optim.Optimizer], progress: Progress) -> None:
    """Write a checkpoint beside the old one and put it in its place."""
    tensors = {f"model.{k}": v.detach().clone() for k, v in model.named_parameters()}
    for i, opt in enumerate(opts):
        for j, state in opt.state_dict()["state"].items():
            tensors |= {f"opt.{i}.{j}.{k}": v.detach().clone() for k, v in state.items() if isinstance(v, Tensor)}
    new = run / "checkpoint.new.safetensors"
    save_file(tensors, new, metadata={"progress": json.dumps(asdict(progress))})
    os.replace(new, run / "checkpoint.safetensors")
    (run / "progress.json").write_text(json.dumps(asdict(progress)))


def restore(run: Path, model: TinyQwen3, opts: list[torch.optim.Optimizer]) -> Progress:
    """Go on from the checkpoint of `run`, if there is one."""
    path = run / "checkpoint.safetensors"
    if not path.exists():
        return Progress()
    tensors = load_file(path)
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
    for i, opt in enumerate(opts):
        whole = opt.state_dict()
        state: dict[int, dict[str, Any]] = {}
        for key, value in tensors.items():
            parts = key.split(".")
            if parts[0] == "opt" and int(parts[1]) == i:
                state.setdefault(int(parts[2]), {})[parts[3]] = value
        opt.load_state_dict({"state": state, "param_groups": whole["param_groups"]})
    return Progress(**json.loads((run / "progress.json").read_text()))


def stream(tok: Tokenizer, seed: int, current: Callable[[], Plan]) -> Iterator[data.Batch]:
    """Batches for ever; the plan is looked up again for every pool of examples."""
    rng, dialogs = np.random.default_rng(seed), data.dialogs(seed)
    while True:
        now = current()
        for batch in data.batches(tok, dialogs, rng, now.tokens, now.longest):
            while rng.random() < current().repeat:
                yield data.repeat_batch(rng, tok.get_vocab_size(), now.tokens)
            yield batch


class Report:
    """One line of figures every ten steps."""

    def __init__(self) -> None:
        self.losses: dict[str, list[float]] = {"text": [], "repeat": []}
        self.tokens, self.time = 0, time.time()

    def add(self, batch: data.Batch, loss: float, progress: Progress) -> None:
        self.losses["repeat" if batch.repeats else "text"].append(loss)
        self.tokens += batch.ids.numel()
        if batch.repeats:
            progress.repeat_loss += 0.1 * (loss - progress.repeat_loss)
        if progress.step % 10 == 0:
            means = ", ".join(f"{k} loss {np.mean(v):.3f}" for k, v in self.losses.items() if v)
            speed = self.tokens / (time.time() - self.time)
            done = f"step {progress.step}, {progress.seconds / 60:.1f} min, {progress.tokens / 1e6:.2f} M tokens"
            print(f"{done}, {means}, {speed:.0f} tokens/s", flush=True)
            self.__init__()  # type: ignore[misc]


def train(run: Path, minutes: float, seed: int, threads: int, compiled: bool) -> None:
    """Train until `minutes` have passed in all; a signal to stop saves first."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    tok = tokenizer.load(run / "tokenizer.json")
    model = TinyQwen3(Shape())
    opts = optimizers(model)
    base = [o.param_groups[0]["lr"] for o in opts]
    progress = restore(run, model, opts)
    if progress.step == 0:
        wire_copying(model, tok.get_vocab())
    if compiled:  # block by block: the graph of one block serves all six
        for block in model.blocks:
            block.compile(dynamic=True)
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda n, _: stopped.append(n))
    spent, cpu_spent = time.time() - progress.seconds, time.process_time() - progress.cpu_seconds
    saved, report = time.time(), Report()

    def share() -> float:
        return progress.seconds / (60 * minutes)

    for batch in stream(tok, seed + 1000 * progress.step, lambda: plan(share(), progress.repeat_loss)):
        if share() >= 1.0 or stopped:
            break
        for opt, lr in zip(opts, base, strict=True):
            opt.param_groups[0]["lr"] = lr * rate(share(), progress.step)
        loss = model.loss(batch.ids, batch.where, batch.targets, batch.weights)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad()
        progress.step += 1
        progress.tokens += batch.ids.numel()
        progress.seconds, progress.cpu_seconds = time.time() - spent, time.process_time() - cpu_spent
        report.add(batch, float(loss.detach()), progress)
        if time.time() - saved > 150:
            save(run, model, opts, progress)
            saved = time.time()
    save(run, model, opts, progress)
    if stopped:
        raise SystemExit(f"stopped by signal {stopped[0]}; run the same command to go on")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of the tokenizer and the checkpoints")
    parser.add_argument(
        "--minutes", type=float, default=90, help="wall-clock minutes of training, earlier runs included"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--compile",
        action="store_true",
        help="fuse small operations with torch.compile (needs a C++ compiler)",
    )
    args = parser.parse_args()
    train(args.run, args.minutes, args.seed, args.threads, args.compile)


if __name__ == "__main__":
    main()
