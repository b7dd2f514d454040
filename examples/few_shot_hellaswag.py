"""Few-shot sentence completion (HellaSwag): ``select`` scores four endings after a shared prefix.

Two levels are shared: the worked examples by all rows, and a row's context by its four endings. A row is one call.

    python examples/few_shot_hellaswag.py [MODEL]
"""

from __future__ import annotations

import random
import sys
from typing import Any

import sglite as sgl

WORDS = "a boat drifts past the old mill while two boys wave from under an oak and someone calls them home again"


@sgl.function
def complete(s: Any, examples: str, context: str, endings: list[str]) -> None:
    """The likeliest of ``endings``."""
    s += examples + context
    s += sgl.select("ending", endings)


def text(seed: str, length: int) -> str:
    """``length`` words."""
    return " ".join(random.Random(seed).choices(WORDS.split(), k=length))


def rows(n: int = 4, shots: int = 6) -> list[dict[str, Any]]:
    """``n`` contexts with four endings each, behind ``shots`` examples."""
    examples = "".join(f"{text(f'shot {i}', 12).capitalize()} {text(f'end {i}', 6)}.\n\n" for i in range(shots))
    return [
        {
            "examples": examples,
            "context": f"{'ABCDEFGHIJKLMNOPQRSTUVWXYZ'[i % 26]}{i}. {text(f'row {i}', 10)}",
            "endings": [f" {text(f'{i} {number}', 5)}." for number in range(4)],
        }
        for i in range(n)
    ]


def run(backend: Any, **sizes: int) -> list[Any]:
    """The state of every row."""
    return complete.run_batch(rows(**sizes), backend=backend)  # type: ignore[no-any-return]


def expected(tokens: Any, states: list[Any], **sizes: int) -> dict[str, int]:
    """What a batch costs: every row is one request with four prompts."""
    prompts = [row["examples"] + row["context"] + ending for row in rows(**sizes) for ending in row["endings"]]
    return {
        "requests": len(states),
        "prompt_tokens": sum(tokens(prompt) for prompt in prompts),
        "computed_tokens": tokens.tree(prompts),
        "completion_tokens": 0,
        "forks": 0,
        "path_requests": 1,
        "path_passes": 1,
    }


def preview() -> Any:
    """The program's graph."""
    return complete.compile(**rows()[0])


def main() -> None:
    with sgl.Engine(*sys.argv[1:2]) as engine:
        for row, state in zip(rows(), run(engine), strict=True):
            print(row["context"] + state["ending"])


if __name__ == "__main__":
    main()
