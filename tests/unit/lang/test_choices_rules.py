"""The scoring rules against their definitions, on made-up numbers."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from sglite.lang.choices import (
    ChoiceScores,
    decide,
    greedy_token_selection,
    token_length_normalized,
    unconditional_likelihood_normalized,
)


def scores(*logprobs: list[float], alone: list[list[float | None]] | None = None) -> ChoiceScores:
    rows: list[Any] = [[[lp, i, None] for i, lp in enumerate(choice)] for choice in logprobs]
    alone_rows = None if alone is None else [[[lp, i, None] for i, lp in enumerate(c)] for c in alone]
    return ChoiceScores(rows, [[] for _ in logprobs], alone_rows)


def chosen(method: Any, given: ChoiceScores, temperature: float = 0.0, seed: int = 0) -> str:
    names = [f"c{i}" for i in range(len(given.input_token_logprobs))]
    return decide(method, names, given, temperature, random.Random(seed)).decision


def test_mean_rule_prefers_the_likelier_token_on_average_whatever_the_length() -> None:
    assert chosen(token_length_normalized, scores([-1.0], [-0.5, -1.0])) == "c1"
    assert chosen(token_length_normalized, scores([-1.0], [-0.5, -2.0])) == "c0"


def test_greedy_rule_is_decided_by_the_first_token_that_differs() -> None:
    assert chosen(greedy_token_selection, scores([-0.1, -9.0], [-0.2, -0.2])) == "c0"
    assert chosen(greedy_token_selection, scores([-1.0], [-1.0, -3.0])) == "c0"
    assert chosen(greedy_token_selection, scores([-1.0], [-1.0, -0.5])) == "c1"


def test_unconditional_rule_divides_by_how_likely_the_choice_is_anyway() -> None:
    given = scores([-1.0, -1.0], [-1.0, -2.0], alone=[[None, -1.0], [None, -8.0]])
    assert chosen(unconditional_likelihood_normalized, given) == "c1"
    with pytest.raises(ValueError, match="unconditional_token_logprobs"):
        chosen(unconditional_likelihood_normalized, scores([-1.0]))


def test_the_first_of_equals_wins() -> None:
    for method in (token_length_normalized, greedy_token_selection):
        assert chosen(method, scores([-1.0], [-1.0])) == "c0"


def test_sampling_follows_the_scores() -> None:
    given = scores([math.log(0.75)], [math.log(0.25)])
    rng = random.Random(1)
    drawn = [decide(token_length_normalized, "ab", given, 1.0, rng).decision for _ in range(4000)]
    assert abs(drawn.count("a") / 4000 - 0.75) < 0.03
    assert {chosen(token_length_normalized, given, 0.01, seed) for seed in range(50)} == {"c0"}


def test_a_rule_without_scores_cannot_sample() -> None:
    with pytest.raises(ValueError, match="temperature=0"):
        chosen(greedy_token_selection, scores([-1.0]), temperature=1.0)
