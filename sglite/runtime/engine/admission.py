"""What a caller's words must be before a request is made of them. Runs on the caller's thread; nothing here waits.

    words --Admission.admit--> Admitted (read and checked, once) --requests(ids)--> what the core takes

The second step is cheap and may come later, on the engine's thread, when the ids are known: that is how a chained
generation is ready before the one in front of it has ended. Where constraints are compiled in this process, one that is
malformed or cannot be enforced is refused in the first, in milliseconds, whatever is being compiled; otherwise the
core refuses it, in the same words, before the first token.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from sglite.constrained.spec import ConstraintError, ConstraintRefused, ConstraintSpec
from sglite.runtime.engine.generation import RequestRefused
from sglite.runtime.engine.grammar import name_the_constraint
from sglite.runtime.engine.presenter import LogprobLayout, Presenter
from sglite.runtime.engine.weight_version import WeightVersion
from sglite.runtime.protocol import GenerateRequest, LogprobOptions, ProgramRef, ThinkingLimit
from sglite.runtime.sample.params import InvalidParameter, SamplingParams, parse_sampling_params, validate

if TYPE_CHECKING:
    from sglite.constrained.compiler import ConstraintCompiler
    from sglite.runtime.text.tokenizer import Tokenizer

MAX_NAME = 256
MAX_PRIORITY = 2**31 - 1
MAX_CHECKED_BYTES = 32 * 1024
"""Longer constraints are read where they are compiled: a caller's event loop must not stand still for them."""
MAX_AFTER = 64
"""Tokens of the run that a constraint may begin after."""
_PLAIN = frozenset({bool, int, float})
_REMEMBERED = 256
"""Sampling parameters, all of them such values, that are not read again."""
MAX_NODE = 4096
"""Characters of a name in ``hints``: the path of a request in its program's graph."""


class Admitted(msgspec.Struct, frozen=True, kw_only=True):
    """A call for ``sampling.n`` outputs, read and checked: requests can be made of it for any prompt."""

    rid: str
    sampling: SamplingParams
    limited: bool
    """The caller said how long the output may be; the default bends to the context."""
    constraint: ConstraintSpec | None = None
    constraint_after: tuple[int, ...] = ()
    reasoning_budget: int | None = None
    thinking: ThinkingLimit | None = None
    layout: LogprobLayout | None = None
    logprobs: LogprobOptions | None = None
    pool: Literal["last"] | None = None
    shown_special: tuple[int, ...] = ()
    priority: int = 0
    namespace: str = ""
    timeout_s: float | None = None
    queue_timeout_s: float | None = None

    @property
    def request_ids(self) -> list[str]:
        """One an output."""
        n = self.sampling.n
        return [self.rid] if n == 1 else [f"{self.rid}-{i}" for i in range(n)]

    def presenters(self, tokenizer: Tokenizer | None, weights: WeightVersion) -> list[Presenter]:
        """What the outputs will be shown by."""
        shared = self.sampling, tokenizer, self.layout, self.shown_special, weights
        return [Presenter(rid, *shared) for rid in self.request_ids]

    def again(self) -> Admitted:
        """The same call under a name of its own."""
        return msgspec.structs.replace(self, rid=uuid.uuid4().hex)

    def requests(
        self, token_ids: list[int], capacity: int, program: ProgramRef | None, pin: str
    ) -> list[GenerateRequest]:
        """Requests for ``token_ids``, which they share and nobody may change; the first is to leave the pin."""
        sampling = self.sampling
        if not self.limited and sampling.max_new_tokens is not None:
            room = max(1, capacity - len(token_ids))
            sampling = msgspec.structs.replace(sampling, max_new_tokens=min(sampling.max_new_tokens, room))
        return [
            GenerateRequest(
                request_id=request_id,
                token_ids=token_ids,
                sampling=_nth(sampling, index),
                constraint=self.constraint,
                constraint_after=self.constraint_after,
                reasoning_budget=self.reasoning_budget,
                thinking=self.thinking,
                logprobs=self.logprobs,
                pool=self.pool,
                priority=self.priority,
                namespace=self.namespace,
                program=program,
                pin=pin if index == 0 else "",
                timeout_s=self.timeout_s,
                queue_timeout_s=self.queue_timeout_s,
            )
            for index, request_id in enumerate(self.request_ids)
        ]


