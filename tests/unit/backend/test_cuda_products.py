"""Products on a GPU against the specification.

Of eight bits the sums are whole numbers: what is left is the rounding of their scales, a few units in 1e-7. Of four
bits terms are added up in float32 in another order.
"""

from __future__ import annotations

import pytest
import torch
from cuda_device import DEVICE
from never_waits import never_waits

from sglite.runtime.backend.base import BackendError
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.cpu_quantised import LEAST, rows_in_codes
from sglite.runtime.backend.experts import Matrices
from sglite.runtime.backend.kernels.products import coded_rows, embedding, logits, matmul, matmul_each
from sglite.runtime.backend.weights import Matrix
from sglite.runtime.quant.codes import Codes, Coding, empty

PLAIN = CPUBackend()
DTYPES = [torch.float32, torch.bfloat16]
CODINGS = {
    "int8": Coding(8),
    "int8, groups of 64": Coding(8, 64),
    "int8, groups of 24": Coding(8, 24),
    "int4, groups of 32": Coding(4, 32),
    "int4, groups of 24": Coding(4, 24),
    "int4, groups of 64, zeros": Coding(4, 64, zeros=True),
    "int4, groups of 192, zeros": Coding(4, 192, zeros=True),
    "int4, a scale an output": Coding(4),
}


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


def coded(coding: Coding, outputs: int, inputs: int, dtype: torch.dtype) -> Matrix:
    codes = empty(coding, outputs, inputs, dtype=dtype)
    codes.encode(torch.randn(outputs, inputs))
    return Matrix(codes.values, codes=codes)


def moved(matrix: Matrix) -> Matrix:
    """A copy on the device."""
    if matrix.codes is None:
        return Matrix(matrix.tensor.to(DEVICE))
    old = matrix.codes
    zeros = None if old.zeros is None else old.zeros.to(DEVICE)
    codes = Codes(old.coding, old.values.to(DEVICE), old.scales.to(DEVICE), zeros, old.dtype)
    return Matrix(codes.values, codes=codes)


def check(coding: Coding, dtype: torch.dtype, shape: tuple[int, int], counts: tuple[int, ...]) -> None:
    outputs, inputs = shape
    plain = coded(coding, outputs, inputs, dtype)
    placed, bias = moved(plain), torch.randn(outputs, dtype=dtype)
    for rows in counts:
        x = torch.randn(rows, inputs + 6, dtype=dtype)[:, 2 : inputs + 2]
        expected = PLAIN.logits(x, plain)
        found = logits(x.to(DEVICE), placed).cpu()
        assert found.dtype == torch.float32
        largest = expected.abs().max().item()
        assert (found - expected).abs().max().item() <= 1e-6 * largest
        result, wanted = matmul(x.to(DEVICE), placed, bias.to(DEVICE)).cpu(), PLAIN.matmul(x, plain, bias)
        assert result.dtype == dtype
        rounding = 1e-6 if dtype == torch.float32 else 2**-8
        assert (result.float() - wanted.float()).abs().max().item() <= rounding * (largest + 4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("coding", CODINGS.values(), ids=CODINGS)
def test_products_are_those_of_the_specification(dtype: torch.dtype, coding: Coding) -> None:
    check(coding, dtype, (48, 192), (1, 18))
    check(coding, dtype, (16, 384), (3,))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("coding", CODINGS.values(), ids=CODINGS)
def test_products_of_many_sizes(dtype: torch.dtype, coding: Coding) -> None:
    check(coding, dtype, (80, 192), (2, 17, 33, 65, 300))
    check(coding, dtype, (16, 3072), (25,))
    check(coding, dtype, (528, 192), (9,))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inputs", [8, 24, 1000])
def test_sums_of_eight_bits_are_exact(dtype: torch.dtype, inputs: int) -> None:
    """With scales of 1 results are the sums themselves, also the largest there are, as long as float32 has them."""
    for whole in (torch.randint(-128, 128, (32, inputs)), torch.full((32, inputs), -128)):
        codes = empty(Coding(8), 32, inputs, dtype=dtype)
        codes.values.copy_(whole)
        codes.scales.fill_(1.0)
        x = torch.randint(-127, 128, (20, inputs))
        x[:, 0], x[3], x[4] = 127, 127, -127
        exact = x.double() @ whole.double().T
        matrix = moved(Matrix(codes.values, codes=codes))
        for rows in (1, 5, 20):
            assert torch.equal(logits(x[:rows].to(dtype).to(DEVICE), matrix).cpu().double(), exact[:rows])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("inputs", "groups"), [(40, 1), (5000, 1), (96, 4)])
