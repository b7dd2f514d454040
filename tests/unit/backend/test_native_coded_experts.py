"""Experts in codes: the specification against the numbers that the codes stand for, kernels of every instruction set
against the same sums made one expert at a time.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from native_kernels import CODED, backend_of
from torch import Tensor

from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.experts import ExpertWeights, Matrices
from sglite.runtime.backend.weights import Matrix
from sglite.runtime.quant.codes import Codes, Coding, empty

PLAIN = CPUBackend()
DTYPES = [torch.float32, torch.bfloat16]
EXPERTS, HIDDEN, INNER = 5, 192, 96
CODINGS = {
    "int8": Coding(8),
    "int8, groups of 32": Coding(8, 32),
    "int4, groups of 32": Coding(4, 32),
    "int4, groups of 96, zeros": Coding(4, 96, zeros=True),
}
BATCHES = ((1, 3, (0, 1, 2, 3, 4)), (2, 2, (1, 3)), (9, 2, (0, 3)), (40, 1, (4,)), (250, 4, (0, 1, 2, 4)))
"""Tokens, how many experts each has, among which: nobody's experts, everybody's, more rows than a stretch is for."""


@pytest.fixture(scope="module", params=CODED)
def native(request: pytest.FixtureRequest) -> CPUBackend:
    """Every instruction set."""
    return backend_of(request.param)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


def several(coding: Coding, outputs: int, inputs: int, dtype: torch.dtype) -> Matrices:
    codes = empty(coding, EXPERTS * outputs, inputs, dtype=dtype)
    codes.encode(torch.randn(EXPERTS * outputs, inputs) * inputs**-0.5)
    return Matrices(codes.values.view(EXPERTS, outputs, -1), codes=codes)


def coded_experts(coding: Coding, dtype: torch.dtype, biases: bool = False) -> ExpertWeights:
    shapes = ((EXPERTS, 2 * INNER), (EXPERTS, HIDDEN)) if biases else ()
    added = (torch.randn(shape).to(dtype) for shape in shapes)
    return ExpertWeights(several(coding, 2 * INNER, HIDDEN, dtype), several(coding, HIDDEN, INNER, dtype), *added)


def codes_of(weights: Matrices) -> Codes:
    assert weights.codes is not None
    return weights.codes


def copied(weights: Matrices) -> Matrices:
    old = codes_of(weights)
    codes = empty(old.coding, *old.shape, dtype=old.dtype)
    codes.take(old)
    return Matrices(codes.values.view(weights.tensor.shape), codes=codes)


def packed(backend: CPUBackend, experts: ExpertWeights) -> ExpertWeights:
    """A copy that the backend has arranged."""
    arranged = replace(experts, gate_up=copied(experts.gate_up), down=copied(experts.down))
    backend.pack(arranged.gate_up)
    backend.pack(arranged.down)
    assert arranged.gate_up.packed and arranged.down.packed
    return arranged


def routed(tokens: int, chosen: int, among: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    order = torch.rand(tokens, len(among)).argsort(1)[:, :chosen]
    return torch.tensor(among)[order], torch.rand(tokens, chosen)


def one_by_one(backend: CPUBackend, x: Tensor, experts: ExpertWeights, ids: Tensor, weights: Tensor) -> Tensor:
    """Every expert by products, activation and rounding of its own, of all tokens."""
    results = []
    for expert in range(EXPERTS):
        up_bias, down_bias = (
            None if bias is None else bias[expert].float() for bias in (experts.gate_up_bias, experts.down_bias)
        )
        parts = [weights.codes_of(expert) for weights in (experts.gate_up, experts.down)]
        gate_up, down = (Matrix(codes.values, codes=codes) for codes in parts if codes is not None)
        wide = backend.logits(x, gate_up) + (0 if up_bias is None else up_bias)
        hidden = backend.gated(wide, "silu").to(x.dtype)
        results.append((backend.logits(hidden, down) + (0 if down_bias is None else down_bias)).to(x.dtype))
    chosen = torch.stack(results, 1).gather(1, ids[..., None].expand(-1, -1, HIDDEN))
    return (chosen.float() * weights[..., None]).sum(1)


@pytest.mark.parametrize("coding", CODINGS.values(), ids=CODINGS)
def test_the_specification_multiplies_with_what_the_codes_stand_for(coding: Coding) -> None:
    experts = coded_experts(coding, torch.float32, biases=True)
    numbers = (codes_of(part).numbers().view(part.shape) for part in (experts.gate_up, experts.down))
    exact = ExpertWeights(*map(Matrices, numbers), experts.gate_up_bias, experts.down_bias)
    x, (ids, weights) = torch.randn(30, HIDDEN), routed(30, 3, (0, 1, 2, 3, 4))
    found, expected = (PLAIN.moe(x, some, ids, weights, "silu") for some in (experts, exact))
    # Of eight bits x is rounded too, to 255 steps.
    limit = 0.03 if coding.bits == 8 else 1e-5
    assert (found - expected).abs().max() <= limit * expected.abs().max()
    if coding.bits == 8:
        assert not torch.equal(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biases", [False, True], ids=["no biases", "biases"])
@pytest.mark.parametrize("coding", CODINGS.values(), ids=CODINGS)
def test_experts_together_are_experts_one_by_one(
    native: CPUBackend, coding: Coding, dtype: torch.dtype, biases: bool
) -> None:
    """Of eight bits a number between the products that is rounded otherwise may get the code next to its own."""
    experts = coded_experts(coding, dtype, biases)
    arranged = packed(native, experts)
    for tokens, chosen, among in BATCHES:
        x = torch.randn(tokens, HIDDEN + 6, dtype=dtype)[:, 2 : HIDDEN + 2]
        ids, weights = routed(tokens, chosen, among)
        found = native.moe(x, arranged, ids, weights, "silu")
        assert found.dtype == dtype and found.shape == (tokens, HIDDEN)
        expected = one_by_one(PLAIN, x, experts, ids, weights)
        rounding = 2**-7 if dtype == torch.bfloat16 else 1e-5
        error = (found.float() - expected).abs()
        assert error.max() <= (0.01 if coding.bits == 8 else rounding) * max(1.0, float(expected.abs().max()))
        assert error.mean() <= (2e-4 if dtype == torch.float32 else 2e-3) * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("coding", CODINGS.values(), ids=CODINGS)
def test_activations_without_a_kernel(native: CPUBackend, coding: Coding) -> None:
    experts = coded_experts(coding, torch.float32)
    x, (ids, weights) = torch.randn(12, HIDDEN), routed(12, 2, (0, 2, 3))
    found = native.moe(x, packed(native, experts), ids, weights, "gelu")
    expected = PLAIN.moe(x, experts, ids, weights, "gelu")
    torch.testing.assert_close(found, expected, atol=1e-2 if coding.bits == 8 else 1e-5, rtol=0)


@pytest.mark.parametrize("coding", CODINGS.values(), ids=CODINGS)
def test_unpacked_they_are_as_they_were(native: CPUBackend, coding: Coding) -> None:
    weights = several(coding, 2 * INNER, HIDDEN, torch.bfloat16)
    arranged = copied(weights)
    native.pack(arranged)
    assert not torch.equal(arranged.tensor, weights.tensor)
    native.unpack(arranged)
    assert not arranged.packed and codes_of(arranged).equal(codes_of(weights))


def test_nan_stays_with_its_token(native: CPUBackend) -> None:
    arranged = packed(native, coded_experts(Coding(8), torch.float32))
    x, (ids, weights) = torch.randn(30, HIDDEN), routed(30, 2, (0, 1, 2))
    clean = native.moe(x, arranged, ids, weights, "silu")
    x[7, 3] = torch.nan
    found = native.moe(x, arranged, ids, weights, "silu")
    assert found[7].isnan().all()
    others = torch.arange(30) != 7
    assert torch.equal(found[others], clean[others])
