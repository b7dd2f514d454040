"""Loading: every tensor reaches its place, and whatever does not fit is refused by name before weights are read."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from paged_runner import Extend, PagedRunner
from safetensors.torch import load_file, save_file
from tiny_models import make_checkpoint, random_weights, tiny_config, write_weights
from torch import Tensor

from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.model.errors import CheckpointMismatch, ModelError
from sglite.runtime.model.layers.weights import WeightTable
from sglite.runtime.model.loader import LoadedModel, load_model, weight_bytes


class SmallBackend(CPUBackend):
    """A machine with almost no memory left."""

    bytes_left = 1000

    def available_memory(self) -> int:
        return self.bytes_left


def load(folder: Path, dtype: str = "auto") -> LoadedModel:
    return load_model(folder, backend=CPUBackend(), dtype=dtype, progress=False)


def logits(loaded: LoadedModel) -> Tensor:
    return PagedRunner(loaded, CPUBackend()).step([Extend("row", [3, 1, 4, 1, 5])])[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("made"), "qwen3", tokenizer=False)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A checkpoint to spoil."""
    return Path(shutil.copytree(made, tmp_path / "model"))


def change_weights(folder: Path, **changes: Tensor | None) -> None:
    """Replace, add or remove tensors; dots in names are written as two underscores."""
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if tensor is not None:
            tensors[name.replace("__", ".")] = tensor
    save_file(tensors, folder / "model.safetensors")


