"""Every format gives, to the bit, the weights that its definition says its numbers stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from quantised_checkpoints import FORMATS, Parts, fp8, gptq, pack_quantized, words, write_folder
from torch import Tensor

from sglite.runtime.model.checkpoint import TensorSource, open_checkpoint
from sglite.runtime.quant.dequantise import dequantised

NAME = "model.layers.0.mlp.up_proj"
every_format = pytest.mark.parametrize("name", FORMATS)


def view(folder: Path, tensors: Parts, config: dict[str, Any], base: str = NAME) -> TensorSource:
    write_folder(folder, {}, {f"{base}.{part}": tensor for part, tensor in tensors.items()})
    return dequantised(open_checkpoint(folder), config)


def read(source: TensorSource, name: str = f"{NAME}.weight") -> Tensor:
    (found,) = source.read({name})
    assert found[0] == name and tuple(found[1].shape) == source.tensors[name].shape
    return found[1]


def random_weight(rows: int = 64, columns: int = 96) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * columns)) * 0.1


@every_format
def test_weights_are_those_of_the_definition(tmp_path: Path, name: str) -> None:
    stored, weight = FORMATS[name].quantise(random_weight())
    source = view(tmp_path, stored, FORMATS[name].config)
    assert list(source.tensors) == [f"{NAME}.weight"]
    found = read(source)
    assert found.dtype == torch.float32 and torch.equal(found, weight)
    assert (weight - random_weight()).abs().max() < 0.2 * weight.abs().max() + (0.2 if name == "gptq-2" else 0)


@pytest.mark.parametrize("rows", [576, 512 + 64, 1, 129])
def test_fp8_blocks_may_be_partial(tmp_path: Path, rows: int) -> None:
    stored, weight = fp8(random_weight(rows, 200), block=(128, 128))
    assert torch.equal(read(view(tmp_path, stored, FORMATS["fp8-block"].config)), weight)


def test_fused_experts_of_fp8_are_one_tensor(tmp_path: Path) -> None:
    each = [fp8(random_weight(64, 96) * (i + 1), block=(24, 40)) for i in range(3)]
    tensors = {
        "gate_up_proj": torch.stack([parts["weight"].view(torch.uint8) for parts, _ in each]).view(torch.float8_e4m3fn),
        "gate_up_proj_scale_inv": torch.stack([parts["weight_scale_inv"] for parts, _ in each]),
    }
    source = view(tmp_path, tensors, FORMATS["fp8-small-block"].config, "mlp.experts")
    assert torch.equal(read(source, "mlp.experts.gate_up_proj"), torch.stack([weight for _, weight in each]))


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 1, 1), (3, 64), (3, 64, 1), (1,)])
def test_fused_experts_may_have_a_scale_each_or_one_a_row(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = random_weight(3 * 64, 96).view(3, 64, 96).to(torch.float8_e4m3fn)
    scale = torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 0.5
    tensors = {"down_proj": values, "down_proj_scale": scale, "down_proj_input_scale": torch.ones(3)}
    source = view(tmp_path, tensors, {"quant_method": "fp8"}, "mlp.experts")
    per_row = scale.view(3, -1, 1) if scale.numel() > 1 else scale
    assert torch.equal(read(source, "mlp.experts.down_proj"), values.float() * per_row)


def test_pieces_of_large_weights_make_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sglite.runtime.quant.arithmetic.PIECE", 500)
    for i, name in enumerate(("fp8-small-block", "gptq-act-order", "ct-w4a16-asym")):
        stored, weight = FORMATS[name].quantise(random_weight())
        assert torch.equal(read(view(tmp_path / str(i), stored, FORMATS[name].config)), weight)


def test_a_last_group_may_be_partial(tmp_path: Path) -> None:
    stored, weight = gptq(random_weight(32, 80), group=32)
    assert torch.equal(read(view(tmp_path, stored, FORMATS["gptq"].config)), weight)


def test_rows_that_do_not_fill_a_word_are_cut(tmp_path: Path) -> None:
    stored, weight = pack_quantized(random_weight(13, 70), bits=4, group=-1, symmetric=False)
    config = FORMATS["ct-w4a16-asym"].config
    group = config["config_groups"]["group_0"]
    weights = {**group["weights"], "strategy": "channel", "group_size": -1}
    config = {**config, "config_groups": {"group_0": {**group, "weights": weights}}}
    assert torch.equal(read(view(tmp_path, stored, config)), weight)


def test_zeros_stored_less_one_wrap_as_whole_words(tmp_path: Path) -> None:
    """Who writes the first format takes 1 from each number of a word at once, so a zero of 0 borrows from the next."""
    codes = torch.arange(8 * 32).remainder(16).view(8, 32)
    zeros = torch.tensor([[0, 5, 0, 0, 7, 0, 15, 0]])
    whole = int(words(zeros, 4)[0, 0]) - 0x11111111
    stored = {
        "qweight": words(codes, 4).T.contiguous(),
        "scales": torch.ones(1, 8, dtype=torch.float16),
        "qzeros": torch.tensor([[(whole + 2**31) % 2**32 - 2**31]], dtype=torch.int32),
    }
    found = read(view(tmp_path, stored, FORMATS["gptq"].config))
    assert torch.equal(found, (codes - zeros.T).float())


def test_layers_of_a_checkpoint_may_have_settings_of_their_own(tmp_path: Path) -> None:
    """compressed-tensors: groups of layers, picked by patterns; what a layer's tensors look like tells its own."""
    names = ("ct-w4a16", "ct-w8a16", "ct-fp8-channel", "ct-w4a16-asym")
    groups = {f"group_{i}": FORMATS[name].config["config_groups"]["group_0"] for i, name in enumerate(names)}
    config = {**FORMATS["ct-w4a16"].config, "format": "mixed-precision", "config_groups": groups}
    made = {f"layers.{i}.q_proj": FORMATS[name].quantise(random_weight()) for i, name in enumerate(names)}
    tensors = {f"{base}.{part}": tensor for base, (stored, _) in made.items() for part, tensor in stored.items()}
    write_folder(tmp_path, {}, tensors | {"layers.9.q_proj.weight": random_weight()})
    source = dequantised(open_checkpoint(tmp_path), config)
    found = dict(source.read(set(source.tensors)))
    assert torch.equal(found.pop("layers.9.q_proj.weight"), random_weight())
    assert found.keys() == {f"{base}.weight" for base in made}
    for base, (_, weight) in made.items():
        assert torch.equal(found[f"{base}.weight"], weight), base


