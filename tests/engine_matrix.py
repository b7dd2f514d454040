"""What engines over every kind of model are asked, and what must come of it: the matrices of the foundation."""

from __future__ import annotations

import json
import random
from typing import Any

from tiny_engines import Oracle, is_idle, settles, some_prompts

import sglite as sgl
from sglite import Engine

PROMPTS = some_prompts(6, seed=4)
N = 12
GREEDY = {"temperature": 0, "max_new_tokens": N, "ignore_eos": True}
PLAIN: dict[str, Any] = {"disable_radix_cache": True, "disable_overlap_schedule": True}
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"kind": {"enum": ["longer value", "shorter"]}, "n": {"type": "integer", "maximum": 99}},
        "required": ["kind", "n"],
        "additionalProperties": False,
    }
)


def check(results: list[dict[str, Any]], oracle: Oracle, prompts: list[list[int]] = PROMPTS, n: int = N) -> None:
    for result, prompt in zip(results, prompts, strict=True):
        truth, meta = oracle.greedy(prompt, n), result["meta_info"]
        truth.check_tokens(result["output_ids"])
        assert meta["prompt_tokens"] == len(prompt) == meta["cached_tokens"] + meta["computed_prompt_tokens"]
        assert meta["completion_tokens"] == len(result["output_ids"]) == n
        if "output_token_logprobs" in meta:
            truth.check_rows(meta["input_token_logprobs"], len(prompt) - len(meta["input_token_logprobs"]))
            truth.check_rows(meta["output_token_logprobs"], len(prompt))
            assert len(meta["output_token_logprobs"]) == n


def rest(engine: Engine) -> None:
    """Nothing is lost."""
    assert settles(lambda: is_idle(engine))
    info = engine.get_server_info()
    assert info["page_mismatches"] == 0 and info["pages"]["held"] == 0


def among_aborts(engine: Engine) -> dict[str, Any]:
    """The last event of a request among others with its prefix, which start before and after it and go away one by one
    while it runs."""
    relatives = [[*prompt[: len(prompt) - 1], 9] for prompt in (PROMPTS[0], PROMPTS[0][:20], *PROMPTS)]
    others = [engine.generate(input_ids=ids, sampling_params=GREEDY, stream=True) for ids in relatives[:4]]
    mine = engine.generate(input_ids=PROMPTS[0], sampling_params=GREEDY, stream=True)
    others += [engine.generate(input_ids=ids, sampling_params=GREEDY, stream=True) for ids in relatives[4:]]
    events = []
    for event in mine:
        events.append(event)
        if others:
            next(others[0])
            others.pop(0).close()
    for other in others:
        other.close()
    return dict(events[-1])


def constrained(engine: Engine, temperature: float) -> list[dict[str, Any]]:
    """Three constraints twice, values that are taken back and tried again included."""
    prompts = ["Give JSON: ", "x", "the quick brown fox"]
    params: list[dict[str, Any]] = [
        {"temperature": temperature, "max_new_tokens": 60, "seed": 3, "json_schema": SCHEMA},
        {"temperature": temperature, "max_new_tokens": 60, "seed": 4, "regex": "(yes|no), sir and madam"},
        {"temperature": temperature, "max_new_tokens": 60, "seed": 5, "regex": "[a-c]{3}(, [a-c]{3}){4}"},
    ]
    return [*engine.generate(prompts, params), *engine.generate(prompts, params)]


def walk(engine: Engine, seed: int) -> list[Any]:
    """A random program over sequences; everything that it saw."""
    rng = random.Random(seed)
    seen: list[Any] = []
    sequences = [engine.open_sequence(f"program {seed}", [40, 41, 42])]
    for _ in range(12):
        index = rng.randrange(len(sequences))
        sequence = sequences[index]
        what = rng.choice(["extend", "generate", "generate", "fork", "truncate", "score", "sample"])
        if what == "extend":
            sequence.extend([rng.randrange(30, 300) for _ in range(rng.randrange(1, 20))])
        elif what == "fork" and len(sequences) < 6:
            sequences += sequence.fork(rng.randrange(1, 4))
        elif what == "truncate":
            sequence.truncate(rng.randrange(1, len(sequence) + 1))
        elif what == "score":
            scores = [g.result()["meta_info"] for g in sequence.score([[100, 7], [101], [200, 8, 9]])]
            seen += [round(p, 2) for meta in scores for p, _, _ in meta["input_token_logprobs"]]
        else:
            params = {**GREEDY, "max_new_tokens": rng.randrange(1, 9)}
            if what == "sample":
                params |= {"temperature": 1.0, "seed": rng.randrange(99), "ignore_eos": False}
            result = sequence.generate(params).result()
            seen.append((result["output_ids"], result["meta_info"]["finish_reason"]))
    seen += [sequence.token_ids for sequence in sequences]
    for sequence in sequences:
        sequence.close()
    return seen


@sgl.function
def interview(s: sgl.ProgramState, name: str) -> None:
    s += "The person is " + name + ". "
    s += "Age: " + sgl.gen("age", regex="[1-9][0-9]", temperature=0) + ". "
    forks = s.fork(3)
    for i, fork in enumerate(forks):
        fork += f"Question {i}: " + sgl.gen("answer", max_tokens=6, temperature=0, ignore_eos=True)
    s += "Mood: " + sgl.select("mood", ["glad", "sad and tired", "sad"])
    s += " / ".join(fork["answer"] for fork in forks)
    s += sgl.gen("end", max_tokens=5, temperature=0.7, seed=4)
