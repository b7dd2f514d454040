"""Ollama's words in ours: options, names of models, messages, cards of checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.fields import Fields
from sglite.runtime.serve.models import Models
from sglite.runtime.serve.ollama.card import Card, shortened
from sglite.runtime.serve.ollama.messages import read_messages, read_ollama_tools
from sglite.runtime.serve.ollama.names import read_model, tagged
from sglite.runtime.serve.ollama.options import read_options

DEFAULTS = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "max_new_tokens": None}


def options(**given: Any) -> tuple[dict[str, Any], list[str]]:
    return read_options(Fields({"options": given}))


# --- options ----------------------------------------------------------------------------------------------------


def test_without_options_sampling_is_ollamas_and_the_context_the_limit() -> None:
    assert options() == (DEFAULTS, [])
    assert read_options(Fields({})) == (DEFAULTS, [])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"num_predict": 7}, {"max_new_tokens": 7}),
        ({"num_predict": 7.0}, {"max_new_tokens": 7}),
        ({"num_predict": -1}, {"max_new_tokens": None}),
        ({"num_predict": -2}, {"max_new_tokens": None}),
        ({"num_predict": 0}, {"max_new_tokens": None}),
        ({"temperature": 0}, {"temperature": 0}),
        ({"top_k": 0}, {"top_k": 0}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"top_p": 0}, {"top_p": 1.0, "top_k": 1}),
        ({"min_p": 0.1}, {"min_p": 0.1}),
        ({"seed": 5}, {"seed": 5}),
        ({"seed": -1}, {}),
        ({"stop": ["a", "b"]}, {"stop": ["a", "b"]}),
        ({"repeat_penalty": 1.2}, {"repetition_penalty": 1.2}),
        ({"repeat_penalty": 1.2, "repeat_last_n": -1}, {"repetition_penalty": 1.2}),
        ({"repeat_penalty": 1.2, "repeat_last_n": 0}, {}),
        ({"presence_penalty": 0.5, "frequency_penalty": -0.5}, {"presence_penalty": 0.5, "frequency_penalty": -0.5}),
        ({"mirostat": 0, "typical_p": 1.0, "tfs_z": 1}, {}),
    ],
)
def test_options_that_work_are_translated(given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert options(**given) == ({**DEFAULTS, **expected}, [])


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"mirostat": 1}, "options.mirostat"),
        ({"typical_p": 0.7}, "options.typical_p"),
        ({"tfs_z": 0.5}, "options.tfs_z"),
        ({"num_predict": "many"}, "options.num_predict"),
        ({"num_predict": -3}, "options.num_predict"),
        ({"num_predict": 1.5}, "options.num_predict"),
        ({"top_p": 2}, "options.top_p"),
        ({"seed": 10**40}, "options.seed"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused_by_name(given: dict[str, Any], field: str) -> None:
    with pytest.raises(Refused, match=field) as caught:
        options(**given)
    assert caught.value.param == field


def test_options_without_effect_are_named() -> None:
    given = {"num_ctx": 4096, "num_gpu": 1, "num_thread": 8, "repeat_last_n": 64, "use_mmap": True, "odd": 1}
    assert options(**given, numa=None) == (DEFAULTS, [f"options.{name}" for name in given])


# --- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["org/demo", "org/demo:latest", "tiny:1b", "default", "default:latest"])
def test_names_have_a_tag_that_may_be_left_out(given: str) -> None:
    models = Models("/models/x", ("org/demo", "tiny:1b"))
    assert read_model(Fields({"model": given}), models) == given
    assert read_model(Fields({"name": given}), models) == given


@pytest.mark.parametrize("given", ["tiny", "demo", "org/demo:2b", "tiny:1b:latest"])
def test_other_names_are_not_found(given: str) -> None:
    with pytest.raises(Refused, match=f"^model '{given}' not found$") as caught:
        read_model(Fields({"model": given}), Models("/models/x", ("org/demo", "tiny:1b")))
    assert caught.value.status == 404


def test_a_path_is_no_tag() -> None:
    assert [tagged(name) for name in ("a", "a:b", "c:/a", "c:/a:b")] == ["a:latest", "a:b", "c:/a:latest", "c:/a:b"]


# --- messages ---------------------------------------------------------------------------------------------------


def call(name: str, **more: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": {}}, **more}


def test_results_of_tools_belong_to_the_calls_they_name_and_else_to_the_next_one() -> None:
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "tool_calls": [call("a"), call("b", id="mine"), call("a")]},
        {"role": "tool", "tool_name": "b", "content": "1"},
        {"role": "tool", "tool_name": "a", "content": "2"},
        {"role": "tool", "content": "3"},
        {"role": "tool", "content": "nothing is left to answer"},
    ]
    found = read_messages(Fields({"messages": messages}))
    assert [one["id"] for one in found[1]["tool_calls"]] == ["call_1_0", "mine", "call_1_2"]
    assert [one.get("tool_call_id") for one in found[2:]] == ["mine", "call_1_0", "call_1_2", None]
    assert [one.get("name") for one in found[2:]] == ["b", "a", "a", None]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "user", "content": "x", "images": ["aGk="]}, "messages[0].images"),
        ({"role": "nobody", "content": "x"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "assistant", "tool_calls": "x"}, "messages[0].tool_calls"),
        ({"role": "tool", "tool_name": 1, "content": "x"}, "messages[0].tool_name"),
    ],
)
def test_a_message_that_is_wrong_is_named(message: dict[str, Any], field: str) -> None:
    with pytest.raises(Refused) as caught:
        read_messages(Fields({"messages": [message]}))
    assert caught.value.param == field and caught.value.status == 400


def test_the_python_clients_union_types_are_lists(engine: Any) -> None:
    from sglite.runtime.serve.options import ServeOptions
    from sglite.runtime.serve.serving import Serving

    parameters = {"type": "object", "properties": {"x": {"type": "string, integer", "description": "d"}}}
    fields = Fields({"tools": [{"type": "function", "function": {"name": "f", "parameters": parameters}}]})
    (tool,), _ = read_ollama_tools(fields, Serving.of(engine, ServeOptions()), "demo")
    assert tool.parameters is not None
    assert tool.parameters["properties"] == {"x": {"type": ["integer", "string"], "description": "d"}}


# --- cards ------------------------------------------------------------------------------------------------------


def checkpoint(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", "hidden_size": 8, **config}))
    header = json.dumps({
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "F32", "shape": [], "data_offsets": [24, 28]},
    }).encode()  # fmt: skip
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(28))
    return folder


def test_a_card_counts_what_is_in_the_files(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", torch_dtype="float16")
    card = Card.read(folder, "float32")
    assert card.num_parameters == 7
    assert card.size == (folder / "model.safetensors").stat().st_size
    assert card.details()["quantization_level"] == "F16" and card.details()["family"] == "qwen3"
    assert card.figures == {"embedding_length": 8}


def test_digests_tell_checkpoints_apart_and_do_not_depend_on_where_they_are(tmp_path: Path) -> None:
    one, same, other = (
        Card.read(checkpoint(tmp_path / name, x=x), "float32").digest for name, x in (("a", 1), ("b", 1), ("c", 2))
    )
    assert one == same != other
    assert len(one) == 64 and set(one) <= set("0123456789abcdef")


def test_parameters_are_counted_for_people() -> None:
    assert [shortened(n) for n in (7, 1500, 5_771_264, 8_030_000_000)] == ["7", "1.5K", "5.8M", "8.0B"]
