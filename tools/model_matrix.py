"""Writes the list of model families into ``docs/models.md``: what the tests check, so the page cannot promise more.

    make reference

A family stands there if an architecture of it is read (``architectures.READERS``) and tests check it: those of
``tests/model_families.py``, against transformers, or the files named in ``ELSEWHERE``. An architecture that is read and
checked by nothing is an error.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sglite.runtime.model.architectures import READERS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- families: made by `make reference` -->", "<!-- end of families -->"

TITLES: dict[str, tuple[str, ...]] = {
    "Llama 2, 3, 3.1, 3.2 (text), and what shares the layout; R1 distills": ("LlamaForCausalLM",),
    "Qwen (1)": ("QWenLMHeadModel",),
    "Qwen2, Qwen2.5; R1 distills": ("Qwen2ForCausalLM",),
    "Qwen3, dense; Qwen3-Embedding": ("Qwen3ForCausalLM",),
    "Qwen1.5-MoE, Qwen2-MoE": ("Qwen2MoeForCausalLM",),
    "Qwen3-MoE": ("Qwen3MoeForCausalLM",),
    "Qwen3-Next": ("Qwen3NextForCausalLM",),
    "Qwen3.5, dense (text)": ("Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"),
    "Qwen3.5-MoE (text)": ("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"),
    "DeepSeek-MoE (1)": ("DeepseekForCausalLM",),
    "DeepSeek-V2, V2-Lite, Coder-V2": ("DeepseekV2ForCausalLM",),
    "DeepSeek-V3, V3.1, R1": ("DeepseekV3ForCausalLM",),
    "DeepSeek-V3.2": ("DeepseekV32ForCausalLM",),
    "Mistral, Mistral-Nemo, Mistral-Small (text)": ("MistralForCausalLM", "Mistral3ForConditionalGeneration"),
    "Mixtral": ("MixtralForCausalLM",),
    "Gemma 3 (text)": ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    "gpt-oss": ("GptOssForCausalLM",),
    "OLMo 2": ("Olmo2ForCausalLM",),
    "classifiers": (
        "LlamaForSequenceClassification",
        "Qwen2ForSequenceClassification",
        "Qwen3ForSequenceClassification",
    ),
    "reward models (Qwen2.5-Math-RM)": ("Qwen2ForRewardModel",),
}
"""What people call a family: the architectures of it."""

ELSEWHERE: dict[str, tuple[str, str]] = {
    "Gemma3ForConditionalGeneration": ("transformers", "test_sliding_layouts"),
    "LlamaForCausalLM": ("transformers", "test_model_parity"),
    "Mistral3ForConditionalGeneration": ("transformers", "test_sliding_layouts"),
    "QWenLMHeadModel": ("transformers' Qwen2 with the same weights", "test_qwen_v1"),
    "Qwen3_5ForConditionalGeneration": ("transformers", "test_hybrid_layouts"),
    "Qwen3_5MoeForConditionalGeneration": ("transformers", "test_hybrid_layouts"),
    "Qwen2ForCausalLM": ("transformers", "test_model_parity"),
    "Qwen3ForCausalLM": ("transformers", "test_model_parity"),
    "LlamaForSequenceClassification": ("transformers", "test_classifiers"),
    "Qwen2ForSequenceClassification": ("transformers", "test_classifiers"),
    "Qwen3ForSequenceClassification": ("transformers", "test_classifiers"),
    "Qwen2ForRewardModel": ("its definition", "test_classifiers"),
}
"""Architectures whose checks are in a file of ``tests/parity`` of their own: against what, and which file."""

KINDS = {
    "dense": "keys and values",
    "moe": "keys and values",
    "mla": "latents",
    "hybrid": "keys and values; recurrent states at checkpoints",
    "sliding": "keys and values; some layers see a window",
}
"""What layers keep, by the kind of a family."""


def page() -> str:
    """``docs/models.md`` as it should be."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def table() -> str:
    """One row a family."""
    checked = _checked()
    missing = sorted(READERS.keys() - checked.keys()) + sorted(READERS.keys() - {a for t in TITLES.values() for a in t})
    if missing:
        raise SystemExit(f"architectures without a check or a title: {', '.join(missing)}")
    rows = ["| models | `architectures` | layers keep | checked against | in |", "|---|---|---|---|---|"]
    for title, names in TITLES.items():
        known = [name for name in names if name in READERS]
        if known:
            oracles, kept, files = (sorted({cell for name in known for cell in checked[name][i]}) for i in range(3))
            spelled = ", ".join(f"`{name}`" for name in known)
            keeps = "; ".join(kept or [KINDS["dense"]]).replace(f"{KINDS['dense']}; {KINDS['dense']}", KINDS["dense"])
            rows.append(f"| {title} | {spelled} | {keeps} | {', '.join(oracles)} | {', '.join(files)} |")
    return "\n".join(rows)


def _checked() -> dict[str, tuple[set[str], set[str], set[str]]]:
    """By architecture: against what, what its layers keep, in which files."""
    sys.path.insert(0, str(ROOT / "tests"))
    from model_families import FAMILIES, architecture_of

    found: dict[str, tuple[set[str], set[str], set[str]]] = {}
    for family in FAMILIES.values():
        oracles, kept, files = found.setdefault(architecture_of(family), (set(), set(), set()))
        oracles.add(family.oracle)
        kept.add(KINDS[family.kind])
        files.add("`test_families`")
    for name, (oracle, file) in ELSEWHERE.items():
        oracles, _, files = found.setdefault(name, (set(), set(), set()))
        oracles.add(oracle)
        files.add(f"`{file}`")
    return found


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.name}")
