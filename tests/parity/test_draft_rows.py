"""Draft trees on a real model: with any proposer the output is the one without, and accepted drafts save steps."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import make_checkpoint

from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.engine.core import CoreConfig, EngineCore
from sglite.runtime.executor.base import ThreadExecutor
from sglite.runtime.executor.worker import ModelWorker
from sglite.runtime.model.loader import load_model
from sglite.runtime.protocol import GenerateRequest
from sglite.runtime.sample.params import SamplingParams
from sglite.runtime.spec.base import Draft, Proposer

PROMPTS = [[3, 4, 5, 6 + i] for i in range(4)]


class Oracle:
    """Proposes a tree whose second branch is right and whose first is not."""

    def __init__(self, answers: list[list[int]]) -> None:
        self.sequences = [prompt + answer for prompt, answer in zip(PROMPTS, answers, strict=True)]

    def propose(self, tokens, limit):
        for sequence in self.sequences:
            if sequence[: len(tokens)] == list(tokens):
                right = sequence[len(tokens) : len(tokens) + min(limit, 5) - 2]
                wrong = [(token + 1) % 64 for token in right[:2]]
                parents = [i - 1 for i in range(len(wrong))]
                parents += [-1 if i == 0 else len(wrong) + i - 1 for i in range(len(right))]
                return Draft(wrong + right, parents) if right else None
        return None


class Noise:
    """Proposes what is almost surely wrong."""

    def propose(self, tokens, limit):
        size = min(limit, 4)
        return Draft([(len(tokens) * 7 + i) % 64 for i in range(size)], [-1, 0, 0, 1][:size])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    make_checkpoint(path, "qwen3")
    return path


def generate(folder: Path, proposer: Proposer | None, temperature: float, overlap: bool) -> tuple[list[list[int]], int]:
    backend = CPUBackend()
    model = load_model(folder, backend=backend, dtype="float32")
    pool = backend.allocate_pool(model.groups, num_pages=64, page_size=4)
    config = CoreConfig(num_pages=64, page_size=4, max_context=200, vocab_size=model.vocab_size, overlap=overlap)
    core = EngineCore(ThreadExecutor(ModelWorker(model.model, backend, pool)), config, proposer=proposer)
    output: dict[str, list[int]] = {}
    for index, prompt in enumerate(PROMPTS):
        sampling = SamplingParams(max_new_tokens=24, temperature=temperature, seed=7 + index)
        core.add(GenerateRequest(request_id=str(index), token_ids=prompt, sampling=sampling))
    while core.scheduler.has_work:
        for result in core.step():
            output.setdefault(result.request_id, []).extend(result.new_token_ids)
    core.close()
    return [output[str(index)] for index in range(len(PROMPTS))], core.num_steps


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("overlap", [False, True])
def test_drafts_change_nothing_but_the_number_of_steps(folder, temperature, overlap):
    plain, steps = generate(folder, None, temperature, overlap=False)
    assert all(len(tokens) == 24 for tokens in plain)
    right, fewer = generate(folder, Oracle(plain), temperature, overlap)
    wrong, _ = generate(folder, Noise(), temperature, overlap)
    assert right == plain and wrong == plain
    assert fewer < steps
