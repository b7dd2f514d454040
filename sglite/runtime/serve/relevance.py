"""How relevant documents are to queries: one number a pair, however the served model tells.

    an embedding model     the cosine of the two vectors, -1 to 1
    a classifier           of one label: the sigmoid of its score, 0 to 1
    a reranker             the probability of its word for "relevant" against that for "not relevant", 0 to 1

A reranker is a language model that is asked, in a prompt of its own, for one of two words. It is declared by a chat
template that reads messages of the roles ``query`` and ``document`` (and ``system``: an instruction), the checkpoint's
own or one given with ``--chat-template``, and by the two words: as the checkpoint lists them, or "yes" and "no" where
the template asks for those. Any other model is refused with the reason.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sglite.runtime.pooling import Pooling, Undeclared, read_labels
from sglite.runtime.serve.context_length import check_characters, made_prompts
from sglite.runtime.serve.embed import Wanted, embed, ids_of, pooled
from sglite.runtime.serve.errors import Refused
from sglite.runtime.serve.generations import Row, start
from sglite.runtime.serve.serving import Serving
from sglite.runtime.text.turns import TemplateError

_NEEDS = (
    "serve an embedding model, or a reranker whose chat template reads the roles query and document "
    "(--chat-template gives one)"
)
_MOST = 700.0
"""Beyond this a sigmoid is 0 or 1."""


@dataclass(frozen=True)
class Scores:
    """One score a pair, and what the engine said of the requests behind them."""

    values: list[float]
    events: list[dict[str, Any]]


@dataclass(frozen=True)
class Labels:
    """Tokens that a reranker answers with."""

    no: int
    yes: int


class Relevance:
    """Scores pairs of texts."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    @cached_property
    def labels(self) -> Labels | str:
        """The reranker's words; why there are none."""
        engine = self._serving.engine
        template, tokenizer = engine.chat_template, engine.tokenizer
        try:
            declared = read_labels(engine.folder)
        except Undeclared as error:
            return str(error)
        source = "" if template is None else template.source.get("default", "")
        if tokenizer is None or not self._reads_pairs:
            return "its chat template reads no query and no document"
        asks = re.search(r"""["']yes\\?["'] or \\?["']no\\?["']""", source)
        if declared is None and asks is None:
            return "it declares no words for relevant and not relevant"
        no, yes = ("no", "yes") if declared is None else declared
        found = [token if isinstance(token, int) else tokenizer.id_of(token) for token in (no, yes)]
        if found[0] is None or found[1] is None or max(found[0], found[1]) >= engine.config.vocab_size:
            return f"its words {no!r:.40} and {yes!r:.40} are not tokens of its vocabulary"
        return Labels(found[0], found[1])

    @cached_property
    def _reads_pairs(self) -> bool:
        """The chat template has places for a query and a document."""
        template = self._serving.engine.chat_template
        source = "" if template is None else template.source.get("default", "")
        return all(re.search(rf"""["']{role}["']""", source) for role in ("query", "document"))

    async def scores(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        instruction: str | None = None,
        active: bool = True,
        options: Mapping[str, Any],
    ) -> Scores:
        """One score for each (query, document). Cancelling it ends the requests. ``Refused`` names what is wrong.

        ``active`` false: of a classifier or reranker the number whose sigmoid the score is; cosines are as they are.
        """
        if self._serving.engine.config.labels:
            found = await self._by_classifier(pairs, instruction, options)
            return _as_shares(found) if active else found
        if isinstance(self.labels, Labels) and self._serving.engine.config.generates:
            found = await self._by_labels(pairs, self.labels, instruction, options)
            return _as_shares(found) if active else found
        if isinstance(self._serving.engine.pooling, str):
            message = f"{self._serving.models.name} does not score texts: {self.labels}; {_NEEDS}"
            raise Refused(400, message, param="model", code="scoring_not_supported")
        if instruction is not None:
            message = "an embedding model takes no instruction; write it into the query, as the model's makers say"
            raise Refused(400, message, param="instruction")
        return await self._by_vectors(pairs, options)

    async def _by_classifier(
        self, pairs: Sequence[tuple[str, str]], instruction: str | None, options: Mapping[str, Any]
    ) -> Scores:
        """The only score. Query and document as its template puts them, else one after the other."""
        serving = self._serving
        labels = serving.engine.config.labels
        if len(labels) != 1:
            message = f"{serving.models.name} has {len(labels)} labels, none of which is relevance; use /classify"
            raise Refused(400, message, param="model", code="scoring_not_supported")
        if self._reads_pairs:
            ids = await asyncio.to_thread(self._prompts, pairs, instruction)
        elif instruction is not None:
            raise Refused(400, "the model has no template that an instruction could go to", param="instruction")
        else:
            texts = list(dict.fromkeys(text for pair in pairs for text in pair))
            encoded = await ids_of(serving, texts, where="text", pooling=Pooling(normalize=False))
            known = dict(zip(texts, encoded, strict=True))
            ids = made_prompts(serving, (known[query] + known[document] for query, document in pairs), "text")
        found = await pooled(serving, ids, options)
        return Scores([float(scores[0]) for scores in found.vectors], found.events)

    async def _by_vectors(self, pairs: Sequence[tuple[str, str]], options: Mapping[str, Any]) -> Scores:
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        ids = await ids_of(self._serving, texts, where="text")
        found = await embed(self._serving, ids, Wanted(normalize=True, options=options))
        vector = dict(zip(texts, found.vectors, strict=True))
        cosines = [float(vector[query] @ vector[document]) for query, document in pairs]
        return Scores([max(-1.0, min(1.0, one)) for one in cosines], found.events)

    async def _by_labels(
        self, pairs: Sequence[tuple[str, str]], labels: Labels, instruction: str | None, options: Mapping[str, Any]
    ) -> Scores:
        prompts = await asyncio.to_thread(self._prompts, pairs, instruction)
        rows, events = await label_logprobs(self._serving, prompts, [labels.no, labels.yes], options)
        return Scores([max(-_MOST, min(yes - no, _MOST)) for no, yes in rows], events)

    def _prompts(self, pairs: Sequence[tuple[str, str]], instruction: str | None) -> list[list[int]]:
        """The questions that the reranker is asked."""
        return made_prompts(self._serving, self._questions(pairs, instruction), "text")

    def _questions(self, pairs: Sequence[tuple[str, str]], instruction: str | None) -> Iterator[list[int]]:
        template, tokenizer = self._serving.engine.chat_template, self._serving.engine.tokenizer
        assert template is not None and tokenizer is not None
        system = [] if instruction is None else [{"role": "system", "content": instruction}]
        for query, document in pairs:
            check_characters(self._serving, [query, document], "text")
            messages = [*system, {"role": "query", "content": query}, {"role": "document", "content": document}]
            try:
                yield tokenizer.encode(template.render(messages, add_generation_prompt=True))
            except TemplateError as error:
                raise Refused(400, f"the chat template could not make a prompt of the texts: {error}") from None


def _as_shares(scores: Scores) -> Scores:
    """Their sigmoids."""
    return Scores([1 / (1 + math.exp(-max(-_MOST, value))) for value in scores.values], scores.events)


async def label_logprobs(
    serving: Serving, prompts: Sequence[list[int]], labels: list[int], options: Mapping[str, Any]
) -> tuple[list[list[float]], list[dict[str, Any]]]:
    """Log probabilities of ``labels``, in their order, as the token after each prompt; and the engine's events.

    Each prompt has room for that token. What prompts have in common is computed once.
    """
    asked = {**options, "return_logprob": True, "token_ids_logprob": labels}
    sampling = {"max_new_tokens": 1, "temperature": 0, "ignore_eos": True}
    started = await start(
        serving.engine, serving.in_flight, [Row(input_ids=ids, sampling=sampling, options=asked) for ids in prompts]
    )
    try:
        events = await started.results()
    finally:
        started.end()
    if not all(event["output_ids"] for event in events):
        raise Refused(503, "the request was ended before it was computed; send it again", code="aborted")
    rows = [event["meta_info"]["output_token_ids_logprobs"][0] for event in events]
    return [[float(entry[0]) for entry in row] for row in rows], events
