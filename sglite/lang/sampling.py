"""How to generate: what a gen says, over what its run says, over the back end's defaults. Names are SGLang's."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

REST_OF_CONTEXT = -1


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to generate; ``None`` leaves a value to the run, and there to the back end. Names are SGLang's."""

    max_new_tokens: int | None = None
    """``REST_OF_CONTEXT``: as many as the context has room for."""
    min_new_tokens: int | None = None
    n: int | None = None
    stop: tuple[str, ...] | None = None
    stop_token_ids: tuple[int, ...] | None = None
    stop_regex: tuple[str, ...] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    ignore_eos: bool | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    regex: str | None = None
    json_schema: str | None = None
    ebnf: str | None = None
    structural_tag: str | None = None
    on_limit: str | None = None
    return_logprob: bool | None = None
    logprob_start_len: int | None = None
    top_logprobs_num: int | None = None
    return_text_in_logprobs: bool | None = None

    def over(self, base: Sampling) -> Sampling:
        """These values, with those of ``base`` where these say nothing."""
        return _merged(self, base)

    def without_rules(self) -> Sampling:
        """These values without what constrains the text."""
        return replace(self, regex=None, json_schema=None, ebnf=None, structural_tag=None)

    def __str__(self) -> str:
        given = ((f.name, getattr(self, f.name)) for f in fields(self))
        return ", ".join(f"{name}={value!r}" for name, value in given if value is not None)


def _merged(own: Sampling, base: Sampling) -> Sampling:
    mine, theirs = vars(own), vars(base)
    return Sampling(**{name: theirs[name] if value is None else value for name, value in mine.items()})
