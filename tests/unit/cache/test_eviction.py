"""Whom nobody is known to need goes first, of equals the least recently used, however often entries went stale."""

from __future__ import annotations

from dataclasses import dataclass

import hypothesis.strategies as st
from hypothesis import given

from sglite.runtime.cache.eviction import NextUseEviction


@dataclass(eq=False)
class Leaf:
    last_access: int
    hints: int = 0
    is_evictable: bool = True


@given(st.lists(st.tuples(st.sampled_from(["add", "use", "lock", "hint", "pop"]), st.integers(0, 9)), max_size=200))
def test_the_order_is_that_of_a_list_sorted_by_hints_and_last_use(script: list[tuple[str, int]]) -> None:
    policy = NextUseEviction()
    policy._sweep_at = 8
    leaves: list[Leaf] = []
    for clock, (call, pick) in enumerate(script, 1):
        if call == "add":
            leaves.append(Leaf(clock))
            policy.add(leaves[-1])
        elif call == "pop":
            open_leaves = [leaf for leaf in leaves if leaf.is_evictable]
            want = min(open_leaves, key=lambda leaf: (leaf.hints > 0, leaf.last_access), default=None)
            assert policy.pop() is want
            if want is not None:
                want.is_evictable = False
        elif leaves and call in ("use", "hint"):
            leaf = leaves[pick % len(leaves)]
            if leaf.is_evictable:
                leaf.last_access = clock if call == "use" else leaf.last_access
                leaf.hints = pick % 3 if call == "hint" else leaf.hints
                policy.add(leaf)
        elif leaves:
            leaves[pick % len(leaves)].is_evictable = False


def test_stale_entries_do_not_pile_up() -> None:
    policy = NextUseEviction()
    leaf = Leaf(0)
    for clock in range(10_000):
        leaf.last_access = clock
        policy.add(leaf)
    assert len(policy._heap) <= 2048
    assert policy.pop() is leaf and policy.pop() is None
