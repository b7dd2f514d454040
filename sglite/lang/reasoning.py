"""Splitting what a model thinks from what it answers: ``<think>because</think>answer``."""

from __future__ import annotations

_THINK = ("<think>", "</think>")
_TAGS = {
    "deepseek-r1": _THINK,
    "deepseek-v3": _THINK,
    "glm45": _THINK,
    "kimi": ("◁think▷", "◁/think▷"),
    "qwen3": _THINK,
    "qwen3-thinking": _THINK,
    "step3": _THINK,
}


def reasoning_tags(model_type: str) -> tuple[str, str]:
    """The tags around the reasoning of a model family; ValueError for an unknown one."""
    if model_type.lower() not in _TAGS:
        raise ValueError(f"separate_reasoning(model_type={model_type!r}): unknown; known are {', '.join(_TAGS)}")
    return _TAGS[model_type.lower()]


def split_reasoning(text: str, tags: tuple[str, str]) -> tuple[str, str]:
    """(reasoning, answer) of an output.

    The opening tag may be missing (many chat templates write it into the prompt). Text that opens but never closes was
    cut off while thinking: all of it is reasoning. Without tags all of it is the answer.
    """
    opening, closing = tags
    before, found, after = text.partition(closing)
    if found:
        return before.replace(opening, "", 1).strip(), after
    if text.lstrip().startswith(opening):
        return text.lstrip()[len(opening) :].strip(), ""
    return "", text
