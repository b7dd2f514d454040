"""Retries: how often, how long apart, and for what; on a clock of their own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sglite.lang.backends.api import is_transient
from sglite.lang.backends.retrying import RetryPolicy, policy_of, retry_after_s, with_retries


class Failed(Exception):
    def __init__(self, status_code: int = 503, **headers: str) -> None:
        super().__init__("failed")
        self.status_code = status_code
        self.response = type("Response", (), {"headers": {k.replace("_", "-"): v for k, v in headers.items()}})()


def run(errors: list[Failed], policy: RetryPolicy, jitter: float = 0.5) -> tuple[list[float], Any]:
    """The waits of a call that fails with ``errors`` and then succeeds, and what came of it."""
    waits: list[float] = []
    left = list(errors)

    async def call() -> str:
        if left:
            raise left.pop(0)
        return "done"

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    try:
        result: Any = asyncio.run(with_retries(call, policy, is_transient, sleep=sleep, jitter=lambda: jitter))
    except Failed as error:
        result = error
    return waits, result


def test_waits_double_up_to_a_bound_and_are_jittered() -> None:
    policy = RetryPolicy(max_tries=6, first_s=1.0, max_s=5.0)
    assert run([Failed()] * 5, policy) == ([0.5, 1.0, 2.0, 2.5, 2.5], "done")
    assert run([Failed()] * 2, policy, jitter=0.0) == ([0.0, 0.0], "done")


def test_after_the_last_try_the_error_is_raised_as_it_came() -> None:
    errors = [Failed(429), Failed(500), Failed(503)]
    waits, result = run(errors, RetryPolicy(max_tries=3))
    assert len(waits) == 2 and result is errors[2]
    waits, result = run(errors, RetryPolicy(max_tries=1))
    assert waits == [] and result is errors[0]


def test_the_server_is_never_asked_earlier_than_it_says_nor_when_it_asks_for_too_long() -> None:
    policy = RetryPolicy(first_s=1.0, patience_s=20.0)
    assert run([Failed(429, retry_after="7")], policy) == ([7.5], "done")
    assert run([Failed(429, retry_after_ms="250")], policy) == ([0.75], "done")
    assert run([Failed(429, retry_after="3600")], policy)[0] == []


def test_retry_after_may_be_a_date_or_nonsense() -> None:
    date = Failed(retry_after="Wed, 21 Oct 2015 07:28:10 GMT")
    assert retry_after_s(date, now=lambda: 1445412480.0) == 10.0
    assert retry_after_s(date, now=lambda: 2e9) == 0.0
    assert retry_after_s(Failed(retry_after="soon")) is None and retry_after_s(ValueError()) is None


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_passing_failures_are_tried_again(status: int) -> None:
    assert is_transient(Failed(status))


@pytest.mark.parametrize("error", [Failed(400), Failed(401), Failed(404), Failed(422), ValueError(), KeyError("x")])
def test_others_are_final(error: Exception) -> None:
    assert not is_transient(error)


def test_what_the_provider_calls_final_is_final() -> None:
    out_of_money = Failed(429)
    out_of_money.code = "insufficient_quota"  # type: ignore[attr-defined]
    assert not is_transient(out_of_money) and not is_transient(Failed(500, x_should_retry="false"))


def test_a_cancelled_call_is_not_tried_again() -> None:
    calls = 0

    async def call() -> None:
        nonlocal calls
        calls += 1
        raise asyncio.CancelledError

    async def use() -> None:
        with pytest.raises(asyncio.CancelledError):
            await with_retries(call, RetryPolicy(), lambda error: True)

    asyncio.run(use())
    assert calls == 1


def test_policies_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="one try is the least"):
        RetryPolicy(max_tries=0)
    with pytest.raises(ValueError, match="cannot be negative"):
        RetryPolicy(first_s=-1.0)


def test_the_clients_own_option_says_how_often() -> None:
    options = {"max_retries": 2, "timeout": 1.0}
    assert policy_of(None, options) == RetryPolicy(max_tries=3) and options == {"timeout": 1.0}
    assert policy_of(None, {}) == RetryPolicy() and policy_of(RetryPolicy(max_tries=1), {}).max_tries == 1
    with pytest.raises(ValueError, match="give one of them"):
        policy_of(RetryPolicy(), {"max_retries": 2})
