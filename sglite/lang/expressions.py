"""What programs are written with: expressions to append. Names and arguments are SGLang's."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sglite.lang.choices import ChoicesMethod, token_length_normalized
from sglite.lang.ir import Concat, Expr, Gen, Media, Reasoned, RoleBegin, RoleEnd, Sampling, Select, flatten
from sglite.lang.reasoning import reasoning_tags
from sglite.lang.types import Strings, as_strings, dtype_rule, schema_text

if TYPE_CHECKING:
    from sglite.lang.typed import TypeSpec

_MAX_MEDIA_BYTES = 256 * 1024 * 1024


def gen(
    name: str | None = None,
    max_tokens: int | None = None,
    min_tokens: int | None = None,
    n: int | None = None,
    stop: Strings | None = None,
    stop_token_ids: Sequence[int] | None = None,
    stop_regex: Strings | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    ignore_eos: bool | None = None,
    return_logprob: bool | None = None,
    logprob_start_len: int | None = None,
    top_logprobs_num: int | None = None,
    return_text_in_logprobs: bool | None = None,
    dtype: type | str | None = None,
    choices: Sequence[str] | None = None,
    choices_method: ChoicesMethod | None = None,
    regex: str | None = None,
    json_schema: str | dict[str, Any] | type | None = None,
    *,
    type: Any = None,
    check: Callable[[Any], Any] | None = None,
    retries: int = 0,
    ebnf: str | None = None,
    structural_tag: str | dict[str, Any] | None = None,
    on_limit: Literal["stop", "close", "try_close"] | None = None,
    repetition_penalty: float | None = None,
    seed: int | None = None,
    whole_turn: bool = False,
    heal: bool = False,
) -> Expr:
    """Text from the model, kept as variable ``name``. What is None comes from ``run``, and there from the back end.

    ``n`` > 1: the variable is a list and its first item joins the text. ``regex``, ``json_schema`` (text, a dict or a
    pydantic model) and ``dtype`` (int, float, bool, str; the value stays a string) constrain the text; at most one of
    them. ``choices`` makes it a ``select``, of whose arguments only ``temperature`` and ``choices_method`` matter then.

    Beyond SGLang's: ``type``, a Python type that the text is an exact spelling of; the variable is the object, and
    ``s.raw(name)`` the text. ``check``: a function of the value; where it raises ValueError or AssertionError, or
    returns False, the text is taken back and written again, at most ``retries`` times and not as before. ``ebnf`` and
    ``structural_tag`` constrain like ``regex``. ``on_limit="close"``: a constrained text is whole when ``max_tokens``
    ends it. ``heal``: the text before ends inside a word or a URL, say; its last tokens may be other ones, as the model
    would have written them. ``whole_turn``: without ``max_tokens``, what is left of the context and not 128 tokens.

    Raises re.error for a broken ``regex`` and ValueError for arguments that exclude each other.
    """
    constraints = {
        "dtype": dtype, "regex": regex, "json_schema": json_schema, "type": type, "ebnf": ebnf,
        "structural_tag": structural_tag,
    }  # fmt: skip
    given = [key for key, value in constraints.items() if value is not None]
    if choices is not None:
        asked = {"n": (n or 1) > 1, "check": check is not None, "retries": retries, "heal": heal, "on_limit": on_limit}
        excluded = [*given, *(key for key, value in asked.items() if value)]
        if excluded:
            raise ValueError(f"gen(choices=...) cannot be combined with {', '.join(excluded)}; drop one of them")
        return select(name, choices, temperature or 0.0, choices_method or token_length_normalized)
    if len(given) > 1:
        raise ValueError(f"gen: {' and '.join(given)} exclude each other; give one")
    if regex is not None:
        re.compile(regex)
    _check_retries(retries, n, refusable=check is not None or type is not None)
    rule = None if dtype is None else dtype_rule(dtype)
    spec = None if type is None else _spec(type)
    sampling = Sampling(
        max_new_tokens=max_tokens,
        min_new_tokens=min_tokens,
        n=n,
        stop=as_strings(stop),
        stop_token_ids=None if stop_token_ids is None else tuple(stop_token_ids),
        stop_regex=as_strings(stop_regex),
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        ignore_eos=ignore_eos,
        repetition_penalty=repetition_penalty,
        seed=seed,
        regex=spec.regex if spec is not None else regex if rule is None else rule.regex,
        json_schema=_schema(json_schema, spec),
        ebnf=ebnf,
        structural_tag=json.dumps(structural_tag) if isinstance(structural_tag, dict) else structural_tag,
        on_limit=on_limit,
        return_logprob=return_logprob,
        logprob_start_len=logprob_start_len,
        top_logprobs_num=top_logprobs_num,
        return_text_in_logprobs=return_text_in_logprobs,
    )
    stop_after = () if rule is None else rule.stop
    if heal and (sampling.json_schema or ebnf or structural_tag or (n or 1) > 1):
        raise ValueError("gen(heal=True) goes with a free text or a regex, and n=1; drop the other constraint")
    return Gen(name, sampling, stop_after, spec, check, retries, whole_turn, heal)


def _check_retries(retries: int, n: int | None, *, refusable: bool) -> None:
    if type(retries) is not int or retries < 0:
        raise ValueError(f"gen(retries={retries!r}): give a number of further attempts, 0 or more")
    if retries and (n or 1) > 1:
        raise ValueError(f"gen(retries={retries}, n={n}): only a single output can be written again; drop n")
    if retries and not refusable:
        raise ValueError(f"gen(retries={retries}) has nothing to refuse a text by; give check=... or type=...")


def _spec(kind: Any) -> TypeSpec:
    from sglite.lang.typed import TypeSpec, type_spec  # pydantic is loaded by those who use types

    return kind if isinstance(kind, TypeSpec) else type_spec(kind)


def _schema(given: str | dict[str, Any] | type | None, spec: TypeSpec | None) -> str | None:
    if spec is not None:
        return spec.json_schema
    return None if given is None else schema_text(given)


def repeat(
    name: str | None = None,
    item: Any = str,
    *,
    sep: str = "\n",
    min: int = 1,
    max: int | None = None,
    **arguments: Any,
) -> Expr:
    """A list written as text: ``min`` to ``max`` times ``item``, with ``sep`` between them; the model ends it.

    ``item``: a type with a spelling of its own (int, Literal, Enum...), str for a line of text, or a regex given as
    ``re.compile(...)``. The variable is the list of values. ``arguments``: those of ``gen``.
    """
    from sglite.lang.repeated import repeated_spec

    return gen(name, type=repeated_spec(item, sep, min, max), **arguments)


def gen_int(name: str | None = None, max_tokens: int | None = None, **sampling: Any) -> Expr:
    """``gen`` of the digits of an integer."""
    return gen(name, max_tokens, dtype=int, **sampling)


def gen_string(name: str | None = None, max_tokens: int | None = None, **sampling: Any) -> Expr:
    """``gen`` of a string in double quotes."""
    return gen(name, max_tokens, dtype=str, **sampling)


def select(
    name: str | None = None,
    choices: Sequence[str] | None = None,
    temperature: float = 0.0,
    choices_method: ChoicesMethod = token_length_normalized,
) -> Expr:
    """One of ``choices``, by the model's log probabilities and ``choices_method``; above temperature 0 it is drawn
    by the method's scores. ValueError for no choices or an empty one, TypeError for a choice that is no string."""
    if choices is None or isinstance(choices, str) or not choices:
        raise ValueError(f"select(choices={choices!r}): give a list of one string or more")
    for choice in choices:
        if not isinstance(choice, str):
            raise TypeError(f"select: choice {choice!r} is no string")
        if not choice:
            raise ValueError("select: the empty string cannot be scored; leave it out of choices")
    return Select(name, tuple(choices), choices_method, temperature)