def change_config(folder: Path, **changes: object) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **changes}))


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as error:
        load(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_the_runtime_must_know_comes_with_the_model(made: Path) -> None:
    loaded = load(made)
    assert (loaded.vocab_size, loaded.max_context, loaded.eos_token_ids) == (384, 512, (2, 0))
    assert (loaded.defaults.temperature, loaded.defaults.top_p, loaded.defaults.top_k) == (0.7, 0.9, None)
    (group,) = loaded.groups
    assert (group.num_layers, group.num_kv_heads, group.head_dim, group.dtype) == (2, 2, 16, "float32")
    assert group.bytes_per_token == 2 * 2 * 2 * 16 * 4
    size = sum(t.numel() * 4 for t in random_weights(tiny_config()).values())
    assert loaded.weight_bytes == size == weight_bytes(loaded.config, torch.float32, CPUBackend())


def test_shards_with_an_index_or_without_give_the_same_model(made: Path, tmp_path: Path) -> None:
    expected = logits(load(made))
    sharded = make_checkpoint(tmp_path / "sharded", "qwen3", shards=3, tokenizer=False)
    assert torch.equal(logits(load(sharded)), expected)
    (sharded / "model.safetensors.index.json").unlink()
    assert torch.equal(logits(load(sharded)), expected)


def test_weights_are_cast_to_the_dtype_asked_for(made: Path) -> None:
    loaded = load(made, "bfloat16")
    assert loaded.model.embedding.tensor.dtype == torch.bfloat16 and loaded.groups[0].dtype == "bfloat16"
    original = load_file(made / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(loaded.model.embedding.tensor, original.bfloat16())


def test_auto_takes_bfloat16_where_the_backend_lacks_the_checkpoints_type(tmp_path: Path) -> None:
    loaded = load(make_checkpoint(tmp_path, dtype="float16", tokenizer=False))
    assert loaded.dtype == torch.bfloat16
    with pytest.raises(ModelError, match="dtype='float16' is not served by the cpu backend; use auto or float32"):
        load(tmp_path, "float16")


def test_dummy_weights_need_the_config_only_and_follow_the_seed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("qwen2")))
    first, again, other = (
        logits(load_model(tmp_path, backend=CPUBackend(), load_format="dummy", seed=seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other) and first.isfinite().all()
    with pytest.raises(ModelError, match="load_format='pt' is unknown"):
        load_model(tmp_path, backend=CPUBackend(), load_format="pt")  # type: ignore[arg-type]


def test_missing_unexpected_and_wrong_shapes_are_listed_by_name_and_shape(folder: Path) -> None:
    change_weights(
        folder,
        model__norm__weight=None,
        model__layers__0__mlp__extra__weight=torch.zeros(2, 3),
        model__layers__1__self_attn__q_proj__weight=torch.zeros(32, 64),
    )
    with pytest.raises(CheckpointMismatch) as error:
        load(folder)
    assert error.value.missing == ("model.norm.weight [64]",)
    assert error.value.unexpected == ("model.layers.0.mlp.extra.weight [2, 3]",)
    assert error.value.wrong_shape == ("model.layers.1.self_attn.q_proj.weight [32, 64] instead of [64, 64]",)
    for name in (*error.value.missing, *error.value.unexpected, *error.value.wrong_shape):
        assert name in str(error.value)


def test_weights_of_another_family_are_refused_in_one_bounded_line(folder: Path) -> None:
    write_weights(folder, random_weights(tiny_config("qwen2", num_hidden_layers=40)))
    message = refusal(folder)
    assert "4 missing" in message and "462 unexpected" in message and " and 454 more; check that config" in message
    assert len(message) < 1500


def test_stale_rotary_buffers_of_old_checkpoints_are_no_weights(folder: Path) -> None:
    expected = logits(load(folder))
    change_weights(folder, model__layers__0__self_attn__rotary_emb__inv_freq=torch.zeros(8))
    assert torch.equal(logits(load(folder)), expected)


def test_a_vocabulary_that_is_not_the_configs_is_refused(folder: Path) -> None:
    change_config(folder, vocab_size=400)
    assert "model.embed_tokens.weight has 384 rows, but config.json says vocab_size=400" in refusal(folder)


def test_a_tied_head_may_be_repeated_but_not_differ(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, tie_word_embeddings=True, tokenizer=False)
    expected = logits(load(folder))
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    change_weights(folder, lm_head__weight=embedding.clone())
    assert torch.equal(logits(load(folder)), expected)
    change_weights(folder, lm_head__weight=embedding + 1)
    assert "lm_head.weight differs from model.embed_tokens.weight" in refusal(folder)
    change_weights(folder, lm_head__weight=embedding[:, :8].clone())
    assert "lm_head.weight [384, 8] instead of [384, 64]" in refusal(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, shards=3, tokenizer=False)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "lacks 1 of 3 weight files: model-00002-of-00003.safetensors" in refusal(folder)


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/model.safetensors", "model.bin", "a/b.safetensors"])
def test_an_index_that_points_elsewhere_is_refused(file: str, folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": file}}))
    assert "is not the name of a safetensors file" in refusal(folder)


def test_an_index_that_names_nothing_is_refused(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("{}")
    assert "'weight_map' names no file" in refusal(folder)


def test_a_tensor_in_two_files_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    save_file({"model.norm.weight": torch.ones(64)}, folder / "two.safetensors")
    assert "model.norm.weight is in one.safetensors and in two.safetensors" in refusal(folder)


def test_pickled_weights_are_refused_without_being_opened(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "no *.safetensors weights" in refusal(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps("never read"))
    assert "pickled weights only (pytorch_model.bin), which can run code" in refusal(folder)


def test_damaged_files_and_lfs_pointers_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "is not a readable safetensors file" in refusal(folder)
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    assert "Git LFS pointer" in refusal(folder)


def test_quantized_tensors_are_refused(folder: Path) -> None:
    change_weights(folder, model__norm__weight=torch.ones(64, dtype=torch.int8))
    assert "model.norm.weight has type I8, but config.json has no quantization_config" in refusal(folder)


def test_weights_that_are_not_numbers_are_refused(folder: Path) -> None:
    change_weights(folder, model__norm__weight=torch.full((64,), torch.nan))
    assert "model.norm.weight holds NaN or infinity; the checkpoint is damaged" in refusal(folder)


def test_a_model_that_does_not_fit_is_refused_before_anything_is_allocated(folder: Path) -> None:
    words = r"the weights need 0\.0 GiB as float32, but 0\.0 GiB are available; free memory or use a model of at most"
    with pytest.raises(ModelError, match=words):
        load_model(folder, backend=SmallBackend())
    needed = load_model(folder, backend=CPUBackend()).weight_bytes
    backend = SmallBackend()
    backend.bytes_left = needed - 1
    with pytest.raises(ModelError, match=r"they fit as bfloat16 \(0\.0 GiB\): use dtype=bfloat16"):
        load_model(folder, backend=backend)
    assert load_model(folder, backend=backend, dtype="bfloat16").weight_bytes * 2 == needed


def test_a_progress_bar_is_drawn_on_stderr_when_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_model(folder, backend=CPUBackend(), progress=True)
    shown = capsys.readouterr()
    assert "loading weights" in shown.err and shown.out == ""
    load_model(folder, backend=CPUBackend())
    assert capsys.readouterr().err == ""


def test_a_name_fills_one_tensor_only() -> None:
    weights = WeightTable(torch.float32, torch.device("cpu"))
    weights.stacked({"a": 2, "b": 3}, 4)
    assert [tuple(part.shape) for part in weights.parts.values()] == [(2, 4), (3, 4)]
    with pytest.raises(KeyError, match="b is already bound"):
        weights.tensor("b", 1)
