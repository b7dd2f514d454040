"""Outputs of the engine as a client sees them: text, ids and ``meta_info`` in the shape of SGLang's native API.

Runs on the caller's side of the engine. Text that may still turn out to be the beginning of a stop string is held
back; a stop found is cut off unless ``no_stop_trim``. ``state_ids`` is what a program's sequence keeps: the ids of
exactly the text that was presented, so that the next literal continues it.
"""

from __future__ import annotations

import codecs
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import msgspec

from sglite.runtime.engine.weight_version import FIRST_VERSION, WeightVersion
from sglite.runtime.protocol import Accounting, FinishReason, RequestOutput, TokenLogprob
from sglite.runtime.sample.params import SamplingParams
from sglite.runtime.text.stop import StopMatcher
from sglite.runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class LogprobLayout:
    """Which logprob lists ``meta_info`` gets."""

    top_n: int = 0
    given: bool = False
    text: bool = False


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """One request's outputs at one moment: cheap to take, and whoever needs more than news makes an event of it.

    What it shares with its presenter only grows, so that it stays what it was.
    """

    request_id: str = ""
    text: str = ""
    """All of it, cumulative."""
    num_tokens: int = 0
    finish_reason: FinishReason | None = None
    accounting: Accounting = msgspec.field(default_factory=Accounting)
    constraint: dict[str, Any] = {}
    hidden: bytes | None = None
    layout: LogprobLayout | None = None
    tokenizer: Tokenizer | None = None
    all_ids: list[int] = []
    all_rows: list[TokenLogprob] = []
    num_rows: int = 0
    prompt_rows: list[TokenLogprob] = []
    versions: tuple[tuple[str, int], ...] = ((FIRST_VERSION, 0),)
    """What the weights were called, and from which output token on."""

    def ids(self, start: int = 0) -> list[int]:
        """Output ids from the ``start``-th on."""
        return self.all_ids[start : self.num_tokens]

    def event(self) -> dict[str, Any]:
        """``text``, ``output_ids``, ``meta_info``; ``hidden`` where that was asked."""
        event = {"text": self.text, "output_ids": self.ids(), "meta_info": self._meta()}
        return event if self.hidden is None else {**event, "hidden": self.hidden}

    def finish_dict(self) -> dict[str, Any] | None:
        """Why it ended, in the shape of ``meta_info["finish_reason"]``; ``None``: it has not."""
        if self.finish_reason is None:
            return None
        reason = self.finish_reason.to_dict()
        if self.finish_reason.type == "length":
            reason["length"] = self.num_tokens
        return reason

    def weight_versions(self) -> list[dict[str, Any]]:
        """Which tokens were computed with which weights, in SGLang's shape."""
        ends = [start for _, start in self.versions[1:]] + [self.num_tokens]
        spans = zip(self.versions, ends, strict=True)
        return [{"version": name, "start": start, "end": end} for (name, start), end in spans]

    def logprobs(self, start: int = 0) -> tuple[list[list[Any]], list[list[list[Any]] | None]]:
        """Rows ``[logprob, id, text]`` of output tokens from the ``start``-th on, and, where that was asked for, the
        likeliest tokens of each."""
        rows = self.all_rows[start : self.num_rows]
        tops = self._nested([row.top for row in rows], rows) if self.layout is not None and self.layout.top_n else []
        return [self._row(row.token_id, row.logprob) for row in rows], tops

    def given_logprobs(self, start: int = 0) -> list[list[list[Any]] | None]:
        """As the likeliest tokens of ``logprobs``, the given ones."""
        rows = self.all_rows[start : self.num_rows]
        return self._nested([row.given for row in rows], rows)

    def _meta(self) -> dict[str, Any]:
        accounting = msgspec.structs.asdict(self.accounting)
        accounting["completion_tokens"] = self.num_tokens
        meta: dict[str, Any] = {
            "id": self.request_id,
            "finish_reason": self.finish_dict(),
            **accounting,
            "e2e_latency": self.accounting.e2e_ms / 1000,
            "weight_version": self.versions[-1][0],
            **self.constraint,
        }
        if self.finish_reason is not None:
            meta["weight_versions"] = self.weight_versions()
        if self.layout is not None:
            meta.update(self._logprob_lists(self.layout))
        return meta

    def _logprob_lists(self, layout: LogprobLayout) -> dict[str, Any]:
        rows, tops = self.logprobs()
        lists: dict[str, Any] = {
            "input_token_logprobs": [self._row(row.token_id, row.logprob) for row in self.prompt_rows],
            "output_token_logprobs": rows,
        }
        if layout.top_n:
            lists["input_top_logprobs"] = self._nested([row.top for row in self.prompt_rows], self.prompt_rows)
            lists["output_top_logprobs"] = tops
        if layout.given:
            lists["input_token_ids_logprobs"] = self._nested([r.given for r in self.prompt_rows], self.prompt_rows)
            lists["output_token_ids_logprobs"] = self.given_logprobs()
        return lists

    def _nested(self, found: list[list[tuple[int, float]]], rows: list[TokenLogprob]) -> list[list[list[Any]] | None]:
        """Per position the alternatives; ``None`` where nothing precedes."""
        return [
            None if row.logprob is None else [self._row(token, logprob) for token, logprob in pairs]
            for pairs, row in zip(found, rows, strict=True)
        ]

    def _row(self, token: int, logprob: float | None) -> list[Any]:
        text = None
        if self.layout is not None and self.layout.text and self.tokenizer is not None:
            text = self.tokenizer.token_text(token)
        return [logprob, token, text]


