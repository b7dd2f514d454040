"""What a model's ``generation_config.json`` says of ending and sampling."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sglite.runtime.model.config import ModelConfig
from sglite.runtime.model.fields import Fields, read_json


@dataclass(frozen=True, kw_only=True)
class GenerationDefaults:
    """Sampling settings that the model's makers recommend; ``None`` where they say nothing."""

    eos_token_ids: tuple[int, ...] = ()
    """Ids that end a sequence: those of the config and of the generation config."""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def sampling(self) -> dict[str, float]:
        """The recommended parameters by SGLang's names."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


def read_generation_defaults(folder: Path, config: ModelConfig) -> GenerationDefaults:
    """Defaults of a model folder; a folder without the file has only the config's end ids."""
    path = folder / "generation_config.json"
    fields = Fields(read_json(path) if path.is_file() else {}, str(path))
    eos = dict.fromkeys((*config.eos_token_ids, *fields.token_ids("eos_token_id")))
    top_k = _optional(fields, "top_k")
    return GenerationDefaults(
        eos_token_ids=tuple(eos),
        temperature=_optional(fields, "temperature"),
        top_p=_optional(fields, "top_p"),
        top_k=None if top_k is None else int(top_k),
        min_p=_optional(fields, "min_p"),
        repetition_penalty=_optional(fields, "repetition_penalty"),
    )


def _optional(fields: Fields, name: str) -> float | None:
    return None if fields.get(name) is None else fields.number(name)
