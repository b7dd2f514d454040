"""What a sampled token does to its request: output, constraint, forced tokens, stops, length; and what goes out.

Every output token takes the same way, sampled or forced. A request that wants logprobs sends a token together with
its logprob: forced tokens wait until a row has scored them, and so does the end of a request that ends on them.
Tokens that the constraint may still take back wait until it has made up its mind; ``retreat`` takes them back, with
all that came of them: stop matching, logprobs, counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from sglite.runtime.engine.request import Request
from sglite.runtime.protocol import FinishReason, RequestOutput, SampledToken, TokenLogprob
from sglite.runtime.sample.params import SamplingParams
from sglite.runtime.text.stop import StopMatcher

MAX_FORCED_RUN = 512
"""Forced tokens taken over in one go; the rest follows after the next step."""


class Updater:
    """Applies results to one request at a time.

    Args:
        eos_ids: ids that end a sequence unless ``ignore_eos``.
        token_bytes: bytes of every id (``None`` for special tokens), for stop strings; ``None``: no tokenizer.
    """

    def __init__(self, eos_ids: Sequence[int], token_bytes: Sequence[bytes | None] | None) -> None:
        self.eos_ids = tuple(eos_ids)
        self._eos = frozenset(eos_ids)
        self._token_bytes = token_bytes

    def prepare(self, request: Request) -> None:
        """Set up stop matching for a new request."""
        sampling = request.request.sampling
        if sampling.stop or sampling.stop_regex:
            if self._token_bytes is None:
                raise ValueError(
                    "stop and stop_regex need a tokenizer, which skip_tokenizer_init=True left out; use stop_token_ids"
                )
            request.stop = StopMatcher(sampling.stop, sampling.stop_regex)

    def ending_ids(self, sampling: SamplingParams) -> tuple[int, ...]:
        """Ids whose sampling ends the request."""
        return (() if sampling.ignore_eos else self.eos_ids) + sampling.stop_token_ids

    # --- results ----------------------------------------------------------------------------------------------

    def add_sample(self, request: Request, expected: int | None, sample: SampledToken) -> None:
        """Take over what was sampled; ``expected`` is the token already known to be the only possible one."""
        rows: Sequence[TokenLogprob | None] = sample.logprobs or [None] * len(sample.token_ids)
        if expected is not None:
            if sample.token_ids != [expected]:
                message = f"token {sample.token_ids} sampled where the constraint only allows {expected}"
                request.ending = FinishReason(type="error", code="internal", message=message)
            elif rows[0] is not None and request.logprobs is not None:
                request.logprobs.output[self._position_of_expected(request)] = rows[0]
            return
        if request.ending is not None or request.retreating:
            return
        for token, row in zip(sample.token_ids, rows, strict=True):
            if row is not None and request.logprobs is not None:
                request.logprobs.output[request.num_tokens] = row
            request.ending = self._append(request, token)
            if request.ending is not None:
                return
        self.append_forced(request)

    def add_scores(self, request: Request, position: int, rows: Sequence[TokenLogprob]) -> None:
        """Logprobs of the known tokens at ``position`` and after."""
        assert request.logprobs is not None
        for offset, row in enumerate(rows):
            if position + offset < request.prompt_len:
                request.logprobs.prompt.append(row)
            else:
                request.logprobs.output[position + offset] = row

    def _position_of_expected(self, request: Request) -> int:
        """Where the first output token without a row that no scoring row will report stands."""
        assert request.logprobs is not None
        known = request.logprobs.output
        return next(p for p in range(request.prompt_len + request.emitted, request.num_tokens) if p not in known)

    def _append(self, request: Request, token: int) -> FinishReason | None:
        """One more output token; returns why the request ends with it, if it does."""
        sampling = request.request.sampling
        request.tokens.append(token)
        count = request.num_output
        if request.grammar is not None and not request.grammar.accept(token):
            message = f"token {token} is not allowed by the constraint at output position {count - 1}"
            message = request.grammar.failure or message
            return FinishReason(type="error", code="internal", message=message)
        self._mark_stop(request)
        if token in sampling.stop_token_ids or (token in self._eos and not sampling.ignore_eos):
            return FinishReason(type="stop", matched=token)
        if request.stop is not None:
            hit = request.stop.push(self._bytes_of(token))
            if hit is not None and count >= sampling.min_new_tokens:
                return FinishReason(type="stop", matched=hit.matched)
        if request.grammar is not None and request.grammar.finished:
            if count < sampling.min_new_tokens:
                message = f"the constraint ends after {count} tokens, before min_new_tokens={sampling.min_new_tokens}"
                return FinishReason(type="error", code="constraint", message=message)
            return FinishReason(type="stop", matched=token if token in self._eos else None)
        return FinishReason(type="length") if count >= request.max_new_tokens else None

    def append_forced(self, request: Request) -> None:
        """Take over the tokens that the constraint allows no choice about: they cost no sampling and no own step."""
        if request.grammar is None:
            return
        pending = request.samples_in_flight
        room = min(request.max_new_tokens - request.num_output, MAX_FORCED_RUN)
        for index, token in enumerate(request.grammar.forced(room)):
            request.ending = self._forbidden(request, token)
            if request.ending is not None:
                return
            if index == 0 and pending and pending[0] is None:
                pending[0] = token
            else:
                request.unsent_forced.append(token)
                if request.logprobs is not None:
                    request.logprobs.unscored.append(request.num_tokens)
            request.accounting.forced_tokens += 1
            request.ending = self._append(request, token)
            if request.grammar.held:
                request.grammar.forced_at.append(request.num_tokens - 1)
            if request.ending is not None:
                return

    def _forbidden(self, request: Request, token: int) -> FinishReason | None:
        """A forced token that sampling would not be allowed to give: the end that sampling it would have come to."""
        sampling = request.request.sampling
        if sampling.allowed_token_ids is not None and token not in sampling.allowed_token_ids:
            other = "allowed_token_ids"
        elif request.num_output < sampling.min_new_tokens and token in self.ending_ids(sampling):
            other = f"the ban of stop tokens by min_new_tokens={sampling.min_new_tokens}"
        else:
            return None
        message = (
            f"every token is masked at position {request.num_tokens - 1}: {other} and the grammar leave none to "
            "sample; relax one of them"
        )
        return FinishReason(type="error", code="sampling", message=message)

    # --- tokens taken back ------------------------------------------------------------------------------------

    def retreat(self, request: Request) -> bool:
        """Take back the tokens that lead nowhere, and what came of them; ``False``: there is no other way, it ends."""
        grammar = request.grammar
        assert grammar is not None and not request.in_flight
        error, back = grammar.error, grammar.retreat()
        cut = request.num_tokens - back
        if back == 0 or cut < request.prompt_len + request.emitted:
            why = grammar.error or error or "no value that was tried can be ended as the constraint demands"
            message = f"the constraint cannot be satisfied after {request.num_final - request.prompt_len} tokens: {why}"
            code = "constraint_unsatisfied" if grammar.failure is None else "internal"
            request.ending = FinishReason(type="error", code=code, message=grammar.failure or message)
            return False
        grammar.retreats.append(range(cut, request.num_tokens))
        del request.tokens[cut:]
        request.seen = min(request.seen, cut)
        request.accounting.resampled_tokens += back
        while grammar.forced_at and grammar.forced_at[-1] >= cut:
            grammar.forced_at.pop()
            request.accounting.forced_tokens -= 1
        if request.logprobs is not None:
            request.logprobs.output = {at: row for at, row in request.logprobs.output.items() if at < cut}
            request.logprobs.restart(request.prompt_len, request.prompt_len + request.emitted, cut)
        self._rewind_stop(request)
        return True

    def _mark_stop(self, request: Request) -> None:
        """Remember, at the first token that may be taken back, how far stop matching was before it."""
        grammar = request.grammar
        if grammar is None:
            return
        if not grammar.held:
            grammar.stop_mark = None
            grammar.forced_at.clear()
        elif grammar.stop_mark is None and request.stop is not None:
            grammar.stop_mark = request.num_tokens - 1, request.stop.fork()

    def _rewind_stop(self, request: Request) -> None:
        """Bring stop matching back to where the known tokens end."""
        if request.stop is None:
            return
        assert request.grammar is not None and request.grammar.stop_mark is not None
        position, matcher = request.grammar.stop_mark
        assert position <= request.num_tokens, (position, request)
        request.stop = matcher.fork()
        for token in request.tokens[position:]:
            request.stop.push(self._bytes_of(token))

    def _bytes_of(self, token: int) -> bytes:
        known = self._token_bytes
        return (known[token] if known is not None and token < len(known) else None) or b""

    # --- what goes out ----------------------------------------------------------------------------------------

    def progress(self, request: Request, now: float) -> RequestOutput | None:
        """What can be sent of a request that goes on; ``None``: nothing new."""
        tokens, rows = self._unsent(request, request.num_final)
        prompt_rows = self._prompt_rows(request)
        if not tokens and not prompt_rows:
            return None
        self._stamp(request, now)
        return RequestOutput(
            request_id=request.id,
            new_token_ids=tokens,
            logprobs=rows,
            prompt_logprobs=prompt_rows,
            accounting=request.accounting,
        )

    def terminal(self, request: Request, reason: FinishReason, now: float) -> RequestOutput:
        """The last output of a request, with all that was not sent yet; marks it as ended.

        What might still have been taken back is part of an answer that was cut off, but not of a failure; nor is
        what a constraint dictates of a request that never ran.
        """
        request.finish = reason
        answered = reason.type in ("stop", "length")
        upto = request.num_tokens if answered else request.num_final if request.first_run is not None else 0
        tokens, rows = self._unsent(request, upto)
        self._stamp(request, now)
        complete = None if request.request.constraint is None else False
        if request.grammar is not None and request.grammar.complete and answered:
            complete = True
        return RequestOutput(
            request_id=request.id,
            new_token_ids=tokens,
            logprobs=rows,
            prompt_logprobs=self._prompt_rows(request),
            finish_reason=reason,
            constraint_complete=complete,
            constraint_filled=self._filled(request) if answered else None,
            hidden=request.hidden if answered else None,
            accounting=request.accounting,
        )

    def _filled(self, request: Request) -> list[str] | None:
        """Pointers of the values that closing chose, where it was asked for."""
        grammar = request.grammar
        if grammar is None:
            return None
        start = request.prompt_len + grammar.num_before
        return grammar.filled(b"".join(self._bytes_of(token) for token in request.tokens[start:]))

    def _unsent(self, request: Request, upto: int) -> tuple[list[int], list[TokenLogprob]]:
        """Output tokens below ``upto`` not sent yet, as far as their logprobs have come in if any were asked for."""
        start = request.prompt_len + request.emitted
        tokens = request.tokens[start:upto]
        rows: list[TokenLogprob] = []
        if request.logprobs is not None:
            while len(rows) < len(tokens) and start + len(rows) in request.logprobs.output:
                rows.append(request.logprobs.output.pop(start + len(rows)))
            tokens = tokens[: len(rows)]
        request.emitted += len(tokens)
        return tokens, rows

    def _prompt_rows(self, request: Request) -> list[TokenLogprob]:
        """The prompt's logprobs, once and all together."""
        state = request.logprobs
        if state is None or state.prompt_sent or len(state.prompt) < request.prompt_len - state.prompt_start:
            return []
        state.prompt_sent = True
        rows, state.prompt = state.prompt, []
        return rows

    def _stamp(self, request: Request, now: float) -> None:
        request.accounting.completion_tokens = request.emitted
        if request.grammar is not None:
            request.accounting.masks_filled = request.grammar.masks_filled
            request.accounting.mask_ms = request.grammar.mask_ms
        request.accounting.e2e_ms = 1000 * (now - request.start_time)
