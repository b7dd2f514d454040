"""An agent with tools: typed Python functions, called by JSON that is valid by construction, several at once.

The prompt is what the model's own chat template makes of the conversation and the tools. A call that cannot be used is
told to the model, which tries again.

    python examples/tool_agent.py [MODEL]
"""

from __future__ import annotations

import sys
from typing import Any, Literal

import sglite as sgl

RULES = "You are a helpful assistant."
QUESTIONS = ["What is the weather in Lisbon?", "Is it warm in Oslo?", "Do I need an umbrella in Porto?"]
DEGREES = {"Lisbon": 24, "Oslo": 11, "Porto": 19}


@sgl.tool
def get_weather(city: Literal["Lisbon", "Oslo", "Porto"]) -> dict[str, Any]:
    """Weather in a city"""
    return {"city": city, "temperature": DEGREES[city], "condition": "cloudy"}


@sgl.tool
async def get_time(city: Literal["Lisbon", "Oslo", "Porto"]) -> str:
    """Local time in a city"""
    return "10:30" if city == "Oslo" else "09:30"


@sgl.program
async def ask(s: sgl.State, question: str, length: int) -> str:
    """The answer to a question, after one call of a tool or more."""
    s.system(RULES)
    s.user(question)
    return str(await sgl.tool_loop(s, [get_weather, get_time], max_steps=4, max_tokens=length, tool_choice="required"))


def run(backend: Any, questions: int = 3, length: int = 48) -> list[Any]:
    """The state of every question, one after the other."""
    return [ask.run(question, length, backend=backend, temperature=0) for question in QUESTIONS[:questions]]


def expected(tokens: Any, states: list[Any], questions: int = 3, length: int = 48) -> dict[str, int]:
    """What conversations cost that went as ``states`` say. A turn that the model ended is computed as it is written."""
    starts, prompts, later, written = [], 0, 0, [tokens.lengths(state) for state in states]
    opening, closing = tokens.turn("assistant")
    tools = [tool.spec.to_dict() for tool in (get_weather, get_time)]
    for state, lengths in zip(states, written, strict=True):
        start = tokens.render(state.messages()[:2], tools)
        told = [closing + part.partition(closing)[2] for part in state.text()[len(start) :].split(opening)[:-1]]
        pieces: list[Any] = [start]
        for length_of_turn, text in zip(lengths, told, strict=False):
            pieces += [(length_of_turn - 1, 0), text + opening]
        all_prompts, computed = tokens.chain([*pieces, lengths[-1]])
        starts.append(start)
        prompts, later = prompts + all_prompts, later + computed - tokens(start)
    return {
        "requests": sum(map(len, written)),
        "prompt_tokens": prompts,
        "computed_tokens": tokens.tree(starts) + later,
        "completion_tokens": sum(map(sum, written)),
        "forks": 0,
        "path_requests": max(map(len, written)),
    }


def preview() -> Any:
    """The program's graph; how many turns there will be is for the model to say."""
    return ask.compile(question=QUESTIONS[0], length=48)


def main() -> None:
    with sgl.Engine(*sys.argv[1:2]) as engine:
        for question, state in zip(QUESTIONS, run(engine), strict=True):
            print(f"{question} {state.ret_value}")


if __name__ == "__main__":
    main()
