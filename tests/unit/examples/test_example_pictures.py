"""The pictures of the examples are those of the examples as they are."""

from __future__ import annotations

import pytest

from examples.pictures import EXAMPLES, FOLDER, picture


@pytest.mark.parametrize("name", EXAMPLES)
def test_pictures_are_up_to_date(name: str) -> None:
    stored = (FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    assert stored == picture(name), "write them again: python -m examples.pictures"


def test_there_are_no_others() -> None:
    assert {path.stem for path in FOLDER.glob("*.svg")} == set(EXAMPLES)
