"""The reference is what its generator makes of today's docstrings, and has every public name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import sglite
from sglite import testing
from tools import api_reference, model_matrix

LISTED = {name for names in api_reference.SECTIONS.values() for name in names}


def test_the_reference_is_up_to_date() -> None:
    assert api_reference.PAGE.read_text(encoding="utf-8") == api_reference.page(), (
        "docs/reference.md is not what the docstrings say; run `make reference`"
    )


@pytest.mark.parametrize("name", sorted(set(sglite.__all__) - {"__version__", "testing"}))
def test_every_public_name_has_its_entry(name: str) -> None:
    assert name in LISTED, f"{name} is public; put it into SECTIONS of tools/api_reference.py and run `make reference`"


@pytest.mark.parametrize("name", testing.__all__)
def test_every_name_for_tests_has_its_entry(name: str) -> None:
    assert f"testing.{name}" in LISTED


def test_every_entry_says_something() -> None:
    page = re.sub(r"```py\n.*?```\n", "", api_reference.page(), flags=re.DOTALL)
    silent = [
        entry.split("\n")[0]
        for entry in re.split(r"\n#{3,4} ", page)[1:]
        if not re.sub(r"^`[\w.]+`$", "", entry.partition("\n")[2], flags=re.MULTILINE).strip()
    ]
    assert silent == []


def test_the_page_does_not_depend_on_the_run() -> None:
    page = api_reference.page()
    assert " at 0x" not in page
    assert str(Path.home()) not in page
    assert page == api_reference.page()


def test_the_list_of_models_is_what_the_tests_check() -> None:
    assert model_matrix.PAGE.read_text(encoding="utf-8") == model_matrix.page(), "run `make reference`"
