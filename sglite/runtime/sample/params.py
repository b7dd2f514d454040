"""Sampling parameters: what a request may ask of the sampler and of its end, checked once, at the door.

A ``SamplingParams`` that exists is valid: types and ranges are checked on construction, whoever constructs
it, so nothing behind this module checks them again. What depends on the model (ids inside its vocabulary,
masks that provably leave no token) is checked by ``validate``. Nothing is ignored: an unknown name, a value
out of range or two constraints at once is an ``InvalidParameter`` that names the field, the value, the rule.

No torch here: the engine core, the server and the language read it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from sglite.constrained.spec import ConstraintSpec

MAX_INT = 2**31 - 1
"""Upper bound of counts and token ids: what a 32-bit index holds."""
MAX_STOPS = 32
MAX_STOP_CHARS = 1024
MAX_STOP_IDS = 1024
MAX_BIASES = 4096
_MAX_NAMED = 16
MAX_ALLOWED_IDS = 2**20
MAX_N = 128
ON_LIMIT = ("stop", "close", "try_close")
GREEDY_BELOW = 1e-6
"""Temperatures below this mean argmax (SGLang's bound)."""
MAX_TEMPERATURE = 10**6
"""Hotter rows are as uniform as fp32 can tell; beyond its range, masked tokens would turn into NaN."""

_ALIASES = {"max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens", "sampling_seed": "seed"}
CONSTRAINTS = ("json_schema", "regex", "ebnf", "choice", "structural_tag")


class InvalidParameter(ValueError):
    """A sampling parameter that cannot be honoured; ``str()`` is one line that names field and value."""

    def __init__(self, field: str, value: object, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.value = value


class _Range(NamedTuple):
    """A closed range, or one open below."""

    low: int
    high: int
    open_below: bool = False

    def __contains__(self, value: object) -> bool:
        assert isinstance(value, (int, float))
        return self.low <= value <= self.high and not (self.open_below and value == self.low)

    def __str__(self) -> str:
        return f"in {'(' if self.open_below else '['}{self.low}, {self.high}]"


_INTEGERS = {
    "min_new_tokens": _Range(0, MAX_INT),
    "top_k": _Range(-1, MAX_INT),
    "n": _Range(1, MAX_N),
}
_NUMBERS = {
    "temperature": _Range(0, MAX_TEMPERATURE),
    "top_p": _Range(0, 1, open_below=True),
    "min_p": _Range(0, 1),
    "frequency_penalty": _Range(-2, 2),
    "presence_penalty": _Range(-2, 2),
    "repetition_penalty": _Range(0, 2, open_below=True),
}
_FLAGS = ("ignore_eos", "skip_special_tokens", "spaces_between_special_tokens", "no_stop_trim")
_BIAS = _Range(-100, 100)
_SEED = _Range(-(2**63), 2**64 - 1)


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How to sample one request and when it ends. Names and meanings are SGLang's; all values are checked.

    Raises ``InvalidParameter`` on construction (inside a msgspec decoder: ``msgspec.ValidationError``).
    """

    max_new_tokens: int | None = 128
    """Most new tokens; ``None``: as far as the context allows; 0: prefill only."""
    min_new_tokens: int = 0
    """No stop token is sampled before this many new tokens."""
    on_limit: str = "stop"
    """What ``max_new_tokens`` does to a constrained text: ``stop`` cuts it off, ``close`` has it whole by then
    or refuses the request, ``try_close`` has it whole where that can be and else cuts it off."""
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    stop_regex: tuple[str, ...] = ()
    temperature: float = 1.0
    """Logits are divided by it; 0 (anything below 1e-6): the most likely token, lowest id among equals."""
    top_p: float = 1.0
    top_k: int = -1
    """Sample among the k most likely tokens; 0 and -1: off."""
    min_p: float = 0.0
    """Drop tokens less likely than ``min_p`` times the most likely one."""
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    allowed_token_ids: tuple[int, ...] | None = None
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    no_stop_trim: bool = False
    n: int = 1
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, bounds in _INTEGERS.items():
            _check_integer(name, getattr(self, name), bounds)
        for name, bounds in _NUMBERS.items():
            _check_number(name, getattr(self, name), bounds)
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise _bad(name, getattr(self, name), "must be true or false")
        if self.seed is not None:
            _check_integer("seed", self.seed, _SEED)
        if self.max_new_tokens is not None:
            _check_integer("max_new_tokens", self.max_new_tokens, _Range(0, MAX_INT))
            if self.min_new_tokens > self.max_new_tokens:
                limit = f"must be in [0, max_new_tokens={self.max_new_tokens}]"
                raise _bad("min_new_tokens", self.min_new_tokens, limit)
        if self.on_limit not in ON_LIMIT:
            raise _bad("on_limit", self.on_limit, f"must be {' or '.join(ON_LIMIT)}")
        _check_texts("stop", self.stop)
        _check_texts("stop_regex", self.stop_regex)
        _check_ids("stop_token_ids", self.stop_token_ids, MAX_STOP_IDS)
        if self.allowed_token_ids is not None:
            _check_ids("allowed_token_ids", self.allowed_token_ids, MAX_ALLOWED_IDS)
            if not self.allowed_token_ids:
                raise _bad("allowed_token_ids", (), "must name at least one token, or be null to allow all")
        _check_bias(self.logit_bias)

    @property
    def is_greedy(self) -> bool:
        """Whether the row takes the most likely token, without a draw."""
        return self.temperature < GREEDY_BELOW or self.top_k == 1

    @property
    def has_penalties(self) -> bool:
        """Whether the sampler needs the row's token counts."""
        return self.repetition_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0


def parse_sampling_params(
    mapping: Mapping[str, Any], constraint: ConstraintSpec | None = None
) -> tuple[SamplingParams, ConstraintSpec | None]:
    """Read SGLang's ``sampling_params`` dictionary (and OpenAI's and vLLM's spellings of the same fields).

    Besides the fields of ``SamplingParams``: ``max_tokens``, ``min_tokens``, ``sampling_seed``; ``stop`` and
    ``stop_regex`` as one string; ``logit_bias`` with ids as strings; and at most one of ``json_schema`` (text
    or object), ``regex``, ``ebnf``, ``choice`` (list of strings), ``structural_tag`` (text or object). None
    is the default, except that ``max_new_tokens`` None lifts the limit. ``constraint`` stands for such an entry.

    Raises ``InvalidParameter`` for an unknown name, a wrong type or range, a name given under two spellings,
    or more than one constraint.
    """
    if not isinstance(mapping, Mapping):
        raise _bad("sampling_params", mapping, "must be an object of names and values")
    given: dict[str, Any] = {}
    for key, value in mapping.items():
        name = _ALIASES.get(key, key) if isinstance(key, str) else key
        if name not in SamplingParams.__struct_fields__ and name not in CONSTRAINTS:
            raise _unknown(key, value)
        if name in given:
            raise InvalidParameter(name, value, f"{name} is given twice, under two names; give it once.")
        if value is not None or name == "max_new_tokens":
            given[name] = value
    asked = [name for name in CONSTRAINTS if name in given]
    if len(asked) > 1:
        raise InvalidParameter(asked[1], given[asked[1]], f"only one of {' and '.join(asked)} can be set.")
    if asked and constraint is not None:
        raise InvalidParameter(asked[0], given[asked[0]], f"{asked[0]} and another constraint are set; give one.")
    if asked:
        constraint = _constraint(asked[0], given.pop(asked[0]))
    limit = given.get("on_limit")
    if constraint is None and limit in ("close", "try_close"):
        raise InvalidParameter("on_limit", limit, f"on_limit={limit!r} needs one of {', '.join(CONSTRAINTS)}.")
    return SamplingParams(**{name: _plain(name, value) for name, value in given.items()}), constraint


def validate(params: SamplingParams, vocab_size: int, eos_ids: Collection[int] = ()) -> None:
    """Check what depends on the model: ids inside the vocabulary, and masks that provably leave no token.

    ``vocab_size`` counts the ids that may be named (at most the width of the logits); ``eos_ids`` end a
    sequence unless ``ignore_eos``.
    Raises ``InvalidParameter``.
    """
    allowed = params.allowed_token_ids
    for name, ids in (
        ("stop_token_ids", params.stop_token_ids),
        ("logit_bias", params.logit_bias),
        ("allowed_token_ids", allowed or ()),
    ):
        worst = max(ids, default=0)
        if worst >= vocab_size:
            raise _bad(name, worst, f"must have token ids in [0, {vocab_size - 1}] (a vocabulary of {vocab_size})")
    if allowed is not None and params.min_new_tokens > 0:
        stops = set(params.stop_token_ids) | (set() if params.ignore_eos else set(eos_ids))
        if stops.issuperset(allowed):
            raise InvalidParameter(
                "allowed_token_ids",
                allowed,
                f"allowed_token_ids are all stop tokens, which min_new_tokens={params.min_new_tokens} bans; "
                "allow another token or set min_new_tokens to 0.",
            )


# --- reading ----------------------------------------------------------------------------------------------


def _plain(name: str, value: Any) -> Any:
    """A JSON value in the shape the field has; anything else is left for the checks to refuse."""
    if name in ("stop", "stop_regex") and isinstance(value, str):
        return (value,)
    if name in ("stop", "stop_regex", "stop_token_ids", "allowed_token_ids") and isinstance(value, list):
        return tuple(value)
    if name == "logit_bias" and isinstance(value, Mapping):
        return _bias(value)
    if name in _NUMBERS and isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_INT:
        return float(value)
    return value


def _bias(value: Mapping[Any, Any]) -> dict[Any, Any]:
    """``logit_bias`` with integer keys; JSON objects can only spell them as strings."""
    found: dict[Any, Any] = {}
    for key, bias in value.items():
        numeric = isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) <= 10
        token_id = int(key) if numeric else key
        if token_id in found:
            raise InvalidParameter("logit_bias", key, f"logit_bias has token id {token_id} twice.")
        found[token_id] = bias
    return found


def _constraint(name: str, value: Any) -> ConstraintSpec:
    """The constraint that field ``name`` asks for; malformed ones are refused under that name."""
    if name == "choice":
        shaped, rule = isinstance(value, (list, tuple)), "must be a list of strings"
        shaped = shaped and all(isinstance(item, str) for item in value)
    elif name in ("regex", "ebnf"):
        shaped, rule = isinstance(value, str), "must be a string"
    else:
        shaped, rule = isinstance(value, (str, dict, bool)), "must be an object or its JSON text"
    if not shaped:
        raise _bad(name, value, rule)
    make = getattr(ConstraintSpec, name)
    try:
        spec = make(list(value) if name == "choice" else value)
    except ValueError as error:
        raise InvalidParameter(name, value, f"{name} cannot be read: {error}") from error
    assert isinstance(spec, ConstraintSpec)
    if not _is_text(spec.value):
        raise _bad(name, value, "must be valid Unicode")
    return spec


# --- checks -----------------------------------------------------------------------------------------------


def _bad(name: str, value: object, rule: str) -> InvalidParameter:
    return InvalidParameter(name, value, f"{name} {rule}, got {_show(value)}.")


def _unknown(key: object, value: object) -> InvalidParameter:
    known = [*SamplingParams.__struct_fields__, *_ALIASES, *CONSTRAINTS]
    near = difflib.get_close_matches(key[:64], known, n=1) if isinstance(key, str) else []
    hint = f"did you mean {near[0]}?" if near else "see the list of sampling parameters."
    message = f"{_show(key)} is no sampling parameter (value {_show(value)}); {hint}"
    return InvalidParameter(key[:64] if isinstance(key, str) else _show(key), value, message)


def _show(value: object) -> str:
    """A value as an error message shows it: one line, bounded, whatever was sent (CPython refuses to print an
    integer of more than 4,300 digits)."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    if isinstance(value, str):
        return ascii(value[:60]) + ("..." if len(value) > 60 else "")
    if isinstance(value, Sequence | Mapping):
        return f"{type(value).__name__} of {len(value)} items"
    return f"a value of type {type(value).__name__}"


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: str) -> bool:
    """Whether the string can be encoded: JSON escapes can smuggle in half a surrogate pair."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_integer(name: str, value: object, bounds: _Range) -> None:
    if not _is_integer(value):
        raise _bad(name, value, "must be an integer")
    if value not in bounds:
        raise _bad(name, value, f"must be {bounds}")


def _check_number(name: str, value: object, bounds: _Range) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _bad(name, value, "must be a number")
    if not (isinstance(value, int) or math.isfinite(value)):
        raise _bad(name, value, "must be finite")
    if value not in bounds:
        raise _bad(name, value, f"must be {bounds}")


def _check_texts(name: str, value: object) -> None:
    if not isinstance(value, tuple):
        raise _bad(name, value, "must be a string or a list of strings")
    if len(value) > MAX_STOPS:
        raise _bad(name, value, f"must have at most {MAX_STOPS} entries")
    for text in value:
        if not isinstance(text, str):
            raise _bad(name, text, "must be a string or a list of strings")
        if not 0 < len(text) <= MAX_STOP_CHARS:
            raise _bad(name, text, f"must have entries of 1 to {MAX_STOP_CHARS} characters")
        if not _is_text(text):
            raise _bad(name, text, "must be valid Unicode")


def _check_ids(name: str, value: object, most: int) -> None:
    if not isinstance(value, tuple):
        raise _bad(name, value, "must be a list of token ids")
    if len(value) > most:
        raise _bad(name, value, f"must have at most {most} entries")
    for token_id in value:
        if not _is_integer(token_id) or not 0 <= token_id <= MAX_INT:
            raise _bad(name, token_id, "must be a list of token ids")


def _check_bias(value: object) -> None:
    if not isinstance(value, dict):
        raise _bad("logit_bias", value, "must map token ids to numbers")
    if len(value) > MAX_BIASES:
        raise _bad("logit_bias", value, f"must have at most {MAX_BIASES} entries")
    strange = [key for key in value if not _is_integer(key) or not 0 <= key <= MAX_INT]
    if strange:
        shown = ", ".join(_show(key) for key in strange[:_MAX_NAMED])
        raise InvalidParameter("logit_bias", strange[0], f"logit_bias must have token ids as keys, got {shown}.")
    for bias in value.values():
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or bias not in _BIAS:
            raise _bad("logit_bias", bias, f"must have numbers {_BIAS} as values")