def _nth(sampling: SamplingParams, index: int) -> SamplingParams:
    """How output ``index`` is sampled: with a seed of its own."""
    if sampling.n == 1:
        return sampling
    seed = None if sampling.seed is None else (sampling.seed + index) % 2**64
    return msgspec.structs.replace(sampling, seed=seed, n=1)


class Admission:
    """The door of one engine.

    Args:
        vocab_size, eos_ids: of the model.
        tokenizer, compiler: ``None`` where there is none; the core then refuses what needs one.
        generates: the model has an output head.
    """

    def __init__(
        self,
        vocab_size: int,
        eos_ids: tuple[int, ...],
        tokenizer: Tokenizer | None,
        compiler: ConstraintCompiler | None,
        generates: bool = True,
    ) -> None:
        self._vocab_size = vocab_size
        self._eos_ids = eos_ids
        self._tokenizer = tokenizer
        self._compiler = compiler
        self._generates = generates
        self._lately: dict[tuple[object, ...], SamplingParams] = {}
        """By what was given, and its types: 1 is no true."""

    def admit(
        self,
        sampling_params: Mapping[str, Any] | None,
        num_prompt: int | None,
        /,
        *,
        return_logprob: bool = False,
        logprob_start_len: int | None = None,
        top_logprobs_num: int | None = None,
        token_ids_logprob: list[int] | None = None,
        return_text_in_logprobs: bool = False,
        rid: str | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
        extra_key: str | None = None,
        timeout_s: float | None = None,
        queue_timeout_s: float | None = None,
        constraint: ConstraintSpec | None = None,
        constraint_after: str | list[int] | None = None,
        reasoning_budget: int | None = None,
        thinking: ThinkingLimit | None = None,
        shown_special: Sequence[int] = (),
        pool: Literal["last"] | None = None,
    ) -> Admitted:
        """Read a call. ``num_prompt``: tokens of its prompt; ``None``: not known yet, the core checks what needs it.

        ``constraint``: in place of one among ``sampling_params``. ``shown_special``: special tokens that the text
        keeps even under ``skip_special_tokens``, for those who read a model's marks. ``pool``: the event has
        ``hidden``, the last prompt token's state. ``thinking``: bounds thinking that the constraint
        allows. Raises ``InvalidParameter`` or ``RequestRefused`` naming the field.
        """
        given = dict(sampling_params or {})
        sampling, constraint = self._sampling(given, constraint)
        check_options(rid, priority, cache_salt, extra_key, timeout_s, queue_timeout_s)
        check_pool(pool, sampling, constraint is not None or return_logprob)
        if not self._generates and (sampling.max_new_tokens != 0 or return_logprob):
            message = "this checkpoint has no output head (lm_head): it makes embeddings, and no text"
            raise InvalidParameter("model", None, message)
        after = ending_ids(constraint_after, reasoning_budget, constraint, self._tokenizer, self._vocab_size)
        check_constraint(constraint, sampling, self._compiler)
        if thinking is not None and constraint is None:
            raise InvalidParameter("thinking", thinking, "thinking bounds a part of a constraint and there is none")
        layout, options = logprob_options(
            num_prompt, return_logprob, logprob_start_len, top_logprobs_num, token_ids_logprob,
            return_text_in_logprobs, self._vocab_size,
        )  # fmt: skip
        return Admitted(
            rid=rid or uuid.uuid4().hex,
            sampling=sampling,
            limited=bool(given.keys() & {"max_new_tokens", "max_tokens"}),
            constraint=constraint,
            constraint_after=after,
            reasoning_budget=reasoning_budget,
            thinking=thinking,
            layout=layout,
            logprobs=options,
            pool=pool,
            shown_special=tuple(shown_special),
            priority=priority,
            namespace="\x00".join(filter(None, (cache_salt, extra_key))),
            timeout_s=timeout_s,
            queue_timeout_s=queue_timeout_s,
        )

    def _sampling(
        self, given: dict[str, Any], constraint: ConstraintSpec | None
    ) -> tuple[SamplingParams, ConstraintSpec | None]:
        """Sampling parameters, read and checked; most requests sample as one of the last did."""
        plain = _PLAIN.issuperset(map(type, given.values()))
        key = (*given.items(), *map(type, given.values())) if plain and constraint is None else None
        if key is not None and (known := self._lately.get(key)) is not None:
            return known, None
        sampling, constraint = parse_sampling_params(given, constraint)
        validate(sampling, self._vocab_size, self._eos_ids)
        if key is not None and constraint is None:
            if len(self._lately) >= _REMEMBERED:
                self._lately.clear()
            self._lately[key] = sampling
        return sampling, constraint


