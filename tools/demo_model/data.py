"""The training stream: a weighted mix of tasks, encoded and cut into length-bucketed batches.

Everything is made on the fly from a seed (it costs a few per cent of the training time), so no example is seen twice.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from tools.demo_model import tasks_chat, tasks_labels, tasks_text, tasks_tools
from tools.demo_model.dialog import ANSWER, PROMPT, Dialog, Piece, render
from tools.demo_model.words import World

Make = Callable[[World], Dialog]

MIX: dict[Make, float] = {
    tasks_text.copy: 7, tasks_text.lists: 7, tasks_text.pairs: 8, tasks_text.extract: 14, tasks_text.extract_loose: 5,
    tasks_text.read: 10, tasks_text.read_raw: 5, tasks_text.summarise: 3,
    tasks_tools.tool_call: 11, tasks_tools.tool_once: 3, tasks_tools.tool_answer: 2, tasks_tools.parallel: 2.5,
    tasks_tools.no_tool: 1, tasks_tools.pick_tool: 2, tasks_tools.react: 1.5,
    tasks_labels.label: 14, tasks_labels.sentiment: 8, tasks_labels.judge: 4,
    tasks_chat.fact: 10, tasks_chat.arithmetic: 10, tasks_chat.small_talk: 3, tasks_chat.capital_tour: 1,
    tasks_chat.tips: 4,
}  # fmt: skip
"""Share of examples (not of tokens) of each task; tool dialogs are about three times as long as the others."""

PROMPT_SHARE, PROMPT_WEIGHT, SPLIT_SHARE = 0.12, 0.3, 0.3


@dataclass(frozen=True)
class Example:
    ids: list[int]
    loss: list[bool]  # True where the token is written by the model


@dataclass(frozen=True)
class Batch:
    """Right-padded ids [batch, time]; the loss is taken at flat positions `where` [n] to predict `targets` [n]."""

    ids: Tensor
    where: Tensor
    targets: Tensor
    weights: Tensor
    repeats: bool = False  # made by `repeat_batch`


def pieces_of(dialog: Dialog) -> list[Piece]:
    pieces = render(dialog)
    return [*pieces, Piece("<|endoftext|>", ANSWER)] if dialog.raw else pieces


def split_prompt(rng: random.Random, text: str) -> list[str]:
    """Cut after a random space, as in `"Text: " + text`: the next word then comes without its usual leading space."""
    borders = [i + 1 for i, c in enumerate(text) if c == " "]
    if not borders:
        return [text]
    at = rng.choice(borders)
    return [text[:at], text[at:]]


def encode(tok: Tokenizer, dialog: Dialog, rng: random.Random | None = None) -> Example:
    """Each piece on its own, as a program would send it; with `rng`, some prompts are cut once more."""
    ids: list[int] = []
    loss: list[bool] = []
    pieces = pieces_of(dialog)
    if rng is not None:
        parts = [
            split_prompt(rng, p.text) if p.kind == PROMPT and rng.random() < SPLIT_SHARE else [p.text] for p in pieces
        ]
        pieces = [Piece(text, p.kind) for p, texts in zip(pieces, parts, strict=True) for text in texts]
    for piece in pieces:
        part = tok.encode(piece.text, add_special_tokens=False).ids
        ids += part
        loss += [piece.kind == ANSWER] * len(part)
    return Example(ids, loss)


def dialogs(seed: int) -> Iterator[Dialog]:
    """An endless stream of dialogs, the same for the same seed."""
    rng = random.Random(seed)
    world = World(rng)
    makers, shares = list(MIX), list(MIX.values())
    while True:
        yield rng.choices(makers, shares)[0](world)


def to_batch(examples: list[Example], rng: np.random.Generator) -> Batch:
    longest = max(len(e.ids) for e in examples)
    ids = np.zeros((len(examples), longest), dtype=np.int64)
    weight = np.zeros((len(examples), longest), dtype=np.float32)
    for row, e in enumerate(examples):
        n = len(e.ids)
        ids[row, :n] = e.ids
        # Weight at i belongs to the prediction of token i + 1.
        answer = np.array(e.loss[1:], dtype=bool)
        prompt = np.where(rng.random(n - 1) < PROMPT_SHARE, PROMPT_WEIGHT, 0.0)
        weight[row, : n - 1] = np.where(answer, 1.0, prompt)
    flat = weight.reshape(-1)
    where = np.flatnonzero(flat)
    targets = np.roll(ids.reshape(-1), -1)[where]
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(where),
        torch.from_numpy(targets),
        torch.from_numpy(flat[where]),
    )


def repeat_batch(rng: np.random.Generator, vocab: int, tokens: int, time: int = 72) -> Batch:
    """Random tokens, said again and again: only a model that looks back and copies can lower this loss."""
    period = int(rng.integers(6, 30))
    rows = tokens // time
    once = rng.integers(0, vocab, (rows, period))
    ids = np.tile(once, (1, time // period + 1))[:, :time]
    weight = np.zeros((rows, time), dtype=np.float32)
    weight[:, period:-1] = 1.0
    where = np.flatnonzero(weight.reshape(-1))
    targets = np.roll(ids.reshape(-1), -1)[where]
    ones = torch.ones(len(where))
    return Batch(torch.from_numpy(ids), torch.from_numpy(where), torch.from_numpy(targets), ones, repeats=True)


def batches(
    tok: Tokenizer,
    stream: Iterator[Dialog],
    rng: np.random.Generator,
    tokens: int,
    longest: int,
    pool: int = 1500,
) -> Iterator[Batch]:
    """Batches of about `tokens` padded tokens, from one pool of examples of at most `longest` tokens each."""
    held: list[Example] = []
    cuts = random.Random(int(rng.integers(1 << 30)))
    while len(held) < pool:
        example = encode(tok, next(stream), cuts)
        if len(example.ids) <= longest:
            held.append(example)
    held.sort(key=lambda e: len(e.ids))
    cut: list[list[Example]] = [[]]
    for e in held:
        if (len(cut[-1]) + 1) * len(e.ids) > tokens:
            cut.append([])
        cut[-1].append(e)
    for i in rng.permutation(len(cut)):
        yield to_batch(cut[int(i)], rng)
