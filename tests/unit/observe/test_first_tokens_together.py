"""Tokens that come together with the first are gaps of no length: one gap fewer than tokens, however they come."""

from __future__ import annotations

import pytest

from sglite.runtime.observe.observer import Observer
from sglite.runtime.protocol import RequestOutput


@pytest.mark.parametrize("cuts", [(5,), (1, 4), (1, 1, 1, 1, 1), (3, 2)])
def test_there_is_one_gap_fewer_than_tokens(cuts: tuple[int, ...]) -> None:
    observer = Observer(clock=iter(range(100)).__next__)
    saw = observer.begin("r", ["r"])
    for count in cuts:
        saw(RequestOutput(request_id="r", new_token_ids=[1] * count))
    assert sum(observer.tally.between_tokens.counts) == 4 and sum(observer.tally.first_token.counts) == 1