class Presenter:
    """One request's outputs, accumulated.

    Args:
        request_id: reported as ``meta_info["id"]``.
        sampling: decides how stops and special tokens are shown.
        tokenizer: ``None`` leaves ``text`` empty.
        logprobs: ``None`` when none were asked for.
        shown_special: special tokens that are shown even if others are not.
        weights: what the outputs are computed with; what they were called at each of them is reported.
    """

    def __init__(
        self,
        request_id: str,
        sampling: SamplingParams,
        tokenizer: Tokenizer | None,
        logprobs: LogprobLayout | None,
        shown_special: Collection[int] = (),
        weights: WeightVersion | None = None,
    ) -> None:
        self.request_id = request_id
        self.output_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._sampling = sampling
        self._tokenizer = tokenizer
        self._layout = logprobs
        self._shown_special = frozenset(shown_special)
        self._weights = weights or WeightVersion()
        self._versions: tuple[tuple[str, int], ...] = ((self._weights.name, 0),)
        self._rows: list[TokenLogprob] = []
        self._prompt_rows: list[TokenLogprob] = []
        self._accounting = Accounting()
        self._constraint: dict[str, Any] = {}
        self._hidden: bytes | None = None
        self._bytes = bytearray()
        self._ends: list[int] = []
        """Bytes of text after each output token."""
        self._cut: int | None = None
        self._decoded = 0
        """Bytes that are text already: whole characters."""
        self._text = ""
        self._stop = StopMatcher(sampling.stop, sampling.stop_regex) if sampling.stop or sampling.stop_regex else None
        self._special_bytes = 0

    def add(self, output: RequestOutput) -> None:
        """Take in what the engine sent."""
        before = len(self.output_ids)
        if self._stop is None and self._tokenizer is not None:
            self._add_tokens(output.new_token_ids, self._tokenizer)
        else:
            for token in output.new_token_ids:
                self._add_token(token)
        self._rows.extend(output.logprobs)
        self._prompt_rows.extend(output.prompt_logprobs)
        self._accounting = output.accounting
        if self._weights.name != self._versions[-1][0]:
            self._note_version(before)
        if output.finish_reason is not None:
            self.finish_reason, self._hidden = output.finish_reason, output.hidden
            ends = {"constraint_complete": output.constraint_complete, "constraint_filled": output.constraint_filled}
            self._constraint = {name: value for name, value in ends.items() if value is not None}
            self._finish_text(output.finish_reason)

    def so_far(self) -> RequestOutput:
        """All that has come, as one output; without logprobs."""
        return RequestOutput(
            request_id=self.request_id,
            new_token_ids=list(self.output_ids),
            finish_reason=self.finish_reason,
            accounting=self._accounting,
            **self._constraint,
        )

    @property
    def answered(self) -> bool:
        """It ended by itself, not by an abort or an error."""
        return self.finish_reason is not None and self.finish_reason.type in ("stop", "length")

    def progress(self) -> Progress:
        """The outputs so far."""
        return Progress(
            request_id=self.request_id,
            text=self._shown(),
            num_tokens=len(self.output_ids),
            finish_reason=self.finish_reason,
            accounting=self._accounting,
            constraint=self._constraint,
            hidden=self._hidden,
            layout=self._layout,
            tokenizer=self._tokenizer,
            all_ids=self.output_ids,
            all_rows=self._rows,
            num_rows=len(self._rows),
            prompt_rows=self._prompt_rows,
            versions=self._versions,
        )

    def state_ids(self) -> list[int]:
        """Ids of the presented text: the output without the token or text that ended it."""
        reason = self.finish_reason
        if reason is None or reason.type != "stop" or reason.matched is None:
            return list(self.output_ids)
        if isinstance(reason.matched, int):
            return self.output_ids[:-1]
        if self._cut is None or self._tokenizer is None:
            return list(self.output_ids)
        kept = next((i for i, end in enumerate(self._ends) if end > self._cut), len(self._ends))
        rest = bytes(self._bytes[self._ends[kept - 1] if kept else 0 : self._cut]).decode("utf-8", "replace")
        return self.output_ids[:kept] + (self._tokenizer.encode(rest, parse_special=False) if rest else [])

    def _note_version(self, before: int) -> None:
        """The weights have another name than at the ``before``-th token: the tokens since then are theirs."""
        empty = self._versions[-1][1] == before
        if empty or len(self.output_ids) > before:
            self._versions = (*(self._versions[:-1] if empty else self._versions), (self._weights.name, before))

    # --- text -------------------------------------------------------------------------------------------------

    def _add_tokens(self, tokens: list[int], tokenizer: Tokenizer) -> None:
        """Where no text is looked for."""
        skip = self._sampling.skip_special_tokens
        for piece in tokenizer.pieces(tokens, skip_special_tokens=skip, shown=self._shown_special):
            self._bytes += piece
            self._ends.append(len(self._bytes))
        self.output_ids += tokens

    def _add_token(self, token: int) -> None:
        self.output_ids.append(token)
        if self._tokenizer is None:
            return
        skip = self._sampling.skip_special_tokens and token not in self._shown_special
        data, _ = self._tokenizer.join([token], skip_special_tokens=skip, at_start=False)
        self._bytes += data
        self._ends.append(len(self._bytes))
        if self._stop is None or self._cut is not None:
            return
        special = token in self._tokenizer.special_token_ids
        if special:
            self._special_bytes += len(data)
        hit = self._stop.push(b"" if special else data)
        if hit is not None and len(self.output_ids) >= self._sampling.min_new_tokens:
            at = hit.end if self._sampling.no_stop_trim else hit.start
            self._cut = min(len(self._bytes), at + self._special_bytes)

    def _finish_text(self, reason: FinishReason) -> None:
        """Decide where the text ends once the request has."""
        ended_by_id = reason.type == "stop" and isinstance(reason.matched, int)
        if ended_by_id and self._ends and not self._sampling.no_stop_trim:
            self._cut = self._ends[-2] if len(self._ends) > 1 else 0
        elif reason.type != "stop" or not isinstance(reason.matched, str):
            self._cut = None

    def _shown(self) -> str:
        """Text that is safe to show: no partial character, nothing that may become a stop."""
        over = self.finish_reason is not None
        if self._cut is not None:
            end = self._cut
        else:
            end = len(self._bytes) - (0 if over or self._stop is None else self._stop.holdback())
        if over:
            return bytes(self._bytes[:end]).decode("utf-8", "replace")
        if end > self._decoded:
            text, size = codecs.utf_8_decode(self._bytes[self._decoded : end], "replace", False)
            self._text += text
            self._decoded += size
        return self._text
