"""What a caller's words must be before a request is made of them. Runs on the caller's thread; nothing here waits.

A constraint that is malformed or cannot be enforced is refused here, in milliseconds, whatever is being compiled.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sglite.constrained.spec import ConstraintError, ConstraintRefused, ConstraintSpec
from sglite.runtime.engine.generation import RequestRefused
from sglite.runtime.engine.grammar import name_the_constraint
from sglite.runtime.engine.presenter import LogprobLayout
from sglite.runtime.protocol import LogprobOptions
from sglite.runtime.sample.params import InvalidParameter, SamplingParams

if TYPE_CHECKING:
    from sglite.constrained.compiler import ConstraintCompiler
    from sglite.runtime.text.tokenizer import Tokenizer

MAX_NAME = 256
MAX_PRIORITY = 2**31 - 1
MAX_CHECKED_BYTES = 32 * 1024
"""Longer constraints are read where they are compiled: a caller's event loop must not stand still for them."""
MAX_AFTER = 64
"""Tokens of the run that a constraint may begin after."""


def check_constraint(
    spec: ConstraintSpec | None, sampling: SamplingParams, compiler: ConstraintCompiler | None
) -> None:
    """Refuse what is known not to work before it is compiled. Raises ``RequestRefused`` or ``InvalidParameter``."""
    if spec is None or compiler is None:
        return
    if spec.kind == "choice" and sampling.min_new_tokens:
        longest = max((len(text.encode()) for text in json.loads(spec.value)), default=0)
        if sampling.min_new_tokens > longest:
            message = (
                f"min_new_tokens={sampling.min_new_tokens} and choice exclude each other: the longest choice has "
                f"{longest} bytes, so at most as many tokens; lower min_new_tokens"
            )
            raise InvalidParameter("min_new_tokens", sampling.min_new_tokens, message)
    if len(spec.value) > MAX_CHECKED_BYTES:
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
    num_prompt: int,
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
    if start is not None and start > num_prompt:
        message = f"logprob_start_len={start} is beyond the prompt of {num_prompt} tokens"
        raise InvalidParameter("logprob_start_len", start, message)
    if top_n is not None and not 0 <= top_n <= vocab_size:
        message = f"top_logprobs_num must be in [0, {vocab_size}], got {top_n}"
        raise InvalidParameter("top_logprobs_num", top_n, message)
    bad = next((token for token in given or [] if not 0 <= token < vocab_size), None)
    if bad is not None:
        message = f"token_ids_logprob has {bad}, outside the vocabulary of {vocab_size} tokens"
        raise InvalidParameter("token_ids_logprob", given, message)
    layout = LogprobLayout(top_n=top_n or 0, given=bool(given), text=text)
    return layout, LogprobOptions(start_len=start, top_n=top_n or 0, token_ids=tuple(given or ()))
