"""Multi-turn chat: several users talk to one assistant, turn by turn; every turn goes on where the last one ended.

A conversation is one growing sequence. What was said is never sent or computed again; answers can be streamed.

    python examples/multi_turn_chat.py [MODEL]
"""

from __future__ import annotations

import random
import sys
from typing import Any

import sglite as sgl

RULES = "You are a helpful assistant. You answer briefly and in a friendly way."
WORDS = "we could take the early train and walk along the river before the others arrive with bread and a good map"


@sgl.function
def chat(s: Any, questions: list[str], length: int) -> None:
    """One conversation."""
    s += sgl.system(RULES)
    for number, question in enumerate(questions):
        s += sgl.user(question)
        s += sgl.assistant(sgl.gen(f"answer {number}", max_tokens=length))


def rows(users: int = 3, turns: int = 3, words: int = 12, length: int = 6) -> list[dict[str, Any]]:
    """A conversation of ``turns`` turns for each user; questions of ``words`` words, answers of ``length`` tokens."""

    def question(user: int, turn: int) -> str:
        said = " ".join(random.Random(f"{user} {turn}").choices(WORDS.split(), k=words))
        return f"{'ABCDEFGHIJKLMNOPQRSTUVWXYZ'[user % 26]}{user} {turn}: {said}?"

    return [{"questions": [question(user, turn) for turn in range(turns)], "length": length} for user in range(users)]


def run(backend: Any, **sizes: int) -> list[Any]:
    """The state of every conversation."""
    return chat.run_batch(rows(**sizes), backend=backend, temperature=0, ignore_eos=True)  # type: ignore[no-any-return]


def expected(tokens: Any, states: list[Any], **sizes: int) -> dict[str, int]:
    """What the conversations cost: a turn computes its question and the last token of the answer before it."""
    prompts = later = turns = length = 0
    starts = []
    for row in rows(**sizes):
        first, *rest = row["questions"]
        turns, length = len(row["questions"]), row["length"]
        starts.append(tokens.turns(("system", RULES), ("user", first)))
        pieces = [piece for question in rest for piece in (length, tokens.answered(("user", question)))]
        whole, computed = tokens.chain([starts[-1], *pieces, length])
        prompts, later = prompts + whole, later + computed - tokens(starts[-1])
    return {
        "requests": len(starts) * turns,
        "prompt_tokens": prompts,
        "computed_tokens": tokens.tree(starts) + later,
        "completion_tokens": len(starts) * turns * length,
        "forks": 0,
        "path_requests": turns,
        "path_passes": turns * length,
    }


def preview() -> Any:
    """The program's graph."""
    return chat.compile(**rows()[0])


def main() -> None:
    with sgl.Engine(*sys.argv[1:2]) as engine:
        state = chat.run(["Hello, who are you?", "What is the capital of France?"], 24, backend=engine, stream=True)
        for piece in state.text_iter():
            print(piece, end="", flush=True)
        for state in run(engine):
            print(state.messages()[-1]["content"])


if __name__ == "__main__":
    main()
