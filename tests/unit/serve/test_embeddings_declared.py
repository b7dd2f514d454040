"""What a checkpoint declares of pooling and labels is read, or refused with the reason; bare weights are loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_engines import tiny_engine
from tiny_models import make_checkpoint, make_embedding_checkpoint, random_weights, tiny_config, write_weights

from sglite.runtime.config import ConfigError
from sglite.runtime.model.errors import ModelError
from sglite.runtime.pooling import Pooling, Undeclared, read_labels, read_pooling

BASE = "sentence_transformers.models."


def declare(folder: Path, kinds: list[str], pooling: dict[str, Any] | None = None, **files: Any) -> Path:
    """The files that declare pooling, and ``files`` by their names without the ending."""
    folder.mkdir(exist_ok=True)
    modules = [{"type": BASE + kind, "path": f"{i}_{kind}" if i else ""} for i, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling or {"pooling_mode_lasttoken": True}))
    for name, value in files.items():
        (folder / f"{name}.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return folder


LAST = ["Transformer", "Pooling", "Normalize"]


def test_what_is_declared_is_read(tmp_path: Path) -> None:
    settings = {"prompts": {"query": "Q: ", "document": ""}, "default_prompt_name": "query"}
    folder = declare(tmp_path, LAST, config_sentence_transformers=settings, sentence_bert_config={"max_seq_length": 77})
    wanted = Pooling(prompts=settings["prompts"], default_prompt="query", max_tokens=77)  # type: ignore[arg-type]
    assert read_pooling(folder) == wanted
    assert read_pooling(declare(tmp_path, LAST[:2], {"pooling_mode": "lasttoken"})).normalize is False
    assert read_pooling(declare(tmp_path, LAST, {"pooling_mode": ["lasttoken"]})).normalize is True


@pytest.mark.parametrize(
    ("kinds", "pooling", "files", "says"),
    [
        (LAST, {"pooling_mode_mean_tokens": True}, {}, "declares mean pooling"),
        (LAST, {"pooling_mode_cls_token": True}, {}, "declares cls pooling"),
        (LAST, {"pooling_mode_lasttoken": True, "pooling_mode_max_tokens": True}, {}, "max and lasttoken pooling"),
        (LAST, {"pooling_mode": "weightedmean"}, {}, "weightedmean pooling"),
        (LAST, {"word_embedding_dimension": 64}, {}, "declares none pooling"),
        ([*LAST[:2], "Dense", "Normalize"], None, {}, "Transformer, Pooling, Dense, Normalize"),
        (["Transformer"], None, {}, "modules.json of the checkpoint says Transformer;"),
        (LAST, None, {"config": {"is_causal": False}}, "both directions"),
        (LAST, None, {"config": {"use_bidirectional_attention": True}}, "both directions"),
        (LAST, None, {"config": {"auto_map": {"AutoModel": "x.Y"}}}, "code of its own"),
        (LAST, None, {"sentence_bert_config": {"do_lower_case": True}}, "do_lower_case"),
        (LAST, None, {"config_sentence_transformers": {"prompts": {"a": 1}}}, "prompts must be texts"),
        (LAST, None, {"config_sentence_transformers": {"prompts": {"a": "x" * 10_001}}}, "longer than"),
        (LAST, None, {"config_sentence_transformers": {"default_prompt_name": "a"}}, "no prompt of that name"),
        (LAST, None, {"sentence_bert_config": "[1"}, "not valid JSON"),
        (LAST, None, {"sentence_bert_config": "[1]"}, "holds list"),
        (LAST, None, {"modules": '{"a": 1}'}, "not a list of modules"),
        (LAST, None, {"modules": [{"type": "a.Transformer", "path": "../x"}]}, "not a list of modules"),
        (LAST, None, {"modules": [{"type": "a.Transformer", "path": "/etc"}]}, "not a list of modules"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    tmp_path: Path, kinds: list[str], pooling: dict[str, Any] | None, files: dict[str, Any], says: str
) -> None:
    folder = declare(tmp_path, kinds, pooling, **files)
    for asked in (False, True):
        with pytest.raises(Undeclared, match=says):
            read_pooling(folder, asked)


def test_nothing_declared(tmp_path: Path) -> None:
    with pytest.raises(Undeclared, match="--is-embedding"):
        read_pooling(tmp_path)
    assert read_pooling(tmp_path, asked=True) == Pooling()
    (tmp_path / "config.json").write_text('{"is_causal": false}')
    with pytest.raises(Undeclared, match="both directions"):
        read_pooling(tmp_path, asked=True)


def test_labels(tmp_path: Path) -> None:
    assert read_labels(tmp_path) is None
    (tmp_path / "config.json").write_text('{"classifier_from_token": ["no", "yes"]}')
    assert read_labels(tmp_path) == ("no", "yes")
    (tmp_path / "config.json").write_text('{"classifier_from_token": ["Yes"]}')
    with pytest.raises(Undeclared, match="two tokens"):
        read_labels(tmp_path)
    declare(tmp_path, ["Transformer", "LogitScore"])
    place = tmp_path / "1_LogitScore"
    place.mkdir()
    (place / "config.json").write_text('{"true_token_id": 9, "false_token_id": 7}')
    assert read_labels(tmp_path) == (7, 9)
    (place / "config.json").write_text('{"true_token_id": 9, "false_token_id": null}')
    with pytest.raises(Undeclared, match="one token"):
        read_labels(tmp_path)
    with pytest.raises(Undeclared, match="Transformer, LogitScore"):
        read_pooling(tmp_path)


# --- weights ----------------------------------------------------------------------------------------------------


def hidden(folder: Path, **arguments: Any) -> bytes:
    with tiny_engine(folder, **arguments) as engine:
        event = engine.submit([5, 6, 7], {"max_new_tokens": 0}, pool="last").result()
        return bytes(event["hidden"])


def test_names_with_and_without_their_beginning_are_the_same_weights(tmp_path: Path) -> None:
    whole = make_embedding_checkpoint(tmp_path / "whole", bare=False)
    bare = make_embedding_checkpoint(tmp_path / "bare")
    named = make_embedding_checkpoint(tmp_path / "named", architectures=["Qwen3Model"])
    tied = make_embedding_checkpoint(tmp_path / "tied", tie_word_embeddings=True)
    assert hidden(whole) == hidden(bare) == hidden(named)
    with tiny_engine(tied) as engine:
        assert engine.config.generates and engine.generate("a", {"max_new_tokens": 1})["output_ids"]


def test_a_head_may_be_missing_only_where_vectors_are_wanted(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "m")
    tensors = random_weights(tiny_config())
    del tensors["lm_head.weight"]
    write_weights(folder, tensors)
    with pytest.raises(ModelError, match=r"1 missing: lm_head\.weight"):
        tiny_engine(folder)
    with tiny_engine(folder, is_embedding=True) as engine:
        assert not engine.config.generates and engine.config.hidden_size == 64
        with pytest.raises(ValueError, match="no output head"):
            engine.generate("a")


def test_a_state_that_is_not_finite_ends_its_request_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sglite.runtime.model.loader.check_finite", lambda *_: None)
    folder = make_embedding_checkpoint(tmp_path / "m", bare=False)
    tensors = random_weights(tiny_config())
    tensors["model.embed_tokens.weight"][9] = torch.nan
    write_weights(folder, tensors)
    with tiny_engine(folder) as engine:
        rows = [engine.submit(ids, {"max_new_tokens": 0}, pool="last") for ids in ([5, 9], [70, 71])]
        with pytest.raises(RuntimeError, match="not finite"):
            rows[0].result()
        assert rows[1].result()["hidden"]


@pytest.mark.parametrize(
    ("sampling", "options"),
    [
        ({"max_new_tokens": 1}, {"pool": "last"}),
        ({}, {"pool": "last"}),
        ({"max_new_tokens": 0, "n": 2}, {"pool": "last"}),
        ({"max_new_tokens": 0, "regex": "a"}, {"pool": "last"}),
        ({"max_new_tokens": 0}, {"pool": "last", "return_logprob": True}),
        ({"max_new_tokens": 0}, {"pool": "mean"}),
    ],
)
def test_pooling_goes_with_nothing_else(tmp_path: Path, sampling: dict[str, Any], options: dict[str, Any]) -> None:
    from sglite.runtime.engine.admission import Admission

    with pytest.raises(ValueError, match="pool"):
        Admission(384, (2,), None, None).admit(sampling, 3, **options)


def test_the_flag_is_a_switch() -> None:
    from sglite.runtime.config import EngineArgs

    with pytest.raises(ConfigError, match="is_embedding"):
        EngineArgs.of({"is_embedding": "yes"})
