"""The model card, filled in with the figures of the run that is shipped."""

from __future__ import annotations

import json
from pathlib import Path

from tools.demo_model.evaluate import Score, table
from tools.demo_model.export import load_model

CARD = """---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# sglite-demo

A very small language model ({parameters:.2f} M parameters, Qwen3 architecture, bfloat16) that comes with sglite, so
that the examples, the tutorial and the tests run offline on any machine. It was made from nothing by the scripts in
`tools/demo_model/`. It is a toy: it reads short English texts of the kinds below and knows almost nothing about the
world.

## What it was trained on

Text that the scripts make themselves: templates filled with random values (word lists of the repository, random
numbers, invented names). No text from the web, no books, no other model's output, nothing about real persons: first
names, last names and places are combined at random. {tokens:.1f} M tokens, {minutes:.0f} minutes of wall time and
{cpu:.0f} CPU minutes on a shared two-core machine. The first two layers started as a hand-written copying circuit
(`wiring.py`), not from random numbers.

## What it can do

Exact match under greedy decoding, per cent of {items} fresh items a task. *Held-out values* are words (names,
cities, things) that training used only in plain word lists to be repeated, never as a value in another task; about a
fifth of the names and places are freshly invented words, on both sides. The wordings of the prompts come from the
same templates as in training: with other wordings it does less well.

{table}

With constrained decoding (a JSON schema, a regex, a choice) the form is certain and only the content can be wrong.

## How to use it

* Chat: roles `system`, `user`, `assistant`, `tool`, by `chat_template.jinja`. Turns end with `<|im_end|>`.
* Tools: one JSON object per line between `<tools>` and `</tools>` in the system turn; the model answers
  `<tool_call>`, newline, `{{"name": ..., "arguments": {{...}}}}`, newline, `</tool_call>`. Results go into `tool`
  turns.
* It does not think by default. `enable_thinking=true` opens a `<think>` block, `false` an empty one.
* Plain text works too: `Question: ...`, newline, `Answer:`, with a newline as the stop.
* Greedy decoding is recommended. Keep prompts under 400 tokens: longer ones were not trained.

## What it cannot do

Reason, know facts beyond a few dozen (capitals, colours, opposites), follow instructions unlike its templates,
compute outside small numbers, speak other languages. Do not use it for anything but examples and tests.

## How it was made

{layers} layers, hidden size {hidden}, {heads} heads of {head_dim} ({kv_heads} for keys and values), feed-forward
{ff}, vocabulary {vocab}, tied embeddings; Muon on the matrices, AdamW on the rest. `python -m tools.demo_model.build`
does it again; see `tools/demo_model/README.md`.

Licence: Apache-2.0, weights included.
"""


def write(run: Path, scores: dict[str, dict[str, Score]]) -> str:
    """The card's text."""
    model = load_model(run / "checkpoint.safetensors")
    progress = json.loads((run / "progress.json").read_text())
    return CARD.format(
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        tokens=progress["tokens"] / 1e6,
        minutes=progress["seconds"] / 60,
        cpu=progress["cpu_seconds"] / 60,
        items=next(iter(scores.values()))["held out"].items,
        table=table(scores),
        **model.shape.as_dict(),
    )
