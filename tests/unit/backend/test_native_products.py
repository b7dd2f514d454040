"""Products with packed weights, of every instruction set that the processor has, against plain torch in float64.

AMX is also imitated: a library of its own has the same kernels over numbers in memory instead of tile registers, so
that what is built on them is tested on processors that have none. Bounds as in ``test_native_kernels.py``.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from native_kernels import NATIVE, backend_of
from torch import Tensor

from sglite.runtime.backend import native_build, native_library
from sglite.runtime.backend.base import BackendError, BatchLayout
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.cpu_native import NativeBackend
from sglite.runtime.backend.weights import Activation, DenseLayer, DenseStack, Matrix
from sglite.runtime.protocol import GroupSpec

PLAIN = CPUBackend()
DTYPES = [torch.float32, torch.bfloat16]
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-8}
IMITATED = "amx_imitated"
BY_TILES = ("avx512_amx", IMITATED)
CSRC = Path(native_build.__file__).parent / "csrc"
TILE_FLAGS = ("-O1", "-mavx2", "-mfma", "-DSG_TILES_IMITATED")


def compiled(folder: Path, *arguments: str) -> ctypes.CDLL:
    """A library of its own; skipped without a compiler."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None or "avx2" not in native_library.supported():
        pytest.skip("imitating AMX needs a C++ compiler and AVX2")
    made = folder / "imitated.so"
    subprocess.run([compiler, *native_build.FLAGS, "-shared", *arguments, "-o", str(made)], check=True, timeout=100)
    return ctypes.CDLL(str(made))


@pytest.fixture(scope="module")
def imitation(tmp_path_factory: pytest.TempPathFactory) -> NativeBackend:
    """The backend whose only kernels are those with imitated tiles."""
    sources = [str(path) for path in sorted(CSRC.glob("*.cpp"))]
    library = compiled(tmp_path_factory.mktemp("tiles"), *TILE_FLAGS, f"-DSG_TABLE=sg_{IMITATED}", *sources)
    assert library.sg_levels() == 16
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_library, "load", lambda: library)
        patch.setattr(native_library, "LEVELS", {IMITATED: 16})
        return NativeBackend(2, IMITATED)


@pytest.fixture(scope="module", params=[*NATIVE, IMITATED])
def native(request: pytest.FixtureRequest) -> NativeBackend:
    """Every instruction set."""
    made = request.getfixturevalue("imitation") if request.param == IMITATED else backend_of(request.param)
    assert isinstance(made, NativeBackend)
    return made


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


def packed(backend: CPUBackend, weight: Tensor) -> Matrix:
    matrix = Matrix(weight.clone())
    backend.pack(matrix)
    assert matrix.packed
    return matrix


