"""One matrix: every feature, alone and in company, gives the same output whatever the engine's configuration.

The worker is scripted, so "the same" is not a tolerance: the expected output comes from ``toy_reference``, which knows
neither steps nor caches nor batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from engines import Bench, Done, ToyCompiler, script, toy_logprobs, toy_outcome, toy_reference

from sglite.constrained.spec import ConstraintSpec
from sglite.runtime.protocol import LogprobOptions

EOS = 9
TOKEN_BYTES = [b"ab", b"b", b"a", b"c", b"bc", *[b"?"] * 59]
"""Bytes of the toy tokens: a text can be cut into tokens in several ways, so stops fall across token borders."""
PROMPT = [i * i % 5 for i in range(70)]
RUN = "* + + + 2|4 + + * 1 + 3|0 * + +"
"""Choices and forced runs in turn; a run depends on the token sampled before it."""
GUARDED = "* + < * * 2 >7 + + < * 1 >5 3|0 +"
"""Values of which most turn out wrong at their end: they are taken back and tried again."""
OPEN = "* ~ + < * 1|3 >2"
"""Goes on for as long as one likes."""

OVERLAP = [False, True]
CHUNKS = [1, 7, None]
PAGES = [1, 16]


@dataclass(frozen=True)
class Case:
    """What is asked for, and what must come of it."""

    name: str
    ask: dict[str, Any] = field(default_factory=dict)
    expected: list[int] = field(default_factory=list)
    finish: str = "length"
    n: int = 20


def text(tokens: list[int]) -> bytes:
    return b"".join(TOKEN_BYTES[token] for token in tokens)


def until(stop: bytes, tokens: list[int]) -> list[int]:
    return next(tokens[:i] for i in range(1, len(tokens) + 1) if stop in text(tokens[:i]))


def late_stop(stop: bytes, least: int, tokens: list[int]) -> list[int]:
    """Up to the first token, from the ``least``-th on, in which an occurrence of ``stop`` ends."""
    for i in range(least, len(tokens) + 1):
        before = len(text(tokens[: i - 1]))
        if text(tokens[:i]).find(stop, max(0, before - len(stop) + 1)) >= 0:
            return tokens[:i]
    raise AssertionError("the case never stops")


def stopping_script(fingerprint: int) -> int:
    """Tokens 0 to 4, and now and then the end of the sequence."""
    return EOS if fingerprint % 23 == 0 else script(fingerprint)


PLAIN = toy_reference(PROMPT, 20)
STOP = text(PLAIN)[14:17].decode()
CASES = [
    Case("plain", {}, PLAIN),
    Case("one token", {}, PLAIN[:1], n=1),
    Case("prefill only", {}, [], n=0),
    Case("constraint", {"constraint": ConstraintSpec.regex(RUN)}, toy_reference(PROMPT, 20, constraint=RUN), "stop"),
    Case(
        "constraint cut off",
        {"constraint": ConstraintSpec.regex(RUN)},
        toy_reference(PROMPT, 6, constraint=RUN),
        "length",
        6,
    ),
    Case("stop string", {"sampling": {"stop": (STOP,)}}, until(STOP.encode(), PLAIN), "stop"),
    Case(
        "stop string and min tokens",
        {"sampling": {"stop": ("ab",), "min_new_tokens": 15}},
        late_stop(b"ab", 15, toy_reference(PROMPT, 60)),
        "stop",
        60,
    ),
    Case("stop pattern", {"sampling": {"stop_regex": ("c+a?b{2}",)}}, [], "stop", 60),
    Case("stop id", {"sampling": {"stop_token_ids": (PLAIN[6],)}}, PLAIN[: PLAIN.index(PLAIN[6]) + 1], "stop"),
    Case(
        "min tokens",
        {"sampling": {"stop_token_ids": (PLAIN[0], PLAIN[3]), "min_new_tokens": 5}},
        toy_reference(PROMPT, 20, stop_ids=(PLAIN[0], PLAIN[3]), min_new=5),
        "stop",
    ),
    Case("logprobs", {"logprobs": LogprobOptions(start_len=3)}, PLAIN),
    Case(
        "constraint with logprobs",
        {"constraint": ConstraintSpec.regex(RUN), "logprobs": LogprobOptions(start_len=0)},
        toy_reference(PROMPT, 20, constraint=RUN),
        "stop",
    ),
    Case(
        "resampled",
        {"constraint": ConstraintSpec.regex(GUARDED), "logprobs": LogprobOptions(start_len=0)},
        toy_reference(PROMPT, 20, constraint=GUARDED),
        "stop",
    ),
    Case(
        "closed",
        {"constraint": ConstraintSpec.regex(OPEN), "sampling": {"on_limit": "close", "presence_penalty": 1.0}},
        toy_reference(PROMPT, 20, constraint=OPEN, close=True),
        "stop",
    ),
]
assert toy_outcome(PROMPT, 20, constraint=GUARDED).resampled > 3


def expected(case: Case) -> list[int]:
    if case.name != "stop pattern":
        return case.expected
    import re

    tokens = toy_reference(PROMPT, 60)
    return next(tokens[:i] for i in range(1, 61) if re.search(rb"c+a?b{2}", text(tokens[:i])))


def bench(overlap: bool, chunk: int | None, page_size: int, **changes: Any) -> Bench:
    options: dict[str, Any] = {
        "num_pages": 2048 // page_size,
        "page_size": page_size,
        "max_step_tokens": 96,
        "chunk_size": chunk,
        "overlap": overlap,
        "compiler": ToyCompiler(),
        "token_bytes": TOKEN_BYTES,
    }
    return Bench(**{**options, **changes})


def check(case: Case, done: Done, b: Bench) -> None:
    """Output, end and accounting of one request."""
    want = expected(case)
    assert done.last is not None and done.last.finish_reason is not None
    assert done.last.finish_reason.type == case.finish
    assert done.tokens == want
    accounting = done.last.accounting
    assert accounting.prompt_tokens == len(PROMPT) == accounting.cached_tokens + accounting.computed_prompt_tokens
    assert accounting.completion_tokens == len(want)
    if "constraint" in case.ask:
        assert done.last.constraint_complete == (case.finish == "stop")
    options = case.ask.get("logprobs")
    if options is None:
        assert done.logprobs == done.prompt_logprobs == []
        return
    assert done.logprobs == toy_logprobs(b.worker, PROMPT + want, len(PROMPT))
    known = [row for row in done.prompt_logprobs if row.logprob is not None]
    assert known == toy_logprobs(b.worker, PROMPT, options.start_len)
    assert len(done.prompt_logprobs) == len(PROMPT) - options.start_len


def alone(b: Bench, case: Case) -> None:
    b.add("it", PROMPT, case.n, **case.ask)


def in_company(b: Bench, case: Case) -> None:
    """Among relatives that share its prefix, and strangers."""
    b.add("sibling", [*PROMPT[:40], 1, 2, 3], 25)
    b.add("stranger", [4] * 33, 25)
    b.add("it", PROMPT, case.n, **case.ask)
    b.add("longer", PROMPT + expected(case)[:3], 9)
    b.add("shorter", PROMPT[:17], 30)


def identical(b: Bench, case: Case) -> None:
    """What ``n`` > 1 comes down to."""
    for name in ("twin", "it", "triplet"):
        b.add(name, PROMPT, case.n, **case.ask)


def again(b: Bench, case: Case) -> None:
    """Its prompt and its output are in the cache."""
    b.add("before", PROMPT, case.n, **case.ask)
    b.run()
    b.add("it", PROMPT, case.n, **case.ask)


def amid_aborts(b: Bench, case: Case) -> None:
    """Others that share its prefix, the one that computes it first among them, go away at every moment."""
    for i in range(6):
        b.add(f"gone{i}", PROMPT[: 70 - 7 * i] + [i % 5] * 4, 30)
    b.add("it", PROMPT, case.n, **case.ask)
    for i in range(6):
        b.step()
        b.step()
        b.core.abort(f"gone{i}")


Company = Callable[[Bench, Case], None]
COMPANIES: list[Company] = [alone, in_company, identical, again, amid_aborts]
GRID = [*itertools.product(OVERLAP, CHUNKS, PAGES), (False, 64, 64), (True, 64, 16), (True, 7, 64)]


@pytest.mark.parametrize("company", COMPANIES, ids=lambda company: company.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_output_does_not_depend_on_configuration_or_company(case: Case, company: Company) -> None:
    for index, (overlap, chunk, page_size) in enumerate(GRID):
        b = bench(overlap, chunk, page_size, config={"jump_forward": index % 3 != 1})
        company(b, case)
        done = b.run()
        for name in ("it", "twin", "triplet", "before"):
            if name in done:
                check(case, done[name], b)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_output_survives_preemption(case: Case) -> None:
    """Pages for hardly more than one request, five requests at once: the last ones are preempted again and again."""
    preemptions = 0
    for overlap, chunk, page_size in itertools.product(OVERLAP, CHUNKS, [1, 16]):
        b = bench(overlap, chunk, page_size, num_pages=144 // page_size)
        for i in range(4):
            b.add(f"rival{i}", [i, *PROMPT[:20]], 60)
        b.add("it", PROMPT, case.n, **case.ask)
        b.add("twin", PROMPT, case.n, **case.ask)
        done = b.run()
        check(case, done["it"], b)
        check(case, done["twin"], b)
        assert done["rival3"].tokens == toy_reference([3, *PROMPT[:20]], 60)
        preemptions += b.core.scheduler.preemptions
    assert preemptions > 20


def test_what_streams_is_the_output_in_order_and_each_token_once() -> None:
    """Every output carries only what is new; together they are the whole, and one of them is the last."""
    for overlap, chunk, page_size in GRID:
        b = bench(overlap, chunk, page_size)
        b.add("it", PROMPT, 20, logprobs=LogprobOptions())
        seen: list[int] = []
        while b.done["it"].terminals == 0:
            b.step()
            assert b.done["it"].tokens[: len(seen)] == seen
            seen = list(b.done["it"].tokens)
            assert [row.token_id for row in b.done["it"].logprobs] == seen
        assert seen == PLAIN


def test_an_end_token_ends_the_request_and_ignore_eos_does_not() -> None:
    want = toy_reference(PROMPT, 200, eos_ids=(EOS,), next_token=stopping_script)
    assert 1 < len(want) < 200
    for overlap, chunk, page_size in GRID:
        b = bench(overlap, chunk, page_size, eos_ids=(EOS,), next_token=stopping_script)
        b.add("ends", PROMPT, 200, sampling={"ignore_eos": False})
        b.add("goes on", PROMPT, 200)
        done = b.run()
        assert done["ends"].tokens == want
        assert done["ends"].last is not None and done["ends"].last.finish_reason.matched == EOS
        assert done["goes on"].tokens == toy_reference(PROMPT, 200, next_token=stopping_script)


def test_forced_tokens_cost_neither_a_sample_nor_a_step_of_their_own() -> None:
    """A run of k forced tokens rides in one row: steps are counted by choices, not by tokens."""
    run = "* " + "+ " * 30 + "* " + "+ " * 30
    b = bench(False, None, 16)
    b.add("it", PROMPT, 100, constraint=ConstraintSpec.regex(run.strip()))
    done = b.run()["it"]
    assert done.tokens == toy_reference(PROMPT, 100, constraint=run)
    assert done.last is not None
    assert done.last.accounting.forced_tokens == 60
    assert done.last.accounting.forward_passes == 2
    assert sum(len(step.samples) for step in b.worker.steps) == 2
