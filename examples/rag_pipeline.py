"""Retrieval: rewrite the question, retrieve, answer from the documents, say which one it was.

Documents come before the question, and in the order that most questions share (``unordered``), so that questions about
the same things find their documents computed. The query is written on a branch, which the answer does not see.

    python examples/rag_pipeline.py [MODEL]
"""

from __future__ import annotations

import sys
from typing import Any

import sglite as sgl

DOCUMENTS = {
    "A": "Amber is resin of trees that has become stone over millions of years.",
    "B": "Basalt is a dark rock that forms when lava cools near the surface.",
    "C": "Coral reefs are built by small animals that live in warm, shallow seas.",
    "D": "Deltas form where rivers carry more sand than the sea can take away.",
    "E": "Eskers are long ridges of sand and stones that rivers under glaciers left.",
}
QUESTIONS = [
    "What is amber made of?",
    "How old is amber?",
    "Which rock comes from lava?",
    "Where do rivers leave sand?",
]
RULES = "You answer questions from documents."
REWRITE = "Write a search query for: {}"
CITE = "Which document was it?"


def retrieve(text: str, k: int) -> list[str]:
    """The ``k`` documents that share most words with ``text``, the best first."""
    words = {word.strip(".,?").lower() for word in text.split()}
    scores = {name: len(words & set(text.lower().rstrip(".").split())) for name, text in DOCUMENTS.items()}
    return sorted(DOCUMENTS, key=lambda name: -scores[name])[:k]


@sgl.program
async def answer(s: sgl.State, question: str, k: int, length: int) -> str:
    """The answer, and the document it was found in."""
    s.system(RULES)
    draft = s.branch()
    query = await draft.user(REWRITE.format(question)).gen(max_tokens=length)
    found = retrieve(f"{question} {query}", k)
    with s.user():
        with s.unordered() as blocks:
            for name in found:
                blocks.add(f"Document {name}: {DOCUMENTS[name]}\n")
        s += question
    s.gen(name="answer", max_tokens=length)
    s.user(CITE)
    return str(await s.select([f"Document {name}" for name in sorted(found)], name="cited"))


def run(backend: Any, questions: int = 4, k: int = 2, length: int = 8) -> list[Any]:
    """The state of every question, one after the other."""
    program = answer.bind()  # one that has not seen any documents
    options: dict[str, Any] = {"backend": backend, "temperature": 0, "ignore_eos": True}
    return [program.run(question, k, length, **options) for question in QUESTIONS[:questions]]


def expected(tokens: Any, states: list[Any], questions: int = 4, k: int = 2, length: int = 8) -> dict[str, int]:
    """What questions cost for which the documents were retrieved that ``states`` show."""
    texts, prompts, rest = [], 0, 0
    for question, state in zip(QUESTIONS, states, strict=False):
        query = tokens.turns(("system", RULES), ("user", REWRITE.format(question)))
        whole = state.text().partition(tokens.turn("assistant")[0])
        choices = [f"Document {name}" for name in sorted(DOCUMENTS) if f"Document {name}:" in whole[0]]
        asked, cite = whole[0] + whole[1], tokens.answered(("user", CITE))
        all_prompts, computed = tokens.chain([asked, length, cite, (choices, state["cited"])])
        texts += [query, asked]
        prompts += tokens(query) + all_prompts
        rest += computed - tokens(asked)
    return {
        "requests": 3 * len(states),
        "prompt_tokens": prompts,
        "computed_tokens": tokens.tree(texts) + rest,
        "completion_tokens": 2 * length * len(states),
        "forks": len(states),
        "path_requests": 3,
        "path_passes": 2 * length + 1,
    }


def preview() -> Any:
    """The program's graph up to where the documents are known."""
    return answer.compile(question=QUESTIONS[0], k=2, length=8)


def main() -> None:
    with sgl.Engine(*sys.argv[1:2]) as engine:
        for question, state in zip(QUESTIONS, run(engine, length=16), strict=True):
            print(f"{question} {state['answer']!r} (from {state.ret_value})")


if __name__ == "__main__":
    main()