def _turn(role: str, expr: str | Expr | None) -> Expr:
    inside = () if expr is None else flatten(expr)
    return Concat((RoleBegin(role), *inside, RoleEnd(role)))


def system(expr: str | Expr | None = None) -> Expr:
    """A system turn."""
    return _turn("system", expr)


def user(expr: str | Expr | None = None) -> Expr:
    """A user turn."""
    return _turn("user", expr)


def assistant(expr: str | Expr | None = None) -> Expr:
    """An assistant turn."""
    return _turn("assistant", expr)


def system_begin() -> Expr:
    """Opens a system turn."""
    return RoleBegin("system")


def system_end() -> Expr:
    """Closes a system turn."""
    return RoleEnd("system")


def user_begin() -> Expr:
    """Opens a user turn."""
    return RoleBegin("user")


def user_end() -> Expr:
    """Closes a user turn."""
    return RoleEnd("user")


def assistant_begin() -> Expr:
    """Opens an assistant turn."""
    return RoleBegin("assistant")


def assistant_end() -> Expr:
    """Closes an assistant turn."""
    return RoleEnd("assistant")


def image(source: str | bytes | Path) -> Expr:
    """An image, given as a file's path or content. Only for models that understand images."""
    return Media("image", _base64(source))


def video(path: str | bytes | Path, num_frames: int) -> Expr:
    """``num_frames`` frames of a video. Only for models that understand videos."""
    return Media("video", _base64(path), num_frames)


def _base64(source: str | bytes | Path) -> str:
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    if len(content) > _MAX_MEDIA_BYTES:
        raise ValueError(f"a file of {len(content)} bytes cannot be appended; at most {_MAX_MEDIA_BYTES} can")
    return base64.b64encode(content).decode("ascii")


def separate_reasoning(expr: str | Expr | None = None, model_type: str | None = None) -> Expr:
    """Keeps the reasoning of every gen in ``expr`` out of the text and in variable ``<name>_reasoning_content``.

    ``model_type`` says how the model marks it. Streamed, the answer comes in one piece.
    Raises ValueError for a gen without name or with n > 1, or an unknown ``model_type``.
    """
    if model_type is None:
        raise ValueError("separate_reasoning: say how the model marks its reasoning, model_type='qwen3' for example")
    tags = reasoning_tags(model_type)
    ops = () if expr is None else flatten(expr)
    for op in ops:
        if isinstance(op, Gen) and (op.name is None or (op.sampling.n or 1) > 1):
            raise ValueError(f"separate_reasoning: {op} needs a name, and n=1, for its reasoning to be kept")
        if isinstance(op, Gen) and (op.type is not None or op.check is not None or op.retries or op.heal):
            raise ValueError(
                f"separate_reasoning: {op} with type, check, retries or heal; leave these out, or the wrapper"
            )
    return Concat(tuple(Reasoned(op, tags) if isinstance(op, Gen) else op for op in ops))
