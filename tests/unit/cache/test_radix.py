"""The tree's drawings, one by one: splits inside a page, copies, promises, eviction, checkpoints."""

from __future__ import annotations

import pytest

from sglite.runtime.cache.allocator import PageAllocator
from sglite.runtime.cache.node import Cursor, common_prefix
from sglite.runtime.cache.radix import RadixCache


def cache_of(page_size: int = 4, pages: int = 64, **options: object) -> RadixCache:
    return RadixCache(PageAllocator(pages), page_size, **options)  # type: ignore[arg-type]


def insert(cache: RadixCache, tokens: list[int], upto: int | None = None, namespace: str = "") -> tuple[Cursor, list]:
    """Follow, promise the rest, compute it below ``upto``; the cursor, its page table and the copies made."""
    cursor = cache.open(namespace)
    table: list[int] = []
    assert cache.follow(cursor, tokens) is None
    if cursor.depth < len(tokens):
        cache.claim(cursor, tokens, "owner")
    cache.update_table(table, cursor.node, cache.root(namespace))
    upto = len(tokens) if upto is None else upto
    copies = []
    missing = cache.pages_missing(cursor.node, upto)
    if missing:
        _, copied = cache.add_pages(cursor.node, cache.allocator.allocate(missing), upto, table)
        copies = [copied] if copied else []
    cache.plan(cursor.node, upto, 0)
    cache.finish(cursor.node, upto)
    return cursor, [table, copies]


def test_the_drawing_of_the_module() -> None:
    """A parent ends inside page B; the first child continues in B, the second owns a copy of what B holds."""
    cache = cache_of(4)
    parent, (table, _) = insert(cache, [0, 1, 2, 3, 4, 5])
    a, b = table
    first, (first_table, first_copies) = insert(cache, [0, 1, 2, 3, 4, 5, 6, 7, 8])
    assert first_table[:2] == [a, b] and len(first_table) == 3 and first_copies == []
    second, (second_table, second_copies) = insert(cache, [0, 1, 2, 3, 4, 5, 9])
    assert second_table[0] == a and second_table[1] not in (a, b, first_table[2])
    assert second_copies == [(b, second_table[1], 2)]
    assert [child.continues for child in parent.node.children.values()] == [True, False]
    assert first.node.parent is second.node.parent is parent.node


def test_a_split_inside_a_page_leaves_the_page_with_the_parent() -> None:
    cache = cache_of(4)
    whole, (table, _) = insert(cache, [0, 1, 2, 3, 4, 5, 6, 7, 8])
    other, (other_table, copies) = insert(cache, [0, 1, 2, 3, 4, 5, 9])
    parent = whole.node.parent
    assert parent is not None and parent is other.node.parent
    assert (parent.start, parent.end, parent.pages) == (0, 6, table[:2])
    assert (whole.node.start, whole.node.continues, whole.node.pages) == (6, True, table[2:])
    assert copies == [(table[1], other_table[1], 2)]
    fresh: list[int] = []
    cache.update_table(fresh, whole.node, cache.root())
    assert fresh == table, "the split is invisible to who was there"


@pytest.mark.parametrize("cut", range(7, 14))
def test_a_split_of_a_part_that_continues_in_its_parents_page(cut: int) -> None:
    """Parent [0, 6), child [6, 14) from the middle of page B on; somebody leaves the child at any depth."""
    cache = cache_of(4)
    tokens = list(range(14))
    insert(cache, tokens[:6])
    child, (table, _) = insert(cache, tokens)
    branch, (branch_table, copies) = insert(cache, [*tokens[:cut], 99])
    fresh: list[int] = []
    cache.update_table(fresh, child.node, cache.root())
    assert fresh == table and len(set(table)) == 4
    shared = cut // 4
    assert branch_table[:shared] == table[:shared] and branch_table[shared] not in table
    assert copies == ([(table[shared], branch_table[shared], cut % 4)] if cut % 4 else [])
    assert child.node.parent is branch.node.parent and branch.depth == cut + 1


def test_who_uses_a_leaf_alone_extends_it_in_place() -> None:
    cache = cache_of(4)
    cursor, (table, _) = insert(cache, [0, 1, 2])
    node = cursor.node
    cache.claim(cursor, [0, 1, 2, 3], "owner")
    assert cursor.node is node and node.end == 4
    cache.add_pages(node, [], 4, table)
    cache.plan(node, 4, 1)
    cache.finish(node, 4)
    second = cache.pin(cursor)
    cache.claim(cursor, [0, 1, 2, 3, 4], "owner")
    assert cursor.node is not node and second.node is node


