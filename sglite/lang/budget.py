"""The tokens that the outputs of one run may have together.

Requests run at once, and nobody knows how long an output gets; so a request holds what it may use until it has ended,
and the next one gets what is then left. An output is only cut off when the budget really is used up: who finds too
little left waits while others hold some. Requests without a limit of their own hold all there is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sglite.lang.errors import BudgetExceeded


class TokenBudget:
    """``total`` tokens. For one event loop."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._spent = 0
        self._held = 0
        self._turn = asyncio.Lock()
        self._returned = asyncio.Event()

    def spend(self, tokens: int) -> None:
        """So many were generated."""
        self._spent += tokens

    @asynccontextmanager
    async def share(self, limit: int | None, outputs: int) -> AsyncIterator[int]:
        """Holds tokens for a request of ``outputs`` outputs; how many each of them may have: ``limit`` (None: as many
        as there are), or what is left. BudgetExceeded when that is nothing."""
        async with self._turn:
            each = await self._available(limit, outputs)
            self._held += each * outputs
        try:
            yield each
        finally:
            self._held -= each * outputs
            self._returned.set()

    async def _available(self, limit: int | None, outputs: int) -> int:
        while True:
            left = (self._total - self._spent - self._held) // outputs
            if limit is not None and left >= limit:
                return limit
            if not self._held:
                if left <= 0:
                    raise BudgetExceeded(f"the program has generated its token_budget={self._total} tokens")
                return left
            self._returned.clear()
            await self._returned.wait()
