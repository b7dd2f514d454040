"""Closing within a budget: a text of at most so many tokens is complete when they are used up.

Promise. With n tokens left before a token, one is allowed only when the text can be completed with n - 1 after it.
The rule has two halves, and either alone keeps the promise:

- the engine allows it with that room. A byte costs at most one token, and an engine may know better;
- it is the next token of a written-out completion, kept from step to step, that fits into the n tokens left.

At the beginning the second one holds, or the budget is refused. If a token is allowed by the first, the shortest
completion after it has at most n - 1 bytes, so it is written out in at most n - 1 tokens; if by the second, the rest
of the written-out completion has one token less. A token that has neither is looked at itself when there are few.
So the text is free until the completion in bytes comes near the tokens left, and from there on it is led to its end.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import numpy as np

from sglite.constrained import bitmask
from sglite.constrained.jump_forward import StableTokens
from sglite.constrained.matcher import RawMatcher

_TRIED = 16  # tokens that are looked at one by one
_POINTERS = 256
_JSON = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)


def shortest_tokens(raw: RawMatcher, tokens: StableTokens) -> int:
    """Tokens of the shortest text that completes this one. A budget below it cannot be met."""
    completion = raw.shortest()
    return 0 if completion is None else cost(completion, tokens)


def cost(completion: bytes, tokens: StableTokens) -> int:
    """Tokens that a completion takes."""
    spelled = tokens.spell(completion)
    return len(completion) if spelled is None else len(spelled)


def written_out(raw: RawMatcher, tokens: StableTokens, kept: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The tokens of a completion: those kept from the step before, or the shortest text's where they are fewer."""
    completion = raw.shortest()
    spelled = None if completion is None else tokens.spell(completion)
    if spelled is not None and (kept is None or len(spelled) < len(kept)):
        return tuple(spelled)
    return kept


def after_run(raw: RawMatcher, tokens: StableTokens, run: tuple[int, ...], left: int) -> tuple[int, ...] | None:
    """The completion that begins with the forced `run`, when it fits into the tokens `left`; None when it does not."""
    completion = raw.shortest()
    covered = sum(len(tokens.vocab.content(i) or b"") for i in run)
    rest = None if completion is None else tokens.spell(completion[covered:])
    return (*run, *rest) if rest is not None and len(run) + len(rest) <= left else None


def fitting(raw: RawMatcher, tokens: StableTokens, left: int) -> bitmask.Mask:
    """The mask of the tokens that the engine knows to fit into the tokens `left`."""
    mask = np.zeros(tokens.vocab.words, dtype=np.int32)
    if left > 0:
        raw.fill(mask, left - 1)
    elif raw.accepting:
        bitmask.allow(mask, tokens.vocab.eos_ids)
    return mask


def spelled_out(
    raw: RawMatcher, tokens: StableTokens, dropped: bitmask.Mask, left: int, written: tuple[int, ...] | None
) -> list[int]:
    """Those of the `dropped` tokens that fit all the same: the next of the completion `written`, or by its tokens."""
    others = bitmask.to_ids(dropped)
    found = set(written[:1]) if written and len(written) <= left else set()
    found &= set(others.tolist())
    if len(others) <= _TRIED:
        found |= {i for i in others.tolist() if i not in found and _fits(raw, tokens, i, left - 1)}
    return sorted(found)


def _fits(raw: RawMatcher, tokens: StableTokens, token_id: int, left: int) -> bool:
    if left < 0 or not raw.accept(token_id):
        return False
    completion = raw.shortest()
    raw.rollback(1)
    return completion is not None and cost(completion, tokens) <= left


def filled_pointers(text: bytes, offset: int, most: int = _POINTERS) -> list[str]:
    """JSON pointers of the values of a JSON text that begin or end after its first `offset` bytes, as they begin.

    At most `most` of them. A value that is not complete ends after everything.
    """
    values = _scan(text)
    chosen = [i for i, value in enumerate(values) if value.end is None or value.end > offset]
    return [_pointer(values, i) for i in chosen[:most]]


@dataclass(slots=True)
class _Value:
    parent: int  # index of the value it is inside of, -1 for the outermost
    name: str  # under which it is there
    end: int | None = None  # bytes up to its end


def _scan(text: bytes) -> list[_Value]:
    """The values of a JSON text, as they begin."""
    values: list[_Value] = []
    around: list[int] = []  # open arrays and objects
    names: list[int | bytes | None] = []  # of each, the next item's index, or the next name, None while unknown
    for match in _JSON.finditer(text):
        token = match[0]
        if token in b"}]":
            if around:
                values[around.pop()].end = match.end()
                names.pop()
        elif token == b",":
            if names:
                names[-1] = names[-1] + 1 if isinstance(names[-1], int) else None
        elif names and names[-1] is None and token[:1] == b'"':
            names[-1] = token
        elif token != b":":
            values.append(_Value(around[-1] if around else -1, _read_name(names[-1] if names else None)))
            if token in b"{[":
                around.append(len(values) - 1)
                names.append(0 if token == b"[" else None)
            else:
                values[-1].end = match.end()
    return values


def _read_name(name: int | bytes | None) -> str:
    if isinstance(name, bytes):
        return str(json.loads(name.decode(errors="replace"), strict=False))
    return "" if name is None else str(name)


def _pointer(values: list[_Value], index: int) -> str:
    parts: list[str] = []
    while values[index].parent >= 0:
        parts.append("/" + values[index].name.replace("~", "~0").replace("/", "~1"))
        index = values[index].parent
    return "".join(reversed(parts))