def test_a_promise_is_visible_and_blocks_who_needs_it() -> None:
    cache = cache_of(4)
    owner, _ = insert(cache, list(range(10)), upto=4)
    match = cache.match([0, 1, 2, 3, 4, 5, 99])
    assert (match.depth, match.planned, match.blocked_on) == (6, 4, owner.node)
    waiting = cache.open()
    assert cache.follow(waiting, list(range(8))) is owner.node
    served = cache.open()
    assert cache.follow(served, [0, 1, 2, 3, 77]) is None and served.depth == 4


def test_what_nobody_computed_is_cut_when_its_owner_leaves() -> None:
    cache = cache_of(4)
    owner, _ = insert(cache, list(range(10)), upto=5)
    pages = cache.allocator.num_free
    cache.close(owner)
    assert cache.match(list(range(10))).depth == 5
    assert cache.allocator.num_free == pages and cache.allocator.counts().cached == 2
    owner, _ = insert(cache, [7, 7, 7], upto=0)
    cache.close(owner)
    assert cache.match([7, 7, 7]).depth == 0


def test_pages_of_a_step_that_never_came_back_are_free_again() -> None:
    cache = cache_of(4)
    owner, (table, _) = insert(cache, list(range(20)), upto=5)
    cache.add_pages(owner.node, cache.allocator.allocate(3), 20, table)
    cache.plan(owner.node, 20, 1)
    cache.close(owner)
    assert cache.match(list(range(20))).depth == 5
    assert cache.allocator.counts().cached == 2 and cache.num_available == 64


