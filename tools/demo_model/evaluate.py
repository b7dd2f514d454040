"""Exact match on fresh items, with values from the training half and from the held-out half of the word lists.

    python -m tools.demo_model.evaluate --run build/demo --items 100

Greedy decoding writes exactly the wanted answer if and only if, fed the wanted answer, the model's best next token is
the right one at every position. So one forward pass a batch gives the exact-match score of greedy decoding. (An answer
that is the same text in other tokens would count as wrong; that errs on the strict side.)
"""

from __future__ import annotations

import argparse
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from tools.demo_model import tasks_chat, tasks_labels, tasks_text, tasks_tools
from tools.demo_model.data import Make, pieces_of
from tools.demo_model.dialog import ANSWER, Dialog
from tools.demo_model.export import load_model
from tools.demo_model.model import TinyQwen3
from tools.demo_model.words import World

TASKS: dict[str, Make] = {
    "copy (<= 10 words)": tasks_text.copy, "list tasks": tasks_text.lists, "table look-up": tasks_text.pairs,
    "field extraction to JSON": tasks_text.extract, "JSON values, keys from a schema": tasks_text.extract_loose,
    "question about a text": tasks_text.read, "the same as plain Q/A text": tasks_text.read_raw,
    "one-sentence summary": tasks_text.summarise,
    "tool call": tasks_tools.tool_once, "two tool calls": tasks_tools.parallel,
    "answer from a tool result": tasks_tools.tool_answer, "no tool needed": tasks_tools.no_tool,
    "naming the tool": tasks_tools.pick_tool, "ReAct answer": tasks_tools.react,
    "sentiment": tasks_labels.sentiment, "choosing a label": tasks_labels.label,
    "judging good or bad": tasks_labels.judge, "facts": tasks_chat.fact, "arithmetic": tasks_chat.arithmetic,
    "small talk": tasks_chat.small_talk, "tips": tasks_chat.tips,
}  # fmt: skip


@dataclass(frozen=True)
class Score:
    items: int
    exact: int
    tool_name: int | None = None  # for tool calls: the name alone is right
    arguments: int | None = None  # for tool calls: with the right name given, the arguments are right


def last_answer(tok: Tokenizer, dialog: Dialog) -> tuple[list[int], int, int]:
    """(ids, start, stop): the ids of the dialog and the span of its last answer."""
    ids: list[int] = []
    span = (0, 0)
    for piece in pieces_of(dialog):
        part = tok.encode(piece.text, add_special_tokens=False).ids
        if piece.kind == ANSWER and piece.text != "<|endoftext|>":
            span = (len(ids), len(ids) + len(part))
        ids += part
    return ids[: span[1]], span[0], span[1]


@torch.inference_mode()
def best_tokens(model: TinyQwen3, rows: list[list[int]]) -> list[list[int]]:
    """For every row, the model's best guess of the token at each position (position 0 is taken as given)."""
    out: list[list[int]] = []
    for start in range(0, len(rows), 16):
        part = rows[start : start + 16]
        ids = torch.zeros(len(part), max(map(len, part)), dtype=torch.long)
        for i, row in enumerate(part):
            ids[i, : len(row)] = torch.tensor(row)
        states = model.hidden(ids)
        for i, row in enumerate(part):
            guesses = model.logits(states[i, : len(row) - 1]).argmax(-1).tolist()
            out.append([row[0], *guesses])
    return out


def values_right(tok: Tokenizer, ids: list[int], best: list[int], start: int, literal: int, answer: str) -> bool:
    """Whether every JSON value is right when a schema forces the rest: keys, separators, what follows the last value.

    `ids[start:]` spells `answer` from its character `literal` on. The token that ends a value need only begin rightly
    (with a quote, a comma or a brace), because the schema decides how it goes on.
    """
    spans = [m.span(1) for m in re.finditer(r'": "?([^",}]+)', answer)]
    at = literal
    for position in range(start, len(ids)):
        text, guess = (tok.decode([t], skip_special_tokens=False) for t in (ids[position], best[position]))
        if any(a < at + len(text) and at < b for a, b in spans):
            if ids[position] != best[position]:
                return False
        elif any(at == b for _, b in spans):
            number = answer[at] != '"'
            if (guess[:1] not in ",}") if number else (guess[:1] != '"'):
                return False
        at += len(text)
    return True


def score(model: TinyQwen3, tok: Tokenizer, make: Make, items: int, held_out: bool, seed: int) -> Score:
    world = World(random.Random(seed), held_out=held_out)
    dialogs = [make(world) for _ in range(items)]
    spans = [last_answer(tok, d) for d in dialogs]
    guesses = best_tokens(model, [ids for ids, _, _ in spans])
    if make is tasks_text.extract_loose:
        exact = 0
        for best, (ids, a, _), d in zip(guesses, spans, dialogs, strict=True):
            exact += values_right(tok, ids, best, a, len(d.turns[-1].literal), d.turns[-1].content)
        return Score(items, exact)
    exact = sum(best[a:b] == ids[a:b] for best, (ids, a, b) in zip(guesses, spans, strict=True))
    if make is not tasks_tools.tool_once:
        return Score(items, exact)
    names = arguments = 0
    for best, (ids, a, b) in zip(guesses, spans, strict=True):
        # The call reads ... "name": "x", "arguments": {...}; the name ends where the word "arguments" begins.
        written = [tok.decode(ids[a : i + 1], skip_special_tokens=False) for i in range(a, b)]
        cut = a + next(i for i, text in enumerate(written) if "arguments" in text)
        names += best[a:cut] == ids[a:cut]
        arguments += best[cut:b] == ids[cut:b]
    return Score(items, exact, names, arguments)


def evaluate(model: TinyQwen3, tok: Tokenizer, items: int, seed: int = 12345) -> dict[str, dict[str, Score]]:
    """Every task, on both sides: {task: {"held out": ..., "train": ...}}."""
    return {
        name: {side: score(model, tok, make, items, side == "held out", seed) for side in ("held out", "train")}
        for name, make in TASKS.items()
    }


def table(scores: dict[str, dict[str, Score]]) -> str:
    """The scores as a Markdown table, in per cent."""
    lines = ["| Task | items | held-out values | training values |", "|---|---|---|---|"]

    def row(name: str, items: int, held_out: int | None, training: int | None) -> None:
        if held_out is not None and training is not None:
            lines.append(f"| {name} | {items} | {100 * held_out / items:.0f} % | {100 * training / items:.0f} % |")

    for name, sides in scores.items():
        h, t = sides["held out"], sides["train"]
        row(f"{name}: name", h.items, h.tool_name, t.tool_name)
        row(f"{name}: arguments, given the name", h.items, h.arguments, t.arguments)
        row(name if h.tool_name is None else f"{name}: whole call", h.items, h.exact, t.exact)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tok = Tokenizer.from_file(str(args.run / "tokenizer.json"))
    scores = evaluate(load_model(args.run / "checkpoint.safetensors"), tok, args.items)
    print(table(scores))
    (args.run / "scores.json").write_text(
        json.dumps({n: {s: vars(v) for s, v in x.items()} for n, x in scores.items()}, indent=1)
    )


if __name__ == "__main__":
    main()
