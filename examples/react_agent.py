"""A ReAct agent: think, choose a tool, call it, read what it said; until it finishes.

The tools are ordinary Python. While one runs, the stream is parked: its prefix stays cached, and the next thought only
computes what is new. ``select`` keeps the agent to tools that exist.

    python examples/react_agent.py [MODEL]
"""

from __future__ import annotations

import random
import sys
from typing import Any, Literal

import sglite as sgl

QUESTION = "On which river does the capital of Portugal lie?"
FACTS = [
    "The Tagus is the longest river of the Iberian Peninsula.",
    "Lisbon lies where the Tagus meets the Atlantic.",
    "The Alfama is the oldest part of Lisbon.",
]
SOLVED = """\
Question: Where does the Douro end?
Thought 1: I should look for the Douro.
Action 1: Search[Douro]
Observation 1: The Douro ends at Porto.
Thought 2: That answers the question.
Action 2: Finish
Answer: Porto

"""


def search(topic: str) -> str:
    """The fact that has most letters in common with ``topic``."""
    return max(FACTS, key=lambda fact: len(set(fact) & set(topic)))


def chance(topic: str) -> str:
    """Some fact."""
    return random.Random(topic).choice(FACTS)


TOOLS = {" Search": search, " Chance": chance}
ACTIONS = [*TOOLS, " Finish"]
Topic = Literal["Tagus", "Lisbon", "Alfama"]


@sgl.function
def react(s: Any, question: str, steps: int, thought: int = 10) -> list[tuple[str, str, int]]:
    """Answers after at most ``steps`` calls of tools. Returns them: the tool, what it said, the topic's tokens."""
    calls = []
    s += f"{SOLVED}Question: {question}"
    for i in range(1, steps + 1):
        s += f"\nThought {i}:" + sgl.gen("thought", max_tokens=thought, stop="\nAction")
        s += f"\nAction {i}:" + sgl.select("tool", ACTIONS)
        if s["tool"] == " Finish":
            break
        s += "[" + sgl.gen("topic", type=Topic)
        fact = TOOLS[s["tool"]](s["topic"])
        calls.append((s["tool"], fact, s.get_meta_info("topic")["completion_tokens"]))
        s += f"]\nObservation {i}: {fact}"
    s += "\nAnswer:" + sgl.gen("answer", max_tokens=8, stop="\n\n")
    return calls


def run(backend: Any, steps: int = 3, thought: int = 10) -> list[Any]:
    """One agent's state."""
    return [react.run(QUESTION, steps, thought, backend=backend, temperature=0, ignore_eos=True)]


def expected(tokens: Any, states: list[Any], steps: int = 3, thought: int = 10) -> dict[str, int]:
    """What an agent costs that took the steps it returned. A topic is forced after its first token, so is not computed
    until something follows it; everything else is computed once."""
    calls = states[0].ret_value
    pieces: list[Any] = [f"{SOLVED}Question: {QUESTION}"]
    for i, (tool, fact, topic) in enumerate(calls, 1):
        pieces += [f"\nThought {i}:", thought, f"\nAction {i}:", (ACTIONS, tool), "[", (topic, topic)]
        pieces.append(f"]\nObservation {i}: {fact}")
    finished = len(calls) < steps
    if finished:
        pieces += [f"\nThought {len(calls) + 1}:", thought, f"\nAction {len(calls) + 1}:", (ACTIONS, " Finish")]
    prompts, computed = tokens.chain([*pieces, "\nAnswer:", 8])
    outputs = [thought] * (len(calls) + finished) + [topic for _, _, topic in calls] + [8]
    selects = len(calls) + finished
    return {
        "requests": len(outputs) + selects,
        "prompt_tokens": prompts,
        "computed_tokens": computed,
        "completion_tokens": sum(outputs),
        "forks": 0,
        "path_requests": len(outputs) + selects,
        "path_passes": thought * selects + len(calls) + 8 + selects,
    }


def preview() -> Any:
    """The program's graph up to where the agent's choice decides."""
    return react.compile(question=QUESTION, steps=3)


def main() -> None:
    with sgl.Engine(*sys.argv[1:2]) as engine:
        (state,) = run(engine)
        print(state.text().removeprefix(SOLVED))


if __name__ == "__main__":
    main()
