"""Few-shot multiple choice (MMLU): a batch of rows that begin alike, one token each, and how sure the model is.

What a subject's rows share, its worked examples, is computed once; nothing in the program says so.

    python examples/few_shot_mmlu.py [MODEL]
"""

from __future__ import annotations

import math
import random
import sys
from typing import Any

import sglite as sgl

SUBJECTS = ["anatomy", "botany", "chemistry", "dynamics", "economics", "film", "geology", "history"]
WORDS = "amber birch canal delta ember fjord grove heron inlet jetty kelp lagoon maple north otter pine quarry reed"


@sgl.function
def answer(s: Any, examples: str, question: str) -> None:
    """The letter of the right choice."""
    s += examples
    s += question
    s += sgl.gen("letter", max_tokens=1, return_logprob=True)


def question(seed: str) -> str:
    """A made-up question with four choices."""
    words = random.Random(seed).sample(WORDS.split(), 8)
    choices = "".join(f"\n{letter}. {word}" for letter, word in zip("ABCD", words[4:], strict=True))
    return f"{' '.join(words[:4])}: which one is it?{choices}\nAnswer:"


def rows(subjects: int = 2, questions: int = 4, shots: int = 3) -> list[dict[str, str]]:
    """``questions`` for each of ``subjects``, behind ``shots`` worked examples."""
    found = []
    for subject in SUBJECTS[:subjects]:
        shown = [f"{question(f'{subject} {shot}')} {'ABCD'[shot % 4]}\n\n" for shot in range(shots)]
        examples = f"{subject}: multiple choice questions with answers.\n\n" + "".join(shown)
        asked = [question(f"{subject}? {number}") for number in range(questions)]
        found += [{"examples": examples, "question": text} for text in asked]
    return found


def run(backend: Any, **sizes: int) -> list[Any]:
    """The state of every row."""
    return answer.run_batch(rows(**sizes), backend=backend, temperature=0)  # type: ignore[no-any-return]


def expected(tokens: Any, states: list[Any], **sizes: int) -> dict[str, int]:
    """What a batch costs."""
    prompts = [row["examples"] + row["question"] for row in rows(**sizes)]
    return {
        "requests": len(prompts),
        "prompt_tokens": sum(tokens(prompt) for prompt in prompts),
        "computed_tokens": tokens.tree(prompts),
        "completion_tokens": len(prompts),
        "forks": 0,
        "path_requests": 1,
        "path_passes": 1,
    }


def preview() -> Any:
    """The program's graph."""
    return answer.compile(**rows()[0])


def main() -> None:
    with sgl.Engine(*sys.argv[1:2]) as engine:
        for row, state in zip(rows(), run(engine), strict=True):
            ((logprob, _, _),) = state.get_meta_info("letter")["output_token_logprobs"]
            print(f"{row['question'].partition('?')[0]}? {state['letter'].strip()} (p = {math.exp(logprob):.2f})")


if __name__ == "__main__":
    main()