def assert_near(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Within two roundings of the largest number."""
    assert found.shape == expected.shape
    error = (found.double() - expected.double()).abs().max().item()
    assert error <= 2 * ROUNDING[dtype] * max(1.0, expected.double().abs().max().item())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outs", "ins"), [(16, 2), (48, 64), (160, 98), (528, 320), (96, 2060)])
def test_products_with_packed_weights(native: NativeBackend, dtype: torch.dtype, outs: int, ins: int) -> None:
    """Numbers of rows on both sides of every change of the way in which they are computed."""
    weight, bias = torch.randn(outs, ins, dtype=dtype), torch.randn(outs, dtype=dtype)
    matrix = packed(native, weight)
    x = torch.randn(200, ins + 6, dtype=dtype)[:, 2 : ins + 2]
    exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    for rows in (*range(1, 19), 24, 25, 32, 33, 37, 48, 49, 96, 97, 200):
        assert_near(native.matmul(x[:rows], matrix, bias), exact[:rows], dtype)
        logits = native.logits(x[:rows], matrix)
        assert logits.dtype == torch.float32
        assert_near(logits, exact[:rows] - bias.double(), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_a_product_does_not_depend_on_the_others(native: NativeBackend, dtype: torch.dtype) -> None:
    """But for few rows beside many where tiles take the many: they add up in another order."""
    matrix = packed(native, torch.randn(96, 256, dtype=dtype))
    x = torch.randn(130, 256, dtype=dtype)
    whole, first = native.logits(x, matrix), native.logits(x[:4], matrix)
    for rows in (1, 3, 4, 5, 6, 7, 9, 10, 13, 17, 24, 30, 96, 97):
        few = native.level in BY_TILES and dtype == torch.bfloat16 and rows < 5
        assert torch.equal(native.logits(x[:rows], matrix), first[:rows] if few else whole[:rows])


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_stays_in_its_row_and_output(native: NativeBackend, dtype: torch.dtype) -> None:
    """Sizes that leave a part of a tile over, in inputs, rows and outputs: nothing that lies beside is multiplied."""
    weight = torch.randn(48, 34, dtype=dtype)
    weight[20] = torch.inf
    weight[33, 5] = torch.nan
    for rows in (2, 5, 7, 21):
        x = torch.randn(rows + 1, 36, dtype=dtype)
        x[rows], x[:, 34:], x[1, 3] = torch.nan, torch.nan, torch.inf
        broken = ~native.matmul(x[:rows, :34], packed(native, weight)).isfinite()
        expected = torch.zeros(rows, 48, dtype=torch.bool)
        expected[1], expected[:, 20], expected[:, 33] = True, True, True
        assert torch.equal(broken, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_packing_is_undone_and_rows_are_read_from_packed_weights(native: NativeBackend, dtype: torch.dtype) -> None:
    weight = torch.randn(64, 34, dtype=dtype)
    matrix = Matrix(weight.clone())
    address = matrix.tensor.data_ptr()
    native.pack(matrix)
    assert not torch.equal(matrix.tensor, weight)
    ids = torch.tensor([63, 0, 17, 17])
    assert torch.equal(native.embedding(ids, matrix), weight[ids])
    with pytest.raises(BackendError, match="packed by another backend"):
        PLAIN.matmul(torch.randn(1, 34, dtype=dtype), matrix)
    native.unpack(matrix)
    assert torch.equal(matrix.tensor, weight) and matrix.tensor.data_ptr() == address
    assert torch.equal(PLAIN.embedding(ids, matrix), weight[ids])


def test_what_does_not_fit_the_blocks_stays_with_torch(native: NativeBackend) -> None:
    for shape in ((10, 32), (0, 32), (32, 33)):
        matrix = Matrix(torch.randn(shape, dtype=torch.bfloat16))
        native.pack(matrix)
        assert not matrix.packed
        x = torch.randn(3, shape[1], dtype=torch.bfloat16)
        assert torch.equal(native.matmul(x, matrix), PLAIN.matmul(x, matrix))
    matrix, x = packed(native, torch.randn(16, 32)), torch.randn(3, 32, dtype=torch.bfloat16)
    for call in (native.matmul, native.logits, native.greedy):
        with pytest.raises(BackendError, match=r"matmul of torch.bfloat16 \[3, 32\] with torch.float32 \[16, 32\]"):
            call(x, matrix)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("vocab", "ins"), [(16, 8), (1040, 64), (5008, 32)])
def test_greedy_is_the_first_largest_logit(native: NativeBackend, dtype: torch.dtype, vocab: int, ins: int) -> None:
    """Small whole numbers, so that sums are exact and many are equal; the specification's ids and values exactly."""
    weight = torch.randint(-2, 3, (vocab, ins)).to(dtype)
    matrix = packed(native, weight)
    for rows in (0, 1, 2, 5, 6, 7, 13, 16, 33, 100):
        hidden = torch.randint(-2, 3, (rows, ins + 1)).to(dtype)[:, 1:]
        exact = hidden.double() @ weight.double().T
        ids, tops = native.greedy(hidden, matrix)
        assert ids.dtype == torch.int64 and tops.dtype == torch.float32
        assert torch.equal(tops.double(), exact.amax(1))
        first = [(row == row.max()).nonzero()[0].item() for row in exact]
        assert ids.tolist() == first
        plain = PLAIN.greedy(hidden.float(), Matrix(weight.float()))
        assert plain[0].tolist() == first and torch.equal(plain[1], tops)


@pytest.mark.parametrize("dtype", DTYPES)
def test_greedy_says_which_rows_are_not_finite(native: NativeBackend, dtype: torch.dtype) -> None:
    weight = torch.rand(320, 16, dtype=dtype) + 1
    hidden = torch.rand(6, 16, dtype=dtype) + 1
    hidden[1, 3] = torch.nan
    hidden[2, 0] = torch.inf
    hidden[3, 5] = -torch.inf
    weight[7, 0] = 0.0  # times infinity it is NaN, in the row with infinity alone
    for backend in (native, PLAIN):
        head = packed(native, weight) if backend is native else Matrix(weight)
        for rows in (hidden[:4], hidden):
            ids, tops = backend.greedy(rows, head)
            assert tops.isnan().tolist() == [False, True, True, *[False] * (len(rows) - 3)]
            assert tops[3] == -torch.inf and tops[0].isfinite()
            assert ids[0] == backend.logits(rows, head)[0].argmax() and int(ids.min()) >= 0
    weight[7, 0] = 1.0
    ids, tops = native.greedy(hidden, packed(native, weight))
    assert tops[2] == torch.inf and ids[2] == 0


def test_attention_by_imitated_tiles(imitation: NativeBackend) -> None:
    """A prompt, whose products tiles take, and a row behind a prefix; its numbers are those of float32."""
    group = GroupSpec(name="a", num_kv_heads=2, head_dim=64, v_head_dim=32, dtype="bfloat16")
    pool = PLAIN.allocate_pool([group], num_pages=16, page_size=16)
    for tensor in (*pool.k, *pool.v):
        tensor.normal_()
    tables, tokens = [[0, 1, 2, 3, 4], [9, 8, 7, 6, 5, 10, 11]], 70 + 33
    layout = BatchLayout([0, 70, tokens], [0, 70], [70, 103], [0] * tokens, [-1] * tokens, tables, 16)
    q = torch.randn(tokens, 6, 64, dtype=torch.bfloat16)
    exact = PLAIN.attention(q.float(), pool, 0, PLAIN.plan(layout), scale=0.125)
    assert_near(imitation.attention(q, pool, 0, imitation.plan(layout), scale=0.125), exact, torch.bfloat16)


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("page_size", [4, 16])
def test_attention_of_long_prompts(native: NativeBackend, window: int | None, page_size: int) -> None:
    """Many tiles of queries, for which keys and values of a row are copied once; beside a row that has few."""
    group = GroupSpec(name="a", num_kv_heads=2, head_dim=64, v_head_dim=32, dtype="bfloat16")
    lengths, starts = (200, 310, 9), (0, 37, 100)
    pages = iter(torch.randperm(800 // page_size).tolist())
    tables = [[next(pages) for _ in range(-(-(s + n) // page_size))] for s, n in zip(starts, lengths, strict=True)]
    pool = PLAIN.allocate_pool([group], num_pages=800 // page_size, page_size=page_size)
    for tensor in (*pool.k, *pool.v):
        tensor.normal_()
    tokens, seen = sum(lengths), [s + n for s, n in zip(starts, lengths, strict=True)]
    layout = BatchLayout([0, 200, 510, tokens], list(starts), seen, [0] * tokens, [-1] * tokens, tables, page_size)
    q = torch.randn(tokens, 6, 64, dtype=torch.bfloat16)
    exact = PLAIN.attention(q.float(), pool, 0, PLAIN.plan(layout), scale=0.125, window=window)
    found = native.attention(q, pool, 0, native.plan(layout), scale=0.125, window=window)
    assert_near(found, exact, torch.bfloat16)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("biases", [False, True], ids=["", "biases"])
def test_activations_behind_imitated_tiles(imitation: NativeBackend, activation: Activation, biases: bool) -> None:
    """Many rows, whose gates and ups meet before they are written: bit for bit what the parts of a layer give."""
    layer = DenseLayer(
        attention_norm=(torch.ones(64, dtype=torch.bfloat16), 1e-6),
        qkv=(packed(imitation, torch.randn(128, 64, dtype=torch.bfloat16) / 8), None),
        heads=2,
        norms=None,
        layer=0,
        scale=0.125,
        window=None,
        sinks=None,
        out=(packed(imitation, torch.randn(64, 64, dtype=torch.bfloat16) / 8), None),
        mlp_norm=(torch.ones(64, dtype=torch.bfloat16), 1e-6),
        gate_up=(
            packed(imitation, torch.randn(2 * 80, 64, dtype=torch.bfloat16) / 8),
            torch.randn(2 * 80, dtype=torch.bfloat16) if biases else None,
        ),
        activation=activation,
        down=(packed(imitation, torch.randn(64, 80, dtype=torch.bfloat16) / 8), None),
    )
    group = GroupSpec(name="a", num_kv_heads=1, head_dim=32, v_head_dim=32, dtype="bfloat16")
    tokens, tables = 70, [[0, 1, 2, 3, 4]]
    layout = BatchLayout([0, tokens], [0], [tokens], [*range(tokens)], [*range(tokens)], tables, 16)
    angle = torch.randn(tokens, 1, 16)
    x = torch.randn(tokens, 64, dtype=torch.bfloat16)
    found = []
    for run in (NativeBackend.dense_layers, CPUBackend.dense_layers):
        pool, meta = imitation.allocate_pool([group], num_pages=8, page_size=16), imitation.plan(layout)
        found.append(run(imitation, x, DenseStack((layer,)), angle.cos().to(x), angle.sin().to(x), pool, meta))
    assert torch.equal(*found)


BYTES = """
#include "amx.hpp"
extern "C" __attribute__((visibility("default"))) void products(
        int64_t rows, const uint8_t* x, const uint8_t* w, int64_t blocks, int64_t ins, int32_t* out) {
    tile_products(rows, x, ins, w, 16 * ins, blocks, ins,
                  [&](int64_t row, int64_t b, vf sums) { store(out + row * 16 * blocks + 16 * b, sums); });
}
"""


def test_products_of_bytes_by_imitated_tiles_are_exact(tmp_path: Path) -> None:
    """Signed numbers times unsigned ones that lie [outs / 16][ins / 4][16][4], over the whole range of both."""
    (tmp_path / "bytes.cpp").write_text(BYTES)
    library = compiled(tmp_path, *TILE_FLAGS, f"-I{CSRC}", str(tmp_path / "bytes.cpp"))
    for rows, blocks, ins in ((1, 1, 4), (16, 2, 64), (17, 3, 100), (33, 1, 128), (70, 4, 192)):
        x = torch.randint(-128, 128, (rows, ins), dtype=torch.int8)
        w = torch.randint(0, 256, (16 * blocks, ins), dtype=torch.uint8)
        arranged = w.view(blocks, 16, ins // 4, 4).transpose(1, 2).contiguous()
        found = torch.zeros(rows, 16 * blocks, dtype=torch.int32)
        sizes = ctypes.c_int64(rows), ctypes.c_int64(blocks), ctypes.c_int64(ins)
        pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, arranged, found)]
        library.products(sizes[0], pointers[0], pointers[1], sizes[1], sizes[2], pointers[2])
        assert torch.equal(found.long(), x.long() @ w.long().T)
