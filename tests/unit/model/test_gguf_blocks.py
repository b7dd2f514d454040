"""What packed numbers of GGUF stand for: equal, bit for bit, to the format's description followed number by number."""

from __future__ import annotations

import pytest
import torch
from gguf_files import PACKED, TYPES, Packed, pack, referenced

from sglite.runtime.gguf import TENSOR_TYPES
from sglite.runtime.quant import gguf
from sglite.runtime.quant.gguf import unpacked


def test_every_type_that_is_read_is_tested_here_and_has_its_size() -> None:
    assert {name: TYPES[name] for name in TYPES} == {
        kind.name: (number, kind.block, kind.size) for number, kind in TENSOR_TYPES.items()
    }


@pytest.mark.parametrize("name", PACKED)
def test_packed_numbers_are_those_of_the_description(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, length = 3, TYPES[name][1] * 5
    packed = Packed(name, (rows, length), pack(name, torch.Generator().manual_seed(1), rows, length))
    expected = referenced(packed)
    assert expected.std() > 0
    monkeypatch.setattr(gguf, "BLOCKS_AT_ONCE", 4)  # so that several rounds are needed
    found = unpacked(name, packed.data)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_plain_numbers_are_what_they_are(dtype: torch.dtype) -> None:
    name = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]
    numbers = torch.randn(5, 7, generator=torch.Generator().manual_seed(2)).to(dtype)
    assert torch.equal(unpacked(name, numbers.view(torch.uint8)), numbers.float())


@pytest.mark.parametrize("exponent", [0, 1, 127, 254, 255])
def test_the_extreme_scales_of_mxfp4_are_followed(exponent: int) -> None:
    """2^-127 is a subnormal float32, and 2^128 none, though half of it is."""
    block = torch.tensor([[exponent, *([0x21] * 16)]], dtype=torch.uint8)
    found = unpacked("MXFP4", block)[0].double()
    assert found[0] == 0.5 * 2.0 ** (exponent - 127)
    assert exponent == 255 or found[16] == 2.0 ** (exponent - 127)
