"""Outputs that come together are told as one: to a request it is as if one step had given all of them."""

from __future__ import annotations

import random

from sglite.runtime.engine.gather import gathered
from sglite.runtime.engine.presenter import LogprobLayout, Presenter
from sglite.runtime.protocol import Accounting, FinishReason, RequestOutput, TokenLogprob
from sglite.runtime.sample.params import SamplingParams


def outputs(names: str, rng: random.Random) -> list[RequestOutput]:
    """Outputs of requests named by letters, the last of each terminal."""
    found = []
    for at, name in enumerate(names):
        tokens = [rng.randrange(9) for _ in range(rng.randrange(3))]
        over = name not in names[at + 1 :]
        found.append(
            RequestOutput(
                request_id=name,
                new_token_ids=tokens,
                logprobs=[TokenLogprob(token, -1.0) for token in tokens],
                prompt_logprobs=[TokenLogprob(0, None)] if name not in names[:at] else [],
                finish_reason=FinishReason(type="length") if over else None,
                constraint_complete=True if over else None,
                hidden=b"1234" if over else None,
                accounting=Accounting(forward_passes=at + 1),
            )
        )
    return found


def shown(names: str, told: list[RequestOutput]) -> dict[str, object]:
    presenters = {name: Presenter(name, SamplingParams(), None, LogprobLayout()) for name in names}
    for output in told:
        presenters[output.request_id].add(output)
    return {name: presenter.progress().event() for name, presenter in presenters.items()}


def test_gathering_changes_nothing_of_what_is_shown() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        names = "".join(rng.choice("abcd") for _ in range(rng.randrange(1, 12)))
        told = gathered(outputs(names, random.Random(seed)))
        assert [output.request_id for output in told] == list(dict.fromkeys(names))
        assert shown(names, told) == shown(names, outputs(names, random.Random(seed)))


def test_what_follows_the_end_of_a_request_stays_apart() -> None:
    rng = random.Random(0)
    told = gathered([*outputs("aab", rng), *outputs("aa", rng)])
    assert [(output.request_id, output.finish_reason is not None) for output in told] == [
        ("a", True),
        ("b", True),
        ("a", True),
    ]
