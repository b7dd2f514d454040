"""Pools, page copies, masks, products and memory of the CPU backend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglite.runtime.backend.base import AttentionMetadata, Backend, BackendError
from sglite.runtime.backend.cpu import CPUBackend, _cgroup_left, _meminfo_available
from sglite.runtime.protocol import CopyPages, GroupSpec

GROUP = GroupSpec(name="a", num_layers=3, num_kv_heads=2, head_dim=4, v_head_dim=6)


def test_it_is_a_backend() -> None:
    backend: Backend = CPUBackend()
    assert backend.name == "cpu" and not backend.guarantees.batch_invariant


def test_a_pool_has_a_zeroed_tensor_a_layer_of_every_group_in_order() -> None:
    second = GroupSpec(name="b", num_layers=1, num_kv_heads=1, head_dim=8, v_head_dim=8, dtype="bfloat16")
    pool = CPUBackend().allocate_pool([GROUP, second], num_pages=5, page_size=16)
    assert [tuple(k.shape) for k in pool.k] == [(80, 2, 4)] * 3 + [(80, 1, 8)]
    assert [tuple(v.shape) for v in pool.v] == [(80, 2, 6)] * 3 + [(80, 1, 8)]
    assert pool.k[3].dtype == torch.bfloat16 and pool.num_slots == 80
    assert pool.num_bytes == 80 * (3 * 2 * (4 + 6) * 4 + (8 + 8) * 2)
    assert not any(t.any() for t in (*pool.k, *pool.v))


@pytest.mark.parametrize(
    ("group", "pages", "words"),
    [
        (GroupSpec(name="s", kind="state"), 4, "'s': state/mha is not served"),
        (GroupSpec(name="r", kind="state", layout="recurrent"), 4, "'r' needs states, num_states=0; give 1 or more"),
        (GroupSpec(name="m", layout="recurrent"), 4, "'m': paged/recurrent is not served"),
        (GroupSpec(name="h", dtype="float16"), 4, "dtype 'float16' is not served"),
        (GROUP, 0, "pool of 0 pages"),
    ],
)
def test_a_pool_that_cannot_be_served_is_refused(group: GroupSpec, pages: int, words: str) -> None:
    with pytest.raises(BackendError, match=words):
        CPUBackend().allocate_pool([group], num_pages=pages, page_size=16)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), max_size=6))
def test_page_copies_happen_one_after_the_other_in_every_layer(copies: list[tuple[int, int, int]]) -> None:
    backend = CPUBackend()
    pool = backend.allocate_pool([GROUP], num_pages=5, page_size=4)
    for tensor in (*pool.k, *pool.v):
        tensor.normal_()
    expected = [tensor.clone().view(5, 4, *tensor.shape[1:]) for tensor in (*pool.k, *pool.v)]
    for src, dst, count in copies:
        for tensor in expected:
            tensor[dst, :count] = tensor[src, :count].clone()
    backend.copy_pages(pool, [CopyPages(src, dst, count) for src, dst, count in copies])
    for tensor, wanted in zip((*pool.k, *pool.v), expected, strict=True):
        assert torch.equal(tensor.view_as(wanted), wanted)


@pytest.mark.parametrize("copy", [CopyPages(0, 5, 1), CopyPages(-1, 0, 1), CopyPages(0, 1, 5), CopyPages(0, 1, -1)])
def test_a_page_copy_outside_the_pool_is_refused(copy: CopyPages) -> None:
    pool = CPUBackend().allocate_pool([GROUP], num_pages=5, page_size=4)
    with pytest.raises(BackendError, match="outside a pool of 5 pages of 4"):
        CPUBackend().copy_pages(pool, [copy])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 140), st.integers(1, 5), st.randoms(use_true_random=False))
def test_a_mask_leaves_allowed_logits_and_sets_all_others_to_minus_infinity(rows, vocab, words, rng) -> None:  # type: ignore[no-untyped-def]
    mask = np.array([[rng.getrandbits(32) for _ in range(words)] for _ in range(rows)], dtype=np.uint32)
    logits = torch.randn(rows, vocab)
    expected = logits.clone()
    for row in range(rows):
        for token in range(vocab):
            if token >= words * 32 or not int(mask[row, token // 32]) >> token % 32 & 1:
                expected[row, token] = float("-inf")
    CPUBackend().apply_mask(logits, torch.from_numpy(mask.view(np.int32)))
    assert torch.equal(logits, expected)


def test_matmul_is_a_linear_layer() -> None:
    x, weight, bias = torch.randn(3, 5), torch.randn(7, 5), torch.randn(7)
    torch.testing.assert_close(CPUBackend().matmul(x, weight, bias), x @ weight.T + bias)
    torch.testing.assert_close(CPUBackend().matmul(x, weight), x @ weight.T)


def test_metadata_of_another_backend_is_refused() -> None:
    pool = CPUBackend().allocate_pool([GROUP], num_pages=5, page_size=4)
    with pytest.raises(BackendError, match="planned by another backend"):
        CPUBackend().attention(torch.zeros(1, 2, 4), pool, 0, AttentionMetadata(1), scale=1.0)


def test_num_threads_is_torchs_and_must_be_positive() -> None:
    before = torch.get_num_threads()
    try:
        CPUBackend(num_threads=1)
        assert torch.get_num_threads() == 1
        with pytest.raises(BackendError, match="num_threads=0"):
            CPUBackend(num_threads=0)
    finally:
        torch.set_num_threads(before)


def test_without_a_number_there_are_no_more_threads_than_the_control_group_allows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr("sglite.runtime.backend.cpu._CGROUP", tmp_path)
    try:
        for limit, expected in ((None, 4), ("max 100000", 4), ("800000 100000", 4), ("150000 100000", 2), ("9 100", 1)):
            torch.set_num_threads(4)
            if limit is not None:
                (tmp_path / "cpu.max").write_text(f"{limit}\n")
            CPUBackend()
            assert torch.get_num_threads() == expected
        CPUBackend(num_threads=3)
        assert torch.get_num_threads() == 3, "whoever asks for more has it"
    finally:
        torch.set_num_threads(before)


def test_available_memory_is_what_the_kernel_and_the_control_group_leave(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       100 kB\nMemAvailable:    70 kB\n")
    assert _meminfo_available(meminfo) == 70 * 1024
    assert _meminfo_available(tmp_path / "absent") is None
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 500\nactive_file 100\ninactive_file 200\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert _cgroup_left(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert _cgroup_left(tmp_path) == 400
    assert (CPUBackend().available_memory() or 1) > 0
