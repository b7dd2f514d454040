"""Products with coded matrices, of every instruction set, against the specification, and that against exact sums.

Of eight bits the sums are whole numbers: what is left is the rounding of their scales, a few units in 1e-7. Of four
bits terms are added up in float32 in another order.
"""

from __future__ import annotations

import pytest
import torch
from native_kernels import CODED, backend_of

from sglite.runtime.backend.base import BackendError
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.cpu_quantised import LEAST, rows_in_codes
from sglite.runtime.backend.weights import Matrix
from sglite.runtime.quant.codes import Codes, Coding, empty

PLAIN = CPUBackend()
DTYPES = [torch.float32, torch.bfloat16]
ROWS = (1, 2, 3, 4, 6, 7, 8, 9, 12, 13, 24, 25, 33)
"""On both sides of every change of the way in which products are computed."""
CODINGS = {
    "int8": Coding(8),
    "int8, groups of 32": Coding(8, 32),
    "int8, groups of 24": Coding(8, 24),
    "int4, groups of 32": Coding(4, 32),
    "int4, groups of 64": Coding(4, 64),
    "int4, groups of 32, zeros": Coding(4, 32, zeros=True),
    "int4, groups of 192, zeros": Coding(4, 192, zeros=True),
    "int4, a scale an output": Coding(4),
}
SHAPES = {(16, 384): (1, 25, 200), (144, 192): ROWS, (1040, 192): (1, 9)}


@pytest.fixture(scope="module", params=CODED)
def native(request: pytest.FixtureRequest) -> CPUBackend:
    """Every instruction set."""
    return backend_of(request.param)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


def coded(coding: Coding, outputs: int, inputs: int, dtype: torch.dtype) -> Matrix:
    codes = empty(coding, outputs, inputs, dtype=dtype)
    codes.encode(torch.randn(outputs, inputs))
    return Matrix(codes.values, codes=codes)


def copied(matrix: Matrix) -> Matrix:
    old = codes_of(matrix)
    codes = empty(old.coding, *old.shape, dtype=old.dtype)
    codes.take(old)
    return Matrix(codes.values, codes=codes)


def codes_of(matrix: Matrix) -> Codes:
    assert matrix.codes is not None
    return matrix.codes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("coding", CODINGS.values(), ids=CODINGS)
def test_products_are_those_of_the_specification(native: CPUBackend, dtype: torch.dtype, coding: Coding) -> None:
    for (outputs, inputs), counts in SHAPES.items():
        plain = coded(coding, outputs, inputs, dtype)
        packed = copied(plain)
        native.pack(packed)
        assert packed.packed
        bias = torch.randn(outputs, dtype=dtype)
        for rows in counts:
            x = torch.randn(rows, inputs + 6, dtype=dtype)[:, 2 : inputs + 2]
            expected = PLAIN.logits(x, plain)
            found = native.logits(x, packed)
            assert found.dtype == torch.float32
            largest = expected.abs().max().item()
            assert (found - expected).abs().max().item() <= 1e-6 * largest
            result, wanted = native.matmul(x, packed, bias), PLAIN.matmul(x, plain, bias)
            assert result.dtype == dtype
            rounding = 1e-6 if dtype == torch.float32 else 2**-8
            assert (result.float() - wanted.float()).abs().max().item() <= rounding * (largest + 4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_of_eight_bits_are_exact(native: CPUBackend, dtype: torch.dtype) -> None:
    """With scales of 1 results are the sums themselves, also the largest there are, as long as float32 has them."""
    for inputs in (8, 24, 1000):
        for whole in (torch.randint(-128, 128, (64, inputs)), torch.full((64, inputs), -128)):
            codes = empty(Coding(8), 64, inputs, dtype=dtype)
            codes.values.copy_(whole)
            codes.scales.fill_(1.0)
            x = torch.randint(-127, 128, (30, inputs))
            x[:, 0], x[3], x[4] = 127, 127, -127
            exact = x.double() @ whole.double().T
            matrix = Matrix(codes.values, codes=codes)
            assert torch.equal(PLAIN.logits(x.to(dtype), matrix).double(), exact)
            native.pack(matrix)
            for rows in (1, 2, 5, 9, 16, 30):
                assert torch.equal(native.logits(x[:rows].to(dtype), matrix).double(), exact[:rows])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("coding", CODINGS.values(), ids=CODINGS)
def test_a_row_does_not_depend_on_the_others(native: CPUBackend, dtype: torch.dtype, coding: Coding) -> None:
    packed = coded(coding, 96, 384, dtype)
    native.pack(packed)
    x = torch.randn(70, 384, dtype=dtype)
    whole = native.logits(x, packed)
    for rows in (1, 3, 6, 12, 17, 24, 30):
        found = native.logits(x[:rows], packed)
        if coding.bits == 8:
            assert torch.equal(found, whole[:rows])
        else:
            assert (found - whole[:rows]).abs().max().item() <= 1e-6 * whole.abs().max().item()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("coding", CODINGS.values(), ids=CODINGS)
def test_packing_is_undone_and_rows_are_read(native: CPUBackend, dtype: torch.dtype, coding: Coding) -> None:
    plain = coded(coding, 64, 384, dtype)
    packed = copied(plain)
    address = packed.tensor.data_ptr()
    native.pack(packed)
    assert not torch.equal(packed.tensor, plain.tensor)
    ids = torch.tensor([63, 0, 17, 17])
    expected = codes_of(plain).numbers()[ids].to(dtype)
    assert torch.equal(PLAIN.embedding(ids, plain), expected)
    assert torch.equal(native.embedding(ids, packed), expected)
    with pytest.raises(BackendError, match="packed by another backend"):
        PLAIN.matmul(torch.randn(1, 384, dtype=dtype), packed)
    native.unpack(packed)
    assert codes_of(packed).equal(codes_of(plain)) and packed.tensor.data_ptr() == address
    assert torch.equal(PLAIN.embedding(ids, packed), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_zeros_and_without_an_end(native: CPUBackend, dtype: torch.dtype) -> None:
    plain = coded(Coding(8), 32, 64, dtype)
    packed = copied(plain)
    native.pack(packed)
    x = torch.randn(6, 64, dtype=dtype)
    x[0], x[1] = 0.0, LEAST / 4
    x[2, 7], x[3, 40], x[4, 63] = torch.nan, torch.inf, -torch.inf
    for found in (PLAIN.logits(x, plain), native.logits(x, packed)):
        assert torch.equal(found[:2], torch.zeros(2, 32))
        assert found[2:5].isnan().all() and found[5].isfinite().all()


def test_what_rows_become() -> None:
    x = torch.tensor([[2.0, -127.0, 0.5, 1.5], [0.0, 0.0, 0.0, 0.0], [1.0, 0.25, -0.5, 0.0]])
    whole, scales = rows_in_codes(x)
    assert whole.tolist() == [[2, -127, 0, 2], [0, 0, 0, 0], [127, 32, -64, 0]]  # ties to even: 0.5, 63.5
    assert torch.equal(scales, torch.tensor([[1.0], [0.0], [1.0]]) / torch.tensor([[1.0], [1.0], [127.0]]))


def test_what_is_of_another_type_is_refused(native: CPUBackend) -> None:
    packed = coded(Coding(8), 32, 64, torch.float32)
    native.pack(packed)
    with pytest.raises(BackendError, match=r"matmul of torch.bfloat16 \[3, 64\] with torch.float32 \[32, 64\]"):
        native.matmul(torch.randn(3, 64, dtype=torch.bfloat16), packed)
