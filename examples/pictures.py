"""The pictures of the examples' graphs, in ``docs/pictures``: written again by ``python -m examples.pictures``.

They are previews: what is known of a program before it runs. Run it after changing an example or how graphs are drawn.
"""

from __future__ import annotations

import importlib
from pathlib import Path

EXAMPLES = (
    "few_shot_mmlu",
    "few_shot_hellaswag",
    "react_agent",
    "generative_agents",
    "tree_of_thought",
    "skeleton_of_thought",
    "llm_judge",
    "json_decoding",
    "multi_turn_chat",
    "rag_pipeline",
    "map_reduce_summarise",
    "tool_agent",
)
FOLDER = Path(__file__).parent.parent / "docs" / "pictures"


def picture(name: str) -> str:
    """The drawing of an example's graph, as SVG."""
    return str(importlib.import_module(f"examples.{name}").preview().to_svg()) + "\n"


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in EXAMPLES:
        (FOLDER / f"{name}.svg").write_text(picture(name), encoding="utf-8")


if __name__ == "__main__":
    main()
