"""A judge (branch, solve, merge): an essay is graded in several dimensions at once, and the grades merged.

Every branch begins with the whole essay, which is computed once. Grades are typed, so they need no parsing, and are
appended before they exist, so nothing waits for them.

    python examples/llm_judge.py [MODEL]
"""

from __future__ import annotations

import random
import sys
from enum import Enum
from typing import Any, Literal

import sglite as sgl

WORDS = "the garden keeps its own time and whoever tends it learns to wait for rain and to work when it has passed"
DIMENSIONS = ["clarity", "structure", "evidence", "style", "grammar", "originality", "tone", "length"]
RULES = "You grade essays. You are strict and fair."
Grade = Literal[1, 2, 3, 4, 5]


class Verdict(Enum):
    """What becomes of an essay."""

    ACCEPT = "accept"
    REVISE = "revise"
    REJECT = "reject"


@sgl.program
async def judge(s: sgl.State, essay: str, dimensions: list[str]) -> Verdict:
    """Grades in every dimension, and a verdict."""
    s.system(RULES)
    s.user(f"The essay:\n{essay}\n")
    grades = s.map(dimensions, lambda branch, d: branch.user(f"{d}, from 1 to 5?").gen(Grade, name=d))
    s.user("The grades: ", sgl.join(grades, ", "), ". What becomes of it?")
    return await s.gen(Verdict, name="verdict")  # type: ignore[no-any-return]


def essay(length: int, seed: int = 0) -> str:
    """About ``length`` words."""
    return " ".join(random.Random(seed).choices(WORDS.split(), k=length))


def run(backend: Any, essays: int = 1, length: int = 60, dimensions: int = 4) -> list[Any]:
    """The state of every essay's judge."""
    rows = [(essay(length, i), DIMENSIONS[:dimensions]) for i in range(essays)]
    return [judge.run(*row, backend=backend, temperature=0) for row in rows]


def expected(tokens: Any, states: list[Any], essays: int = 1, length: int = 60, dimensions: int = 4) -> dict[str, int]:
    """What essays cost: each is read once, however many dimensions it is graded in."""
    texts, prompts, branches = [], 0, [tokens.turns(("user", f"{d}, from 1 to 5?")) for d in DIMENSIONS[:dimensions]]
    for i, state in enumerate(states):
        start = tokens.turns(("system", RULES), ("user", f"The essay:\n{essay(length, i)}\n"), ask=False)
        merge = state.text()[len(start) :].rpartition(tokens.turn("assistant")[0])[0] + tokens.turn("assistant")[0]
        texts += [start + text for text in (*branches, merge)]
        prompts += (dimensions + 1) * tokens(start) + sum(map(tokens, (*branches, merge)))
    return {
        "requests": essays * (dimensions + 1),
        "prompt_tokens": prompts,
        "computed_tokens": tokens.tree(texts),
        "completion_tokens": sum(dimensions + state.get_meta_info("verdict")["completion_tokens"] for state in states),
        "forks": essays,
        "path_requests": 2,
    }


def preview() -> Any:
    """The program's graph."""
    return judge.compile(dimensions=DIMENSIONS[:3])


def main() -> None:
    with sgl.Engine(*sys.argv[1:2]) as engine:
        for state in run(engine):
            print(state.ret_value, state.messages()[-2]["content"])


if __name__ == "__main__":
    main()
