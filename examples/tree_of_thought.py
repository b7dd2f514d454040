"""Tree of thought: branch, judge every idea on a scratch branch, go on with the best, at every level.

A node of the tree is one fork: its ideas share everything written so far, and judges see an idea without being seen.

    python examples/tree_of_thought.py [MODEL]
"""

from __future__ import annotations

import sys
from typing import Any, Literal

import sglite as sgl

PUZZLE = "Use the numbers 3, 3, 8 and 8 once each, with plus, minus, times and divided by, to make 24."
JUDGE = ". How promising is that, from 1 to 9?"
Score = Literal[1, 2, 3, 4, 5, 6, 7, 8, 9]


def labels(step: int, width: int) -> list[str]:
    """How the ideas for a step begin."""
    return [f"\nIdea {number} for step {step}:" for number in range(1, width + 1)]


@sgl.program
async def solve(s: sgl.State, puzzle: str, depth: int, width: int, keep: int, length: int) -> str:
    """The text of the best line of ``depth`` steps. Of ``width`` ideas for each line, the ``keep`` best go on."""

    async def idea(branch: sgl.State, label: str) -> tuple[int, sgl.State]:
        branch += label + sgl.gen("step", max_tokens=length)
        judge = branch.branch()
        judge += JUDGE
        return await judge.gen(Score), branch

    s += puzzle
    lines = [s]
    for step in range(1, depth + 1):
        ideas = [value for line in lines for value in line.map(labels(step, width), idea)]
        judged = [await value for value in ideas]
        lines = [line for _, line in sorted(judged, key=lambda pair: -pair[0])[:keep]]
    return await lines[0].get_text()


def run(backend: Any, depth: int = 2, width: int = 3, keep: int = 2, length: int = 6) -> list[Any]:
    """One puzzle's state."""
    return [solve.run(PUZZLE, depth, width, keep, length, backend=backend, temperature=0, ignore_eos=True)]


def expected(
    tokens: Any, states: list[Any], depth: int = 2, width: int = 3, keep: int = 2, length: int = 6
) -> dict[str, int]:
    """What a tree costs: the puzzle once, and for every idea its label, its end and what it is judged by."""
    lines, before, prompts, computed, ideas = 1, tokens(PUZZLE), 0, tokens(PUZZLE), 0
    for step in range(1, depth + 1):
        begun = labels(step, width)
        asked = before + tokens(begun[0])
        prompts += lines * width * (asked + asked + length + tokens(JUDGE))
        computed += lines * (tokens.tree(begun) + width * (1 + tokens(JUDGE)))
        ideas += lines * width
        lines, before = min(keep, lines * width), asked + length
    return {
        "requests": 2 * ideas,
        "prompt_tokens": prompts,
        "computed_tokens": computed,
        "completion_tokens": ideas * (length + 1),
        "forks": ideas + sum(min(keep, width**step) if step else 1 for step in range(depth)),
        "path_requests": 2 * depth,
        "path_passes": depth * (length + 1),
    }


def preview() -> Any:
    """The program's graph up to the first judgement."""
    return solve.compile(puzzle=PUZZLE, depth=2, width=3, keep=2, length=6)


def main() -> None:
    with sgl.Engine(*sys.argv[1:2]) as engine:
        (state,) = run(engine)
        print(state.ret_value)
        print(state.usage)


if __name__ == "__main__":
    main()