def test_mxfp4_experts_are_as_the_unquantised_model_has_them(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 24, 2, 16), generator=generator).to(torch.uint8)
    scales = torch.randint(100, 140, (3, 24, 2), generator=generator).to(torch.uint8)
    table = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    expected = torch.zeros(3, 64, 24)
    for e, n, k in torch.cartesian_prod(torch.arange(3), torch.arange(24), torch.arange(64)).tolist():
        byte = int(blocks[e, n, k // 32, k % 32 // 2])
        code = byte >> 4 if k % 2 else byte & 15
        value = -table[code - 8] if code > 7 else table[code]
        expected[e, k, n] = value * 2.0 ** (int(scales[e, n, k // 32]) - 127)
    stored = {"gate_up_proj_blocks": blocks, "gate_up_proj_scales": scales, "gate_up_proj_bias": torch.ones(3, 24)}
    source = view(tmp_path, stored, {"quant_method": "mxfp4"}, "mlp.experts")
    assert set(source.tensors) == {"mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj_bias"}
    found = read(source, "mlp.experts.gate_up_proj")
    assert found.dtype == torch.bfloat16 and torch.equal(found.float(), expected)


def test_words_written_by_hand(tmp_path: Path) -> None:
    """The order of numbers in a word, as the formats describe it: AWQ's columns 0 2 4 6 1 3 5 7, others' in order."""
    one = torch.ones(1, 8, dtype=torch.float16)
    word, zero = torch.tensor([[0x76543210]], dtype=torch.int32), torch.zeros(1, 1, dtype=torch.int32)
    source = view(
        tmp_path / "awq", {"qweight": word, "qzeros": zero, "scales": one}, {"quant_method": "awq", "group_size": -1}
    )
    assert read(source).flatten().tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    tensors = {"qweight": word.expand(1, 8).contiguous(), "qzeros": zero, "scales": one}
    source = view(tmp_path / "gptq", tensors, {"quant_method": "gptq", "bits": 4, "group_size": -1})
    assert read(source).tolist() == [[-1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]] * 8
    tensors = {"weight_packed": word, "weight_scale": torch.ones(1, 1), "weight_shape": torch.tensor([1, 8])}
    source = view(tmp_path / "ct", tensors, FORMATS["ct-w4a16-channel"].config)
    assert read(source).tolist() == [[-8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0]]


def test_scales_of_activations_and_caches_are_left_in_the_file(tmp_path: Path) -> None:
    stored, weight = FORMATS["fp8-tensor"].quantise(random_weight())
    stored |= {"k_scale": torch.ones(1), "v_scale": torch.ones(1)}
    source = view(tmp_path, stored, FORMATS["fp8-tensor"].config, "layers.0.self_attn.k_proj")
    assert list(source.tensors) == ["layers.0.self_attn.k_proj.weight"]
    assert torch.equal(read(source, "layers.0.self_attn.k_proj.weight"), weight)


def test_biases_that_an_export_added_are_left_in_the_file(tmp_path: Path) -> None:
    """Zero biases of a kind of layer are the export's own; where one layer's is not zero, the kind has biases."""
    stored, _ = FORMATS["gptq"].quantise(random_weight())
    tensors: Parts = {}
    for layer in range(2):
        for kind, value in (("q_proj", float(layer)), ("o_proj", 0.0)):
            base = f"layers.{layer}.self_attn.{kind}"
            tensors |= {f"{base}.{part}": tensor.clone() for part, tensor in stored.items()}
            tensors[f"{base}.bias"] = torch.full((64,), value)
    write_folder(tmp_path, {}, tensors)
    kept = {name for name in dequantised(open_checkpoint(tmp_path), FORMATS["gptq"].config).tensors if "bias" in name}
    assert kept == {"layers.0.self_attn.q_proj.bias", "layers.1.self_attn.q_proj.bias"}


def test_parts_in_several_files_are_brought_together(tmp_path: Path) -> None:
    from tiny_models import write_weights

    made = {f"layers.{i}.q_proj": FORMATS["gptq"].quantise(random_weight() * (i + 1)) for i in range(4)}
    tensors = {f"{base}.{part}": tensor for base, (stored, _) in made.items() for part, tensor in stored.items()}
    write_weights(tmp_path, tensors, shards=3)
    source = dequantised(open_checkpoint(tmp_path), FORMATS["gptq"].config)
    found = dict(source.read(set(source.tensors)))
    assert all(torch.equal(found[f"{base}.weight"], weight) for base, (_, weight) in made.items())