def placed(program: ProgramRef | None, hints: Mapping[str, Any] | None) -> ProgramRef | None:
    """Where in its program a request stands: ``hints`` may have ``node``, ``group``, ``group_size``, ``upcoming``.

    Raises ``InvalidParameter``. Nothing comes of hints about a request of no program.
    """
    if not hints:
        return program
    for name, value in hints.items():
        if name in ("node", "group"):
            good = isinstance(value, str) and len(value) <= MAX_NODE
            rule = f"must be text of at most {MAX_NODE} characters"
        elif name in ("group_size", "upcoming"):
            good = type(value) is int and 0 <= value <= MAX_PRIORITY
            rule = "must be a count"
        else:
            good, rule = False, "is no hint; known are node, group, group_size and upcoming"
        if not good:
            raise InvalidParameter(f"hints.{name}", value, f"hints: {name} {rule}, got {str(value)[:80]!r}")
    if program is None:
        return None
    return msgspec.structs.replace(
        program,
        node_id=hints.get("node", ""),
        group_id=hints.get("group", ""),
        group_size=hints.get("group_size", 1),
        upcoming=hints.get("upcoming", 0),
    )


def check_pool(pool: Any, sampling: SamplingParams, more: bool) -> None:
    """Refuse what does not go with a hidden state; ``more``: a constraint, or logprobs."""
    if pool is None:
        return
    if pool != "last":
        raise InvalidParameter("pool", pool, f"pool must be 'last', got {pool!r}")
    if more or sampling.max_new_tokens != 0 or sampling.n != 1:
        message = "pool gives a hidden state and nothing else; give max_new_tokens=0, no constraint, no logprobs, no n"
        raise InvalidParameter("pool", pool, message)


def check_constraint(
    spec: ConstraintSpec | None, sampling: SamplingParams, compiler: ConstraintCompiler | None
) -> None:
    """Refuse what is known not to work before it is compiled. Raises ``RequestRefused`` or ``InvalidParameter``."""
    if spec is None:
        return
    if spec.kind == "choice" and sampling.min_new_tokens:
        longest = max((len(text.encode()) for text in json.loads(spec.value)), default=0)
        if sampling.min_new_tokens > longest:
            message = (
                f"min_new_tokens={sampling.min_new_tokens} and choice exclude each other: the longest choice has "
                f"{longest} bytes, so at most as many tokens; lower min_new_tokens"
            )
            raise InvalidParameter("min_new_tokens", sampling.min_new_tokens, message)
    if compiler is None or len(spec.value) > MAX_CHECKED_BYTES:
        return
    try:
        compiler.check(spec)
    except (ConstraintError, ConstraintRefused) as error:
        raise RequestRefused(name_the_constraint(spec, str(error))) from None


