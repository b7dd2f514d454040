"""What a request cost: said of one output as of several."""

from __future__ import annotations

import pytest

from sglite.runtime.engine.presenter import Progress
from sglite.runtime.protocol import Accounting
from sglite.runtime.serve.openai.usage import usage_of, usage_of_one

COST = Accounting(
    prompt_tokens=20, cached_tokens=16, computed_prompt_tokens=4, completion_tokens=3, forced_tokens=1,
    resampled_tokens=2, forward_passes=5, replayed_tokens=1, preemptions=1,
    queue_ms=0.12345, compute_ms=4.56789, e2e_ms=7.0,
)  # fmt: skip


@pytest.mark.parametrize("reasoning", [None, 0, 2])
def test_of_one_output_is_of_its_event(reasoning: int | None) -> None:
    output = Progress(num_tokens=3, accounting=COST)
    assert usage_of_one(output, reasoning) == usage_of([output.event()], [1], reasoning)
