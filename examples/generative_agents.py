"""Generative agents: a town whose people rate, reflect and decide, in many small typed calls at once.

Three programs, each with its instructions first and what varies last, so that all calls of a kind share them. Every
call is a coroutine; a whole day is one ``gather``.

    python examples/generative_agents.py [MODEL]
"""

from __future__ import annotations

import asyncio
import sys
from itertools import product
from typing import Any, Literal

import sglite as sgl

PEOPLE = ["Ana", "Boris", "Chen", "Dora", "Emil", "Fatma", "Goran", "Hana"]
EVENTS = ["the bakery closes", "a friend calls", "it rains all day", "the train is late", "a letter arrives"]
PLACES = [" home", " market", " park", " school"]
Rating = Literal[1, 2, 3, 4, 5, 6, 7, 8, 9]

RATE = "Rate how much an event matters, from 1 for brushing teeth to 9 for a wedding.\n\nEvent: {}\nPerson: {}\nRating:"
THINK = "Say in a few words what a person thinks when something happens.\n\nIt happens: {}\n{} thinks:"
GO = "After an event, people go home, to the market, to the park or to school.\n\nEvent: {}\nPerson: {}\nGoes to:"


@sgl.program
async def importance(s: sgl.State, event: str, person: str) -> int:
    """How much an event matters to a person."""
    s += RATE.format(event, person)
    return int(await s.gen(Rating))


@sgl.program
async def reflection(s: sgl.State, event: str, person: str, length: int) -> str:
    """What a person thinks of an event."""
    s += THINK.format(event, person)
    return str(await s.gen(max_tokens=length))


@sgl.program
async def destination(s: sgl.State, event: str, person: str) -> str:
    """Where a person goes next."""
    s += GO.format(event, person)
    return str(await s.select(PLACES))


async def day(backend: Any, people: int, events: int, length: int) -> list[Any]:
    """Every event happens to everybody."""
    options: dict[str, Any] = {"backend": backend, "temperature": 0, "ignore_eos": True}
    calls = []
    for event, person in product(EVENTS[:events], PEOPLE[:people]):
        calls.append(importance.arun(event, person, **options))
        calls.append(reflection.arun(event, person, length, **options))
        calls.append(destination.arun(event, person, **options))
    return await asyncio.gather(*calls)


def run(backend: Any, people: int = 3, events: int = 2, length: int = 6) -> list[Any]:
    """The states of a day's calls: importance, reflection and destination of each event and person."""
    return asyncio.run(day(backend, people, events, length))


def expected(tokens: Any, states: list[Any], people: int = 3, events: int = 2, length: int = 6) -> dict[str, int]:
    """What a day costs."""
    pairs = list(product(EVENTS[:events], PEOPLE[:people]))
    prompts = [template.format(*pair) for template in (RATE, THINK) for pair in pairs]
    prompts += [GO.format(*pair) + place for pair in pairs for place in PLACES]
    return {
        "requests": 3 * len(pairs),
        "prompt_tokens": sum(map(tokens, prompts)),
        "computed_tokens": tokens.tree(prompts),
        "completion_tokens": len(pairs) * (1 + length),
        "forks": 0,
        "path_requests": 1,
        "path_passes": length,
    }


def preview() -> Any:
    """The graph of one of the programs."""
    return importance.compile(event=EVENTS[0])


def main() -> None:
    with sgl.Engine(*sys.argv[1:2]) as engine:
        values = [state.ret_value for state in run(engine)]
        for (event, person), first in zip(product(EVENTS[:2], PEOPLE[:3]), range(0, len(values), 3), strict=True):
            rating, thought, place = values[first : first + 3]
            print(f"{event}: {person} ({rating} of 9) thinks{thought!r} and goes{place}")


if __name__ == "__main__":
    main()
