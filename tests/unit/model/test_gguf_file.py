"""GGUF files as they may come from anywhere: read as the format says, or refused in one line at no great cost."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import U32, make_gguf, text, value, write_gguf
from tiny_models import make_checkpoint

from sglite.runtime.gguf import MAX_ITEMS, GGUFError, find_gguf, first_part, is_gguf, open_gguf
from sglite.runtime.model.architectures import read_config
from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.gguf_tensors import open_gguf_source
from sglite.runtime.model.hub import resolve
from sglite.runtime.text.chat_template import ChatTemplate
from sglite.runtime.text.tokenizer import load_tokenizer

HUGE = 2**63
Tensors = list[tuple[str, list[int], int, int]]


def raw(
    keys: bytes = b"", count: int | None = None, tensors: Tensors | None = None, data: int = 64, version: int = 3
) -> bytes:
    """A file of whatever is given: ``keys`` as written, ``tensors`` as (name, shape, type, offset)."""
    tensors = tensors or []
    header = (
        struct.pack("<4sIQQ", b"GGUF", version, len(tensors), (1 if keys else 0) if count is None else count) + keys
    )
    for name, shape, kind, offset in tensors:
        header += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return header + b"\0" * (-len(header) % 32) + b"\0" * data


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "does not begin"),
    "other": (b"PK\x03\x04" + b"\0" * 64, "does not begin"),
    "magic alone": (b"GGUF", "runs past the end"),
    "version 1": (raw(version=1), "version 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "many keys": (raw(count=HUGE), f"{HUGE} keys"),
    "many tensors": (struct.pack("<4sIQQ", b"GGUF", 3, HUGE, 0), f"{HUGE} tensors"),
    "more keys than bytes": (raw(count=60000), "byte"),
    "long key": (raw(struct.pack("<Q", HUGE)), f"{HUGE} bytes"),
    "key that is no text": (raw(struct.pack("<Q", 1) + b"\xff" + value(True)), "UTF-8"),
    "same key twice": (raw((text("a") + value(True)) * 2, count=2), "twice"),
    "unknown value": (raw(text("a") + struct.pack("<I", 77)), "type 77"),
    "long text": (raw(text("a") + struct.pack("<IQ", 8, HUGE)), "runs past the end"),
    "long list": (raw(text("a") + struct.pack("<IIQ", 9, 5, HUGE)), "runs past the end"),
    "long list that overflows": (raw(text("a") + struct.pack("<IIQ", 9, 10, 2**61)), "runs past the end"),
    "many texts": (raw(text("a") + struct.pack("<IIQ", 9, 8, MAX_ITEMS + 1)), f"{MAX_ITEMS} are allowed"),
    "texts that are not there": (raw(text("a") + struct.pack("<IIQ", 9, 8, 1000)), "runs past the end"),
    "lists of lists": (raw(text("a") + struct.pack("<IIQIIQ", 9, 9, 1, 9, 9, 1)), "lists values of type 9"),
    "odd alignment": (raw(text("general.alignment") + value(U32(24))), "power of 2"),
    "no alignment": (raw(text("general.alignment") + value(U32(0))), "power of 2"),
    "no dimensions": (raw(tensors=[("t", [], 0, 0)]), "0 dimensions"),
    "many dimensions": (raw(tensors=[("t", [1] * 9, 0, 0)]), "9 dimensions"),
    "size 0": (raw(tensors=[("t", [0, 4], 0, 0)]), "no file can hold"),
    "sizes that overflow": (raw(tensors=[("t", [2**32, 2**32, 2**32], 0, 0)]), "no file can hold"),
    "a part of a block": (raw(tensors=[("t", [33], 8, 0)]), "blocks of 32"),
    "type IQ2_XS": (raw(tensors=[("t", [256], 17, 0)]), "IQ2_XS, which is not supported; supported: F32"),
    "type 999": (raw(tensors=[("t", [256], 999, 0)]), "number 999"),
    "data past the end": (raw(tensors=[("t", [17], 0, 0)]), "download"),
    "offset past the end": (raw(tensors=[("t", [1], 0, 2**62)]), "download"),
    "offset that is not aligned": (raw(tensors=[("t", [1], 0, 4)]), "aligned"),
    "overlapping": (raw(tensors=[("t", [9], 0, 0), ("u", [1], 0, 32)]), "overlap"),
    "same tensor twice": (raw(tensors=[("t", [8], 0, 0), ("t", [8], 0, 32)]), "twice"),
    "a part of many": (raw(text("split.count") + value(U32(70000))), "part of 70000"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_line_at_no_cost(name: str, tmp_path: Path) -> None:
    data, said = HOSTILE[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    begin = time.monotonic()
    try:
        with pytest.raises(GGUFError, match=said) as error:
            open_gguf(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value) and str(path) in str(error.value) and len(str(error.value)) < 400
    assert peak < 2**20 and time.monotonic() - begin < 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    root = tmp_path_factory.mktemp("whole")
    return make_gguf(make_checkpoint(root / "plain", num_hidden_layers=1), root / "m.gguf").read_bytes()


def read_tensors(path: Path) -> None:
    source = open_gguf_source(path, read_config(path))
    for _ in source.read(set(source.tensors)):
        pass


READERS: list[Callable[[Path], Any]] = [load_tokenizer, ChatTemplate.load, read_tensors]


def test_damaged_files_are_read_or_refused_by_everyone(whole: bytes, tmp_path: Path) -> None:
    """Bytes changed, numbers blown up, bytes lost: a ValueError in one line, whatever is hit."""
    generator, path = random.Random(4), tmp_path / "m.gguf"
    path.write_bytes(whole)
    end = min(tensor.offset for tensor in open_gguf(path).tensors.values())
    refused = 0
    for _ in range(250):
        damaged, at = bytearray(whole), generator.choice([generator.randrange(end), end - generator.randrange(900)])
        match generator.randrange(3):
            case 0:
                damaged[at] = generator.randrange(256)
            case 1:
                damaged[at : at + 4] = generator.choice([b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0"])
            case _:
                del damaged[at : at + generator.randrange(1, 9)]
        path.write_bytes(damaged)
        for read in READERS:
            try:
                read(path)
            except ValueError as error:
                refused += 1
                assert "\n" not in str(error)
    assert refused > 100


def test_every_short_file_is_refused(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    for size in [*range(0, 2000, 7), *range(2000, len(whole), 4001), len(whole) - 32]:
        path.write_bytes(whole[:size])
        with pytest.raises(GGUFError):
            open_gguf(path)


def test_a_layer_count_that_no_file_holds_is_refused(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    key = text("qwen3.block_count")
    path.write_bytes(whole.replace(key + value(U32(1)), key + value(U32(2**31))))
    with pytest.raises(ModelError, match="block_count is 2147483648"):
        read_config(path)


def test_values_and_tensors_are_those_that_were_written(tmp_path: Path) -> None:
    keys = {
        "text": "Grüße",
        "yes": True,
        "five": U32(5),
        "minus": -5,
        "half": 0.5,
        "list": ["a", ""],
        "three": [1, 2, 3],
    }
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16)}
    file = open_gguf(write_gguf(tmp_path / "m.gguf", keys, tensors))
    assert (file.text("text"), file.flag("yes"), file.integer("five"), file.integer("minus")) == ("Grüße", True, 5, -5)
    assert (file.number("half"), file.texts("list"), file.numbers("three")) == (0.5, ["a", ""], [1, 2, 3])
    assert list(file) == list(keys) and "text" in file and file.text("none") is None
    assert {name: (each.shape, each.type.name) for name, each in file.tensors.items()} == {
        "a": ((2, 3), "F32"),
        "b": ((4,), "F16"),
    }
    assert file.floats(file.tensors["a"]) == [0, 1, 2, 3, 4, 5]
    for wrong in (file.integer, file.flag, file.texts, file.numbers):
        with pytest.raises(GGUFError, match="text is not"):
            wrong("text")
    with pytest.raises(GGUFError, match="finite"):
        open_gguf(write_gguf(tmp_path / "n.gguf", {"half": float("nan")}, {})).number("half")


def test_long_lists_of_numbers_are_no_trouble_until_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(raw(text("a") + struct.pack("<IIQ", 9, 0, MAX_ITEMS + 1) + b"\0" * (MAX_ITEMS + 1)))
    file = open_gguf(path)
    with pytest.raises(GGUFError, match=f"a lists {MAX_ITEMS + 1} numbers"):
        file.numbers("a")


def test_a_file_of_version_2_is_the_same(tmp_path: Path) -> None:
    file = open_gguf(write_gguf(tmp_path / "m.gguf", {"five": U32(5)}, {"a": torch.ones(2)}, version=2))
    assert file.integer("five") == 5 and file.floats(file.tensors["a"]) == [1, 1]


def test_parts_must_all_be_there_and_in_order(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "plain", num_hidden_layers=1)
    first = make_gguf(folder, tmp_path / "m.gguf", parts=3)
    assert len(open_gguf(first).tensors) == 14
    second, third = (tmp_path / f"m-0000{i}-of-00003.gguf" for i in (2, 3))
    assert first_part(third) == first == find_gguf(tmp_path)
    with pytest.raises(GGUFError, match="the first must be named"):
        open_gguf(second)
    third.write_bytes(second.read_bytes())
    with pytest.raises(GGUFError, match=r"split\.no is 1, not 2"):
        open_gguf(first)
    third.unlink()
    with pytest.raises(GGUFError, match="are all parts of the model there"):
        open_gguf(first)


def test_a_path_stands_for_the_one_model_it_names(tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "m.gguf", {"a": True}, {})
    write_gguf(tmp_path / "mmproj-m.gguf", {"a": True}, {})
    blob = tmp_path / "blob"
    blob.write_bytes(model.read_bytes())
    assert is_gguf(model) and is_gguf(blob) and not is_gguf(tmp_path) and not is_gguf(tmp_path / "none")
    assert resolve(model) == resolve(tmp_path) == model and resolve(blob) == blob
    write_gguf(tmp_path / "n.gguf", {"a": True}, {})
    with pytest.raises(ModelError, match=r"holds 2 GGUF models \(m.gguf, n.gguf\)"):
        resolve(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert resolve(tmp_path) == tmp_path
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ModelError, match="is a file"):
        resolve(tmp_path / "text")