def ending_ids(
    after: Any, budget: Any, spec: ConstraintSpec | None, tokenizer: Tokenizer | None, vocab_size: int
) -> tuple[int, ...]:
    """The tokens that a constraint begins after, given as text or as ids; none: it begins at once."""
    if after is None:
        if budget is not None:
            message = f"reasoning_budget={budget!r} needs constraint_after: the text that ends the reasoning"
            raise InvalidParameter("reasoning_budget", budget, message)
        return ()
    if spec is None:
        message = "constraint_after says where a constraint begins and there is none; add one or leave it out"
        raise InvalidParameter("constraint_after", after, message)
    if budget is not None and (type(budget) is not int or budget < 0):
        message = f"reasoning_budget must be a number of tokens, 0 or more, got {budget!r}"
        raise InvalidParameter("reasoning_budget", budget, message)
    ids = tokenizer.encode(after) if isinstance(after, str) and tokenizer is not None else after
    shaped = isinstance(ids, (list, tuple)) and all(type(token) is int and 0 <= token < vocab_size for token in ids)
    if not shaped or not 0 < len(ids) <= MAX_AFTER:
        message = (
            f"constraint_after must be text or ids in [0, {vocab_size - 1}], 1 to {MAX_AFTER} tokens, got {after!r}"
        )
        raise InvalidParameter("constraint_after", after, message[:400])
    return tuple(ids)


def pick(value: Any, index: int, count: int, name: str, many: bool) -> Any:
    """The value for one prompt of a batch: its own when a list was given, else the common one."""
    flat = name in ("token_ids_logprob", "constraint_after") and isinstance(value, list) and value
    if not many or not isinstance(value, list) or (flat and isinstance(value[0], int)):
        return value
    if len(value) != count:
        raise InvalidParameter(name, value, f"{name} has {len(value)} entries for {count} prompts; give one each")
    return value[index]


def check_options(rid: Any, priority: Any, salt: Any, extra: Any, timeout_s: Any, queue_timeout_s: Any) -> None:
    """What a request carries besides sampling; ``InvalidParameter`` names the field."""
    for name, value in (("rid", rid), ("cache_salt", salt), ("extra_key", extra)):
        if value is not None and not (isinstance(value, str) and len(value) <= MAX_NAME):
            raise InvalidParameter(name, value, f"{name} must be text of at most {MAX_NAME} characters, got {value!r}")
    if type(priority) is not int or abs(priority) > MAX_PRIORITY:
        message = f"priority must be an integer in [-{MAX_PRIORITY}, {MAX_PRIORITY}], got {priority!r}"
        raise InvalidParameter("priority", priority, message)
    for name, value in (("timeout_s", timeout_s), ("queue_timeout_s", queue_timeout_s)):
        if value is not None and not (isinstance(value, (int, float)) and value > 0):
            raise InvalidParameter(name, value, f"{name} must be a positive number of seconds, got {value!r}")


def logprob_options(
    num_prompt: int | None,
    wanted: bool,
    start_len: int | None,
    top_n: int | None,
    given: list[int] | None,
    text: bool,
    vocab_size: int,
) -> tuple[LogprobLayout | None, LogprobOptions | None]:
    """The caller's words on logprobs, checked; ``logprob_start_len`` -1 or ``None`` asks for no prompt logprobs."""
    if not wanted:
        return None, None
    start = None if start_len is None or start_len < 0 else start_len
    if start is not None and num_prompt is not None and start > num_prompt:
        message = f"logprob_start_len={start} is beyond the prompt of {num_prompt} tokens"
        raise InvalidParameter("logprob_start_len", start, message)
    if top_n is not None and not 0 <= top_n <= vocab_size:
        message = f"top_logprobs_num must be in [0, {vocab_size}], got {top_n}"
        raise InvalidParameter("top_logprobs_num", top_n, message)
    bad = next((token for token in given or [] if not 0 <= token < vocab_size), None)
    if bad is not None:
        message = f"token_ids_logprob has {bad}, an out-of-vocabulary id: there are {vocab_size} tokens"
        raise InvalidParameter("token_ids_logprob", given, message)
    layout = LogprobLayout(top_n=top_n or 0, given=bool(given), text=text)
    return layout, LogprobOptions(start_len=start, top_n=top_n or 0, token_ids=tuple(given or ()))