@pytest.mark.parametrize("upto", [0, 4, 5, 10])
def test_a_second_cursor_holds_what_is_computed_and_no_promise(upto: int) -> None:
    """It is what a pin has: when the owner leaves, the promise goes and the rest stays locked."""
    cache = cache_of(4)
    owner, _ = insert(cache, list(range(10)), upto=upto)
    pin = cache.pin(owner)
    assert pin.depth == upto and cache.match(list(range(10))).depth == 10
    cache.close(owner)
    assert cache.match(list(range(10))).depth == upto
    assert cache.flush() == 0 and cache.match(list(range(10))).depth == upto
    cache.close(pin)
    assert cache.flush() == -(-upto // 4) and cache.match(list(range(10))).depth == 0


def test_the_least_recently_used_leaf_goes_first_and_a_locked_one_never() -> None:
    cache = cache_of(1)
    cursors = {name: insert(cache, [name] * 3)[0] for name in range(4)}
    for name in (0, 1, 2):
        cache.close(cursors[name])
    used, _ = insert(cache, [0] * 3)
    cache.close(used)
    assert cache.evict(1) == 3 and cache.match([1] * 3).depth == 0
    assert cache.match([2] * 3).depth == cache.match([0] * 3).depth == 3
    assert cache.evict(100) == 6
    assert cache.match([3] * 3).depth == 3, "locked"
    assert cache.evicted_pages == 9


def test_a_prefix_counts_as_used_until_it_is_let_go() -> None:
    cache = cache_of(1)
    first, _ = insert(cache, [1] * 3)
    second, _ = insert(cache, [2] * 3)
    cache.close(second)
    cache.close(first)
    assert cache.evict(1) == 3
    assert cache.match([1] * 3).depth == 3 and cache.match([2] * 3).depth == 0


def test_a_parent_goes_after_its_children() -> None:
    cache = cache_of(1)
    for tail in (1, 2):
        cursor, _ = insert(cache, [0, 0, tail])
        cache.close(cursor)
    assert cache.evict(1) == 1 and cache.match([0, 0, 2]).depth == 3
    assert cache.evict(1) == 1 and cache.match([0, 0, 2]).depth == 2
    assert cache.evict(1) == 2 and cache._roots == {}


def test_available_pages_are_the_free_and_the_unlocked() -> None:
    cache = cache_of(1, pages=10)
    one, _ = insert(cache, [1, 1, 1])
    two, _ = insert(cache, [1, 1, 2, 2])
    assert cache.num_available == 10 - 5
    cache.close(two)
    assert cache.num_available == 10 - 3
    cache.close(one)
    assert cache.num_available == 10 and cache.flush() == 5 and cache.allocator.num_free == 10


def test_namespaces_share_nothing_and_leave_nothing() -> None:
    cache = cache_of()
    cursor, _ = insert(cache, [1, 2, 3], namespace="salt")
    assert cache.match([1, 2, 3]).depth == 0 and cache.match([1, 2, 3], "salt").depth == 3
    cache.close(cursor)
    cache.flush()
    assert cache._roots == {}
    cache.match([1], "never seen")
    assert cache._roots == {}


def test_switched_off_nothing_stays() -> None:
    cache = cache_of(enabled=False)
    cursor, _ = insert(cache, [1, 2, 3])
    assert cache.match([1, 2, 3]).depth == 3, "requests in flight share"
    cache.close(cursor)
    assert list(cache.nodes()) == [] and cache.allocator.num_free == 64


def test_to_be_pinned_is_not_to_be_used() -> None:
    """The pin on the first goes last of all: still, it is the one used least recently."""
    cache = cache_of(4)
    first, _ = insert(cache, [1] * 4)
    pin = cache.pin(first)
    cache.close(first)
    second, _ = insert(cache, [2] * 4)
    assert cache.pinned_pages == 1
    cache.close(second)
    cache.close(pin)
    cache.evict(1)
    assert cache.pinned_pages == 0
    assert (cache.match([1] * 4).depth, cache.match([2] * 4).depth) == (0, 4)


def test_checkpoints_are_kept_as_long_as_there_are_slots() -> None:
    states = {"ssm": PageAllocator(2)}
    cache = cache_of(4, states=states)
    ends = []
    for name in range(3):
        cursor, _ = insert(cache, [name] * 4)
        slots = cache.checkpoints.take_slots(step=name)
        assert slots is not None
        cache.checkpoints.save(cursor.node, slots, name)
        ends.append(cursor.node)
    assert [bool(node.checkpoint) for node in ends] == [False, True, True]
    cache.checkpoints.restorable(ends[1], 4)
    assert cache.checkpoints.take_slots(step=9) is not None
    assert [bool(node.checkpoint) for node in ends] == [False, True, False], "the one used last stays"
    assert cache.checkpoints.restorable(ends[2], 4).parent is None
    assert cache.checkpoints.restorable(ends[1], 3).parent is None, "a checkpoint behind the limit is of no use"


def test_a_checkpoint_being_written_is_not_given_up() -> None:
    cache = cache_of(4, states={"ssm": PageAllocator(1)})
    cursor, _ = insert(cache, [1] * 4)
    slots = cache.checkpoints.take_slots(step=5)
    assert slots is not None
    cache.checkpoints.save(cursor.node, slots, 5)
    assert cache.checkpoints.take_slots(step=5) is None
    assert cache.checkpoints.take_slots(step=6) is not None


def test_checkpoints_of_failed_steps_are_forgotten() -> None:
    cache = cache_of(4, states={"ssm": PageAllocator(4)})
    nodes = []
    for step in range(3):
        cursor, _ = insert(cache, [step] * 4)
        slots = cache.checkpoints.take_slots(step)
        assert slots is not None
        cache.checkpoints.save(cursor.node, slots, step)
        nodes.append(cursor.node)
    cache.checkpoints.drop_since(1)
    assert [bool(node.checkpoint) for node in nodes] == [True, False, False]
    assert cache.states["ssm"].num_free == 3


@pytest.mark.parametrize("length", [0, 1, 7, 100])
@pytest.mark.parametrize("differs", [0, 1, 5, 99, 1000])
def test_common_prefix(length: int, differs: int) -> None:
    a = list(range(length))
    b = [9, 9, 9, *[token if i != differs else -1 for i, token in enumerate(range(50))]]
    want = next((i for i in range(min(length, 50)) if a[i] != b[3 + i]), min(length, 50))
    assert common_prefix(a, b, 3) == want


def test_a_page_has_room() -> None:
    with pytest.raises(ValueError, match="page_size must be at least 1, got 0"):
        cache_of(0)


@pytest.mark.parametrize("page_size", [1, 3, 4])
def test_a_sequence_that_is_pinned_step_by_step_stays_one_node(page_size: int) -> None:
    cache = cache_of(page_size, 256)
    tokens: list[int] = []
    pin: Cursor | None = None
    for step in range(40):
        tokens += [step % 5] * (1 + step % 4) + [9]
        cursor, (table, _) = insert(cache, tokens)
        old, pin = pin, cache.pin(cursor)
        if old is not None:
            cache.close(old)
        cache.close(cursor)
        assert len(cache.path(pin.node)) == 1 and pin.node.tokens == tokens
        assert pin.node.pages == table and cache.pinned_pages == len(table)
        counts = cache.allocator.counts()
        assert counts.free + counts.cached == counts.total and counts.cached == len(table)
    assert pin is not None
    cache.close(pin)
    assert cache.flush() == -(-len(tokens) // page_size) and cache.num_available == 256


def test_what_others_stand_at_or_share_stays_a_node_of_its_own() -> None:
    cache = cache_of(4)
    trunk, _ = insert(cache, [1, 2, 3, 4, 5])
    held = cache.pin(trunk)
    cache.close(trunk)
    left, _ = insert(cache, [1, 2, 3, 4, 5, 6])
    right, _ = insert(cache, [1, 2, 3, 4, 5, 7])  # owns a copy of the page in which the trunk ends
    cache.close(held)
    assert [len(cache.path(c.node)) for c in (left, right)] == [2, 2]
    again = cache.pin(left)
    cache.close(left)
    cache.close(again)
    assert len(cache.path(right.node)) == 2
    cache.close(right)
    assert cache.flush() == 3
