"""Skeleton of thought: list the points first, then write them all at once, then put the answer together.

How many branches there are is for the model to say: ``repeat`` writes a list that code can loop over.

    python examples/skeleton_of_thought.py [MODEL]
"""

from __future__ import annotations

import re
import sys
from typing import Any

import sglite as sgl

RULES = "You answer questions in short sentences."
QUESTION = "How do I learn to sail?"
POINT = re.compile("[A-Z][a-z]{4,6}")
LIST = "List the points of an answer."
EXPAND = "The points are {}. Write a sentence about {}."


@sgl.program
async def explain(s: sgl.State, question: str, least: int, most: int, length: int) -> str:
    """An answer to a question, from sentences about its points, which are written at once."""
    s.system(RULES)
    s.user(question)
    outline = s.branch()
    points = await outline.user(LIST).repeat(item=POINT, sep=" ", min=least, max=most)
    s["points"] = points
    listed = ", ".join(points)
    sentences = s.map(points, lambda branch, point: branch.user(EXPAND.format(listed, point)).gen(max_tokens=length))
    s.user("Put it together:\n", sgl.join(sentences, "\n"))
    return str(await s.gen(max_tokens=length))


def run(backend: Any, least: int = 4, most: int = 4, length: int = 8) -> list[Any]:
    """One question's state."""
    return [explain.run(QUESTION, least, most, length, backend=backend, temperature=0, ignore_eos=True)]


def expected(tokens: Any, states: list[Any], least: int = 4, most: int = 4, length: int = 8) -> dict[str, int]:
    """What an answer costs that has the points of ``states``."""
    (state,) = states
    points, opening = state["points"], tokens.turn("assistant")[0]
    start = tokens.turns(("system", RULES), ("user", QUESTION), ask=False)
    branches = [LIST, *(EXPAND.format(", ".join(points), point) for point in points)]
    asked = [tokens.turns(("user", text)) for text in branches]
    merge = state.text()[len(start) :].rpartition(opening)[0] + opening
    return {
        "requests": 2 + len(points),
        "prompt_tokens": (2 + len(points)) * tokens(start) + sum(map(tokens, (*asked, merge))),
        "computed_tokens": tokens(start) + tokens.tree([*asked, merge]),
        "completion_tokens": tokens.lengths(state)[0] + (len(points) + 1) * length,
        "forks": 2,
        "path_requests": 3,
    }


def preview() -> Any:
    """The program's graph up to where the number of points decides."""
    return explain.compile(question=QUESTION, least=4, most=4, length=8)


def main() -> None:
    with sgl.Engine(*sys.argv[1:2]) as engine:
        (state,) = run(engine)
        print(state["points"])
        print(state.ret_value)


if __name__ == "__main__":
    main()
