"""What codes stand for and how near they are to what they were made of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sglite.runtime.model.layers.codings import Codings
from sglite.runtime.quant import codes as module
from sglite.runtime.quant.codes import Codes, Coding, empty, encoded, halves

CODINGS = [Coding(8), Coding(8, 32), Coding(4, 32), Coding(4), Coding(4, 64, zeros=True)]


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


def made(coding: Coding, numbers: Tensor) -> Codes:
    found = empty(coding, *numbers.shape, dtype=numbers.dtype)
    found.encode(numbers)
    return found


def exactly(codes: Codes) -> Tensor:
    """Number by number, from the definition."""
    outputs, inputs = codes.shape
    group = codes.coding.group or inputs
    whole = torch.zeros(outputs, inputs, dtype=torch.float64)
    for n in range(outputs):
        for k in range(inputs):
            byte = int(codes.values[n, k if codes.coding.bits == 8 else k // 2])
            code = byte if codes.coding.bits == 8 else (byte >> 4 * (k % 2) & 15) - 8
            zero = 0.0 if codes.zeros is None else float(codes.zeros[n, k // group])
            whole[n, k] = (code - zero) * float(codes.scales[n, k // group])
    return whole


@pytest.mark.parametrize("coding", CODINGS, ids=str)
def test_numbers_are_what_the_definition_says(coding: Coding) -> None:
    codes = made(coding, torch.randn(16, 128))
    assert torch.equal(codes.numbers(), exactly(codes).float())
    assert torch.equal(codes.rows(3, 5).numbers(), codes.numbers()[3:8])
    ids = torch.tensor([9, 2, 9])
    assert torch.equal(codes.at(ids).numbers(), codes.numbers()[ids])


@pytest.mark.parametrize("coding", CODINGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_number_is_farther_than_its_step_allows(coding: Coding, dtype: torch.dtype) -> None:
    """Half a step; of four bits without zeros a whole one at the end that has a code less."""
    numbers = (torch.randn(32, 128) * torch.logspace(-3, 3, 32)[:, None]).to(dtype)
    codes = made(coding, numbers)
    steps = codes.scales.abs().repeat_interleave(128 // codes.scales.shape[1], 1)
    error = (codes.numbers() - numbers.float()).abs()
    most = 0.5 if coding.bits == 8 or coding.zeros else 1.0
    assert (error <= (most + 1e-3) * steps).all()


@pytest.mark.parametrize("coding", CODINGS, ids=str)
def test_codes_of_what_codes_stand_for_stand_for_the_same(coding: Coding) -> None:
    codes = made(coding, torch.randn(16, 128))
    again = made(coding, codes.numbers())
    torch.testing.assert_close(again.numbers(), codes.numbers(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("coding", CODINGS, ids=str)
def test_zeros_stay_zeros_and_pieces_change_nothing(coding: Coding, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = torch.randn(32, 128)
    numbers[:, :64] = 0.0
    numbers[5] = 0.0
    whole = made(coding, numbers)
    assert (whole.numbers()[numbers == 0] == 0).all()
    monkeypatch.setattr(module, "PIECE", 300)
    assert made(coding, numbers).equal(whole)


@pytest.mark.parametrize("coding", CODINGS, ids=str)
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_shows_in_the_scales(coding: Coding, wrong: float) -> None:
    numbers = torch.randn(16, 128)
    numbers[7, 100] = wrong
    found = made(coding, numbers).scales.isfinite().all(1)
    assert found.tolist() == [row != 7 for row in range(16)]


def test_two_codes_are_a_byte() -> None:
    codes = torch.tensor([[-8, 7, 0, -1]], dtype=torch.int8)
    assert halves(codes).tolist() == [[0xF0, 0x78]]
    assert torch.equal(Codes(Coding(4), halves(codes), torch.ones(1, 1)).whole(), codes)


def test_the_largest_number_of_either_sign_has_the_code_that_has_no_other() -> None:
    for sign in (1.0, -1.0):
        codes = encoded(torch.tensor([[sign * 4.0] + [1.0] * 31]), Coding(4, 32))
        assert codes.whole()[0, 0] == -8 and codes.numbers()[0, 0] == sign * 4.0


def test_memory_is_that_of_codes_and_scales() -> None:
    assert empty(Coding(8), 64, 256, dtype=torch.bfloat16).nbytes == 64 * 256 + 64 * 4
    assert empty(Coding(4, 128), 64, 256, dtype=torch.bfloat16).nbytes == 64 * 128 + 64 * 2 * 4
    assert empty(Coding(4, 32, zeros=True), 64, 256, dtype=torch.bfloat16).nbytes == 64 * 128 + 2 * 64 * 8 * 4


def test_which_matrices_are_coded() -> None:
    eight, four = Codings("int8"), Codings("int4")
    assert Codings().of(["w"], 64, 64, "layer") is None
    assert eight.of(["w"], 64, 64, "layer") == eight.of(["w"], 64, 64, "head") == Coding(8)
    assert eight.of(["w"], 64, 64, "embedding") is None
    assert eight.of(["w"], 1, 64, "layer") is None  # a gate
    assert eight.of(["w"], 64, 20, "layer") is None
    assert [four.of(["w"], 64, n, "layer") for n in (256, 192, 96)] == [Coding(4, n) for n in (128, 64, 32)]
    assert four.of(["w"], 64, 48, "layer") == four.of(["w"], 64, 128, "head") == Coding(8)
    kept = Codings("int8", {"q": Coding(4, 32), "k": Coding(4, 32), "v": Coding(8)})
    assert kept.of(["q", "k"], 64, 64, "embedding") == Coding(4, 32)
    assert kept.of(["q", "v"], 64, 64, "layer") is None and kept.of(["q", "o"], 64, 64, "layer") is None
    assert kept.of(["q"], 64, 48, "layer") is None
