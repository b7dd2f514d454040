"""The formats that are known, by name. Names are matched without regard to case, ``-`` and ``_``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from sglite.runtime.config import ConfigError
from sglite.runtime.parse.base import ReasoningFormat, ToolFormat
from sglite.runtime.parse.deepseek import DeepSeekV3, DeepSeekV31
from sglite.runtime.parse.deepseek_v32 import DeepSeekV4, DeepSeekV32, DeepSeekV41
from sglite.runtime.parse.glm45 import Glm45
from sglite.runtime.parse.harmony import Harmony, HarmonyReasoning
from sglite.runtime.parse.hermes import Hermes
from sglite.runtime.parse.kimi import KimiK2
from sglite.runtime.parse.llama import Llama3
from sglite.runtime.parse.mistral import Mistral, MistralNamed
from sglite.runtime.parse.pythonic import Pythonic
from sglite.runtime.parse.qwen3_coder import Qwen3Coder
from sglite.runtime.parse.think import KimiK2Think, KimiThink, MistralThink, Think

TOOL_FORMATS: tuple[ToolFormat, ...] = (
    Hermes(),
    Qwen3Coder(),
    Glm45(),
    DeepSeekV3(),
    DeepSeekV31(),
    DeepSeekV32(),
    DeepSeekV4(),
    DeepSeekV41(),
    KimiK2(),
    MistralNamed(),
    Mistral(),
    Harmony(),
    Pythonic(),
    Llama3(),
)
"""In the order in which detection tries them: the ones without marks of their own come last."""

REASONING_FORMATS: tuple[ReasoningFormat, ...] = (
    HarmonyReasoning(),
    KimiThink(),
    MistralThink(),
    Think(),
    KimiK2Think(),
)

Form = TypeVar("Form", bound=ToolFormat | ReasoningFormat)


def tool_format(name: str) -> ToolFormat:
    """The format of calls of that name. Raises ``ConfigError`` with the known names."""
    return _named("tool_call_parser", name, TOOL_FORMATS)


def reasoning_format(name: str) -> ReasoningFormat:
    """The format of thinking of that name. Raises ``ConfigError`` with the known names."""
    return _named("reasoning_parser", name, REASONING_FORMATS)


def names(formats: Iterable[ToolFormat] | Iterable[ReasoningFormat]) -> list[str]:
    """Every name that one of them has, its own name first."""
    return [name for form in formats for name in (form.name, *form.aliases)]


def _named(option: str, name: str, formats: Sequence[Form]) -> Form:
    wanted = _plain(name)
    for form in formats:
        if wanted in map(_plain, (form.name, *form.aliases)):
            return form
    known = ", ".join(["auto", "none", *(form.name for form in formats)])
    raise ConfigError(f"{option}={name!r} is not known; use one of {known}")


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
