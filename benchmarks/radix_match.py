"""How long the radix tree takes: a table, by size of the tree. Run it with ``python -m benchmarks.radix_match``.

The tree is filled with prompts of 4,096 tokens that branch off each other at random depths, up to a million tokens.
Timed are the calls of one admission of a 4,096-token prompt: ``match`` of a prompt that is there, of one that ends
half-way, and of a stranger; ``open + follow + close`` with the locks; and one eviction.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable

from sglite.runtime.cache.allocator import PageAllocator
from sglite.runtime.cache.radix import RadixCache

PROMPT = 4096
PAGE_SIZE = 16
SIZES = (10_000, 100_000, 1_000_000)


def fill(cache: RadixCache, tokens: int, rng: random.Random) -> list[list[int]]:
    """Insert prompts until the tree holds ``tokens`` tokens; returns them."""
    prompts: list[list[int]] = []
    held = 0
    while held < tokens:
        trunk = rng.choice(prompts)[: rng.randrange(PROMPT)] if prompts else []
        prompt = trunk + [rng.randrange(150_000) for _ in range(PROMPT - len(trunk))]
        cursor = cache.open()
        cache.follow(cursor, prompt)
        held += PROMPT - cursor.depth
        cache.claim(cursor, prompt, None)
        pages = cache.allocator.allocate(cache.pages_missing(cursor.node, PROMPT))
        table: list[int] = []
        cache.update_table(table, cursor.node, cache.root())
        cache.add_pages(cursor.node, pages, PROMPT, table)
        cache.plan(cursor.node, PROMPT, 0)
        cache.finish(cursor.node, PROMPT)
        cache.close(cursor)
        prompts.append(prompt)
    return prompts


def microseconds(call: Callable[[], object], repeats: int = 200) -> float:
    """Median time of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times)


def admission(cache: RadixCache, prompt: list[int]) -> None:
    """What admitting a cached prompt costs the tree, with its page table."""
    cursor = cache.open()
    cache.follow(cursor, prompt)
    cache.update_table([], cursor.node, cache.root())
    cache.close(cursor)


def measure(size: int) -> tuple[int, list[float]]:
    """Nodes of a tree of ``size`` tokens, and the columns of its row."""
    rng = random.Random(0)
    cache = RadixCache(PageAllocator(2 * size // PAGE_SIZE + 4 * PROMPT), PAGE_SIZE)
    prompts = fill(cache, size, rng)
    known = rng.choice(prompts)
    half = known[: PROMPT // 2] + [200_000] * (PROMPT // 2)
    miss = [200_000] * PROMPT
    assert cache.match(known).depth == PROMPT and cache.match(half).depth == PROMPT // 2
    nodes = sum(1 for _ in cache.nodes())
    return nodes, [
        microseconds(lambda: cache.match(known)),
        microseconds(lambda: cache.match(half)),
        microseconds(lambda: cache.match(miss)),
        microseconds(lambda: admission(cache, known)),
        microseconds(lambda: cache.evict(1), repeats=20),
    ]


def main() -> None:
    """Print the table."""
    print(f"page size {PAGE_SIZE}, prompts of {PROMPT} tokens, medians in microseconds")
    print(f"{'tokens':>10} {'nodes':>7} {'hit':>8} {'half hit':>9} {'miss':>7} {'admit':>8} {'evict':>8}")
    for size in SIZES:
        nodes, row = measure(size)
        print(f"{size:>10,} {nodes:>7,} {row[0]:>8.1f} {row[1]:>9.1f} {row[2]:>7.1f} {row[3]:>8.1f} {row[4]:>8.1f}")


if __name__ == "__main__":
    main()
