"""When a request to a paid API is made again, and after how long.

``with_retries`` repeats a call that failed for a passing reason: exponential back-off with full jitter, so that many
programs that were turned away together do not come back together, and never earlier than the server asks for in
``Retry-After``. It is the only place that retries: the clients' own retries are switched off. A call that has handed
anything on must not be given to it again.
"""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """At most ``max_tries`` tries. Before try k + 1 a wait of up to ``first_s`` * 2 ** (k - 1) seconds, ``max_s`` at
    most. A server that asks for more than ``patience_s`` seconds is not asked again."""

    max_tries: int = 5
    first_s: float = 0.5
    max_s: float = 30.0
    patience_s: float = 60.0

    def __post_init__(self) -> None:
        if self.max_tries < 1:
            raise ValueError(f"RetryPolicy(max_tries={self.max_tries}): one try is the least; 1 switches retries off")
        if min(self.first_s, self.max_s, self.patience_s) < 0:
            raise ValueError(f"{self}: waits cannot be negative")

    def wait_s(self, tries: int, asked_s: float | None, jitter: float) -> float | None:
        """Seconds to wait after ``tries`` failed ones; None to give up. ``jitter``: uniform in [0, 1)."""
        if tries >= self.max_tries or (asked_s or 0.0) > self.patience_s:
            return None
        backoff = min(self.max_s, self.first_s * 2.0 ** (tries - 1)) * jitter
        return backoff if asked_s is None else asked_s + backoff


def policy_of(retry: RetryPolicy | None, options: dict[str, Any]) -> RetryPolicy:
    """``retry``, or what the clients' own option ``max_retries`` says, which is taken out of ``options``."""
    retries = options.pop("max_retries", None)
    if retry is not None and retries is not None:
        raise ValueError(f"retry={retry} and max_retries={retries} say the same; give one of them")
    return retry or (RetryPolicy() if retries is None else RetryPolicy(max_tries=int(retries) + 1))


async def with_retries(
    call: Callable[[], Awaitable[T]],
    policy: RetryPolicy,
    is_transient: Callable[[Exception], bool],
    *,
    on_retry: Callable[[Exception], None] = lambda error: None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    jitter: Callable[[], float] = random.random,
) -> T:
    """What ``call`` returns, made again while it fails with errors that ``is_transient`` and ``policy`` allows.

    Raises the last error as it came. ``on_retry`` learns of each error that is followed by another try.
    """
    tries = 0
    while True:
        tries += 1
        try:
            return await call()
        except Exception as error:
            wait = policy.wait_s(tries, retry_after_s(error), jitter()) if is_transient(error) else None
            if wait is None:
                raise
            on_retry(error)
        await sleep(wait)


def retry_after_s(error: Exception, now: Callable[[], float] = time.time) -> float | None:
    """The seconds that the response behind ``error`` asks to wait (RFC 9110, 10.2.3, or ``retry-after-ms``)."""
    headers: Mapping[str, Any] = getattr(getattr(error, "response", None), "headers", None) or {}
    millis, value = headers.get("retry-after-ms"), headers.get("retry-after")
    try:
        if millis is not None:
            return max(0.0, float(millis) / 1000)
        return None if value is None else max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(str(value)).timestamp() - now())
    except (TypeError, ValueError):
        return None
