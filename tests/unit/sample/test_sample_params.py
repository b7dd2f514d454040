"""What requests may ask: every value is checked on construction, and a refusal names the field and the value."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import msgspec
import pytest

from sglite.runtime.sample.params import InvalidParameter, SamplingParams, parse_sampling_params, validate

BIG = 10**5000


def refusal(mapping: Any) -> InvalidParameter:
    with pytest.raises(InvalidParameter) as caught:
        parse_sampling_params(mapping)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 300, message
    return caught.value


def test_importing_params_imports_no_torch() -> None:
    code = "import sys, sglite.runtime.sample.params; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_nothing_given_is_the_default() -> None:
    assert parse_sampling_params({}) == (SamplingParams(), None)


def test_every_field_survives_parsing_and_the_wire() -> None:
    given = {
        "max_new_tokens": 7,
        "min_new_tokens": 2,
        "on_limit": "stop",
        "stop": ["a", "b"],
        "stop_token_ids": [3, 4],
        "stop_regex": ["[xy]"],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "min_p": 0.1,
        "frequency_penalty": -1,
        "presence_penalty": 2,
        "repetition_penalty": 1.5,
        "logit_bias": {"5": 3, "6": -100.0},
        "allowed_token_ids": [1, 5],
        "ignore_eos": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "no_stop_trim": True,
        "n": 3,
        "seed": 11,
    }
    assert set(given) == set(SamplingParams.__struct_fields__)
    params, constraint = parse_sampling_params(given)
    assert constraint is None
    got = msgspec.structs.asdict(params)
    assert got == {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()} | {
        "logit_bias": {5: 3.0, 6: -100.0}
    }
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params


@pytest.mark.parametrize(
    ("alias", "name", "value"),
    [("max_tokens", "max_new_tokens", 9), ("min_tokens", "min_new_tokens", 9), ("sampling_seed", "seed", 9)],
)
def test_other_spellings(alias: str, name: str, value: int) -> None:
    assert getattr(parse_sampling_params({alias: value})[0], name) == value
    assert refusal({alias: value, name: value}).field == name


def test_one_string_is_a_list_of_one() -> None:
    params, _ = parse_sampling_params({"stop": "END", "stop_regex": "[0-9]"})
    assert params.stop == ("END",) and params.stop_regex == ("[0-9]",)


def test_none_is_the_default_but_lifts_the_limit() -> None:
    names = [*SamplingParams.__struct_fields__, "json_schema", "regex", "ebnf", "choice", "structural_tag"]
    params, constraint = parse_sampling_params(dict.fromkeys(names))
    assert params == SamplingParams(max_new_tokens=None) and constraint is None


BAD: list[tuple[str, Any, str]] = [
    ("top_p", 7.0, "top_p must be in (0, 1], got 7.0."),
    ("top_p", 0, "top_p must be in (0, 1], got 0.0."),
    ("temperature", -0.5, "temperature must be in [0, 1000000], got -0.5."),
    ("temperature", "hot", "temperature must be a number, got 'hot'."),
    ("temperature", True, "temperature must be a number, got True."),
    ("temperature", float("nan"), "temperature must be finite, got nan."),
    ("temperature", float("inf"), "temperature must be finite, got inf."),
    ("temperature", BIG, "temperature must be in [0, 1000000], got an integer of 16610 bits."),
    ("top_k", -7, "top_k must be in [-1, 2147483647], got -7."),
    ("top_k", BIG, "top_k must be in [-1, 2147483647], got an integer of 16610 bits."),
    ("top_k", 1.0, "top_k must be an integer, got 1.0."),
    ("min_p", 2, "min_p must be in [0, 1], got 2.0."),
    ("frequency_penalty", 2.1, "frequency_penalty must be in [-2, 2], got 2.1."),
    ("presence_penalty", 99, "presence_penalty must be in [-2, 2], got 99.0."),
    ("repetition_penalty", 0, "repetition_penalty must be in (0, 2], got 0.0."),
    ("n", 0, "n must be in [1, 128], got 0."),
    ("n", 100_000_000, "n must be in [1, 128], got 100000000."),
    ("n", True, "n must be an integer, got True."),
    ("max_new_tokens", -1, "max_new_tokens must be in [0, 2147483647], got -1."),
    ("max_new_tokens", "many", "max_new_tokens must be an integer, got 'many'."),
    ("min_new_tokens", 129, "min_new_tokens must be in [0, max_new_tokens=128], got 129."),
    ("on_limit", "end", "on_limit must be stop or close or try_close, got 'end'."),
    ("seed", "abc", "seed must be an integer, got 'abc'."),
    ("seed", 2**70, "seed must be in [-9223372036854775808, 18446744073709551615], got 1180591620717411303424."),
    ("stop", 5, "stop must be a string or a list of strings, got 5."),
    ("stop", ["a", 5], "stop must be a string or a list of strings, got 5."),
    ("stop", "", "stop must have entries of 1 to 1024 characters, got ''."),
    ("stop", ["x"] * 33, "stop must have at most 32 entries, got tuple of 33 items."),
    ("stop", "\ud800", r"stop must be valid Unicode, got '\ud800'."),
    ("stop_token_ids", [-1], "stop_token_ids must be a list of token ids, got -1."),
    ("stop_token_ids", [True], "stop_token_ids must be a list of token ids, got True."),
    ("stop_token_ids", 5, "stop_token_ids must be a list of token ids, got 5."),
    ("allowed_token_ids", [], "allowed_token_ids must name at least one token, or be null to allow all, got "),
    ("logit_bias", {"hello": 1}, "logit_bias must have token ids as keys, got 'hello'."),
    ("logit_bias", {"one": 1, "2": 1, "three": 1}, "logit_bias must have token ids as keys, got 'one', 'three'."),
    ("logit_bias", {"-1": 1}, "logit_bias must have token ids as keys, got '-1'."),
    ("logit_bias", {"5": "x"}, "logit_bias must have numbers in [-100, 100] as values, got 'x'."),
    ("logit_bias", {"5": 101}, "logit_bias must have numbers in [-100, 100] as values, got 101."),
    ("logit_bias", {"5": float("nan")}, "logit_bias must have numbers in [-100, 100] as values, got nan."),
    ("logit_bias", {"5": 1, 5: 2}, "logit_bias has token id 5 twice."),
    ("logit_bias", [5], "logit_bias must map token ids to numbers, got list of 1 items."),
    ("ignore_eos", 1, "ignore_eos must be true or false, got 1."),
    ("regex", 5, "regex must be a string, got 5."),
    ("json_schema", 5, "json_schema must be an object or its JSON text, got 5."),
    ("json_schema", "{", "json_schema cannot be read: "),
    ("json_schema", {"const": "\ud800"}, "json_schema must be valid Unicode, got dict of 1 items."),
    ("choice", "ab", "choice must be a list of strings, got 'ab'."),
    ("choice", [], "choice cannot be read: "),
]


@pytest.mark.parametrize(("field", "value", "message"), BAD, ids=[f"{f}-{i}" for i, (f, _, _) in enumerate(BAD)])
def test_bad_values_are_refused_by_name(field: str, value: Any, message: str) -> None:
    error = refusal({field: value})
    assert error.field == field
    assert str(error).startswith(message)


@pytest.mark.parametrize("top_k", [0, -1])
def test_top_k_off(top_k: int) -> None:
    assert not parse_sampling_params({"top_k": top_k})[0].is_greedy


def test_direct_construction_is_checked_too() -> None:
    with pytest.raises(InvalidParameter, match="top_p must be in"):
        SamplingParams(top_p=2.0)
    with pytest.raises(msgspec.ValidationError, match="top_p must be in"):
        msgspec.json.decode(b'{"top_p": 2.0}', type=SamplingParams)


def test_unknown_names_get_the_nearest_known_one() -> None:
    error = refusal({"temprature": 0.5})
    assert error.field == "temprature" and error.value == 0.5
    assert str(error) == "'temprature' is no sampling parameter (value 0.5); did you mean temperature?"
    refusal({"x" * 100_000: BIG})
    refusal({5: 5})
    assert refusal([1]).field == "sampling_params"


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("json_schema", {"type": "object"}, "json_schema"),
        ("json_schema", '{"type": "object"}', "json_schema"),
        ("regex", "[a-z]+", "regex"),
        ("ebnf", 'root ::= "a"', "ebnf"),
        ("choice", ["yes", "no"], "choice"),
        ("structural_tag", {"structures": [], "triggers": []}, "structural_tag"),
    ],
)
def test_constraints(name: str, value: Any, kind: str) -> None:
    params, constraint = parse_sampling_params({name: value, "max_tokens": 3})
    assert params.max_new_tokens == 3
    assert constraint is not None and constraint.kind == kind


def test_one_constraint_only() -> None:
    assert str(refusal({"regex": "a", "ebnf": "b"})) == "only one of regex and ebnf can be set."


class TestAgainstTheModel:
    @pytest.mark.parametrize(
        "params",
        [
            SamplingParams(stop_token_ids=(100,)),
            SamplingParams(logit_bias={100: 1.0}),
            SamplingParams(allowed_token_ids=(1, 100)),
        ],
    )
    def test_ids_outside_the_vocabulary(self, params: SamplingParams) -> None:
        validate(params, 101)
        with pytest.raises(
            InvalidParameter, match=r"must have token ids in \[0, 99\] \(a vocabulary of 100\), got 100\."
        ):
            validate(params, 100)

    def test_a_mask_that_provably_leaves_nothing(self) -> None:
        ends = SamplingParams(min_new_tokens=2, allowed_token_ids=(2, 3), stop_token_ids=(3,))
        validate(ends, 100)
        with pytest.raises(InvalidParameter, match="all stop tokens, which min_new_tokens=2 bans"):
            validate(ends, 100, eos_ids=[2])
        validate(msgspec.structs.replace(ends, ignore_eos=True), 100, eos_ids=[2])
        validate(msgspec.structs.replace(ends, min_new_tokens=0), 100, eos_ids=[2])
