"""The radix tree against a dictionary: any sequence of requests that come, compute, fork, leave and are evicted.

The dictionary knows every prefix that ought to be in the tree, token by token; a list of cells stands in for the
memory behind the pages, and every cell holds the whole prefix whose last token was written there. Whatever the tree
says is compared with both.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sglite.runtime.cache.allocator import PageAllocator
from sglite.runtime.cache.node import Cursor, RadixNode
from sglite.runtime.cache.radix import RadixCache

Prefix = tuple[str, tuple[int, ...]]
TRUNKS = [[0, 1, 2, 0, 1, 2, 0, 1, 2, 0], [0, 1, 1, 1, 0, 2], [2, 2]]
NAMESPACES = ["", "salt"]

sequences = st.builds(
    lambda trunk, keep, tail: trunk[:keep] + tail or [0],
    st.sampled_from(TRUNKS),
    st.integers(0, 10),
    st.lists(st.integers(0, 2), max_size=9),
)


@dataclass(eq=False)
class User:
    """Somebody with a cursor, and what it has promised to compute and has computed of that."""

    cursor: Cursor
    namespace: str
    tokens: list[int]
    done: int
    """Depth below which its path is computed."""
    table: list[int] = field(default_factory=list)
    passive: bool = False
    """Holds its place and computes nothing, as a pin does."""


class RadixMachine(RuleBasedStateMachine):
    """The rules are what a scheduler does to a tree."""

    @initialize(page_size=st.sampled_from([1, 3, 4, 16]), num_pages=st.sampled_from([6, 20, 60]), keeps=st.booleans())
    def start(self, page_size: int, num_pages: int, keeps: bool) -> None:
        self.page_size = page_size
        self.allocator = PageAllocator(num_pages)
        self.cache = RadixCache(self.allocator, page_size, enabled=keeps)
        self.cells: list[tuple[int, ...] | None] = [None] * (num_pages * page_size)
        self.known: set[Prefix] = set()
        """Prefixes promised or computed and not given up."""
        self.users: list[User] = []
        self.announced: list[RadixNode] = []
        self.step = 0

    # --- what the requests do -----------------------------------------------------------------------------------

    @rule(tokens=sequences, namespace=st.sampled_from(NAMESPACES))
    def come(self, tokens: list[int], namespace: str) -> None:
        """Follow the tree as far as it knows the tokens, and promise the rest."""
        cache = self.cache
        match = cache.match(tokens, namespace)
        cursor = cache.open(namespace)
        blocked = cache.follow(cursor, tokens)
        assert (blocked is None) == (match.blocked_on is None)
        assert cursor.depth <= match.planned
        if blocked is not None:
            cache.close(cursor)
            return
        done = cursor.depth
        assert done == match.depth == self.brute_force(tokens, namespace)
        user = User(cursor, namespace, tokens, done)
        if done < len(tokens):
            cache.claim(cursor, tokens, user)
        self.known |= {(namespace, tuple(tokens[: i + 1])) for i in range(len(tokens))}
        cache.update_table(user.table, cursor.node, cache.root(namespace))
        self.users.append(user)

    @precondition(lambda self: self.users)
    @rule(data=st.data(), count=st.integers(1, 12), fails=st.sampled_from([False, False, False, True]))
    def compute(self, data: st.DataObject, count: int, fails: bool) -> None:
        """Take pages, copy, write the cells, say that it is done; or fail, and leave."""
        user = data.draw(st.sampled_from(self.users))
        cache, node = self.cache, user.cursor.node
        upto = min(user.done + count, len(user.tokens))
        missing = cache.pages_missing(node, upto)
        if upto == user.done or missing > cache.num_available:
            return
        cache.evict(missing - self.allocator.num_free)
        self.resync()
        if missing:
            _, copied = cache.add_pages(node, self.allocator.allocate(missing), upto, user.table)
            if copied is not None:
                src, dst, num = (copied[0] * self.page_size, copied[1] * self.page_size, copied[2])
                self.cells[dst : dst + num] = self.cells[src : src + num]
        self.step += 1
        cache.plan(node, upto, self.step)
        if fails:
            self.close(user)
            return
        for depth in range(user.done, upto):
            self.cells[self.cell(user.table, depth)] = tuple(user.tokens[: depth + 1])
        cache.finish(node, upto)
        user.done = upto

    @precondition(lambda self: self.users)
    @rule(data=st.data(), tail=st.lists(st.integers(0, 2), min_size=1, max_size=5))
    def extend(self, data: st.DataObject, tail: list[int]) -> None:
        """A request that is done with its tokens gets more, and finds some of them in the tree or none."""
        user = data.draw(st.sampled_from(self.users))
        if user.passive or user.done < len(user.tokens):
            return
        cache, before = self.cache, user.cursor.node
        tokens = user.tokens + tail
        if cache.follow(user.cursor, tokens) is None and user.cursor.depth < len(tokens):
            user.done = user.cursor.depth
            cache.claim(user.cursor, tokens, user)
            self.known |= {(user.namespace, tuple(tokens[: i + 1])) for i in range(len(tokens))}
            user.tokens = tokens
        else:
            user.tokens, user.done = tokens[: user.cursor.depth], user.cursor.depth
        cache.update_table(user.table, user.cursor.node, before)

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        """A second cursor where what is computed ends."""
        user = data.draw(st.sampled_from(self.users))
        cursor = self.cache.pin(user.cursor)
        tokens = user.tokens[: cursor.depth]
        assert cursor.depth == min(self.ready_depth(user.cursor.node), len(user.tokens)) >= user.done
        self.users.append(User(cursor, user.namespace, tokens, cursor.depth, list(user.table), True))

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """What it promised and nobody computed is gone, what is computed stays, unless nothing is to be kept."""
        self.close(data.draw(st.sampled_from(self.users)))

    def close(self, user: User) -> None:
        """Unlock, and compare what is left with what ought to be."""
        self.users.remove(user)
        self.cache.close(user.cursor)
        locked, computed = self.locked(), self.computed()
        keep = locked | computed if self.cache.enabled else locked
        gone = self.known - self.in_tree()
        assert not gone & locked
        if self.cache.enabled:
            assert not gone & computed, "computed tokens were dropped"
        self.known &= keep

    @rule(pages=st.integers(1, 30))
    def evict(self, pages: int) -> None:
        """At least as many pages as asked for, if there are that many; never what somebody holds."""
        free, available = self.allocator.num_free, self.cache.num_available
        leaves = {node: (node.hints > 0, node.last_access) for node in self.cache.nodes() if node.is_evictable}
        freed = self.cache.evict(pages)
        assert freed >= min(pages, available - free)
        assert self.allocator.num_free == free + freed and self.cache.num_available == available
        left = [stamp for node, stamp in leaves.items() if node.parent is not None]
        taken = [stamp for node, stamp in leaves.items() if node.parent is None]
        if left and taken and pages:
            assert max(taken) <= min(left) or self.those_that_went_are_first(leaves)
        self.resync()

    def those_that_went_are_first(self, leaves: dict[RadixNode, tuple[bool, int]]) -> bool:
        """Among the leaves of before: those nobody comes back to, then the ones used least recently."""
        ordered = sorted(leaves.items(), key=lambda item: item[1])
        gone = [node.parent is None for node, _ in ordered]
        return gone == sorted(gone, reverse=True)

    @precondition(lambda self: self.users)
    @rule(data=st.data())
    def announce(self, data: st.DataObject) -> None:
        """Somebody leaves and says that it will come back."""
        user = data.draw(st.sampled_from(self.users))
        node = user.cursor.node
        self.close(user)
        if node.parent is not None:
            self.cache.hint(node, 1)
            self.announced.append(node)

    @precondition(lambda self: self.announced)
    @rule(data=st.data())
    def take_back(self, data: st.DataObject) -> None:
        """It will not come back after all; the place may be gone by now."""
        node = data.draw(st.sampled_from(self.announced))
        self.announced.remove(node)
        self.cache.hint(node, -1)

    @rule(tokens=sequences, namespace=st.sampled_from(NAMESPACES))
    def match(self, tokens: list[int], namespace: str) -> None:
        """As deep as the dictionary says, and changes nothing."""
        before = [(node, node.locks, node.last_access) for node in self.cache.nodes()]
        assert self.cache.match(tokens, namespace).depth == self.brute_force(tokens, namespace)
        assert before == [(node, node.locks, node.last_access) for node in self.cache.nodes()]

    def teardown(self) -> None:
        if not hasattr(self, "cache"):
            return
        for user in self.users:
            self.cache.close(user.cursor)
        self.cache.flush()
        counts = self.allocator.counts()
        assert counts.free == counts.total and self.allocator.mismatches == 0
        assert list(self.cache.nodes()) == []
        assert self.cache._roots == {}

    # --- what must hold -----------------------------------------------------------------------------------------

    @invariant()
    def tree_is_the_dictionary(self) -> None:
        if hasattr(self, "cache"):
            assert self.in_tree() == self.known

    @invariant()
    def pages_have_one_owner(self) -> None:
        if not hasattr(self, "cache"):
            return
        pages = [page for node in self.cache.nodes() for page in node.pages]
        counts = self.allocator.counts()
        assert len(pages) == len(set(pages)) == counts.cached
        assert counts.held == counts.quarantined == 0 and counts.free + counts.cached == counts.total
        unlocked = sum(len(node.pages) for node in self.cache.nodes() if node.locks == 0)
        assert self.cache.num_available == counts.free + unlocked
        pinned = sum(len(node.pages) for node in self.cache.nodes() if node.locks == node.pins > 0)
        assert self.cache.pinned_pages == pinned

    @invariant()
    def tables_lead_to_what_was_computed(self) -> None:
        """Each user's own table, and one made from scratch, find every computed position of its path."""
        for user in getattr(self, "users", []):
            fresh: list[int] = []
            self.cache.update_table(fresh, user.cursor.node, self.cache.root(user.namespace))
            ready = min(self.ready_depth(user.cursor.node), len(user.tokens))
            assert ready >= min(user.done, ready)
            for depth in range(ready):
                assert self.cells[self.cell(fresh, depth)] == tuple(user.tokens[: depth + 1])
            for depth in range(min(user.done, ready)):
                assert self.cells[self.cell(user.table, depth)] == tuple(user.tokens[: depth + 1])

    @invariant()
    def locks_reach_the_root(self) -> None:
        if not hasattr(self, "cache"):
            return
        locks: dict[RadixNode, int] = {}
        for user in self.users:
            for node in self.cache.path(user.cursor.node):
                locks[node] = locks.get(node, 0) + 1
        assert all(node.locks == locks.get(node, 0) for node in self.cache.nodes())
        pins = Counter(node for u in self.users if u.passive for node in self.cache.path(u.cursor.node))
        hints = Counter(node for place in self.announced for node in self.cache.path(place))
        assert all((node.pins, node.hints) == (pins[node], hints[node]) for node in self.cache.nodes())

    # --- the dictionary's side ----------------------------------------------------------------------------------

    def cell(self, table: list[int], depth: int) -> int:
        return table[depth // self.page_size] * self.page_size + depth % self.page_size

    def brute_force(self, tokens: list[int], namespace: str) -> int:
        """Length of the longest known prefix."""
        return max((i + 1 for i in range(len(tokens)) if (namespace, tuple(tokens[: i + 1])) in self.known), default=0)

    def prefixes(self, node: RadixNode, upto: int | None = None) -> set[Prefix]:
        """The prefixes that end in ``node``, as far as depth ``upto``."""
        whole = [token for part in self.cache.path(node) for token in part.tokens]
        end = node.end if upto is None else upto
        return {(node.namespace, tuple(whole[: i + 1])) for i in range(node.start, end)}

    def in_tree(self) -> set[Prefix]:
        return set().union(*(self.prefixes(node) for node in self.cache.nodes()))

    def computed(self) -> set[Prefix]:
        return {prefix for prefix in self.known if prefix[1] in self.written(prefix[0])}

    def written(self, namespace: str) -> set[tuple[int, ...]]:
        nodes = [node for node in self.cache.nodes() if node.namespace == namespace]
        return {prefix for node in nodes for _, prefix in self.prefixes(node, node.ready)}

    def locked(self) -> set[Prefix]:
        return {(user.namespace, tuple(user.tokens[: i + 1])) for user in self.users for i in range(len(user.tokens))}

    def ready_depth(self, node: RadixNode) -> int:
        return next((part.ready for part in self.cache.path(node) if part.ready < part.end), node.end)

    def resync(self) -> None:
        """After an eviction: what is left is part of what was, with all that is locked."""
        left = self.in_tree()
        assert left <= self.known and self.locked() <= left
        self.known = left


TestRadix = RadixMachine.TestCase
TestRadix.settings = settings(
    max_examples=250, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
