"""JSON in two ways: a schema that the whole text must match, or a template whose blanks are filled in.

With a schema the model writes everything, and what the schema leaves no choice about is skipped ("forced"). With a
template, keys and punctuation are the program's own text, and a chain of small gens runs without a word from Python.

    python examples/json_decoding.py [MODEL]
"""

from __future__ import annotations

import sys
from typing import Any, Literal

import pydantic

import sglite as sgl

NAMES = ["Hermione", "Ron", "Luna", "Draco", "Neville", "Ginny", "Cedric", "Cho"]


House = Literal["Gryffindor", "Hufflepuff", "Ravenclaw", "Slytherin"]
Year = Literal[1, 2, 3, 4, 5, 6, 7]
Wand = Literal["ash", "elm", "oak", "yew"]


class Wizard(pydantic.BaseModel):
    """What is wanted."""

    house: House
    year: Year
    wand: Wand


@sgl.program
async def by_schema(s: sgl.State, name: str) -> Wizard:
    """A wizard, the text being JSON by construction."""
    s += f"Describe {name} of Hogwarts as JSON.\n"
    return await s.gen(Wizard, name="wizard")  # type: ignore[no-any-return]


@sgl.function
def by_template(s: Any, name: str) -> None:
    """The same, field by field; nothing waits in between."""
    s += f"Fill in the form of {name}.\n" + '{"house": "'
    s += sgl.gen("house", type=House)
    s += '", "year": ' + sgl.gen("year", type=Year)
    s += ', "wand": "' + sgl.gen("wand", type=Wand) + '"}'


def run(backend: Any, names: int = 2) -> list[Any]:
    """The states of every name, by schema and by template."""
    options = {"backend": backend, "temperature": 0}
    return [program.run(name, **options) for name in NAMES[:names] for program in (by_schema, by_template)]


def expected(tokens: Any, states: list[Any], names: int = 2) -> dict[str, int]:
    """What the forms cost, given how many tokens the blanks took."""
    texts, prompts, computed, written = [], 0, 0, 0
    for name, schema, template in zip(NAMES, states[::2], states[1::2], strict=False):
        texts += [f"Describe {name} of Hogwarts as JSON.\n", f"Fill in the form of {name}.\n" + '{"house": "']
        blanks = [template.get_meta_info(field)["completion_tokens"] for field in ("house", "year", "wand")]
        house, year, wand = ((blank, blank) for blank in blanks)  # forced after the first token: not computed by itself
        chain, positions = tokens.chain([texts[-1], house, '", "year": ', year, ', "wand": "', wand])
        prompts += tokens(texts[-2]) + chain
        computed += positions - tokens(texts[-1])
        written += schema.get_meta_info("wizard")["completion_tokens"] + sum(blanks)
    return {
        "requests": 4 * names,
        "prompt_tokens": prompts,
        "computed_tokens": tokens.tree(texts) + computed,
        "completion_tokens": written,
        "forks": 0,
        "path_requests": 3,
    }


def preview() -> Any:
    """The template's graph."""
    return by_template.compile()


def main() -> None:
    with sgl.Engine(*sys.argv[1:2]) as engine:
        states = run(engine)
        for schema, template in zip(states[::2], states[1::2], strict=True):
            print(schema.ret_value, f"({schema.usage.forced_tokens} of {schema.usage.completion_tokens} tokens forced)")
            print(template.text().partition("\n")[2])


if __name__ == "__main__":
    main()