def test_rows_become_the_codes_of_the_specification(dtype: torch.dtype, inputs: int, groups: int) -> None:
    x = torch.randn(9, inputs, dtype=dtype) * 100
    x[1], x[2, 0], x[3, -1], x[4, 5] = 0.0, torch.nan, torch.inf, -torch.inf
    x[5] = LEAST / 4
    x[6] = torch.arange(inputs) % 255 - 127 + 0.5  # a tie in every place
    x[6, ::7] = 127.0
    whole, scales = coded_rows(x.to(DEVICE), groups)
    expected, theirs = rows_in_codes(x, groups)
    assert torch.equal(whole.cpu(), expected)
    torch.testing.assert_close(scales.cpu(), theirs, atol=0, rtol=0, equal_nan=True)


@pytest.mark.parametrize("coding", [Coding(8), Coding(8, 24), Coding(4, 32)], ids=str)
def test_a_row_does_not_depend_on_the_others(coding: Coding) -> None:
    placed = moved(coded(coding, 48, 192, torch.float32))
    x = torch.randn(40, 192).to(DEVICE)
    whole = logits(x, placed).cpu()
    for rows in (1, 17):
        found = logits(x[:rows], placed).cpu()
        if coding.bits == 8:
            assert torch.equal(found, whole[:rows])
        else:
            assert (found - whole[:rows]).abs().max().item() <= 1e-6 * whole.abs().max().item()
    x[3], x[5, 7] = torch.nan, torch.inf
    found = logits(x, placed).cpu()
    others = [i for i in range(40) if i not in (3, 5)]
    assert torch.equal(found[others], whole[others])
    assert found[3].isnan().all() and not found[5].isfinite().any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("coding", CODINGS.values(), ids=CODINGS)
def test_rows_of_coded_matrices_are_read(dtype: torch.dtype, coding: Coding) -> None:
    plain = coded(coding, 64, 384, dtype)
    ids = torch.tensor([63, 0, 17, 17])
    found = embedding(ids.to(DEVICE), moved(plain)).cpu()
    assert torch.equal(found, PLAIN.embedding(ids, plain))


@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_weights_are_multiplied_as_they_are(dtype: torch.dtype) -> None:
    x, weight, bias = torch.randn(2, 3, 32).to(dtype), torch.randn(48, 32).to(dtype), torch.randn(48).to(dtype)
    each, several = torch.randn(5, 4, 32).to(dtype), torch.randn(4, 16, 32).to(dtype)
    placed = [part.to(DEVICE) for part in (x, weight, bias, each, several)]
    assert matmul_each(placed[3], Matrices(placed[4])).shape == (5, 4, 16)
    for found, expected in (
        (matmul(placed[0], placed[1]), PLAIN.matmul(x, weight)),
        (matmul(placed[0], Matrix(placed[1]), placed[2]), PLAIN.matmul(x, Matrix(weight), bias)),
        (logits(placed[0][0], Matrix(placed[1])), PLAIN.logits(x[0], Matrix(weight))),
        (matmul_each(placed[3], Matrices(placed[4])), PLAIN.matmul_each(each, Matrices(several))),
    ):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found.cpu(), expected, atol=1e-4 if dtype == torch.float32 else 0.1, rtol=2**-7)
    ids = torch.tensor([4, 4, 40])
    assert torch.equal(embedding(ids.to(DEVICE), Matrix(placed[1])).cpu(), weight[ids])


def test_any_leading_dimensions_and_none() -> None:
    plain = coded(Coding(4, 32), 16, 64, torch.float32)
    placed, x = moved(plain), torch.randn(2, 3, 64)
    torch.testing.assert_close(matmul(x.to(DEVICE), placed).cpu(), PLAIN.matmul(x, plain))
    turned = torch.randn(64, 3)
    torch.testing.assert_close(matmul(turned.to(DEVICE).T, placed).cpu(), PLAIN.matmul(turned.T, plain))
    assert matmul(x[:0].to(DEVICE), placed).shape == (0, 3, 16)


def test_nothing_waits_for_the_device() -> None:
    x, ids = torch.randn(3, 192).to(DEVICE), torch.tensor([3, 0]).to(DEVICE)
    matrices = [moved(coded(coding, 16, 192, torch.float32)) for coding in CODINGS.values()]
    with never_waits():
        for matrix in matrices:
            matmul(x, matrix)
            embedding(ids, matrix)


def test_what_cannot_be_multiplied_is_refused() -> None:
    matrix = coded(Coding(8), 32, 64, torch.float32)
    with pytest.raises(BackendError, match=r"product of \[2, 60\] with a coded matrix \[32, 64\]"):
        matmul(torch.randn(2, 60), matrix)
    matrix.arrangement = object()
    for call in (matmul, logits):
        with pytest.raises(BackendError, match="packed by another backend"):
            call(torch.randn(2, 64), matrix)
