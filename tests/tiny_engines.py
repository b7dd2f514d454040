"""Engines over a tiny checkpoint, and what transformers says about the same checkpoint."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sglite import Engine

MARGIN = 1e-4
"""Greedy tokens are compared where the two best logits differ by more; log probabilities agree as closely."""
THREADS = ("sglite-engine", "sglite-worker", "constraint-compile")


def tiny_engine(folder: Path, **arguments: Any) -> Engine:
    """An fp32 engine with a small pool and one thread."""
    options: dict[str, Any] = {"dtype": "float32", "max_total_tokens": 4096, "num_threads": 1, "show_progress": False}
    return Engine(model_path=str(folder), **{**options, **arguments})


def some_prompts(count: int, seed: int = 0, longest: int = 50) -> list[list[int]]:
    """Random prompts, of which every second one shares a beginning with the one before it."""
    rng = random.Random(seed)
    prompts: list[list[int]] = []
    for i in range(count):
        shared = prompts[-1][: rng.randrange(1, len(prompts[-1]) + 1)] if i % 2 else []
        prompts.append(shared + [rng.randrange(8, 360) for _ in range(rng.randrange(1, longest - len(shared) // 2))])
    return prompts


@dataclass(frozen=True)
class Truth:
    """What transformers generates greedily after a prompt, and its logits at every position of the whole."""

    prompt: list[int]
    tokens: list[int]
    logprobs: Tensor
    """[prompt + output, vocab]: row i scores position i + 1."""
    margins: list[float]
    """By output token: how clear the choice was."""

    def check_tokens(self, tokens: list[int]) -> None:
        """Equal as long as no choice was a toss-up."""
        clear = next((i for i, margin in enumerate(self.margins) if margin <= MARGIN), len(self.margins))
        assert tokens[:clear] == self.tokens[: len(tokens)][:clear]
        assert clear >= len(self.margins) // 2, "the test's own model is too undecided"

    def check_rows(self, rows: list[list[Any]], start: int) -> None:
        """``[logprob, token, text]`` of positions from ``start`` on, which follow the truth's tokens."""
        whole = self.prompt + self.tokens
        for position, (logprob, token, _) in enumerate(rows, start):
            assert token == whole[position]
            if position == 0:
                assert logprob is None
            else:
                assert abs(logprob - self.logprobs[position - 1, token].item()) <= MARGIN


class Oracle:
    """transformers on the same folder; asked once per prompt."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        load: Any = AutoModelForCausalLM.from_pretrained
        self.model = load(folder, attn_implementation="eager", dtype=torch.float32).eval()
        self._known: dict[tuple[tuple[int, ...], int], Truth] = {}

    def greedy(self, prompt: list[int], n: int) -> Truth:
        """The truth about ``n`` tokens after ``prompt``."""
        key = (tuple(prompt), n)
        if key not in self._known:
            self._known[key] = self._greedy(prompt, n)
        return self._known[key]

    @torch.no_grad()
    def _greedy(self, prompt: list[int], n: int) -> Truth:
        cache, step, tokens = None, prompt, []
        rows: list[Tensor] = []
        for _ in range(n + 1):
            out = self.model(torch.tensor([step]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            rows.append(out.logits[0].float())
            tokens.append(int(rows[-1][-1].argmax()))
            step = tokens[-1:]
        logits = torch.cat(rows)
        top = logits[len(prompt) - 1 : -1].topk(2).values
        return Truth(prompt, tokens[:n], logits.log_softmax(-1), (top[:, 0] - top[:, 1]).tolist())


def threads_of_engines() -> set[threading.Thread]:
    """Threads that engines have running."""
    return {thread for thread in threading.enumerate() if thread.name.startswith(THREADS)}


def settles(condition: Any, seconds: float = 10.0) -> bool:
    """Whether something becomes true before long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return bool(condition())


def is_idle(engine: Engine) -> bool:
    """No request is open."""
    info = engine.get_server_info()
    return info["num_running"] == info["num_waiting"] == 0
