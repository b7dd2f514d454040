"""Copies of pages and states on the GPU: as the specification makes them, one after another."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from cuda_device import DEVICE

from sglite.runtime.backend.base import BackendError
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.kernels.copies import STRETCH, Copies, at_once
from sglite.runtime.cache.pool import KVPool, make_pool
from sglite.runtime.protocol import CopyPages, CopyState, GroupSpec, StateTensor

PLAIN = CPUBackend()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
PAGES, FRAMES, STATES, SIZE = 7, 5, 6, 3


def pools(*groups: GroupSpec, page_size: int = SIZE) -> tuple[KVPool, KVPool]:
    """The specification's and the device's, with the same numbers everywhere."""
    theirs, ours = (
        make_pool(groups, PAGES, page_size, DTYPES, device, STATES, FRAMES) for device in (torch.device("cpu"), DEVICE)
    )
    torch.manual_seed(0)
    for one, other in zip(tensors(theirs), tensors(ours), strict=True):
        one.copy_(torch.randint(-100, 100, one.shape))
        other.copy_(one)
    return theirs, ours


def tensors(pool: KVPool) -> list[torch.Tensor]:
    states = [tensor for layers in pool.states.values() for layer in layers for tensor in layer]
    return [*pool.paged(False), *pool.paged(True), *states]


def assert_same(ours: KVPool, theirs: KVPool) -> None:
    for one, other in zip(tensors(ours), tensors(theirs), strict=True):
        assert torch.equal(one.cpu(), other)


MANY = (
    GroupSpec(name="keys", num_layers=3, num_kv_heads=2, head_dim=16, v_head_dim=8, dtype="bfloat16"),
    GroupSpec(name="latents", layout="mla", num_layers=2, head_dim=18, v_head_dim=16, dtype="float32"),
    GroupSpec(name="coded", num_kv_heads=1, head_dim=7, v_head_dim=5, dtype="int8", window=4),
    GroupSpec(name="framed", num_layers=2, num_kv_heads=2, head_dim=4, v_head_dim=4, window=4),
    GroupSpec(
        name="states",
        kind="state",
        layout="recurrent",
        num_layers=2,
        state_tensors=(StateTensor((5, 3), "bfloat16"), StateTensor((2, 4, 4))),
    ),
    GroupSpec(name="others", kind="state", layout="recurrent", state_tensors=(StateTensor((8,)),)),
)


@pytest.mark.parametrize("frames", [False, True])
def test_pages_are_copied_in_order(frames: bool) -> None:
    """Random lists, in which later copies read and write what earlier ones did."""
    (theirs, ours), rng = pools(*MANY), random.Random(0)
    copies, rooms = Copies(ours), range(FRAMES if frames else PAGES)
    for _ in range(8):
        several = [
            CopyPages(rng.choice(rooms), rng.choice(rooms), rng.randint(0, SIZE)) for _ in range(rng.randint(0, 8))
        ]
        copies.pages(several, frames=frames)
        PLAIN.copy_pages(theirs, several, frames=frames)
        assert_same(ours, theirs)


def test_states_are_copied_and_cleared_in_order() -> None:
    (theirs, ours), rng = pools(*MANY), random.Random(0)
    copies = Copies(ours)
    for _ in range(8):
        several = [
            CopyState(rng.choice(("states", "others")), rng.randint(-1, STATES - 1), rng.randrange(STATES))
            for _ in range(rng.randint(0, 8))
        ]
        copies.states(several)
        PLAIN.copy_states(theirs, several)
        assert_same(ours, theirs)


def test_pages_larger_than_a_stretch() -> None:
    group = GroupSpec(name="a", num_kv_heads=4, head_dim=64, v_head_dim=32, dtype="float32")
    theirs, ours = pools(group, page_size=32)
    several = [CopyPages(0, 3, 32), CopyPages(1, 4, 31)]
    assert STRETCH < 31 * 4 * 64 * 4 // 8
    Copies(ours).pages(several)
    PLAIN.copy_pages(theirs, several)
    assert_same(ours, theirs)


def test_what_is_launched_together_may_be_done_in_any_order() -> None:
    rng = random.Random(1)
    for _ in range(200):
        moves = [(rng.randint(-1, 4), rng.randrange(5), 1) for _ in range(rng.randint(0, 6))]
        expected: list[int] = [*range(5)]
        for source, target, _ in moves:
            expected[target] = expected[source] if source >= 0 else -1
        launches = [*at_once(moves)]
        assert [move for launch in launches for move in launch] == [move for move in moves if move[0] != move[1]]
        for orders in itertools.islice(itertools.product(*map(itertools.permutations, launches)), 30):
            found = [*range(5)]
            for source, target, _ in itertools.chain(*orders):
                found[target] = found[source] if source >= 0 else -1
            assert found == expected


def test_copies_that_do_not_touch_each_other_are_one_launch() -> None:
    assert len([*at_once([(0, 1, 4), (0, 2, 4), (-1, 3, 4), (-1, 4, 4), (5, 6, 4)])]) == 1
    assert len([*at_once([(0, 1, 4), (1, 2, 4), (5, 0, 4)])]) == 2


def test_copies_outside_the_pool_are_refused() -> None:
    _, ours = pools(*MANY)
    copies = Copies(ours)
    for copy in (CopyPages(0, PAGES, 1), CopyPages(-1, 0, 1), CopyPages(0, 1, SIZE + 1)):
        with pytest.raises(BackendError, match=f"outside a pool of {PAGES} pages of {SIZE}"):
            copies.pages([copy])
    with pytest.raises(BackendError, match=f"{FRAMES} frames"):
        copies.pages([CopyPages(0, FRAMES, 1)], frames=True)
    for state in (CopyState("states", 0, STATES), CopyState("states", STATES, 0), CopyState("states", 0, -1)):
        with pytest.raises(BackendError, match=f"has {STATES} states"):
            copies.states([state])
    with pytest.raises(BackendError, match="has 0 states"):
        copies.states([CopyState("nobody", 0, 0)])


def test_a_pool_without_frames_or_states() -> None:
    _, ours = pools(MANY[0])
    copies = Copies(ours)
    copies.pages([], frames=True)
    copies.pages([CopyPages(0, 1, 1)], frames=True)
    copies.states([])
