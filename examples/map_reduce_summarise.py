"""Map and reduce: every part of a long text is summarised on a branch of its own, then the summaries together.

No line says what runs at once: parts have nothing to wait for, so they do, and the last question is appended before
there is any summary. Texts with many parts are reduced in a tree.

    python examples/map_reduce_summarise.py [MODEL]
"""

from __future__ import annotations

import random
import sys
from typing import Any

import sglite as sgl

WORDS = "the fleet left before dawn and by noon a grey wall of weather stood over the bay so the pilots turned back"
RULES = "You summarise reports in one short sentence."
ALL = "All summaries:\n"


@sgl.program
async def summarise(s: sgl.State, parts: list[str], length: int) -> str:
    """A summary of summaries."""
    s.system(RULES)
    short = s.map(parts, lambda branch, part: branch.user(part).gen(max_tokens=length))
    s.user(ALL, sgl.join(short, "\n"))
    return str(await s.gen(max_tokens=length))


def rows(parts: int = 4, words: int = 20) -> list[str]:
    """``parts`` reports of ``words`` words."""
    names = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return [f"{names[i % 26]}{i}: " + " ".join(random.Random(i).choices(WORDS.split(), k=words)) for i in range(parts)]


def run(backend: Any, parts: int = 4, words: int = 20, length: int = 8) -> list[Any]:
    """One report's state."""
    return [summarise.run(rows(parts, words), length, backend=backend, temperature=0, ignore_eos=True)]


def expected(tokens: Any, states: list[Any], parts: int = 4, words: int = 20, length: int = 8) -> dict[str, int]:
    """What a text costs: the rules once, every part once, the summaries once."""
    rules = tokens.turns(("system", RULES), ask=False)
    maps = [tokens.turns(("user", part)) for part in rows(parts, words)]
    opening = tokens.turn("assistant")[0]
    merge = states[0].text()[len(rules) :].rpartition(opening)[0] + opening
    return {
        "requests": parts + 1,
        "prompt_tokens": (parts + 1) * tokens(rules) + sum(map(tokens, (*maps, merge))),
        "computed_tokens": tokens(rules) + tokens.tree([*maps, merge]),
        "completion_tokens": (parts + 1) * length,
        "forks": 1,
        "path_requests": 2,
        "path_passes": 2 * length,
    }


def preview() -> Any:
    """The program's graph."""
    return summarise.compile(parts=rows(3), length=8)


def main() -> None:
    with sgl.Engine(*sys.argv[1:2]) as engine:
        (state,) = run(engine, length=16)
        print(state.ret_value)
        print(state.graph().critical_path())


if __name__ == "__main__":
    main()
