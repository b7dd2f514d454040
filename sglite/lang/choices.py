"""How ``select`` decides: rules that turn the log probabilities of the choices' tokens into one choice.

A rule is called with, per choice, its mean log probability and its rows ``[logprob, token_id, text | None]``, and
returns a ``ChoicesDecision``. The three rules and their meta info are SGLang's; any callable object of the same shape
may be passed as ``choices_method``. Rules see no None in ``input_token_logprobs``: a token that nothing precedes has no
probability and is left out by the back end.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Rows = list[list[Any]]
"""One row per token: ``[logprob | None, token_id, text | None]``."""


@dataclass(frozen=True)
class ChoicesDecision:
    """The chosen string and what it was chosen by.

    ``scores``: one number per choice whose largest won, when the rule has such numbers (sampling needs them).
    """

    decision: str
    meta_info: dict[str, Any] | None = None
    scores: tuple[float, ...] | None = None


@dataclass(frozen=True)
class ChoiceScores:
    """What a back end knows of each choice after the prompt; lists run over choices."""

    input_token_logprobs: list[Rows]
    output_token_logprobs: list[Rows]
    unconditional_token_logprobs: list[Rows] | None = None
    cost: dict[str, int] = field(default_factory=dict)
    """What scoring the choices after the prompt took, summed over them; the counters of ``meta_info``."""

    @property
    def normalized_prompt_logprobs(self) -> list[float]:
        """Mean log probability of each choice's tokens."""
        return [_mean([row[0] for row in rows]) for rows in self.input_token_logprobs]


def cost_of(metas: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Sums of the counters that requests report."""
    names = [name for name in _COUNTERS if any(name in meta for meta in metas)]
    return {name: sum(int(meta.get(name) or 0) for meta in metas) for name in names}


_COUNTERS = (
    "prompt_tokens",
    "cached_tokens",
    "computed_prompt_tokens",
    "completion_tokens",
    "forced_tokens",
    "forward_passes",
    "replayed_tokens",
)


class ChoicesMethod(ABC):
    """A rule."""

    @property
    def requires_unconditional_logprobs(self) -> bool:
        """Whether the choices must be scored without the prompt as well."""
        return False

    @abstractmethod
    def __call__(
        self,
        *,
        choices: Sequence[str],
        normalized_prompt_logprobs: list[float],
        input_token_logprobs: list[Rows],
        output_token_logprobs: list[Rows],
        unconditional_token_logprobs: list[Rows] | None = None,
    ) -> ChoicesDecision:
        """Decides; the first of equals wins."""


class TokenLengthNormalized(ChoicesMethod):
    """The choice with the highest mean log probability per token."""

    def __call__(
        self,
        *,
        choices: Sequence[str],
        normalized_prompt_logprobs: list[float],
        input_token_logprobs: list[Rows],
        output_token_logprobs: list[Rows],
        unconditional_token_logprobs: list[Rows] | None = None,
    ) -> ChoicesDecision:
        """See ChoicesMethod."""
        meta = _meta(normalized_prompt_logprobs, input_token_logprobs, output_token_logprobs)
        best = _argmax(normalized_prompt_logprobs)
        return ChoicesDecision(choices[best], meta, tuple(normalized_prompt_logprobs))


class GreedyTokenSelection(ChoicesMethod):
    """What greedy decoding restricted to the choices would write.

    Token by token, only the choices with the most likely token stay. A shorter choice goes on with its own mean, so it
    is compared with a longer one that starts with it.
    """

    def __call__(
        self,
        *,
        choices: Sequence[str],
        normalized_prompt_logprobs: list[float],
        input_token_logprobs: list[Rows],
        output_token_logprobs: list[Rows],
        unconditional_token_logprobs: list[Rows] | None = None,
    ) -> ChoicesDecision:
        """See ChoicesMethod; adds ``greedy_logprob_matrix`` [choices, longest]."""
        longest = max(len(rows) for rows in input_token_logprobs)
        matrix = [
            [float(row[0]) for row in rows] + [mean] * (longest - len(rows))
            for rows, mean in zip(input_token_logprobs, normalized_prompt_logprobs, strict=True)
        ]
        alive = list(range(len(choices)))
        for column in range(longest):
            best = max(matrix[i][column] for i in alive)
            alive = [i for i in alive if matrix[i][column] == best]
        meta = _meta(normalized_prompt_logprobs, input_token_logprobs, output_token_logprobs)
        return ChoicesDecision(choices[alive[0]], {**meta, "greedy_logprob_matrix": matrix})


class UnconditionalLikelihoodNormalized(ChoicesMethod):
    """The choice whose tokens the prompt makes most more likely than they are on their own.

    Mean over tokens of log p(token | prompt) - log p(token), as in EleutherAI's "Multiple Choice Normalization in LM
    Evaluation". The first token on its own has no probability; it counts as certain.
    """

    @property
    def requires_unconditional_logprobs(self) -> bool:
        """True: the rule compares with them."""
        return True

    def __call__(
        self,
        *,
        choices: Sequence[str],
        normalized_prompt_logprobs: list[float],
        input_token_logprobs: list[Rows],
        output_token_logprobs: list[Rows],
        unconditional_token_logprobs: list[Rows] | None = None,
    ) -> ChoicesDecision:
        """See ChoicesMethod; raises ValueError without ``unconditional_token_logprobs``."""
        if unconditional_token_logprobs is None:
            raise ValueError("unconditional_likelihood_normalized needs unconditional_token_logprobs; got None")
        scores = [
            _mean([row[0] - (alone[0] or 0.0) for row, alone in zip(rows, alones, strict=True)])
            for rows, alones in zip(input_token_logprobs, unconditional_token_logprobs, strict=True)
        ]
        meta = _meta(normalized_prompt_logprobs, input_token_logprobs, output_token_logprobs)
        meta["unconditional_token_logprobs"] = unconditional_token_logprobs
        meta["normalized_unconditional_prompt_logprobs"] = scores
        return ChoicesDecision(choices[_argmax(scores)], meta, tuple(scores))


token_length_normalized = TokenLengthNormalized()
greedy_token_selection = GreedyTokenSelection()
unconditional_likelihood_normalized = UnconditionalLikelihoodNormalized()


def decide(
    method: ChoicesMethod, choices: Sequence[str], scores: ChoiceScores, temperature: float, rng: random.Random
) -> ChoicesDecision:
    """Applies a rule; above temperature 0, draws a choice with probability ~ exp(score / temperature) instead.

    Raises ValueError when ``temperature`` > 0 and the rule has no scores to draw by.
    """
    decision = method(
        choices=choices,
        normalized_prompt_logprobs=scores.normalized_prompt_logprobs,
        input_token_logprobs=scores.input_token_logprobs,
        output_token_logprobs=scores.output_token_logprobs,
        unconditional_token_logprobs=scores.unconditional_token_logprobs,
    )
    if temperature <= 0.0:
        return decision
    if decision.scores is None:
        rule = type(method).__name__
        raise ValueError(f"{rule} gives no scores to sample by; use temperature=0 or token_length_normalized")
    top = max(decision.scores)
    weights = [math.exp((score - top) / temperature) for score in decision.scores]
    return ChoicesDecision(rng.choices(list(choices), weights)[0], decision.meta_info, decision.scores)


def _meta(means: list[float], inputs: list[Rows], outputs: list[Rows]) -> dict[str, Any]:
    return {
        "normalized_prompt_logprobs": means,
        "input_token_logprobs": inputs,
        "output_token_logprobs": outputs,
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _argmax(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda i: values[i])
